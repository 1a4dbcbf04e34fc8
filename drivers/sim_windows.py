"""Windows into planes that repeat: cut out, and moved by parts of a pixel.

Whatever goes over a whole plane goes band by band: a band stays in the processor's cache, where the
next step finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]

BAND_PX = 1 << 15
"""Pixels of a band, 128 KiB of float32."""


class Window(NamedTuple):
    """A part of the field in unbinned pixels; may reach beyond it, for the scene is periodic."""

    top: int
    left: int
    height: int
    width: int


class Kept:
    """The plane that was made last, as long as the same is asked for; thread-safe."""

    def __init__(self) -> None:
        # One reference, which is replaced as a whole.
        self._last: tuple[Hashable, Plane] | None = None

    def get(self, wanted: Hashable, make: Callable[[], Plane]) -> Plane:
        """What was kept for ``wanted``, or else made now; not to be written to."""
        last = self._last
        if last is None or last[0] != wanted:
            last = self._last = wanted, make()
            last[1].flags.writeable = False
        return last[1]


def bands(height: int, width: int) -> Iterator[slice]:
    """Rows of a plane of that shape, a band at a time, from the first to the last."""
    step = max(1, BAND_PX // width)
    for begin in range(0, height, step):
        yield slice(begin, min(begin + step, height))


def overlaps(
    start: int, size: int, window_start: int, window_size: int, period: int
) -> list[tuple[slice, slice]]:
    """Where the periodic images of [start, start + size) lie in a window: (to, from) slices."""
    found = []
    first = (window_start - start - size) // period + 1
    image = start + first * period
    while image < window_start + window_size:
        low = max(image, window_start)
        high = min(image + size, window_start + window_size)
        if low < high:
            found.append(
                (slice(low - window_start, high - window_start), slice(low - image, high - image))
            )
        image += period
    return found


def cut(plane: Plane, window: Window) -> Plane:
    """A window of a periodic plane; always a new array."""
    height, width = plane.shape
    part = np.empty((window.height, window.width), np.float32)
    rows = overlaps(0, height, window.top, window.height, height)
    columns = overlaps(0, width, window.left, window.width, width)
    for to_y, from_y in rows:
        for to_x, from_x in columns:
            part[to_y, to_x] = plane[from_y, from_x]
    return part


def shifted(plane: Plane, window: Window, dy: float, dx: float) -> Plane:
    """A window of a periodic plane moved by (dy, dx) pixels, bilinear; always a new array."""
    iy, ix = int(np.floor(-dy)), int(np.floor(-dx))
    fy, fx = np.float32(-dy - iy), np.float32(-dx - ix)
    top, left, height, width = window
    more_y, more_x = int(fy > 0), int(fx > 0)
    part = cut(plane, Window(top + iy, left + ix, height + more_y, width + more_x))
    if not more_y and not more_x:
        return part
    out = np.empty((height, width), np.float32) if more_x else part[:height]
    for rows in bands(height, width):
        # The row after the band is only read here, and is the first of the next one.
        band = part[rows.start : rows.stop + more_y]
        if more_y:
            step = band[1:] - band[:-1]
            step *= fy
            band = band[:-1]
            band += step
        if more_x:
            step = band[:, 1:] - band[:, :-1]
            step *= fx
            np.add(band[:, :-1], step, out=out[rows])
    return out
