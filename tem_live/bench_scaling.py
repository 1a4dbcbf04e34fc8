"""What a frame costs against its size: what ``tem-live bench --sizes`` measures and draws."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from tem_live.paths import check_target
from tem_live.pipeline import MOST_WORKERS

if TYPE_CHECKING:
    from tem_live.frames import Backend, Slot

TURNS = 3
"""All sizes are measured one after the other, so many times: other programs come and go."""
LEAST_PX = 4096**2
"""Frames are repeated until they have so many pixels together, or as many as the largest."""
LONGEST_S = 8.0
"""Repeats of one measurement in a turn end after this."""
SLOWEST_S = 90.0
"""A size that is expected to take longer for one frame is left out and named."""

Work = Callable[[], object]

_PANE_PX = 600


class Cost(TypedDict):
    """One size. ``cpu_ns_per_px`` is of the restorer."""

    size: int
    stages_ms: dict[str, float]
    stages_cpu_ms: dict[str, float]
    ns_per_px: float
    cpu_ns_per_px: float


def cost_by_size(sizes: Sequence[int], device: str, model: str) -> dict[str, Any]:
    """Measure calibration, restorer, drift, display and recording at several sizes.

    Parameters
    ----------
    sizes : sequence of int
        Sides of the square frames in pixels.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    model : str
        Restorer.

    Returns
    -------
    dict
        ``device``, ``model``, ``precision``, ``costs`` (one `Cost` a size, by the clock and in time
        of the processor, all cores added; the second means more where other programs run) and
        ``left_out`` (sizes that would take too long, with the seconds that were expected of one
        frame).

    Notes
    -----
    A turn repeats small frames until they have as many pixels together as the largest frame has
    (`LEAST_PX`), and takes the mean: the best of many short ones would be compared with the mean
    of a long one. Of the turns, whose pixels are the same, the best counts.
    """
    from tem_live.models import load_restorer

    restorer = load_restorer(model, device=device)
    works: dict[int, dict[str, Work]] = {}
    left_out: dict[str, float] = {}
    per_px = 0.0
    for size in sorted(set(sizes)):
        expected_s = per_px * size**2
        if expected_s > SLOWEST_S:
            left_out[str(size)] = round(expected_s, 1)
            continue
        works[size] = _works(size, restorer)
        per_px = _mean_ms(works[size]["restore"], 1)[0] / 1e3 / size**2
    pixels = max(LEAST_PX, max(works) ** 2)
    best: dict[int, dict[str, tuple[float, float]]] = {size: {} for size in works}
    for _ in range(TURNS):
        for size, stages in works.items():
            for name, work in stages.items():
                wall, cpu = _mean_ms(work, pixels // size**2)
                wall_before, cpu_before = best[size].get(name, (math.inf, math.inf))
                best[size][name] = min(wall, wall_before), min(cpu, cpu_before)
    return {
        "device": str(restorer.device),
        "model": model,
        "precision": restorer.precision,
        "costs": [_cost(size, stages) for size, stages in best.items()],
        "left_out": left_out,
    }


def _cost(size: int, best: dict[str, tuple[float, float]]) -> Cost:
    wall, cpu = best["restore"]
    return {
        "size": size,
        "stages_ms": {name: round(ms, 3) for name, (ms, _) in best.items()},
        "stages_cpu_ms": {name: round(ms, 3) for name, (_, ms) in best.items()},
        "ns_per_px": round(1e6 * wall / size**2, 2),
        "cpu_ns_per_px": round(1e6 * cpu / size**2, 2),
    }


def _works(size: int, restorer: Any) -> dict[str, Work]:
    """What is measured at one size."""
    from tem_live.analysis import DriftEstimator
    from tem_live.calibration import Calibrator
    from tem_live.frames import FrameRing, open_backend

    backend = open_backend(str(restorer.device))
    ring = FrameRing(backend, 1, (size, size), np.dtype(np.uint16))
    slot = ring.acquire()
    assert slot is not None
    # Noise that is new everywhere: what repeats itself would be taken for a lattice.
    random = np.random.default_rng(1)
    for row in slot.host:
        row[:] = 100 + 40 * random.poisson(5.0, size)
    backend.upload(slot.host, slot.raw)
    calibrator = Calibrator(backend.xp, (size, size), 40.0, 100.0, xray_sigma=8.0)
    drift = DriftEstimator()

    def calibrate() -> None:
        with backend.compute():
            calibrator.apply(slot.raw, slot.electrons)
        backend.finish()

    def restore() -> None:
        with backend.compute():
            restorer.restore(slot.torch_electrons, out=slot.torch_restored)
        backend.finish()

    def analyse() -> None:
        with backend.compute():
            drift.update(slot.electrons, slot.restored, backend.download)

    # The display is to show what is restored.
    calibrate()
    restore()
    slot.is_restored = True
    return {
        "calibrate": calibrate,
        "restore": restore,
        "analyse": analyse,
        "display": display_work(slot, backend),
    }


def display_work(slot: Slot, backend: Backend, closely: bool = False) -> Work:
    """What the window's worker does with a frame: its copy, levels, histograms and bytes.

    Frames that are wider than a pane of 600 px are shrunk as the window shrinks them, or, looked at
    ``closely``, a part of 600 x 600 px is drawn as it is; power spectra and line profile are off.
    """
    from tem_live.device_frame import DeviceFrame
    from tem_live.gui.models.render import PaneLevels, RenderRequest, render
    from tem_live.state import FrameInfo

    info = FrameInfo(
        frame_id=0,
        sequence=0,
        host_time_s=0.0,
        exposure_s=0.05,
        binning=1,
        pixel_size_nm=0.1,
        counts_per_electron=40.0,
    )
    levels = PaneLevels(auto=True, low=0.0, high=10.0, low_percent=0.5, high_percent=99.5)
    shape = slot.host.shape
    request = RenderRequest(0, levels, levels, shrink=max(1, shape[0] // _PANE_PX))
    if closely:
        top, left = (0.4 * side for side in shape)
        part = (left, left + _PANE_PX, top, top + _PANE_PX)
        request = RenderRequest(0, levels, levels, visible=part, visible_of=shape)
    return lambda: render(DeviceFrame.copy_of(slot, backend, info), request)


def _mean_ms(work: Work, repeats: int) -> tuple[float, float]:
    """Of one repeat, by the clock and of the processor, after some that make what it needs.

    OpenVINO keeps the graphs of a few sizes alone, and each of its streams asks for the memory of a
    graph when it runs it first.
    """
    for _ in range(MOST_WORKERS):
        work()
    wall, cpu = time.perf_counter(), time.process_time()
    done = 0
    while done < repeats:
        work()
        done += 1
        if time.perf_counter() - wall > LONGEST_S:
            break
    return 1e3 * (time.perf_counter() - wall) / done, 1e3 * (time.process_time() - cpu) / done


# ---------------------------------------------------------------------------------------- drawing

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 400, 80, 60
_LINE = 14
_COLOURS = {
    "restore": "#c0392b",
    "calibrate": "#2471a3",
    "analyse": "#1e8449",
    "display": "#7d3c98",
}


def draw(measured: dict[str, Any], path: Path) -> Path:
    """Write a plot of processor time per pixel against size as SVG, both axes logarithmic.

    Raises `InputError` where it cannot be written.
    """
    check_target(path)
    costs: list[Cost] = measured["costs"]
    sizes = [cost["size"] for cost in costs]
    lines = {
        name: [1e6 * cost["stages_cpu_ms"][name] / cost["size"] ** 2 for cost in costs]
        for name in _COLOURS
    }
    values = [value for line in lines.values() for value in line if value > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, last = math.log2(min(sizes)), math.log2(max(sizes))

    def x(size: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 100) * (math.log2(size) - first) / max(last - first, 1e-9)

    def y(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / max(high - low, 1)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 20) * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for decade in range(low, high + 1):
        at = y(10.0**decade)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 100}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>'
        )
    for size in sizes:
        parts.append(
            f'<text x="{x(size):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{size}</text>"
        )
    for name, line in lines.items():
        points = " ".join(
            f"{x(size):.1f},{y(value):.1f}" for size, value in zip(sizes, line, strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{_COLOURS[name]}" stroke-width="2"/>'
        )
    lowest = -math.inf
    for name, line in sorted(lines.items(), key=lambda item: -item[1][-1]):
        # Names beside lines that end together stand one below the other.
        lowest = max(y(line[-1]) + 4, lowest + _LINE)
        parts.append(
            f'<text x="{_WIDTH - 94}" y="{lowest:.1f}" fill="{_COLOURS[name]}">{name}</text>'
        )
    parts.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 12}">side of the frame in px; '
        f"{measured['model']}, {measured['precision']}, {measured['device']}</text>"
    )
    parts.append(
        f'<text transform="translate(18 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        "processor time in ns per px</text>"
    )
    parts.append("</svg>\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")
    return path
