"""How far the specimen has moved between two frames, and images moved by any such shift.

One shift for the whole frame: phase correlation for the first guess, then the least-squares step of
Lucas and Kanade (IJCAI 1981, 674). Images are moved by a phase ramp in Fourier space, which neither
blurs them nor correlates their noise.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.plane_filters import blurred, largest_around

__all__ = ["Motion", "Movable", "register"]

_FAR_PX, _BEYOND_CHANCE = 8.0, 5.0
"""A shift so far from the drift so far must be likelier by so many standard errors of chance."""
_MARGIN_PX = 16
_PEAKS = 25
"""Shifts that are tried. A lattice offers one for each of its cells."""
_UNSTEADY_PX2 = 0.02
"""How much the drift changes from frame to frame, as a variance."""


@dataclass
class Motion:
    """Drift from frame to frame in pixels, followed by a Kalman filter of a steady velocity."""

    velocity: tuple[float, float] = (0.0, 0.0)
    variance_px2: float = 4.0

    def follow(self, measured: tuple[float, float], variance_px2: float) -> tuple[float, float]:
        """Weigh a measured shift against the velocity so far; returns the shift to use."""
        expected = self.variance_px2 + _UNSTEADY_PX2
        gain = expected / (expected + variance_px2)
        away = math.dist(measured, self.velocity)
        if away * away > 25.0 * (expected + variance_px2):
            # A jump that the frame shows beyond doubt: the stage was moved.
            gain, expected = 1.0, variance_px2
        dy, dx = (v + gain * (m - v) for v, m in zip(self.velocity, measured, strict=True))
        self.velocity = (dy, dx)
        self.variance_px2 = (1.0 - gain) * expected if gain < 1.0 else variance_px2
        return dy, dx


def register(before: Tensor, frame: Tensor, single: Tensor, motion: Motion) -> tuple[float, float]:
    """Shift (dy, dx) of the specimen from one frame to the next, in pixels.

    Parameters
    ----------
    before : Tensor (H, W)
        The last frame, restored; both sides over 34 px, as the others.
    frame, single : Tensor (H, W)
        The frame after it, raw and restored; in the units of `before`.
    motion : Motion
        The drift so far; it follows this shift.

    Returns
    -------
    tuple of float
        Down and to the right. The drift so far where the frames do not tell.
    """
    spectra = _windowed_spectrum(before), _windowed_spectrum(single)
    guesses = [motion.velocity, *_peaks(*spectra, before.shape[1])]
    # Of two frames that show little, one of the many far shifts is the best one by chance.
    far_costs = _BEYOND_CHANCE * _chance(*spectra)
    # Blurred, so that what finer details lose by rounding a shift does not decide.
    matching = _Matching(blurred(before, 1.0), blurred(single, 1.0))

    def doubt(guess: tuple[float, float]) -> float:
        far = math.dist(guess, motion.velocity) > _FAR_PX
        return matching.distance(guess) + (far_costs if far else 0.0)

    dy, dx = min(guesses, key=doubt)
    # From coarse to fine: the linear step holds for shifts under the blur. The last ones are on the
    # raw frame without any blur, which is the likeliest shift where its noise is white.
    variance = math.inf
    movable = Movable(before)
    for blur_px, target in ((1.0, single), (0.0, frame), (0.0, frame)):
        template = movable.moved(dy, dx)
        if blur_px:
            template, target = blurred(template, blur_px), blurred(target, blur_px)
        step = _least_squares(template, target)
        if step is None or math.hypot(step[0], step[1]) > 2.0:
            break
        dy, dx, variance = dy + step[0], dx + step[1], step[2]
    return motion.follow((dy, dx), variance) if math.isfinite(variance) else motion.velocity


def _windowed_spectrum(image: Tensor) -> Tensor:
    """Real-input transform of an image without its mean, smooth towards its border."""
    height, width = image.shape
    window = torch.outer(
        torch.hann_window(height, device=image.device),
        torch.hann_window(width, device=image.device),
    )
    spectrum: Tensor = torch.fft.rfft2((image - image.mean()) * window)
    return spectrum


def _chance(first: Tensor, second: Tensor) -> float:
    """Standard deviation of the correlation of two images that have nothing in common.

    The correlation of n independent pairs scatters by n^-1/2; of images as smooth as these it is
    n = (sum P1) (sum P2) / sum P1 P2 with their power spectra (Bartlett, J. R. Stat. Soc. Suppl.
    8 (1946) 27). The window makes n smaller, to the safe side.
    """
    # Of the half that a real-input transform keeps: what is not there twice does not matter.
    powers = first.abs().square(), second.abs().square()
    whole = float(powers[0].sum()) * float(powers[1].sum())
    return math.sqrt(float((powers[0] * powers[1]).sum()) / (2.0 * whole)) if whole > 0.0 else 1.0


def _peaks(first: Tensor, second: Tensor, width: int) -> list[tuple[float, float]]:
    """Whole-pixel shifts that phase correlation of windowed frames offers, the best first."""
    height = first.shape[0]
    cross = second * first.conj()
    frequency = torch.hypot(
        torch.fft.fftfreq(height, device=first.device)[:, None],
        torch.fft.rfftfreq(width, device=first.device)[None, :],
    )
    # The phase alone makes a sharp peak; what is finer than this is noise.
    weight = torch.exp(-((frequency / 0.12) ** 2)) / cross.abs().clamp_min(1e-12)
    correlation = torch.fft.irfft2(cross * weight, s=(height, width))
    peaks = []
    # A lattice has as many peaks as unit cells, and only the rest of the frame tells which is it.
    highest = correlation == largest_around(correlation, 2)
    best = torch.topk((correlation * highest).flatten(), _PEAKS).indices
    for row, column in (divmod(int(index), width) for index in best):
        dy = row if row <= height // 2 else row - height
        dx = column if column <= width // 2 else column - width
        if abs(dy) < height // 4 and abs(dx) < width // 4:
            peaks.append((float(dy), float(dx)))
    return peaks


def _gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes down and across, per pixel, of the shape of the image; 0 along its border."""
    down, across = torch.zeros_like(image), torch.zeros_like(image)
    torch.sub(image[2:], image[:-2], out=down[1:-1]).mul_(0.5)
    torch.sub(image[:, 2:], image[:, :-2], out=across[:, 1:-1]).mul_(0.5)
    return down, across


