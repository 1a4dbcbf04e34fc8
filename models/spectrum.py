"""Keep what is periodic: Bragg peaks that a restorer left in the residual are given back.

A network that averages over tens of pixels can lose a lattice that the frame as a whole shows
beyond doubt: in the Fourier transform of the whole frame its power sits in few coefficients, far
above the noise. Such coefficients of the residual (raw - restored) are specimen, not noise, and
are added to the restored frame. The threshold bounds what noise alone can pass: with pure noise
about one frame in 70 of 512 x 512 or more gets a single coefficient, a wave of about 1 % of the
noise there and of less in larger ones.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math
from functools import lru_cache, reduce

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.peaks import (
    columns_around,
    fitted_waves,
    peak_waves,
    power_of,
    unless_weak,
    within_two,
)
from tem_live.models.planes import strips

__all__ = ["bragg_part", "lattice_part"]

# Power over that of the noise. Noise alone is above x with a chance of exp(-x); larger frames than
# this have more coefficients, and a lattice that fills them as much more power in each of its own.
_SURE, _SURE_PX = 16.0, 512 * 512
# Power over that of the coefficients around it, in all directions: the clearest peak of a lattice
# exceeds the first, its others the second. Some edges and gratings do, too, see `_is_whole`.
_LATTICE = 60.0
_PEAK = 20.0
# Peaks of a lattice have this share of its strongest coefficient, and at most this share of all
# power is left beside them.
_STRONG, _LEFT = 0.02, 0.06
# Gratings of holes have longer periods than this, where a lattice is worth imaging at all.
_LONGEST_LATTICE_PX = 20.0
# Where to look around a coefficient, and how many of them at the most.
_AROUND, _CORE = 12, 3
_CANDIDATES = 2048
# So many at a time: what is around all of them would take 40 MB.
_TOGETHER = 128
# Longer periods are the network's own; there a background would count as a peak.
_LONGEST_PX = 40.0
_SMALLEST_PX = 64
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
    _, log, excess, sure = found
    return peak_waves(residual, log, excess, sure)


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
    sharp = torch.cat([_over_surroundings(log, part) for part in torch.split(places, _TOGETHER)])
    if float(sharp.max()) < math.log(_LATTICE):
        return None
    waves, noise = fitted_waves(frame, log, excess, places[sharp > math.log(_PEAK)])
    # Judged as they were found: without the weak ones the rest would be larger.
    return unless_weak(waves, noise) if _is_whole(spectrum, waves) else None


def _is_whole(spectrum: Tensor, part: Tensor) -> bool:
    """Whether hardly anything but noise is left beside the peaks that make up the part.

    The peaks of a crystal that is small, or bent, are wider than what is taken of them. The rest
    would look like a lattice of its own around its edge.
    """
    taken = torch.fft.rfft2(part, norm="ortho")
    power = power_of(taken)
    strongest = power.amax(dim=0)
    least = _STRONG * strongest.amax()
    columns = columns_around((strongest > least).nonzero(), 4, power.shape[1])
    power, taken = (part.index_select(1, columns) for part in (power, taken))
    beside = within_two(within_two(power > least))
    missing = power_of(spectrum.index_select(1, columns).sub_(taken)).sub_(1.0)
    return bool((missing * beside).sum() < _LEFT * (power * beside).sum())


def _sure(height: int, width: int) -> float:
    """Logarithm of the power over that of the noise that is no chance in a frame of this size."""
    return math.log(_SURE + max(0.0, math.log(height * width / _SURE_PX)))


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
    sure = _sure(height, width)
    spectrum = torch.fft.rfft2(image, norm="ortho")
    log, down, across, largest = _log_power(spectrum)
    ground = _Ground(down, across, longest_px, width)
    columns = log.shape[1]
    if image.device.type == "cpu":
        # The last column that can hold anything, by the level under which none of the ground is.
        # Mostly it is one of the first few. A GPU has looked at all of them before it has said so.
        found = (largest > ground.least + sure).nonzero()
        columns = max(ground.slow, int(found[-1]) + 1 if len(found) else 0)
    strongest = [
        ground.taken_from(log, rows, columns).amax(dim=1)
        for rows in strips(height, columns, log.device)
    ]
    # Of a small frame there is but one strip, and each step costs more than what it does.
    every = torch.cat(strongest) if len(strongest) > 1 else strongest[0]
    candidates = (every > sure).nonzero()[:, 0]
    if not len(candidates):
        return None
    excess = ground.taken_from(log, slice(0, height), log.shape[1])
    _sharp_on_the_axes(excess, log, width)
    places = (excess.index_select(0, candidates) > sure).nonzero()
    if not len(places):
        return None
    places[:, 0] = candidates[places[:, 0]]
    return spectrum, log, excess, places


def _log_power(spectrum: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logarithm of the power, (H, C).

    And its means along the rows, (H,), and the columns, (C,), and its largest of each column.
    """
    height, columns = spectrum.shape
    log = torch.empty((height, columns), device=spectrum.device)
    down = log.new_empty(height)
    sums, largest = [], []
    for rows in strips(height, 2 * columns, spectrum.device):
        squares = torch.view_as_real(spectrum[rows]).square()
        part = torch.add(squares[..., 0], squares[..., 1], out=log[rows])
        part.clamp_min_(1e-12).log_()
        sums.append(part.sum(dim=0))
        largest.append(part.amax(dim=0))
        torch.mean(part, dim=1, out=down[rows])
    return log, down, reduce(torch.add, sums).div_(height), reduce(torch.maximum, largest)


@lru_cache(maxsize=8)
def _too_long(
    height: int, width: int, columns: int, longest_px: float, device: torch.device
) -> Tensor:
    """Which coefficients (H, columns) hold periods that are too long to count; the same for all."""
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[:columns]
    too_long: Tensor = fy.square_() + fx.square_() <= longest_px**-2
    return too_long


class _Ground:
    """Logarithm of the power of the noise, from the means of the spectrum's logarithm."""

    def __init__(self, down: Tensor, across: Tensor, longest_px: float, width: int) -> None:
        # The largest of three: down + across - mean, down and across; and never under the half.
        self._down = (down + _EULER)[:, None]
        self._rise = (across - across.mean()).clamp_min_(0.0)
        self.least = (across + _EULER).clamp_min_(math.log(0.5))
        """Under this it is nowhere in a column."""
        self.slow = min(int(width / longest_px) + 2, len(across))
        """So many columns, the first ones, hold periods that are too long to count."""
        self._too_long = _too_long(len(down), width, self.slow, longest_px, down.device)

    def taken_from(self, log: Tensor, rows: slice, columns: int) -> Tensor:
        """Logarithm of the power over that of the noise in the first columns, in new memory.

        For periods that are too long it is -inf.
        """
        floor = torch.add(self._down[rows], self._rise[:columns])
        torch.maximum(floor, self.least[:columns], out=floor)
        excess = torch.sub(log[rows, :columns], floor, out=floor)
        excess[:, : self.slow].masked_fill_(self._too_long[rows], -math.inf)
        return excess


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
    flat = torch.where(turned, there, here).add_(x[:, None, :])
    around = log.flatten().index_select(0, flat.flatten()).view(flat.shape)
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
