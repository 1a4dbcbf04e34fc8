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
    found = _excess(residual, _LONGEST_PX)
    if found is None:
        return None
    spectrum, _, excess = found
    sure = excess > _SURE
    if not bool(sure.any()):
        return None
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
    found = _excess(frame, _LONGEST_LATTICE_PX)
    if found is None:
        return None
    spectrum, log, excess = found
    sure = excess > _SURE
    places = sure.nonzero()
    if not len(places):
        return None
    if len(places) > _CANDIDATES:
        strongest = excess[sure].topk(_CANDIDATES).indices
        places = places[strongest]
    sharp = _over_surroundings(log, places)
    if float(sharp.max()) < _LATTICE:
        return None
    places = places[sharp > _PEAK]
    peaks = torch.zeros_like(sure)
    peaks[places[:, 0], places[:, 1]] = True
    part = _waves(frame, spectrum, excess, peaks)
    return part if _is_whole(spectrum, part) else None


def _is_whole(spectrum: Tensor, part: Tensor) -> bool:
    """Whether hardly anything but noise is left beside the peaks that make up the part.

    The peaks of a crystal that is small, or bent, are wider than what is taken of them. The rest
    would look like a lattice of its own around its edge.
    """
    taken = torch.fft.rfft2(part, norm="ortho")
    power = taken.abs().square_()
    beside = _within_two(_within_two(power > _STRONG * power.max()))
    left = float((spectrum - taken)[beside].abs().square_().sum()) - float(beside.sum())
    return left < _LEFT * float(power[beside].sum())


def _excess(image: Tensor, longest_px: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """Spectrum, logarithm of its power, and its power over that of the noise."""
    height, width = image.shape
    if min(height, width) < _SMALLEST_PX:
        return None
    spectrum = torch.fft.rfft2(image, norm="ortho")
    power = spectrum.real.square() + spectrum.imag.square()
    log = power.clamp_min(1e-12).log()
    across, down = log.mean(dim=0)[None, :], log.mean(dim=1)[:, None]
    floor = across + down - log.mean()
    torch.maximum(floor, torch.maximum(across, down), out=floor)
    floor = floor.add_(_EULER).exp_().clamp_min_(0.5)
    fy = torch.fft.fftfreq(height, device=image.device).square_()[:, None]
    fx = torch.fft.rfftfreq(width, device=image.device).square_()[None, :]
    excess = power.div_(floor).mul_(fy + fx > longest_px**-2)
    _sharp_on_the_axes(excess, log, width)
    return spectrum, log, excess


def _waves(image: Tensor, spectrum: Tensor, excess: Tensor, peaks: Tensor) -> Tensor:
    """The peaks with their flanks, transformed back, where the image really contains them."""
    keep = _within_two(peaks).logical_and_(excess > _BESIDE)
    spectrum = spectrum.masked_fill(keep.logical_not_(), 0.0)
    waves = torch.fft.irfft2(spectrum, s=image.shape, norm="ortho")
    out: Tensor = waves.mul_(_where(image, waves))
    return out


def _over_surroundings(log: Tensor, places: Tensor) -> Tensor:
    """Power at places (n, 2) over the mean of the coefficients around each, in all directions."""
    height, columns = log.shape
    steps = torch.arange(-_AROUND, _AROUND + 1, device=log.device)
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    ring = (dy.abs() > _CORE) | (dx.abs() > _CORE)
    y, x = places[:, :1] + dy[ring], places[:, 1:] + dx[ring]
    # Beyond either end of the half spectrum lies the other half, turned by half a turn.
    below, beyond = x < 0, x > columns - 1
    y = torch.where(below | beyond, -y, y) % height
    x = torch.where(below, -x, torch.where(beyond, 2 * (columns - 1) - x, x)).clamp_(0, columns - 1)
    floor = log[y, x].mean(dim=1)
    return (log[places[:, 0], places[:, 1]] - floor - _EULER).exp_()


def _sharp_on_the_axes(excess: Tensor, log: Tensor, width: int) -> None:
    """On the axes, let only what stands out of its own neighbourhood count.

    They hold what is constant along a row or a column. Streaks, dead lines and seams are spread
    along the axis, more or less evenly; fringes that lie exactly along rows or columns are sharp.
    """
    height = log.shape[0]
    rows = torch.stack([log[0], log[1], log[-1]])
    sharp = torch.minimum(excess[[0, 1, -1]], _over_neighbours(rows, "reflect"))
    if width % _TURNS_PX == 0:
        turns = slice(None, None, width // _TURNS_PX)
        sharp[:, turns] *= _is_wide(excess[[2, 3, -3, -2], turns])
    lines = log[:, :2].T
    sharp_lines = torch.minimum(excess[:, :2].T, _over_neighbours(lines, "circular"))
    if height % _TURNS_PX == 0:
        turns = slice(None, None, height // _TURNS_PX)
        sharp_lines[:, turns] *= _is_wide(excess[turns, 2:4].T)
    excess[:, :2] = sharp_lines.T
    excess[[0, 1, -1]] = sharp
    # What changes as slowly as the frame is wide has no direction.
    excess[:2, :2] = excess[-1:, :2] = 0.0


def _is_wide(beside: Tensor) -> Tensor:
    """Where the coefficients (n, m) beside the axis are more than noise, too: 0 or 1, (m,).

    A crystal has an end, and so have its peaks a width; amplifiers take turns in the whole frame.
    """
    return (beside.mean(dim=0) > _WIDE).to(beside.dtype)


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
    residual on them, cell by cell, tells where they belong. The whole frame has them with an
    amplitude of one; smaller and smaller cells have the amplitude of those around them, unless
    they differ from it by more than their own standard error.
    """
    amplitude = torch.ones_like(waves)
    for cell_px, doubt in _CELLS:
        local, variance = _amplitude(residual, waves, cell_px)
        difference = local.sub_(amplitude)
        square = difference.square()
        amplitude += difference.mul_(square).div_(square + doubt * variance)
    return amplitude


def _amplitude(residual: Tensor, waves: Tensor, cell_px: int) -> tuple[Tensor, Tensor]:
    """Amplitude of the waves in three by three cells around each pixel, and its variance."""
    height, width = residual.shape

    def local(field: Tensor) -> Tensor:
        cells = functional.avg_pool2d(
            field[None, None], cell_px, ceil_mode=True, count_include_pad=False
        )
        cells = functional.pad(cells, (1, 1, 1, 1), mode="replicate")
        return functional.avg_pool2d(cells, 3, stride=1)

    def smooth(cells: Tensor) -> Tensor:
        rows, columns = cells.shape[-2] * cell_px, cells.shape[-1] * cell_px
        whole = functional.interpolate(
            cells, size=(rows, columns), mode="bilinear", align_corners=False
        )
        return whole[0, 0, :height, :width]

    weight = local(waves * waves).clamp_min_(1e-9)
    amplitude = (local(residual * waves) / weight).clamp_(0.0, _MOST)
    return smooth(amplitude), smooth(1.0 / (weight * (3 * cell_px) ** 2))