class _Matching:
    """How well two frames, blurred by a pixel, match after a shift: every second pixel tells it.

    Parameters
    ----------
    before, after : Tensor (H, W)
        The frames.
    """

    def __init__(self, before: Tensor, after: Tensor) -> None:
        self._before = before[::2, ::2].contiguous()
        self._slopes = [slope[::2, ::2].contiguous() for slope in _gradients(before)]
        # Of the other frame, each of the four pixels that such a one may have been shifted to.
        self._after = {
            (row, column): after[row::2, column::2].contiguous()
            for row in (0, 1)
            for column in (0, 1)
        }

    def distance(self, shift: tuple[float, float]) -> float:
        """Share of the variance that is left where both frames show the specimen, after a shift.

        The shift is rounded to whole pixels, and what a fraction of a pixel can explain is taken
        off: on a lattice that is more than what tells one cell from the next. A share, because the
        part that both frames show differs from shift to shift, and an even one has little to be
        left.
        """
        (down, odd_row), (right, odd_column) = (divmod(round(part), 2) for part in shift)
        after = self._after[odd_row, odd_column]
        rows, rows_after = _overlap(self._before.shape[0], after.shape[0], down)
        columns, columns_after = _overlap(self._before.shape[1], after.shape[1], right)
        first, second = self._before[rows, columns], after[rows_after, columns_after]
        difference = second - first
        difference -= difference.mean()
        whole = float(first.var(correction=0) + second.var(correction=0))
        left = float(difference.square().mean())
        if whole <= 0.0:
            return 1.0
        gy, gx = (slope[rows, columns] for slope in self._slopes)
        step = _along_slopes(gy, gx, difference)
        # Farther than a pixel the slope tells nothing.
        if step is not None and math.hypot(step.dy, step.dx) <= 1.0:
            left -= step.explained
        return left / whole


