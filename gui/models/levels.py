"""Black and white level of a pane in e⁻/px, and the histogram that they are chosen from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from psygnal import EventedModel
from pydantic import Field

BINS = 128
LEAST_CONTRAST = 0.02
_SAMPLE = 1 << 16


class LevelsModel(EventedModel):
    """Levels of one pane.

    Attributes
    ----------
    auto : bool
        Whether the levels follow the frames.
    low, high : float
        Values shown black and white, in e⁻/px.
    low_percent, high_percent : float
        Percentiles that the automatic levels stand on.
    """

    auto: bool = True
    low: float = 0.0
    high: float = 1.0
    low_percent: float = Field(default=0.3, ge=0, le=100)
    high_percent: float = Field(default=99.7, ge=0, le=100)

    def set_manual(self, low: float, high: float) -> None:
        """Take levels by hand; they no longer follow the frames."""
        self.auto = False
        self.low, self.high = ordered(low, high)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts over equal bins.

    Attributes
    ----------
    start, stop : float
        Lower edge of the first and upper edge of the last bin in e⁻/px.
    counts : ndarray (BINS,) float32
        Relative counts, the largest is 1.
    """

    start: float
    stop: float
    counts: npt.NDArray[np.float32]


def follow(shown: tuple[float, float], wanted: tuple[float, float]) -> tuple[float, float]:
    """Levels on the way from those shown to those that a frame asks for.

    Small changes are smoothed, so that noise does not make the picture flicker; a new scene is
    taken at once.
    """
    low, high = shown
    width = high - low
    if width > 0 and max(abs(wanted[0] - low), abs(wanted[1] - high)) < 0.25 * width:
        return ordered(low + 0.3 * (wanted[0] - low), high + 0.3 * (wanted[1] - high))
    return ordered(*wanted)


def ordered(low: float, high: float) -> tuple[float, float]:
    """The two levels in order and never equal."""
    low, high = min(low, high), max(low, high)
    if high - low < 1e-6 * max(1.0, abs(low)):
        high = low + 1e-6 * max(1.0, abs(low))
    return low, high


def sample_step(pixels: int) -> int:
    """Every how many-th row and column of a plane leaves some 65 000 values of it at most.

    They are enough for percentiles, and cheap at 4k.
    """
    return max(1, int(np.ceil(np.sqrt(pixels / _SAMPLE))))


def sample(plane: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The finite ones of some values of a plane, sorted; see `sample_step`.

    Sorted once, they give percentiles and histograms by looking up.
    """
    step = sample_step(plane.size)
    values = np.asarray(plane[::step, ::step], dtype=np.float32).ravel()
    return np.sort(values[np.isfinite(values)])


def robust_levels(
    values: npt.NDArray[np.float32], low_percent: float, high_percent: float
) -> tuple[float, float]:
    """Levels at two percentiles of a `sample`; hot pixels and X-rays do not move them."""
    if values.size == 0:
        return 0.0, 1.0
    places = np.array([low_percent, 50.0, high_percent]) / 100.0 * (values.size - 1)
    below = places.astype(np.intp)
    above = np.minimum(below + 1, values.size - 1)
    # In double precision: the difference of large values may be more than single holds.
    first, second = values[below].astype(np.float64), values[above].astype(np.float64)
    low, middle, high = (float(v) for v in first + (places - below) * (second - first))
    # An empty field must look empty: what is left of its noise is not blown up to full contrast.
    least = LEAST_CONTRAST * abs(middle)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    return ordered(low, high)


def histogram(values: npt.NDArray[np.float32]) -> Histogram:
    """Histogram of a `sample` over the range that holds all but the outliers."""
    if values.size == 0:
        return Histogram(0.0, 1.0, np.zeros(BINS, np.float32))
    low, high = robust_levels(values, 0.02, 99.98)
    margin = 0.08 * (high - low)
    start, stop = low - margin, high + margin
    counts = np.diff(np.searchsorted(values, np.linspace(start, stop, BINS + 1)))
    # Whole electrons make a comb of the histogram; a mean over one electron shows its shape.
    bin_width = (stop - start) / BINS
    some = values[:: max(1, values.size // 256)]
    whole = bool(np.all(some == np.round(some)))
    reach = min(BINS // 4, int(np.ceil(1.0 / bin_width))) if whole else 2
    kernel = np.hanning(2 * reach + 1)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    top = float(smooth.max())
    return Histogram(start, stop, (smooth / top if top > 0 else smooth).astype(np.float32))
