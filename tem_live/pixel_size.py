"""How large a pixel is at the specimen: measured on a lattice or a grating whose spacing is known.

The power spectra of frames are added up, which a drift does not disturb, and its peaks are looked
for: what is far above the noise of its ring. Each peak's frequency is then found between the
coefficients, where the power of the windowed frames has its maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tem_live.errors import CalibrationError

__all__ = ["Wave", "strongest_waves"]

Floats = npt.NDArray[np.float64]

# Fewer periods than these across the frame, or a finer one, tell no spacing worth keeping.
_LEAST_PERIODS, _FINEST_PX = 8, 2.2
# Noise passes in one coefficient of exp(18).
_CHANCE = 18.0
# A Hann window makes a peak four coefficients wide.
_APART = 4
# Steps in coefficients; in each, places up to three steps to either side are looked at.
_STEPS = (0.25, 0.05, 0.01, 0.002)


@dataclass(frozen=True)
class Wave:
    """A plane wave of the specimen.

    Attributes
    ----------
    period_px : float
        Distance of its crests, in pixels as they were taken.
    error_px : float or None
        Standard error of that from how single frames differ; None for one frame.
    direction_deg : float
        Across the crests, from the rows' direction (x) downwards, -90 to 90.
    over_noise : float
        Mean power over that of the ring it lies on.
    """

    period_px: float
    error_px: float | None
    direction_deg: float
    over_noise: float


def strongest_waves(frames: Sequence[npt.NDArray[np.float32]], most: int = 5) -> list[Wave]:
    """The waves that stand out of the noise, strongest first.

    Parameters
    ----------
    frames : sequence of ndarray (H, W) float32
        Of one place and with the same settings; they may drift.
    most : int
        So many waves at the most.

    Raises
    ------
    CalibrationError
        The frames are too small, or nothing in them repeats clearly enough.
    """
    height, width = frames[0].shape
    if min(height, width) < 4 * _LEAST_PERIODS:
        raise CalibrationError(
            f"frames of {width} x {height} px are too small to measure a spacing in; "
            f"take {4 * _LEAST_PERIODS} px or more a side"
        )
    window = np.outer(np.hanning(height + 1)[:-1], np.hanning(width + 1)[:-1])
    shown = [(frame - float(frame.mean())) * window for frame in frames]
    power = np.mean([np.abs(np.fft.rfft2(one)) ** 2 for one in shown], axis=0)
    over = _over_the_ring(power, height, width)
    # Of gamma-distributed means (S. Boucheron et al., Concentration Inequalities, 2013, 2.4).
    least = 1.0 + math.sqrt(2.0 * _CHANCE / len(frames)) + _CHANCE / len(frames)
    tops = (over == ndimage.maximum_filter(over, 2 * _APART + 1, mode="wrap")) & (over > least)
    places = sorted(np.argwhere(tops).tolist(), key=lambda place: -over[tuple(place)])
    if not places:
        raise CalibrationError(
            "nothing in the frames repeats clearly enough: look at a lattice or a grating with "
            f"{_LEAST_PERIODS} periods or more across the frame, or take more frames"
        )
    found: list[Wave] = []
    for row, column in places:
        at = (row if row <= height // 2 else row - height, column)
        together = _summit(shown, at)
        # The first column holds each wave twice.
        if column == 0 and row > height // 2:
            continue
        period_px, direction_deg = _as_wave(together, height, width)
        error_px = None
        if len(shown) > 1:
            alone = [_as_wave(_summit([one], together), height, width)[0] for one in shown]
            error_px = float(np.std(alone, ddof=1)) / math.sqrt(len(alone))
        found.append(Wave(period_px, error_px, direction_deg, float(over[row, column])))
        if len(found) == most:
            break
    return found


def _over_the_ring(power: Floats, height: int, width: int) -> Floats:
    """Power over the mean of noise on the ring of the same frequency; 0 where none counts."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(fy, fx)
    ring = np.rint(frequency * max(height, width)).astype(int)
    # A ring has few coefficients of peaks: the median does not know them.
    floor = ndimage.median(power, ring, np.arange(ring.max() + 1)) / math.log(2.0)
    over: Floats = power / np.maximum(floor[ring], 1e-30)
    over[(frequency < _LEAST_PERIODS / min(height, width)) | (frequency > 1.0 / _FINEST_PX)] = 0.0
    return over


def _summit(shown: Sequence[Floats], start: tuple[float, float]) -> tuple[float, float]:
    """Where the sum of the frames' power is largest, in periods down and across the frame."""
    height, width = shown[0].shape
    y, x = np.arange(height), np.arange(width)
    down, across = start
    for step in _STEPS:
        offsets = np.arange(-3, 4) * step
        rows = np.exp(-2j * np.pi * np.outer(down + offsets, y) / height)
        columns = np.exp(-2j * np.pi * np.outer(x, across + offsets) / width)
        power = np.sum([np.abs(rows @ one @ columns) ** 2 for one in shown], axis=0)
        best = np.unravel_index(int(power.argmax()), power.shape)
        down, across = down + offsets[best[0]], across + offsets[best[1]]
    return down, across


def _as_wave(summit: tuple[float, float], height: int, width: int) -> tuple[float, float]:
    """Period in pixels and direction in degrees."""
    fy, fx = summit[0] / height, summit[1] / width
    direction = math.degrees(math.atan2(fy, fx))
    return 1.0 / math.hypot(fy, fx), (direction + 90.0) % 180.0 - 90.0