def _overlap(side: int, other_side: int, shift: int) -> tuple[slice, slice]:
    """Where two axes overlap if the other one's index is larger by the shift."""
    start, stop = max(-shift, 0), min(side, other_side - shift)
    return slice(start, stop), slice(start + shift, stop + shift)


class _Step(NamedTuple):
    """A small shift (dy, dx) in px of an image to where it explains most of a difference."""

    dy: float
    dx: float
    explained: float
    """How much of the difference's mean square."""
    variance_px2: float
    """Of either coordinate, where the difference has a variance of 1 of white noise."""


def _along_slopes(gy: Tensor, gx: Tensor, difference: Tensor) -> _Step | None:
    """Least squares: the difference is minus the shift along the slopes; None if nothing tells."""
    yy, xx, xy = (float((a * b).sum()) for a, b in ((gy, gy), (gx, gx), (gy, gx)))
    by, bx = float((gy * difference).sum()), float((gx * difference).sum())
    determinant = yy * xx - xy * xy
    if determinant <= 1e-6 * (yy + xx) ** 2 or yy + xx <= 0.0:
        return None
    dy, dx = -(xx * by - xy * bx) / determinant, -(yy * bx - xy * by) / determinant
    explained = -(dy * by + dx * bx) / difference.numel()
    return _Step(dy, dx, explained, 0.5 * (yy + xx) / determinant)


def _least_squares(template: Tensor, target: Tensor) -> tuple[float, float, float] | None:
    """Small shift (dy, dx) that takes `template` to `target`, and its variance in px^2.

    None where nothing tells. The variance is that of white noise in the target.
    """
    m = _MARGIN_PX
    gy = 0.5 * (template[2:, 1:-1] - template[:-2, 1:-1])[m:-m, m:-m]
    gx = 0.5 * (template[1:-1, 2:] - template[1:-1, :-2])[m:-m, m:-m]
    difference = (target - template)[1:-1, 1:-1][m:-m, m:-m]
    difference = difference - difference.mean()
    # What moved by itself must not pull at the whole frame.
    limit = 3.0 * float(difference.std())
    difference = difference.clamp(-limit, limit)
    # target(x) = template(x - d), so that the difference is -d . gradient.
    step = _along_slopes(gy, gx, difference)
    if step is None:
        return None
    return step.dy, step.dx, step.variance_px2 * float(difference.square().mean())


class Movable:
    """Images that can be moved by any fraction of a pixel without a loss.

    Parameters
    ----------
    images : Tensor (..., H, W)
        They are mirrored at their border first.
    """

    def __init__(self, images: Tensor) -> None:
        m = _MARGIN_PX
        flat = images.reshape(1, -1, *images.shape[-2:])
        padded = functional.pad(flat, (m, m, m, m), mode="reflect")[0]
        self._shape, self._padded = images.shape, padded.shape[-2:]
        self._spectra = torch.fft.rfft2(padded)

    def moved(self, dy: float, dx: float) -> Tensor:
        """The images, down and to the right by so many pixels, (..., H, W)."""
        m, device = _MARGIN_PX, self._spectra.device
        rows, columns = self._padded
        fy = torch.fft.fftfreq(rows, device=device)
        fx = torch.fft.rfftfreq(columns, device=device)
        one = torch.ones((), device=device)
        down, right = (torch.polar(one, -2.0 * math.pi * f) for f in (fy * dy, fx * dx))
        turned = self._spectra * down[:, None] * right
        moved: Tensor = torch.fft.irfft2(turned, s=(rows, columns))
        height, width = self._shape[-2:]
        return moved[..., m : m + height, m : m + width].reshape(self._shape)
