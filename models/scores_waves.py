"""What a restorer makes of waves: Bragg peaks kept, and waves where there should be none.

NumPy and SciPy only. Frames are transformed under a Hann window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["BraggPeaks", "bragg_kept", "bragg_peaks", "hann", "strongest_wave"]

# Bragg peaks have shorter periods, stand out of their ring by this factor, and reach this far.
_LONGEST_PX = 40.0
_OUT_OF_RING = 30.0
_PEAK_REACH = 2
# By so much the window raises the noise of an amplitude: root of mean(w^4) / mean(w^2)^2, two axes.
_WINDOW_NOISE = 35.0 / 18.0
# Noise alone is above x times its mean power with a chance of exp(-x).
_SURE_WAVE = 16.0


@dataclass(frozen=True)
class BraggPeaks:
    """Peaks of a lattice in the Fourier transform of a frame (Hann window).

    Attributes
    ----------
    period_px : ndarray
        float64 (N,), of each peak.
    signal_to_noise : ndarray
        float64 (N,), amplitude of the peak over that of the noise in the same wave.
    members : ndarray
        int64 (N, M), coefficients of each peak in the flattened ``rfft2``.
    amplitude : ndarray
        complex128 (N, M), theirs in the truth.
    """

    period_px: npt.NDArray[np.float64]
    signal_to_noise: npt.NDArray[np.float64]
    members: npt.NDArray[np.int64]
    amplitude: npt.NDArray[np.complex128]


def hann(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Window (1 - cos) along both axes, of mean square 1."""
    rows, columns = (1.0 - np.cos(2.0 * np.pi * (np.arange(n) + 0.5) / n) for n in shape)
    return np.asarray(rows[:, None] * columns[None, :] / 1.5)


def _windowed_spectrum(image: npt.ArrayLike) -> npt.NDArray[np.complex128]:
    """Fourier transform of a frame under a Hann window; unit white noise has power 1."""
    frame = np.asarray(image, dtype=np.float64)
    return np.asarray(np.fft.rfft2((frame - frame.mean()) * hann(frame.shape), norm="ortho"))


