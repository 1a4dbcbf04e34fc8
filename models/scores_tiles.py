"""Whether a restorer keeps the electrons where they are: the mean of each tile of a frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["tile_bias", "tile_standard_error"]


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
