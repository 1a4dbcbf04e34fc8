"""Keep what is periodic: Bragg peaks that a restorer left in the residual are given back.

A network that averages over tens of pixels can lose a lattice that the frame as a whole shows
beyond doubt: in the Fourier transform of the whole frame its power sits in few coefficients, far
above the noise. Such coefficients of the residual (raw - restored) are specimen, not noise, and
are added to the restored frame. The threshold bounds what noise alone can pass: with pure noise
about one 512 x 512 frame in 70 gets a single coefficient, a wave of about 1 % of the noise.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["bragg_part"]

# Power over that of the noise. Noise alone is above x with a chance of exp(-x).
_SURE = 16.0
# Next to a sure coefficient: the flanks of a peak widened by strain or a small crystal.
_BESIDE = 3.0
# Longer periods are the network's own; there a background would count as a peak.
_LONGEST_PX = 40.0
_SMALLEST_PX = 64
# The cells in which it is decided whether the waves are there.
_CELL_PX = 12
# Over 1: flanks under the threshold are missing from the waves, and noise goes both ways.
_MOST = 1.25
# On the axes: neighbours whose mean is the floor, from and to so many coefficients away.
_NEAR, _FAR = 4, 20
# Patterns of this period along the rows or columns belong to amplifiers that take turns.
_TURNS_PX = 16
# The mean of log(power) of noise lies this far under the log of the mean power (Euler's gamma).
_EULER = 0.5772


def bragg_part(residual: Tensor) -> Tensor | None:
    """Periodic part of a residual that cannot be noise.

    Parameters
    ----------
    residual : Tensor
        float32 (H, W), raw - restored in units of the noise's standard deviation.

    Returns
    -------
    Tensor or None
        float32 (H, W), to be added to the restored frame; None where there is nothing.

    Notes
    -----
    The noise need not be white: the power of row streaks depends on the horizontal frequency
    alone, that of column offsets on the vertical one. The floor is the larger of the two means
    along the frequencies, taken of the logarithm, on which a few peaks have no weight. On the axes,
    where streaks are, a peak must stand out of its neighbours along the axis too.
    """
    height, width = residual.shape
    if min(height, width) < _SMALLEST_PX:
        return None
    spectrum = torch.fft.rfft2(residual, norm="ortho")
    power = spectrum.real.square() + spectrum.imag.square()
    log = power.clamp_min(1e-12).log()
    floor = torch.maximum(log.mean(dim=0)[None, :], log.mean(dim=1)[:, None])
    floor = floor.add_(_EULER).exp_().clamp_min_(0.5)
    fy = torch.fft.fftfreq(height, device=residual.device).square_()[:, None]
    fx = torch.fft.rfftfreq(width, device=residual.device).square_()[None, :]
    excess = power.div_(floor).mul_(fy + fx > _LONGEST_PX**-2)
    _sharp_on_the_axes(excess, log, width)
    sure = excess > _SURE
    if not bool(sure.any()):
        return None
    keep = _within_two(sure).logical_and_(excess > _BESIDE)
    spectrum = spectrum.masked_fill_(keep.logical_not_(), 0.0)
    waves = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
    out: Tensor = waves.mul_(_where(residual, waves))
    return out


def _sharp_on_the_axes(excess: Tensor, log: Tensor, width: int) -> None:
    """On the axes, let only what stands out of its own neighbourhood count.

    They hold what is constant along a row or a column. Streaks, dead lines and seams are spread
    along the axis, more or less evenly; fringes that lie exactly along rows or columns are sharp.
    """
    height = log.shape[0]
    rows = torch.stack([log[0], log[1], log[-1]])
    sharp = torch.minimum(excess[[0, 1, -1]], _over_neighbours(rows, "reflect"))
    if width % _TURNS_PX == 0:
        sharp[:, :: width // _TURNS_PX] = 0.0
    lines = log[:, :2].T
    sharp_lines = torch.minimum(excess[:, :2].T, _over_neighbours(lines, "circular"))
    if height % _TURNS_PX == 0:
        sharp_lines[:, :: height // _TURNS_PX] = 0.0
    excess[:, :2] = sharp_lines.T
    excess[[0, 1, -1]] = sharp
    # What changes as slowly as the frame is wide has no direction.
    excess[:2, :2] = excess[-1:, :2] = 0.0


def _over_neighbours(log: Tensor, beyond: str) -> Tensor:
    """Power over the mean of the coefficients around it, along lines (N, n) of log(power)."""
    kernel = torch.ones(2 * _FAR + 1, device=log.device)
    kernel[_FAR - _NEAR + 1 : _FAR + _NEAR] = 0.0
    padded = functional.pad(log[:, None], (_FAR, _FAR), mode=beyond)
    floor = functional.conv1d(padded, kernel[None, None] / kernel.sum())[:, 0]
    return (log - floor - _EULER).exp_()


def _within_two(mask: Tensor) -> Tensor:
    """Mask and what lies within two coefficients of it (max_pool2d takes twenty times as long)."""
    rows = mask.clone()
    for shift in (-2, -1, 1, 2):
        rows |= mask.roll(shift, dims=0)
    both = rows.clone()
    for shift in (1, 2):
        both[:, shift:] |= rows[:, :-shift]
        both[:, :-shift] |= rows[:, shift:]
    return both


def _where(residual: Tensor, waves: Tensor) -> Tensor:
    """Local amplitude, from 0 to a little over 1, with which the residual contains the waves.

    The waves of a small crystal run on through the vacuum around it. The projection of the
    residual on them, cell by cell, tells where they belong; where it is within its own standard
    error it counts for nothing.
    """
    height, width = residual.shape

    def local(field: Tensor) -> Tensor:
        cells = functional.avg_pool2d(
            field[None, None], _CELL_PX, ceil_mode=True, count_include_pad=False
        )
        cells = functional.pad(cells, (1, 1, 1, 1), mode="replicate")
        return functional.avg_pool2d(cells, 3, stride=1)

    weight = local(waves * waves).clamp_min_(1e-9)
    amplitude = (local(residual * waves) / weight).clamp_(0.0, _MOST)
    variance = 1.0 / (weight * (3 * _CELL_PX) ** 2)
    square = amplitude * amplitude
    amplitude = amplitude * square / (square + 2.0 * variance)
    rows, columns = amplitude.shape[-2] * _CELL_PX, amplitude.shape[-1] * _CELL_PX
    smooth = functional.interpolate(
        amplitude, size=(rows, columns), mode="bilinear", align_corners=False
    )
    return smooth[0, 0, :height, :width]