def _frequency(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Frequency of each coefficient of ``rfft2`` in cycles per pixel."""
    return np.asarray(np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])))


def _ring_mean(
    power: npt.NDArray[np.float64], frequency: npt.NDArray[np.float64], of: str
) -> npt.NDArray[np.float64]:
    """Mean or median of the power over the ring that each coefficient is in."""
    ring = (frequency * max(power.shape) / 2.0).astype(np.int64)
    index = np.arange(int(ring.max()) + 1)
    level = np.asarray((ndimage.median if of == "median" else ndimage.mean)(power, ring, index))
    return np.asarray(level[ring], dtype=np.float64)


def bragg_peaks(
    truth: npt.ArrayLike, noise_variance: float, least_signal_to_noise: float = 7.0
) -> BraggPeaks:
    """Find the peaks of a lattice that stand out of a frame's noise.

    Parameters
    ----------
    truth : array_like
        (H, W), the frame without noise.
    noise_variance : float
        Of a pixel, in the square of the unit of `truth`; for Poisson frames the mean.
    least_signal_to_noise : float
        Amplitude of a peak, all its coefficients together, over that of the noise in its wave.

    Returns
    -------
    BraggPeaks
        Periods of 2 to 40 px. A peak is also 30 times the median power of its ring in the truth:
        what an amorphous film scatters is none.
    """
    spectrum = _windowed_spectrum(truth)
    power = np.abs(spectrum) ** 2
    height, width = np.shape(truth)
    frequency = _frequency((height, width))
    # Peaks at the left edge of the half plane continue at their conjugates; one row of wrapping.
    side = 2 * _PEAK_REACH + 1
    highest = ndimage.maximum_filter(power, side, mode=("wrap", "reflect")) == power
    inside = (frequency > 1.0 / _LONGEST_PX) & (frequency < 0.5)
    outstanding = power > _OUT_OF_RING * _ring_mean(power, frequency, "median")
    rows, columns = np.nonzero(highest & inside & outstanding)
    # Of the pair of conjugates on the first and last column one is enough.
    once = ((columns > 0) & (columns < power.shape[1] - 1)) | (rows <= height // 2)
    rows, columns = rows[once], columns[once]
    reach = np.arange(-_PEAK_REACH, _PEAK_REACH + 1)
    around_y = (rows[:, None, None] + reach[:, None]) % height
    around_x = columns[:, None, None] + reach[None, :]
    # Left of the first column are conjugates, which hold nothing new.
    around_y, around_x = np.broadcast_arrays(around_y, around_x)
    real = (around_x >= 0) & (around_x < power.shape[1])
    members = np.where(real, around_y * power.shape[1] + np.where(real, around_x, 0), 0)
    members = members.reshape(len(rows), side * side)
    amplitude = np.where(real.reshape(len(rows), side * side), spectrum.ravel()[members], 0.0)
    total = np.sum(np.abs(amplitude) ** 2, axis=1)
    ratio = np.sqrt(total / max(noise_variance, 1e-30)) / _WINDOW_NOISE
    kept = ratio >= least_signal_to_noise
    return BraggPeaks(
        period_px=1.0 / frequency[rows, columns][kept],
        signal_to_noise=ratio[kept],
        members=members[kept].astype(np.int64),
        amplitude=amplitude[kept],
    )


def bragg_kept(peaks: BraggPeaks, image: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Share of each peak's amplitude that an image holds, float64 (N,).

    The image's coefficients are projected on those of the truth: noise and wrong phases count
    for nothing on the average. Of a frame with noise the share is 1 with a standard deviation of
    1 / (sqrt(2) signal-to-noise).
    """
    spectrum = _windowed_spectrum(image).ravel()[peaks.members]
    cross = np.sum((spectrum * peaks.amplitude.conj()).real, axis=1)
    return np.asarray(cross / np.sum(np.abs(peaks.amplitude) ** 2, axis=1), dtype=np.float64)


def strongest_wave(
    image: npt.ArrayLike,
    area: npt.NDArray[np.floating] | None = None,
    longest_px: float = 20.0,
) -> tuple[float, float]:
    """The strongest wave in an area that should be empty: a lattice or stripes that were invented.

    Parameters
    ----------
    image : array_like
        (H, W), any unit.
    area : ndarray, optional
        (H, W), 1 where it should be empty, 0 where it is not counted, with soft edges.
    longest_px : float
        Longest period to look at.

    Returns
    -------
    amplitude : float
        Of the strongest plane wave of at least 16 times the mean power of its ring in the Fourier
        transform, as if it filled the area; 0 where no wave stands out so far, as in noise (with
        one chance in 70 at 512 x 512).
    period_px : float
        NaN where there is none.
    """
    frame = np.asarray(image, dtype=np.float64)
    weight = np.ones(frame.shape) if area is None else np.asarray(area, dtype=np.float64)
    frame = (frame - float(np.average(frame, weights=weight))) * weight
    power = np.abs(_windowed_spectrum(frame)) ** 2
    frequency = _frequency(frame.shape)
    outstanding = power > _SURE_WAVE * _ring_mean(power, frequency, "mean")
    outstanding &= (frequency > 1.0 / longest_px) & (frequency < 0.5)
    best = int(np.argmax(np.where(outstanding, power, 0.0)))
    if not outstanding.ravel()[best]:
        return 0.0, float("nan")
    # Half of a cosine's amplitude is in its coefficient, times the window's sum.
    total = float(np.vdot(hann(frame.shape), weight))
    amplitude = 2.0 * np.sqrt(power.ravel()[best] * frame.size) / total
    return float(amplitude), float(1.0 / frequency.ravel()[best])
