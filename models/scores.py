"""Figures of merit of restored frames, against their truth; NumPy and SciPy only.

Definitions
-----------
dose gain
    MSE of the raw frame over MSE of the restored one, on intensities of unit mean: how many times
    the dose a raw frame would need for the same error. For Poisson frames the former is 1 / D.
error ratio
    MSE of the restored frame over that of the best Gaussian blur (`tem_live.models.blurs`, chosen
    with the truth): under 1 means more than blurring.
PSNR, SSIM
    As in the literature, for comparison with it. Both depend on a data range, of which there are
    several conventions; see `psnr_db`.
FRC
    Fourier ring correlation of the restored frame with the truth, and the finest period at which
    it still reaches 0.143. That threshold is meant for two noisy halves; its counterpart against a
    truth without noise is 0.5 (Rosenthal & Henderson, J. Mol. Biol. 333, 721, 2003). So compare
    methods by it and do not quote it as a resolution.
invented texture
    Fine detail of the restored frame, where the truth is empty, that the truth does not explain.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import fft as sp_fft
from scipy import ndimage

from tem_live.models.blurs import best_gaussian, gaussian_blur

__all__ = [
    "dose_gain",
    "empty_area",
    "error_ratio",
    "frc",
    "frc_period_px",
    "invented_texture",
    "mse",
    "psnr_db",
    "ssim",
]

# Half of the window of `ssim` without its middle.
_SSIM_REACH = 5
# What is finer than this blur is detail, see `invented_texture`.
_DETAIL_PX = 8.0
# Local standard deviation over the mean under which there is nothing.
_EMPTY = 0.02
_LEAST_EMPTY_PX = 400


def mse(truth: npt.ArrayLike, image: npt.ArrayLike) -> float:
    """Mean squared error, in the square of the images' unit (accumulated in float64)."""
    difference = np.asarray(image, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    return float(np.mean(difference * difference))


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
