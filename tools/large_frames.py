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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from arguments import count, sides
from printing import print_lines

from tem_live.bench_limits import median_ms
from tem_live.bench_scaling import display_work
from tem_live.frames import FrameRing, Slot, open_backend
from tem_live.models import Restorer, load_restorer
from tem_live.models.binned import BinnedRestorer
from tem_live.pipeline.processing import MOST_WORKERS
from tem_live.threads import (
    arithmetic_threads,
    keep_memory,
    set_arithmetic_threads,
    share_one_heap,
)

_DOSE_E_PER_PX = 5.0
_BINNINGS = (1, 2, 4)


def study(sizes: Sequence[int], model: str, turns: int) -> Iterator[str]:
    """A line for frames of each size."""
    yield " side | whole |  part |    full |  bin 2 |  bin 4 | two at once (ms)"
    restorer = load_restorer(model, "cpu")
    backend = open_backend("cpu")
    for side in sizes:
        ring = FrameRing(backend, MOST_WORKERS, (side, side), np.dtype(np.uint16))
        slots = [slot for slot in (ring.acquire() for _ in range(MOST_WORKERS)) if slot is not None]
        for number, slot in enumerate(slots):
            rng = np.random.default_rng(number)
            slot.electrons[...] = rng.poisson(_DOSE_E_PER_PX, (side, side))
        restored = [_alone(restorer, binning, slots[0], turns) for binning in _BINNINGS]
        restored.append(_together(restorer, slots, turns))
        slots[0].is_restored = True
        shown = [median_ms(display_work(slots[0], backend, closely)) for closely in (False, True)]
        figures = [f"{ms:5.1f}" for ms in shown] + [f"{ms:7.1f}" for ms in restored]
        yield " | ".join([f"{side:5}", *figures])


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
    return print_lines(study(options.sides, options.model, options.turns))


if __name__ == "__main__":
    sys.exit(main())
