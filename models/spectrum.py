"""Keep what is periodic: Bragg peaks that a restorer left in the residual are given back.

A network that averages over tens of pixels can lose a lattice that the frame as a whole shows
beyond doubt: in the Fourier transform of the whole frame its power sits in few coefficients, far
above the noise. Such coefficients of the residual (raw - restored) are specimen, not noise, and
are added to the restored frame. The threshold bounds what noise alone can pass: with pure noise
about one 512 x 512 frame in 70 gets a single coefficient, a wave of about 1 % of the noise.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.planes import Enlarged, add_cells, cell_sums, pixels_in_cells, strips

__all__ = ["bragg_part", "lattice_part"]

# Power over that of the noise. Noise alone is above x with a chance of exp(-x).
_SURE = 16.0
# Next to a sure coefficient: the flanks of a peak widened by strain or a small crystal.
_BESIDE = 3.0
# Power over that of the coefficients around it, in all directions: edges and gratings reach
# less than the first, which the clearest peak of a lattice exceeds; its others exceed the second.
_LATTICE = 250.0
_PEAK = 20.0
# Peaks of a lattice have this share of its strongest coefficient, and at most this share of all
# power is left beside them.
_STRONG, _LEFT = 0.02, 0.06
# Gratings of holes have longer periods than this, where a lattice is worth imaging at all.
_LONGEST_LATTICE_PX = 20.0
# Where to look around a coefficient, and how many of them at the most.
_AROUND, _CORE = 12, 3
_CANDIDATES = 2048
# Longer periods are the network's own; there a background would count as a peak.
_LONGEST_PX = 40.0
_SMALLEST_PX = 64
# The cells in which it is decided whether the waves are there, in pixels, and how many times their
# variance a difference from the larger ones must have to count for a half.
_CELLS = ((48, 1.0), (12, 1.0), (4, 4.0))
# Over 1: flanks under the threshold are missing from the waves, and noise goes both ways.
_MOST = 1.25
# On the axes: neighbours whose mean is the floor, from and to so many coefficients away.
_NEAR, _FAR = 4, 20
# Patterns of this period along the rows or columns belong to amplifiers that take turns.
_TURNS_PX = 16
# Mean of four coefficients beside such a one: noise is beyond in one of 300,000 cases.
_WIDE = 5.0
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
    alone, that of column offsets on the vertical one, and that of noise which a detector blurred
    is a product of the two. The floor is the largest of these three, from the means of the
    logarithm along the frequencies, on which a few peaks have no weight. On the axes, where streaks
    are, a peak must stand out of its neighbours along the axis too.
    """
    found = _standing_out(residual, _LONGEST_PX)
    if found is None:
        return None
    spectrum, _, excess, sure = found
    return _waves(residual, spectrum, excess, sure)


def lattice_part(frame: Tensor) -> Tensor | None:
    """Part of a frame that is a lattice beyond doubt: sharp peaks on an even ground.

    A network has less to do, and does it better, where this is taken out of the frame before and
    added to what it restored. Edges, gratings of holes and textures have strong coefficients too,
    but so have those beside them: they are left to the network.

    Parameters
    ----------
    frame : Tensor
        float32 (H, W), mean 0, in units of the noise's standard deviation.

    Returns
    -------
    Tensor or None
        float32 (H, W); None where there is no lattice.
    """
    found = _standing_out(frame, _LONGEST_LATTICE_PX)
    if found is None:
        return None
    spectrum, log, excess, places = found
    if len(places) > _CANDIDATES:
        places = places[excess[places[:, 0], places[:, 1]].topk(_CANDIDATES).indices]
    sharp = _over_surroundings(log, places)
    if float(sharp.max()) < math.log(_LATTICE):
        return None
    part = _waves(frame, spectrum, excess, places[sharp > math.log(_PEAK)])
    return part if _is_whole(spectrum, part) else None


def _is_whole(spectrum: Tensor, part: Tensor) -> bool:
    """Whether hardly anything but noise is left beside the peaks that make up the part.

    The peaks of a crystal that is small, or bent, are wider than what is taken of them. The rest
    would look like a lattice of its own around its edge.
    """
    taken = torch.fft.rfft2(part, norm="ortho")
    power = _power(taken)
    beside = _within_two(_within_two(power > _STRONG * power.amax())).flatten().nonzero()[:, 0]
    power = power.flatten()[beside]
    left = _power(spectrum.flatten()[beside] - taken.flatten()[beside]).sum() - len(beside)
    return bool(left < _LEFT * power.sum())


def _power(spectrum: Tensor) -> Tensor:
    """Squared modulus of complex numbers; `abs` takes the root first, at five times the time."""
    squares = torch.view_as_real(spectrum).square()
    return squares[..., 0] + squares[..., 1]


