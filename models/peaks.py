"""Waves of the peaks of a spectrum: fitted to the frame as if it went on beyond its edges.

The Fourier transform takes a frame as one cell of a pattern that repeats. A lattice hardly ever
fits: at the edges it breaks off, its peaks run out into long flanks, and where these are cut off
the waves are wrong along all edges. Here the waves live in a plane larger than the frame, and are
those that come closest to the frame where it is (least squares); what they do outside is theirs.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from tem_live.models.larger_plane import LargerPlane
from tem_live.models.planes import (
    Enlarged,
    add_cells,
    cell_sums,
    continued,
    line_sums,
    pixels_in_cells,
    strips,
)

__all__ = [
    "columns_around",
    "fitted_waves",
    "peak_waves",
    "power_of",
    "unless_weak",
    "within_two",
]

# Side of the plane over that of the frame.
_LONGER = 1.5
# Steps towards the least squares; each transforms the frame's lines forth and back.
_STEPS = 3
# A coefficient of so many times the power of the noise loses all of it, a larger one its share.
_FLANK = 2.0
# The cells in which it is decided whether the waves are there, in pixels, and how many times their
# variance a difference from the larger ones must have to count for a half.
_CELLS = ((48, 1.0), (12, 1.0), (4, 4.0))
# And cells in which the waves are too weak to be more than noise that the fit took in: where their
# power is so many times that of the noise they are halved. The steepness of that.
_WEAK_PX, _WEAK, _STEEP = 24, 3.5, 3
_TINY = 1e-20
# Over 1: what was taken from the flanks is missing from the waves, and noise goes both ways.
_MOST = 1.25


def power_of(spectrum: Tensor) -> Tensor:
    """Squared modulus of complex numbers; `abs` takes the root first, at five times the time."""
    squares = torch.view_as_real(spectrum).square()
    return squares[..., 0] + squares[..., 1]


def columns_around(columns: Tensor, reach: int, count: int) -> Tensor:
    """These of `count` columns (n, 1), and those within `reach` of them, in order and once."""
    steps = torch.arange(-reach, reach + 1, device=columns.device)
    found = torch.zeros(count, dtype=torch.bool, device=columns.device)
    found[(columns + steps).clamp_(0, count - 1)] = True
    return found.nonzero()[:, 0]


def within_two(mask: Tensor) -> Tensor:
    """Mask and what lies within two coefficients of it (max_pool2d takes twenty times as long)."""
    rows = mask.clone()
    for shift in (-2, -1, 1, 2):
        rows |= mask.roll(shift, dims=0)
    both = rows.clone()
    for shift in (1, 2):
        both[:, shift:] |= rows[:, :-shift]
        both[:, :-shift] |= rows[:, shift:]
    return both


def peak_waves(image: Tensor, log: Tensor, excess: Tensor, peaks: Tensor) -> Tensor:
    """The waves of peaks and their flanks, where the image contains them.

    Parameters
    ----------
    image : Tensor
        float32 (H, W).
    log : Tensor
        float32 (H, W // 2 + 1), logarithm of the power of its ``rfft2(norm="ortho")``.
    excess : Tensor
        The same over the power of the noise; -inf where nothing counts.
    peaks : Tensor
        int64 (n, 2), row and column of coefficients.

    Returns
    -------
    Tensor
        float32 (H, W): `fitted_waves`, `unless_weak`.
    """
    return unless_weak(*fitted_waves(image, log, excess, peaks))


def fitted_waves(
    image: Tensor, log: Tensor, excess: Tensor, peaks: Tensor
) -> tuple[Tensor, Tensor]:
    """The waves of peaks and their flanks, and the noise that the fit took in.

    Parameters
    ----------
    image, log, excess, peaks : Tensor
        As `peak_waves` has them.

    Returns
    -------
    waves : Tensor
        float32 (H, W).
    noise : Tensor
        float32 (), what the noise of all these coefficients makes, as a mean square over the frame.

    Notes
    -----
    Each coefficient is believed as far as Breiman's non-negative garrote has it (Technometrics 37
    (1995) 373): a hard threshold would let in the noise of whole coefficients, or leave out what is
    just below. That share makes the least squares those of a Gaussian prior, and their conjugate
    gradients converge in a few steps.
    """
    height, width = image.shape
    tall, wide = (int(next_fast_len(round(_LONGER * side), real=True)) for side in image.shape)
    columns, noise = _noise_around(peaks, log, excess, (height, width), (tall, wide))
    plane = LargerPlane((height, width), (tall, wide), columns)
    found = plane.coefficients(image)
    # 0 of 0 is no number.
    share = (1.0 - noise / power_of(found)).nan_to_num_(0.0)
    believed = share > 0.0
    fitted = torch.zeros_like(found)
    fitted[believed] = _fitted(plane, believed, found[believed], share[believed])
    waves = plane.draw(fitted)
    taken = (plane.weight.expand(believed.shape) * share * noise)[believed].sum()
    taken = taken / (_FLANK * height * width * tall * wide)
    return _where_they_are(image, waves), taken


def _noise_around(
    peaks: Tensor, log: Tensor, excess: Tensor, size: tuple[int, int], larger: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Columns (K,) of the larger plane that hold peaks, and what their coefficients are to lose.

    That is so many times the power of the noise, float32 (rows, K); infinite beside the peaks. A
    coefficient of the larger plane is a peak's where the nearest one of the frame is.
    """
    (height, width), (tall, wide) = size, larger
    near = columns_around(peaks[:, 1:], 2, excess.shape[1])
    place = torch.full((excess.shape[1],), -1, device=log.device)
    place[near] = torch.arange(len(near), device=log.device)
    peak = torch.zeros((height, len(near)), dtype=torch.bool, device=log.device)
    peak[peaks[:, 0], place[peaks[:, 1]]] = True
    noise = (log.index_select(1, near) - excess.index_select(1, near)).exp_()
    noise.mul_(_FLANK * height * width).masked_fill_(within_two(peak).logical_not_(), math.inf)
    down = torch.fft.fftfreq(tall, 1.0 / height, device=log.device).round_().long() % height
    across = torch.arange(wide // 2 + 1, device=log.device) * (width / wide)
    place = place[across.round_().long().clamp_(max=width // 2)]
    columns = (place >= 0).nonzero()[:, 0]
    return columns, noise[down].index_select(1, place[columns])


def _fitted(plane: LargerPlane, believed: Tensor, found: Tensor, share: Tensor) -> Tensor:
    """Coefficients whose waves are closest to the frame, each believed to its share.

    Conjugate gradients with the share as preconditioner (Shewchuk, 1994, "An introduction to the
    conjugate gradient method without the agonizing pain", section B3), on the n coefficients of
    the mask `believed` (rows, K) alone.
    """
    whole = torch.zeros(believed.shape, dtype=found.dtype, device=found.device)
    weight = plane.weight.expand(believed.shape)[believed]
    doubt = share.reciprocal() - 1.0

    def product(one: Tensor, other: Tensor) -> Tensor:
        return (torch.view_as_real(one) * torch.view_as_real(other)).sum(dim=1) @ weight

    left, step = found, share * found
    fitted = torch.zeros_like(found)
    length = product(left, step)
    for _ in range(_STEPS):
        whole[believed] = step
        seen = plane.seen(whole)[believed] + doubt * step
        rate = length / product(step, seen).clamp_min_(_TINY)
        fitted += rate * step
        left = left - rate * seen
        downhill = share * left
        before, length = length, product(left, downhill)
        step = downhill + length / before.clamp_min(_TINY) * step
    return fitted


def _where_they_are(image: Tensor, waves: Tensor) -> Tensor:
    """Waves times their local amplitude, from 0 to a little over 1, in the image; in place.

    The waves of a small crystal run on through the vacuum around it. The projection of the
    image on them, cell by cell, tells where they belong. The whole frame has them with an
    amplitude of one; smaller and smaller cells have the amplitude of those around them, unless
    they differ from it by more than their own standard error.
    """
    height, width = waves.shape
    half = -(-height // 2), -(-width // 2)
    fields: list[Enlarged] = []
    last_px = 1
    for cell_px, doubt in reversed(_CELLS):
        if last_px == 1:
            sums = cell_sums(line_sums([(waves, waves), (image, waves)], cell_px), cell_px)
        else:
            sums = add_cells(sums, cell_px // last_px)
        means = _three_by_three(sums / pixels_in_cells(height, width, cell_px, waves.device))
        weight, amplitude = means[0].clamp_min_(1e-9), means[1]
        amplitude.div_(weight).clamp_(0.0, _MOST)
        # In the place of the weight: the variance of the amplitude.
        weight.reciprocal_().mul_(doubt / (3 * cell_px) ** 2)
        fields.insert(0, Enlarged(means, cell_px // 2, half[1]))
        last_px = cell_px
    # At every second pixel: with the smallest cells twice as far apart it is still smooth.
    amplitudes = torch.empty((1, *half), device=waves.device)
    for rows in strips(*half, waves.device, _CELLS[0][0]):
        believed: Tensor | float = 1.0
        for field in fields:
            variance, local = field.rows(rows)
            difference = local - believed
            rest = difference * variance
            # believed + difference * square / (square + variance), with fewer steps
            variance.addcmul_(difference, difference)
            believed = local.addcdiv_(rest, variance, value=-1.0)
        amplitudes[0, rows] = believed
    return _times(waves, amplitudes, 2)


def unless_weak(waves: Tensor, noise: Tensor) -> Tensor:
    """Waves (H, W) without those places where they are what noise makes; in place.

    Beside a crystal the image agrees with such waves as well as with true ones, for they were
    fitted to it: only their power tells them apart. Arguments as `fitted_waves` returns them.
    """
    height, width = waves.shape
    sums = cell_sums(line_sums([(waves, waves)], _WEAK_PX), _WEAK_PX)
    power = sums / pixels_in_cells(height, width, _WEAK_PX, waves.device)
    over = (_three_by_three(power) / (_WEAK * noise).clamp_min(_TINY)).pow_(_STEEP)
    return _times(waves, 1.0 - 1.0 / (1.0 + over), _WEAK_PX)


def _times(waves: Tensor, cells: Tensor, cell_px: int) -> Tensor:
    """Waves (H, W) times what cells (1, h, w) become when they are enlarged; in place."""
    height, width = waves.shape
    field = Enlarged(cells, cell_px, width)
    for rows in strips(height, width, waves.device, cell_px):
        waves[rows] *= field.rows(rows)[0]
    return waves


def _three_by_three(cells: Tensor) -> Tensor:
    """Mean of each cell (n, h, w) and those around it, which at the border are the outermost."""
    rows = continued(cells)
    rows = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    both = torch.cat([rows[..., :1], rows, rows[..., -1:]], dim=2)
    return (both[..., :-2] + both[..., 1:-1]).add_(both[..., 2:]).div_(9.0)
