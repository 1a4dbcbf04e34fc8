"""Means over squares of pixels, computed where the plane lives."""

from __future__ import annotations

from typing import Any

__all__ = ["binned"]


def binned(plane: Any, factor: int, step: int = 1) -> Any:
    """Means over ``factor`` x ``factor`` pixels; what is left over at the edges is let go.

    Parameters
    ----------
    plane : array (H, W) float32
        Of NumPy or CuPy.
    factor : int
        Side of the squares in pixels, at most the shorter side of the plane.
    step : int
        Only every so many-th square of every so many-th row of them.

    Returns
    -------
    array float32
        ``factor`` 1 gives a view of ``plane``.
    """
    if factor <= 1:
        return plane[::step, ::step]
    rows, columns = (side // factor for side in plane.shape)
    cut = plane[: rows * factor].reshape(rows, factor, -1)[::step]
    # Whole lines first: they add up several times as fast as single neighbours.
    lines = cut[:, 0].copy()
    for row in range(1, factor):
        lines += cut[:, row]
    small = lines[:, : columns * factor].reshape(len(lines), columns, factor)[:, ::step]
    total = small[..., 0].copy()
    for column in range(1, factor):
        total += small[..., column]
    total *= 1.0 / factor**2
    return total