def _standing_out(image: Tensor, longest_px: float) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """What of an image's spectrum is beyond noise; None where nothing is.

    Returns
    -------
    spectrum : Tensor
        complex64 (H, W // 2 + 1).
    log : Tensor
        float32, logarithm of its power.
    excess : Tensor
        float32, the same over the power of the noise; where periods are too long to count, -inf.
    places : Tensor
        int64 (n, 2), row and column of the coefficients that are sure.
    """
    height, width = image.shape
    if min(height, width) < _SMALLEST_PX:
        return None
    spectrum = torch.fft.rfft2(image, norm="ortho")
    log, down, across = _log_power(spectrum)
    ground = _Ground(down, across, longest_px, width)
    # Most frames have nothing: the whole excess is computed for the others only.
    strongest = [
        ground.taken_from(log, rows).amax(dim=1) for rows in strips(*log.shape, log.device)
    ]
    candidates = (torch.cat(strongest) > math.log(_SURE)).nonzero()[:, 0]
    if not len(candidates):
        return None
    excess = ground.taken_from(log, slice(0, height))
    _sharp_on_the_axes(excess, log, width)
    places = (excess[candidates] > math.log(_SURE)).nonzero()
    if not len(places):
        return None
    places[:, 0] = candidates[places[:, 0]]
    return spectrum, log, excess, places


