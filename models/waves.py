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
    taper = _taper(window_px, frames.device)
    windows = padded.unfold(1, window_px, hop).unfold(2, window_px, hop)
    spectrum = torch.fft.rfft2(windows * taper, norm="ortho")
    power = spectrum.real.square().add_(spectrum.imag.square())
    log = power.clamp_min(1e-12).log_()
    log -= log.mean(dim=(3, 4), keepdim=True)
    shape = log.mean(dim=(1, 2), keepdim=True)
    log -= shape.mean(dim=3, keepdim=True) + shape.mean(dim=4, keepdim=True)
    excess = log.sub_(_EULER).exp_()
    excess *= _short_periods(window_px, frames.device)
    keep = _beside(excess > _SURE) & (excess > _BESIDE)
    gain = torch.where(keep, 1.0 - _SHRINK / excess, torch.zeros((), device=frames.device))
    waves = torch.fft.irfft2(spectrum * gain, s=(window_px, window_px), norm="ortho")
    whole = _overlap_add(waves.mul_(taper), hop)
    return whole[:, hop : hop + height, hop : hop + width]


def _taper(side: int, device: torch.device) -> Tensor:
    """Root of a Hann window: used twice, windows that overlap by half add up to 1."""
    line = torch.sin(math.pi * (torch.arange(side, device=device) + 0.5) / side)
    return line[:, None] * line[None, :]


def _short_periods(side: int, device: torch.device) -> Tensor:
    fy = torch.fft.fftfreq(side, device=device)[:, None]
    fx = torch.fft.rfftfreq(side, device=device)[None, :]
    return (fy.square() + fx.square() > _LONGEST_PX**-2).float()


def _beside(mask: Tensor) -> Tensor:
    """Mask and its next neighbours in frequency; those of negative fx are left out."""
    rows = mask | mask.roll(1, dims=-2) | mask.roll(-1, dims=-2)
    both = rows.clone()
    both[..., 1:] |= rows[..., :-1]
    both[..., :-1] |= rows[..., 1:]
    return both


def _overlap_add(windows: Tensor, hop: int) -> Tensor:
    """Sum (N, rows, columns, 2 hop, 2 hop) windows at steps of `hop` to (N, H, W)."""
    count, rows, columns = windows.shape[:3]
    out = windows.new_zeros(count, rows + 1, hop, columns + 1, hop)
    for y in (0, 1):
        for x in (0, 1):
            part = windows[..., y * hop : (y + 1) * hop, x * hop : (x + 1) * hop]
            out[:, y : y + rows, :, x : x + columns, :] += part.permute(0, 1, 3, 2, 4)
    return out.reshape(count, (rows + 1) * hop, (columns + 1) * hop)
