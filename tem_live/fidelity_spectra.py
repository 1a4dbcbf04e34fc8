"""Means over tiles and over rings of spectra, and the blurs, that frames are judged by.

The figures themselves, and what they mean together: `tem_live.fidelity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

__all__ = [
    "HANN",
    "SIGMAS_PX",
    "SURE",
    "THRESHOLD",
    "Floats",
    "Plane",
    "Rings",
    "Tiles",
    "blurred",
    "blurred_errors",
    "correlation_with_truth",
    "cross",
    "finest_period",
    "fixed_pattern",
    "half_spectrum",
    "moved",
    "power",
]

Plane = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

SIGMAS_PX = tuple(float(s) for s in np.geomspace(0.7, 28.0, 12).round(2))
"""Gaussian blurs that a restorer has to be no worse than."""
THRESHOLD = 0.5
"""Correlation of the restored frame with the truth down to which detail counts as resolved."""
SURE = 5.0
"""Standard deviations beyond which a ring, or the camera's fixed pattern, is beyond doubt."""
HANN = (35.0 / 18.0) ** 2
"""A Hann window makes neighbouring coefficients agree: so many count as one; `tem_live.damage`."""

_TILE = 32
# A ring must hold something of the raw half with this certainty to be resolved. There are
# hundreds of rings: at 4 standard deviations noise alone passes in 1 of 100 frames.
_CERTAIN = 4.0
# Above this frequency a specimen rarely has anything, and a fixed pattern always does.
_PATTERN_FROM = 0.4


class Tiles:
    """Mean of planes, with a standard error from the scatter of their tiles.

    Tiles are wider than the noise is correlated and than a restorer spreads it, mostly.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._squares = 0.0

    def add(self, plane: npt.NDArray[Any]) -> None:
        """Take in a plane; what is left over at its edges is left out."""
        rows, columns = (n // _TILE for n in plane.shape)
        part = plane[: rows * _TILE, : columns * _TILE].astype(np.float64)
        tiles = part.reshape(rows, _TILE, columns, _TILE).mean(axis=(1, 3))
        self._count += tiles.size
        self._sum += float(tiles.sum())
        self._squares += float((tiles**2).sum())

    @property
    def mean(self) -> float:
        """Mean over all tiles."""
        return self._sum / self._count

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        variance = max(self._squares / self._count - self.mean**2, 0.0)
        return float(np.sqrt(variance / max(self._count - 1, 1)))


class Rings:
    """Means over rings of a half spectrum, one coefficient of the shorter side wide."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        height, width = shape
        if not height:
            return
        self.pixels = height * width
        self.radius = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :])
        number = min(height, width) // 2
        self._ring = np.minimum(np.round(self.radius * 2 * number).astype(np.int64), number + 1)
        self._number = number
        self.frequency = np.arange(1, number + 1) / (2.0 * number)
        self.count = np.bincount(self._ring.ravel(), minlength=number + 2)[1 : number + 1].astype(
            np.float64
        )

    def mean(self, value: npt.NDArray[Any]) -> Floats:
        """Mean of each ring, (K,)."""
        sums = np.bincount(self._ring.ravel(), value.ravel(), minlength=self._number + 2)
        return np.asarray(sums[1 : self._number + 1] / self.count, np.float64)

    def resampled(self, means: Floats) -> Floats:
        """Means over the rings of a frame of another size, put on these rings, (K,)."""
        if len(means) == self._number:
            return means
        return np.interp(self.frequency, np.arange(1, len(means) + 1) / (2.0 * len(means)), means)

    def spread(self, values: Floats) -> Floats:
        """The value of its ring for each coefficient; the outermost beyond."""
        padded = np.concatenate([values[:1], values, values[-1:]])
        return padded[self._ring]


