"""Gaussian blurs, and the best of them: what restorers have to beat. NumPy and SciPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import fft as sp_fft

__all__ = ["SIGMAS_PX", "best_gaussian", "gaussian_blur"]

Array = npt.NDArray[np.float32]

SIGMAS_PX: tuple[float, ...] = tuple(float(s) for s in np.geomspace(0.7, 40.0, 15).round(3))
"""Standard deviations that `best_gaussian` tries, in pixels."""


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