def _log_power(spectrum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithm of the power, (H, C), and its means along the rows, (H,), and columns, (C,)."""
    height, columns = spectrum.shape
    log = torch.empty((height, columns), device=spectrum.device)
    down, across = log.new_empty(height), log.new_zeros(columns)
    for rows in strips(height, columns, spectrum.device):
        squares = torch.view_as_real(spectrum[rows]).square()
        part = torch.add(squares[..., 0], squares[..., 1], out=log[rows])
        part.clamp_min_(1e-12).log_()
        across += part.sum(dim=0)
        torch.mean(part, dim=1, out=down[rows])
    return log, down, across.div_(height)


class _Ground:
    """Logarithm of the power of the noise, from the means of the spectrum's logarithm."""

    def __init__(self, down: Tensor, across: Tensor, longest_px: float, width: int) -> None:
        device = down.device
        # The largest of three: down + across - mean, down and across; and never under the half.
        self._down = (down + _EULER)[:, None]
        self._rise = (across - across.mean()).clamp_min_(0.0)
        self._least = (across + _EULER).clamp_min_(math.log(0.5))
        self._fy = torch.fft.fftfreq(len(down), device=device).square_()[:, None]
        self._fx = torch.fft.rfftfreq(width, device=device).square_()[: int(width / longest_px) + 2]
        self._slowest = longest_px**-2

    def taken_from(self, log: Tensor, rows: slice) -> Tensor:
        """Logarithm of the power over that of the noise, -inf for longer periods; in new memory."""
        floor = torch.add(self._down[rows], self._rise)
        torch.maximum(floor, self._least, out=floor)
        excess = torch.sub(log[rows], floor, out=floor)
        slow = excess[:, : len(self._fx)]
        slow.masked_fill_(self._fy[rows] + self._fx <= self._slowest, -math.inf)
        return excess


def _waves(image: Tensor, spectrum: Tensor, excess: Tensor, peaks: Tensor) -> Tensor:
    """The peaks (n, 2) with their flanks, transformed back, where the image contains them."""
    mask = torch.zeros(excess.shape, dtype=torch.bool, device=excess.device)
    mask[peaks[:, 0], peaks[:, 1]] = True
    around = _within_two(mask).flatten().nonzero()[:, 0]
    keep = excess.flatten()[around] > math.log(_BESIDE)
    kept = torch.where(keep, spectrum.flatten()[around], 0.0)
    spectrum = torch.zeros_like(spectrum)
    spectrum.view(-1)[around] = kept
    waves = torch.fft.irfft2(spectrum, s=image.shape, norm="ortho")
    return _where_they_are(image, waves)


def _over_surroundings(log: Tensor, places: Tensor) -> Tensor:
    """Log of the power at places (n, 2) over the mean of those around each, in all directions."""
    height, columns = log.shape
    steps = torch.arange(-_AROUND, _AROUND + 1, device=log.device)
    y, x = (places[:, :1] + steps), (places[:, 1:] + steps)
    # Beyond either end of the half spectrum lies the other half, turned by half a turn.
    below, beyond = x < 0, x > columns - 1
    turned = (below | beyond)[:, None, :]
    x = torch.where(below, -x, torch.where(beyond, 2 * (columns - 1) - x, x)).clamp_(0, columns - 1)
    here, there = (y % height * columns)[:, :, None], (-y % height * columns)[:, :, None]
    around = log.flatten()[torch.where(turned, there, here) + x[:, None, :]]
    core = slice(_AROUND - _CORE, _AROUND + _CORE + 1)
    ring = around.sum(dim=(1, 2)) - around[:, core, core].sum(dim=(1, 2))
    floor = ring / ((2 * _AROUND + 1) ** 2 - (2 * _CORE + 1) ** 2)
    return around[:, _AROUND, _AROUND] - floor - _EULER


def _sharp_on_the_axes(excess: Tensor, log: Tensor, width: int) -> None:
    """On the axes, let only what stands out of its own neighbourhood count.

    They hold what is constant along a row or a column. Streaks, dead lines and seams are spread
    along the axis, more or less evenly; fringes that lie exactly along rows or columns are sharp.
    """
    height = log.shape[0]
    rows = torch.stack([log[0], log[1], log[-1]])
    beyond = functional.pad(rows[None], (_FAR, _FAR), mode="reflect")[0]
    at_rows = torch.stack([excess[0], excess[1], excess[-1]])
    sharp = torch.minimum(at_rows, _over_neighbours(rows, beyond))
    if width % _TURNS_PX == 0:
        turns = slice(None, None, width // _TURNS_PX)
        beside = torch.stack([excess[row, turns] for row in (2, 3, -3, -2)])
        sharp[:, turns] += _unless_wide(beside)
    lines = log[:, :2].T
    beyond = torch.cat([lines[:, -_FAR:], lines, lines[:, :_FAR]], dim=1)
    sharp_lines = torch.minimum(excess[:, :2].T, _over_neighbours(lines, beyond))
    if height % _TURNS_PX == 0:
        turns = slice(None, None, height // _TURNS_PX)
        sharp_lines[:, turns] += _unless_wide(excess[turns, 2:4].T)
    excess[:, :2] = sharp_lines.T
    excess[:2] = sharp[:2]
    excess[-1] = sharp[2]
    # What changes as slowly as the frame is wide has no direction.
    excess[:2, :2] = excess[-1:, :2] = -math.inf


def _unless_wide(beside: Tensor) -> Tensor:
    """0 where the coefficients (n, m) beside the axis are more than noise, too, else -inf, (m,).

    A crystal has an end, and so have its peaks a width; amplifiers take turns in the whole frame.
    """
    return torch.where(beside.exp().mean(dim=0) > _WIDE, 0.0, -math.inf)


def _over_neighbours(log: Tensor, beyond: Tensor) -> Tensor:
    """Log of the power over the mean of those around, along lines (N, n); `beyond` is longer."""
    kernel = torch.ones(2 * _FAR + 1, device=log.device)
    kernel[_FAR - _NEAR + 1 : _FAR + _NEAR] = 0.0
    floor = beyond.unfold(1, 2 * _FAR + 1, 1) @ (kernel / kernel.sum())
    return log - floor - _EULER


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


def _where_they_are(image: Tensor, waves: Tensor) -> Tensor:
    """Waves times their local amplitude, from 0 to a little over 1, in the image; in place.

    The waves of a small crystal run on through the vacuum around it. The projection of the
    image on them, cell by cell, tells where they belong. The whole frame has them with an
    amplitude of one; smaller and smaller cells have the amplitude of those around them, unless
    they differ from it by more than their own standard error.
    """
    height, width = waves.shape
    (smallest_px, _), (largest_px, _) = _CELLS[-1], _CELLS[0]
    sums = [cell_sums(first, waves, smallest_px) for first in (waves, image)]
    fields = []
    for cell_px, doubt in _CELLS:
        more = cell_px // smallest_px
        weight, product = (add_cells(part, more, more) for part in sums)
        pixels = pixels_in_cells(height, width, cell_px, waves.device)
        weight = _three_by_three(weight.div_(pixels)).clamp_min_(1e-9)
        amplitude = _three_by_three(product.div_(pixels)).div_(weight).clamp_(0.0, _MOST)
        variance = doubt / (weight * (3 * cell_px) ** 2)
        fields.append([Enlarged(cells, cell_px, width) for cells in (amplitude, variance)])
    for rows in strips(height, width, waves.device, largest_px):
        amplitude = None
        for local, variance in fields:
            difference = local.rows(rows).sub_(1.0 if amplitude is None else amplitude)
            square = difference.square()
            spread = variance.rows(rows).add_(square)
            square *= difference
            if amplitude is None:
                amplitude = square.div_(spread).add_(1.0)
            else:
                amplitude.addcdiv_(square, spread)
        waves[rows] *= amplitude
    return waves


def _three_by_three(cells: Tensor) -> Tensor:
    """Mean of each cell (h, w) and those around it, which at the border are the outermost."""
    rows = torch.cat([cells[:1], cells, cells[-1:]])
    rows = rows[:-2] + rows[1:-1] + rows[2:]
    both = torch.cat([rows[:, :1], rows, rows[:, -1:]], dim=1)
    return (both[:, :-2] + both[:, 1:-1]).add_(both[:, 2:]).div_(9.0)