def correlation_with_truth(
    sums: Mapping[str, Floats], count: Floats
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Correlation of the restored half with the truth by ring, smoothed over three rings.

    Parameters
    ----------
    sums : mapping of str to ndarray (K,)
        Mean powers ``signal``, ``noise``, ``restored`` and ``confirmed``; see `PairFigures`.
    count : ndarray (K,)
        Independent coefficients behind each, over all pairs.

    Returns
    -------
    correlation : ndarray (K,)
        NaN where the raw frames hold nothing to be correlated with.
    resolved : ndarray (K,) of bool
        Where it is at least `THRESHOLD`, and what is confirmed stands out of the noise.
    """
    three = {
        name: ndimage.uniform_filter1d(value, 3, mode="nearest") for name, value in sums.items()
    }
    independent = ndimage.uniform_filter1d(count, 3, mode="nearest") * 3
    signal_error = (three["noise"] + np.maximum(three["signal"], 0)) / np.sqrt(2 * independent)
    chance = np.sqrt(three["restored"] * three["noise"] / (2 * independent))
    certain = three["confirmed"] > _CERTAIN * chance
    present = np.maximum(three["signal"], signal_error)
    correlation = three["confirmed"] / np.sqrt(np.maximum(three["restored"] * present, 1e-300))
    correlation = np.clip(correlation, -1.0, 1.0)
    resolved = certain & (correlation >= THRESHOLD)
    return np.where(certain | (three["signal"] > 2 * signal_error), correlation, np.nan), resolved


def finest_period(
    frequency: Floats, correlation: Floats, resolved: npt.NDArray[np.bool_]
) -> float | None:
    """Period in px of the last resolved ring: a lattice has gaps in front of its peaks."""
    reached = np.flatnonzero(resolved)
    if not reached.size:
        return None
    k = int(reached[-1])
    following = correlation[k + 1] if k + 1 < len(correlation) else np.nan
    if not np.isfinite(following) or following >= THRESHOLD:
        return float(1.0 / frequency[k])
    share = (correlation[k] - THRESHOLD) / (correlation[k] - following)
    return float(1.0 / (frequency[k] + share * (frequency[1] - frequency[0])))


def fixed_pattern(sums: dict[str, Floats], frequency: Floats, count: Floats) -> tuple[float, bool]:
    """Power that the finest detail of both frames shares over its noise, and whether it is sure."""
    fine = frequency >= _PATTERN_FROM
    weight = count[fine]
    shared = float(np.average(sums["pattern"][fine], weights=weight))
    noise = float(np.average(sums["noise"][fine], weights=weight))
    if noise <= 0:
        return 0.0, False
    share = shared / noise
    return max(share, 0.0), share > SURE / np.sqrt(2 * float(weight.sum()))


def half_spectrum(frame: Plane) -> Any:
    """Half spectrum, Hann window, mean off; noise of unit variance has unit power."""
    height, width = frame.shape
    window = np.outer(np.hanning(height + 1)[:-1], np.hanning(width + 1)[:-1]).astype(np.float32)
    return fft.rfft2((frame - frame.mean()) * window) / np.float32(0.375 * np.sqrt(frame.size))


def power(spectrum: Any) -> Floats:
    """Square of the modulus of each coefficient."""
    return np.asarray(spectrum.real**2 + spectrum.imag**2, np.float64)


def cross(first: Any, second: Any) -> Floats:
    """Real part of each coefficient of one spectrum times the other's conjugate."""
    return np.asarray(first.real * second.real + first.imag * second.imag, np.float64)


def moved(frame: Plane, shift_px: tuple[float, float]) -> Plane:
    """The frame moved by (dy, dx) pixels, by a phase; what leaves at one edge enters opposite."""
    height, width = frame.shape
    fy, fx = fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :]
    phase = np.exp(-2j * np.pi * (fy * shift_px[0] + fx * shift_px[1]))
    return np.asarray(fft.irfft2(fft.rfft2(frame) * phase, s=frame.shape), np.float32)


def _transfers(shape: tuple[int, ...], sigma_px: float) -> tuple[Plane, Plane]:
    """Gaussian blur on the frequencies of a cosine transform, (H, 1) and (1, W)."""
    rows, columns = (
        np.exp(-0.5 * (np.pi * np.arange(n) / n * sigma_px) ** 2).astype(np.float32) for n in shape
    )
    return rows[:, None], columns[None, :]


def blurred(frame: Plane, sigma_px: float) -> Plane:
    """The frame blurred, mirrored at its edges."""
    rows, columns = _transfers(frame.shape, sigma_px)
    spectrum = fft.dctn(frame, type=2, norm="ortho") * rows * columns
    return np.asarray(fft.idctn(spectrum, type=2, norm="ortho"), np.float32)


def blurred_errors(own: Plane, other: Plane) -> Floats:
    """Mean square of a frame blurred by each of `SIGMAS_PX` less another one, by Parseval."""
    first, second = (fft.dctn(frame, type=2, norm="ortho") for frame in (own, other))
    found = []
    for sigma in SIGMAS_PX:
        rows, columns = _transfers(own.shape, sigma)
        rest = (first * rows * columns - second).ravel()
        found.append(float(rest @ rest) / own.size)
    return np.asarray(found)
