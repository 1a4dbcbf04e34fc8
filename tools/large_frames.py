"""What large frames cost the window, and what restoring them binned saves.

    python tools/large_frames.py [--sides 512,1024,2048,4096] [--model fast] [--turns 5]

For each side in pixels, medians in ms: what the window takes of a frame of which all or a part of
600 x 600 px is on the screen, both panes 600 px wide; one frame restored on one core, in full and
binned by 2 and 4; and two frames at once, each on its share of the cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from arguments import count, sides

from tem_live.bench_limits import median_ms
from tem_live.device_frame import DeviceFrame
from tem_live.errors import TemLiveError
from tem_live.frames import FrameRing, Slot, open_backend
from tem_live.gui.models.render import PaneLevels, RenderRequest, render
from tem_live.models import Restorer, load_restorer
from tem_live.models.binned import BinnedRestorer
from tem_live.pipeline.processing import MOST_WORKERS
from tem_live.state import FrameInfo
from tem_live.threads import (
    arithmetic_threads,
    keep_memory,
    set_arithmetic_threads,
    share_one_heap,
)

_DOSE_E_PER_PX = 5.0
_PANE_PX = 600
_BINNINGS = (1, 2, 4)
_INFO = FrameInfo(
    frame_id=0,
    sequence=0,
    host_time_s=0.0,
    exposure_s=0.05,
    binning=1,
    pixel_size_nm=0.1,
    counts_per_electron=40.0,
)


def study(side: int, model: str, turns: int) -> str:
    """A line for frames of one size."""
    restorer = load_restorer(model, "cpu")
    ring = FrameRing(open_backend("cpu"), MOST_WORKERS, (side, side), np.dtype(np.uint16))
    slots = [slot for slot in (ring.acquire() for _ in range(MOST_WORKERS)) if slot is not None]
    for number, slot in enumerate(slots):
        rng = np.random.default_rng(number)
        slot.electrons[...] = rng.poisson(_DOSE_E_PER_PX, (side, side))
    alone = [_alone(restorer, binning, slots[0], turns) for binning in _BINNINGS]
    together = _together(restorer, slots, turns)
    whole, part = _display(slots[0], ring)
    return " | ".join(
        [f"{side:5}", f"{whole:5.1f}", f"{part:5.1f}"] + [f"{ms:7.1f}" for ms in (*alone, together)]
    )


def _display(slot: Slot, ring: FrameRing) -> tuple[float, float]:
    slot.restored[...] = slot.electrons
    slot.is_restored = True
    height, width = slot.electrons.shape
    levels = PaneLevels(True, 0.0, 10.0, 0.5, 99.5)
    left, top = 0.4 * width, 0.4 * height
    part = (left, min(width, left + _PANE_PX), top, min(height, top + _PANE_PX))
    requests = (
        RenderRequest(0, levels, levels, shrink=max(1, width // _PANE_PX)),
        RenderRequest(0, levels, levels, visible=part, visible_of=(height, width)),
    )

    def show(request: RenderRequest) -> Callable[[], object]:
        return lambda: render(DeviceFrame.copy_of(slot, ring.backend, _INFO), request)

    return median_ms(show(requests[0])), median_ms(show(requests[1]))


def _alone(restorer: Restorer, binning: int, slot: Slot, turns: int) -> float:
    """One frame on one core."""
    set_arithmetic_threads(1)
    binned = restorer if binning == 1 else BinnedRestorer(restorer, binning)
    _restore(binned, slot)
    return float(np.median([_restore(binned, slot) for _ in range(turns)]))


def _together(restorer: Restorer, slots: list[Slot], turns: int) -> float:
    """Frames at the same time, as a session restores them."""

    def work(slot: Slot) -> list[float]:
        set_arithmetic_threads(max(1, arithmetic_threads() // MOST_WORKERS))
        # The first ones ask for their memory.
        return [_restore(restorer, slot) for _ in range(turns + 3)][3:]

    with ThreadPoolExecutor(MOST_WORKERS) as pool:
        return float(np.median([took for each in pool.map(work, slots) for took in each]))


def _restore(restorer: Restorer, slot: Slot) -> float:
    start = time.perf_counter()
    restorer.restore(slot.torch_electrons, out=slot.torch_restored)
    return 1e3 * (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=sides, default=[512, 1024, 2048, 4096])
    parser.add_argument("--model", default="fast")
    parser.add_argument("--turns", type=count, default=5)
    options = parser.parse_args(argv)
    share_one_heap()
    keep_memory()
    arithmetic_threads()
    sys.stdout.write(" side | whole |  part |    full |  bin 2 |  bin 4 | two at once (ms)\n")
    try:
        for side in options.sides:
            sys.stdout.write(study(side, options.model, options.turns) + "\n")
            sys.stdout.flush()
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
