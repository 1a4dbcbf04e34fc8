"""Waves that stand out of the noise in a part of the frame: what a lattice is made of.

A convolution sees a lattice through a small window and keeps much of the noise in it. In the
Fourier transform of a window of some ten periods its power sits in few coefficients, far above the
noise. `lattice_waves` keeps those coefficients, window by window, and the network gets the result
beside the frame: it decides where to believe it.

The transform is that of windowed Fourier filtering (Kemao, Appl. Opt. 43 (2004) 2695) on windows
that overlap by half. This module imports torch; import it lazily.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["WINDOW_PX", "lattice_waves"]

WINDOW_PX = 64
"""Side of the windows in pixels."""

# Power over that of the noise from which on a coefficient counts. Noise alone is above x with a
# chance of exp(-x): one coefficient in a thousand, which changes a noisy frame by 1 % of the noise.
_SURE = 7.0
# Next to a sure coefficient: the flanks of its peak.
_BESIDE = 2.0
# Shrinkage of what is kept (empirical Wiener filter).
_SHRINK = 1.0
# Longer periods are the network's own; there a background would count as a wave.
_LONGEST_PX = 32.0
# The mean of log(power) of noise lies this far under the log of the mean power (Euler's gamma).
_EULER = 0.5772


def lattice_waves(frames: Tensor, window_px: int = WINDOW_PX) -> Tensor:
    """Periodic part of frames, window by window.

    Parameters
    ----------
    frames : Tensor
        float32 (N, H, W), mean 0, any unit.
    window_px : int
        Side of the windows, even.

    Returns
    -------
    Tensor
        float32 (N, H, W) in the same unit; zero where nothing stands out of the noise, and for
        frames smaller than a window.

    Notes
    -----
    The noise need not be white: its power is taken as (a function of the vertical frequency) x (one
    of the horizontal) x (a level of each window), which holds for blur and for streaks along
    rows or columns. All three are means of the logarithm, on which a few peaks have little weight.
    """
    _, height, width = frames.shape
    if min(height, width) < window_px:
        return torch.zeros_like(frames)
    hop = window_px // 2
    # A margin of half a window on each side, and whole windows.
    bottom, right = hop + -height % hop, hop + -width % hop
    padded = functional.pad(frames[:, None], (hop, right, hop, bottom), mode="reflect")[:, 0]
    basis, inverse = _basis(window_px, frames.device)
    products = _products(padded, basis, hop)
    half = hop + 1
    cosine, sine = products[..., :half, :, :], products[..., half:, :, :]
    cc, cs, sc, ss = cosine[..., :half], cosine[..., half:], sine[..., :half], sine[..., half:]
    # Real and imaginary part of the coefficients with fy of the sign of fx, and of the other.
    up, up_i, down, down_i = cc - ss, sc + cs, cc + ss, sc - cs
    gain_up, gain_down = _gains(
        up.square().addcmul_(up_i, up_i), down.square().addcmul_(down_i, down_i), window_px
    )
    up, up_i = up.mul_(gain_up), up_i.mul_(gain_up)
    down, down_i = down.mul_(gain_down), down_i.mul_(gain_down)
    torch.add(up, down, out=cc)
    torch.sub(up_i, down_i, out=cs)
    torch.add(up_i, down_i, out=sc)
    torch.sub(down, up, out=ss)
    whole = _sum_of(products, inverse, hop)
    return whole[:, hop : hop + height, hop : hop + width]


def _basis(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines to transform a window with and to put it together again, both tapered.

    Products with matrices, for a fast Fourier transform of so short a line is slower. The taper
    is the root of a Hann window: used twice, windows that overlap by half add up to 1.
    """
    places = torch.arange(side, device=device)
    taper = torch.sin(math.pi * (places + 0.5) / side)
    phase = 2.0 * math.pi / side * (places[:, None] * torch.arange(side // 2 + 1, device=device))
    basis = torch.cat([torch.cos(phase), torch.sin(phase)], dim=1) * taper[:, None]
    twice = torch.full((side // 2 + 1,), 2.0, device=device)
    twice[0] = twice[-1] = 1.0
    # Both signs of fy are added, hence the root of 1/2 along each axis.
    inverse = basis * (torch.cat([twice, twice]) / side * math.sqrt(0.5))
    return basis, inverse.T.contiguous()


def _products(padded: Tensor, basis: Tensor, hop: int) -> Tensor:
    """(N, H, W) to (N, window rows, 2 fy, window columns, 2 fx): along x first, then along y."""
    count, height, _ = padded.shape
    lines = padded.unfold(2, 2 * hop, hop)
    columns, coefficients = lines.shape[2], basis.shape[1]
    # One large product is several times as fast as one for each row.
    lines = (lines.reshape(-1, 2 * hop) @ basis).reshape(count, height, -1)
    products = basis.T @ lines.unfold(1, 2 * hop, hop).transpose(2, 3)
    return products.reshape(count, -1, coefficients, columns, coefficients)


def _sum_of(products: Tensor, inverse: Tensor, hop: int) -> Tensor:
    """Transform back what `_products` gave, and add up the windows."""
    count, rows, coefficients, columns, _ = products.shape
    windows = inverse.T @ products.reshape(count, rows, coefficients, -1)
    lines = windows.new_zeros(count, rows + 1, hop, windows.shape[3])
    lines[:, :-1] += windows[:, :, :hop]
    lines[:, 1:] += windows[:, :, hop:]
    windows = (lines.reshape(-1, coefficients) @ inverse).reshape(count, -1, columns, 2 * hop)
    whole = windows.new_zeros(count, windows.shape[1], columns + 1, hop)
    whole[:, :, :-1] += windows[..., :hop]
    whole[:, :, 1:] += windows[..., hop:]
    return whole.reshape(count, windows.shape[1], -1)


def _gains(up: Tensor, down: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """How much of each coefficient is kept, from the powers (N, rows, fy, columns, fx) of both."""
    half = side // 2
    # fy from just over -1/2 to 1/2, as neighbours lie.
    power = torch.cat([down[:, :, 1:half].flip(2), up], dim=2)
    log = power.clamp_min_(1e-12).log_()
    log -= log.mean(dim=(2, 4), keepdim=True)
    shape = log.mean(dim=(1, 3), keepdim=True)
    log -= shape.mean(dim=2, keepdim=True) + shape.mean(dim=4, keepdim=True)
    excess = log.sub_(_EULER).exp_()
    fy = torch.arange(1 - half, half + 1, device=up.device)[:, None, None]
    fx = torch.arange(half + 1, device=up.device)
    excess *= fy.square() + fx.square() > (side / _LONGEST_PX) ** 2
    keep = _beside(excess > _SURE).logical_and_(excess > _BESIDE)
    gain = excess.reciprocal_().mul_(-_SHRINK).add_(1.0).masked_fill_(keep.logical_not_(), 0.0)
    gain_up = gain[:, :, half - 1 :]
    # Those of fy = 0 and fy = 1/2 are in `up`, with the same power.
    ends = gain_up[:, :, :1], gain_up[:, :, half:]
    return gain_up, torch.cat([ends[0], gain[:, :, : half - 1].flip(2), ends[1]], dim=2)


def _beside(mask: Tensor) -> Tensor:
    """Mask and its next neighbours in frequency; those of negative fx are left out."""
    rows = mask | mask.roll(1, dims=2) | mask.roll(-1, dims=2)
    both = rows.clone()
    both[..., 1:] |= rows[..., :-1]
    both[..., :-1] |= rows[..., 1:]
    return both
