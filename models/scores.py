"""Figures of merit of restored frames; NumPy and SciPy only.

Definitions
-----------
dose gain
    MSE of the raw frame over MSE of the restored one, on intensities of unit mean: how many times
    the dose a raw frame would need for the same error. For Poisson frames the former is 1 / D.
error ratio
    MSE of the restored frame over that of the best Gaussian blur (sigma from `SIGMAS_PX`, chosen
    with the truth): under 1 means more than blurring.
PSNR, SSIM
    As in the literature, for comparison with it. Both depend on a data range, of which there are
    several conventions; see `psnr_db`.
FRC
    Fourier ring correlation of the restored frame with the truth, and the finest period at which
    it still reaches 0.143. That threshold is meant for two noisy halves; its counterpart against a
    truth without noise is 0.5 (Rosenthal & Henderson, J. Mol. Biol. 333, 721, 2003). So compare
    methods by it and do not quote it as a resolution.
Bragg peaks
    Coefficients of the Fourier transform of a lattice that stand out of it, and which share of
    their amplitude is left.
tile bias
    Change of the mean of each 64 x 64 tile, in standard errors of that mean.
invented texture
    Fine detail of the restored frame, where the truth is empty, that the truth does not explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import fft as sp_fft
from scipy import ndimage

__all__ = [
    "SIGMAS_PX",
    "BraggPeaks",
    "best_gaussian",
    "bragg_kept",
    "bragg_peaks",
    "dose_gain",
    "empty_area",
    "error_ratio",
    "frc",
    "frc_period_px",
    "gaussian_blur",
    "invented_texture",
    "mse",
    "psnr_db",
    "ssim",
    "strongest_wave",
    "tile_bias",
    "tile_standard_error",
]

Array = npt.NDArray[np.float32]

SIGMAS_PX: tuple[float, ...] = tuple(float(s) for s in np.geomspace(0.7, 40.0, 15).round(3))
"""Standard deviations that `best_gaussian` tries, in pixels."""

# Half of the window of `ssim` without its middle.
_SSIM_REACH = 5
# What is finer than this blur is detail, see `invented_texture`.
_DETAIL_PX = 8.0
# Local standard deviation over the mean under which there is nothing.
_EMPTY = 0.02
_LEAST_EMPTY_PX = 400
# Bragg peaks have shorter periods, stand out of their ring by this factor, and reach this far.
_LONGEST_PX = 40.0
_OUT_OF_RING = 30.0
_PEAK_REACH = 2
# By so much the window raises the noise of an amplitude: root of mean(w^4) / mean(w^2)^2, two axes.
_WINDOW_NOISE = 35.0 / 18.0
# Noise alone is above x times its mean power with a chance of exp(-x).
_SURE_WAVE = 16.0


def mse(truth: npt.ArrayLike, image: npt.ArrayLike) -> float:
    """Mean squared error, in the square of the images' unit (accumulated in float64)."""
    difference = np.asarray(image, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    return float(np.mean(difference * difference))


def psnr_db(
    truth: npt.ArrayLike, image: npt.ArrayLike, peak: Literal["range", "max"] = "range"
) -> float:
    """Peak signal-to-noise ratio in dB.

    Parameters
    ----------
    truth, image : array_like
        Same shape and unit.
    peak : {"range", "max"}
        What the peak is: max - min of the truth, the "data range" of most image libraries, or its
        maximum, the original definition (with intensities that count from zero). The latter is
        larger wherever the truth has no black pixel, on a low-contrast scene by 10 dB and more, so
        figures of the two must not be compared.

    Returns
    -------
    float
        Infinity for equal images, NaN where the peak is not above 0 (a constant truth).
    """
    reference = np.asarray(truth, dtype=np.float64)
    high = float(reference.max() - reference.min())
    if high > 0.0 and peak == "max":
        high = float(reference.max())
    if high <= 0.0:
        return float("nan")
    error = mse(reference, image)
    if error == 0.0:
        return float("inf")
    return float(10.0 * np.log10(high * high / error))


def ssim(truth: npt.ArrayLike, image: npt.ArrayLike) -> float:
    """Mean structural similarity, 1 for equal images.

    Parameters
    ----------
    truth, image : array_like
        (H, W) of at least 11 x 11, same unit.

    Returns
    -------
    float
        NaN where the truth is constant (no data range) or smaller than the window.

    Notes
    -----
    Wang et al., IEEE Trans. Image Process. 13, 600 (2004): Gaussian window of 11 x 11 with sigma
    1.5 px, K1 = 0.01, K2 = 0.03, data range max - min of the truth; the border of 5 px is left out.
    """
    x = np.asarray(truth, dtype=np.float64)
    y = np.asarray(image, dtype=np.float64)
    span = float(x.max() - x.min())
    if span <= 0.0 or min(x.shape) < 2 * _SSIM_REACH + 1:
        return float("nan")

    def local(field: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(field, 1.5, radius=_SSIM_REACH))

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    both = local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    inner = slice(_SSIM_REACH, -_SSIM_REACH)
    return float(similarity[inner, inner].mean())


def frc(
    truth: npt.ArrayLike, image: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Fourier ring correlation of two images.

    Parameters
    ----------
    truth, image : array_like
        (H, W), same shape.

    Returns
    -------
    frequency : ndarray
        float64 (K,), centres of the rings in cycles per pixel, up to 0.5.
    correlation : ndarray
        float64 (K,), -1 to 1; 0 in a ring where one of the images has nothing.

    Notes
    -----
    The means are taken off and a Hann window is applied: else the jump between opposite edges puts
    the same cross into both spectra. Saxton & Baumeister, J. Microsc. 127, 127 (1982).
    """
    x = np.asarray(truth, dtype=np.float64)
    y = np.asarray(image, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"truth {x.shape} and image {y.shape} must be equal (H, W)")
    height, width = x.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    a, b = (sp_fft.rfft2((v - v.mean()) * window) for v in (x, y))
    radius = np.hypot(sp_fft.fftfreq(height)[:, None], sp_fft.rfftfreq(width)[None, :])
    rings = max(1, min(height, width) // 2)
    ring = np.minimum(np.round(radius * 2 * rings).astype(np.int64), rings + 1)
    # Columns other than the first stand for their mirror image too; the last only if W is odd.
    weight = np.full(a.shape[1], 2.0)
    weight[0] = 1.0
    if width % 2 == 0:
        weight[-1] = 1.0

    def total(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        sums = np.bincount(ring.ravel(), (value * weight).ravel(), minlength=rings + 2)
        return np.asarray(sums[1 : rings + 1], dtype=np.float64)

    cross = total((a * b.conj()).real)
    power = np.sqrt(total(np.abs(a) ** 2) * total(np.abs(b) ** 2))
    correlation = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0.0)
    return np.arange(1, rings + 1) / (2.0 * rings), correlation


def frc_period_px(truth: npt.ArrayLike, image: npt.ArrayLike, threshold: float = 0.143) -> float:
    """Finest period at which the Fourier ring correlation still reaches a threshold.

    Returns
    -------
    float
        In pixels, interpolated between rings; 2 where it never falls under the threshold, NaN
        where it never reaches it (one of the images is constant).

    Notes
    -----
    The correlation is averaged over three rings first. It is the last crossing that counts: the
    spectrum of a lattice has gaps, in which any two images are unrelated, in front of its peaks.
    """
    frequency, correlation = frc(truth, image)
    smooth = np.convolve(np.pad(correlation, 1, mode="edge"), np.full(3, 1.0 / 3.0), mode="valid")
    reached = np.flatnonzero(smooth >= threshold)
    if not reached.size:
        return float("nan")
    k = int(reached[-1])
    if k == smooth.size - 1:
        return 2.0
    share = (smooth[k] - threshold) / (smooth[k] - smooth[k + 1])
    return float(1.0 / (frequency[k] + share * (frequency[k + 1] - frequency[k])))


def empty_area(truth: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Where a truth is empty: film or vacuum, nothing that a restorer should draw.

    Returns
    -------
    ndarray
        bool (H, W): the local standard deviation (Gaussian window of 8 px) is under 2 % of the
        truth's mean.
    """
    reference = np.asarray(truth, dtype=np.float64)
    local = gaussian_blur(reference, _DETAIL_PX).astype(np.float64)
    square = gaussian_blur((reference - local) ** 2, _DETAIL_PX)
    limit = (_EMPTY * float(reference.mean())) ** 2
    return np.asarray(square < limit, dtype=np.bool_)


def invented_texture(truth: npt.ArrayLike, image: npt.ArrayLike) -> float:
    """Fine detail that a restorer draws where there is none, over the mean.

    Parameters
    ----------
    truth, image : array_like
        (H, W), same unit.

    Returns
    -------
    float
        Standard deviation, over the empty area of the truth, of the image's detail (itself minus
        its Gaussian blur of 8 px) without the part proportional to the truth's detail, over the
        mean of the truth. Detail of the truth that is lost does not count, residual noise does.
        NaN where less than 400 px of the truth are empty.
    """
    reference = np.asarray(truth, dtype=np.float64)
    restored = np.asarray(image, dtype=np.float64)
    where = empty_area(reference)
    mean = float(reference.mean())
    if int(where.sum()) < _LEAST_EMPTY_PX or mean <= 0.0:
        return float("nan")
    own = (reference - gaussian_blur(reference, _DETAIL_PX))[where]
    drawn = (restored - gaussian_blur(restored, _DETAIL_PX))[where]
    own -= own.mean()
    drawn -= drawn.mean()
    power = float(own @ own)
    # Rounding alone is no detail to be proportional to.
    if power > (1e-5 * mean) ** 2 * own.size:
        drawn -= own * float(own @ drawn) / power
    return float(drawn.std()) / mean


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


def _hann(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Window (1 - cos) along both axes, of mean square 1."""
    rows, columns = (1.0 - np.cos(2.0 * np.pi * (np.arange(n) + 0.5) / n) for n in shape)
    return np.asarray(rows[:, None] * columns[None, :] / 1.5)


def _windowed_spectrum(image: npt.ArrayLike) -> npt.NDArray[np.complex128]:
    """Fourier transform of a frame under a Hann window; unit white noise has power 1."""
    frame = np.asarray(image, dtype=np.float64)
    return np.asarray(np.fft.rfft2((frame - frame.mean()) * _hann(frame.shape), norm="ortho"))


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
    total = float(np.vdot(_hann(frame.shape), weight))
    amplitude = 2.0 * np.sqrt(power.ravel()[best] * frame.size) / total
    return float(amplitude), float(1.0 / frequency.ravel()[best])


def _tile_means(
    image: npt.NDArray[np.floating], valid: npt.NDArray[np.bool_], tile_px: int
) -> npt.NDArray[np.float64]:
    """Mean of the valid pixels of each whole tile, over the last two axes."""
    rows, columns = (side // tile_px for side in image.shape[-2:])

    def total(field: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        cut = field[..., : rows * tile_px, : columns * tile_px]
        parts = cut.reshape(*cut.shape[:-2], rows, tile_px, columns, tile_px)
        return np.asarray(parts.sum(axis=(-3, -1)))

    weight = total(valid.astype(np.float64))
    some = total(np.where(valid, image, 0.0).astype(np.float64))
    return np.asarray(some / np.maximum(weight, 1.0), dtype=np.float64)


def tile_standard_error(frames: npt.ArrayLike, tile_px: int = 64) -> npt.NDArray[np.float64]:
    """Standard error of the mean of each tile of a noisy frame, the noise's correlation counted.

    Parameters
    ----------
    frames : array_like
        (K, H, W), exposures of the same scene with the same camera; K of 6 or more.
    tile_px : int
        Side of a tile; the remainder at the bottom and at the right is left out.

    Returns
    -------
    ndarray
        float64 (H // tile_px, W // tile_px), of one exposure. The pixels' variance tells how much
        noise each tile has; by which factor correlation (streaks, blur) raises the variance of the
        mean is one number, taken from all tiles.
    """
    stack = np.asarray(frames, dtype=np.float64)
    everywhere = np.ones(stack.shape[1:], dtype=np.bool_)
    variance = _tile_means(stack.var(axis=0, ddof=1), everywhere, tile_px)
    white = variance / tile_px**2
    measured = _tile_means(stack, np.broadcast_to(everywhere, stack.shape), tile_px)
    factor = float(measured.var(axis=0, ddof=1).mean() / max(float(white.mean()), 1e-30))
    return np.sqrt(factor * white)


def tile_bias(
    raw: npt.ArrayLike,
    restored: npt.ArrayLike,
    standard_error: npt.NDArray[np.float64],
    defects: npt.NDArray[np.bool_] | None = None,
    tile_px: int = 64,
) -> npt.NDArray[np.float64]:
    """Change of each tile's mean by a restorer, in standard errors of the raw tile's mean.

    Parameters
    ----------
    raw, restored : array_like
        (H, W), electrons per pixel.
    standard_error : ndarray
        See `tile_standard_error`.
    defects : ndarray, optional
        bool (H, W), pixels to leave out.
    tile_px : int
        Side of a tile.

    Returns
    -------
    ndarray
        float64, as `standard_error`. A perfect restorer, which puts the truth in the place of the
        frame, has values of standard deviation 1.
    """
    difference = np.asarray(restored, dtype=np.float64) - np.asarray(raw, dtype=np.float64)
    valid = np.ones(difference.shape, np.bool_) if defects is None else ~defects
    return _tile_means(difference, valid, tile_px) / np.maximum(standard_error, 1e-30)


def _cosine_transfer(size: int, sigma_px: float) -> npt.NDArray[np.float32]:
    """Transfer function of a Gaussian on the frequencies of a DCT-II of this length."""
    omega = np.pi * np.arange(size) / size
    return np.exp(-0.5 * (omega * sigma_px) ** 2).astype(np.float32)


def gaussian_blur(image: npt.ArrayLike, sigma_px: float) -> Array:
    """Blur by a Gaussian, mirrored at the edges; float32, same shape and mean as `image`.

    Done in the cosine transform, whose implied continuation is the mirror image: any sigma costs
    the same and the mean is kept exactly.
    """
    frame = np.asarray(image, dtype=np.float32)
    spectrum = sp_fft.dctn(frame, type=2)
    spectrum *= _cosine_transfer(frame.shape[0], sigma_px)[:, None]
    spectrum *= _cosine_transfer(frame.shape[1], sigma_px)[None, :]
    return np.asarray(sp_fft.idctn(spectrum, type=2), dtype=np.float32)


def best_gaussian(
    truth: npt.ArrayLike,
    noisy: npt.ArrayLike,
    sigmas_px: tuple[float, ...] = SIGMAS_PX,
) -> tuple[Array, float]:
    """Blur `noisy` by the Gaussian that comes closest to `truth`.

    Parameters
    ----------
    truth, noisy : array_like
        (H, W), same unit.
    sigmas_px : tuple of float
        Candidates; the neighbourhood of the best one is then searched twice as finely.

    Returns
    -------
    image : ndarray
        float32 (H, W).
    sigma_px : float
        The standard deviation chosen.

    Notes
    -----
    By Parseval's theorem the error of every candidate follows from the two cosine transforms, so
    only the winner is transformed back.
    """
    reference = np.asarray(truth, dtype=np.float32)
    frame = np.asarray(noisy, dtype=np.float32)
    if reference.shape != frame.shape or frame.ndim != 2:
        raise ValueError(f"truth {reference.shape} and noisy {frame.shape} must be equal (H, W)")
    clean = sp_fft.dctn(reference, type=2, norm="ortho")
    spectrum = sp_fft.dctn(frame, type=2, norm="ortho")

    def transfer(sigma_px: float) -> npt.NDArray[np.float32]:
        height, width = frame.shape
        rows = _cosine_transfer(height, sigma_px)
        columns = _cosine_transfer(width, sigma_px)
        return np.asarray(rows[:, None] * columns[None, :], dtype=np.float32)

    def error(sigma_px: float) -> float:
        difference = spectrum * transfer(sigma_px)
        difference -= clean
        return float(np.vdot(difference, difference))

    best = min(sigmas_px, key=error)
    # The grid is geometric; half a step either side brings the blur within 1 % of its optimum.
    step = (max(sigmas_px) / min(sigmas_px)) ** (0.5 / max(len(sigmas_px) - 1, 1))
    low, high = min(sigmas_px), max(sigmas_px)
    near = [min(max(best * factor, low), high) for factor in (1.0 / step, 1.0, step)]
    best = min(near, key=error)
    image = sp_fft.idctn(spectrum * transfer(best), type=2, norm="ortho")
    return np.asarray(image, dtype=np.float32), float(best)


def _unit_mean_mse(truth: npt.ArrayLike, image: npt.ArrayLike) -> float:
    mean = float(np.mean(np.asarray(truth, dtype=np.float64)))
    return mse(truth, image) / (mean * mean)


def dose_gain(truth: npt.ArrayLike, raw: npt.ArrayLike, restored: npt.ArrayLike) -> float:
    """MSE of `raw` over MSE of `restored`, all in e-/px (infinity for a perfect restoration)."""
    error = _unit_mean_mse(truth, restored)
    return _unit_mean_mse(truth, raw) / error if error > 0.0 else float("inf")


def error_ratio(truth: npt.ArrayLike, raw: npt.ArrayLike, restored: npt.ArrayLike) -> float:
    """MSE of `restored` over that of the best Gaussian blur of `raw`; under 1 beats blurring."""
    blurred, _ = best_gaussian(truth, raw)
    return mse(truth, restored) / mse(truth, blurred)
