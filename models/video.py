"""A causal temporal restorer: the frames before this one, moved to where the specimen is now.

Each frame is restored on its own first (the spatial restorer). With that, the running mean of the
**raw** frames before is brought into register, what has changed since is found and forgotten, the
new raw frame is added, and the mean is restored once more, as a frame of so many times the dose.
Averaging raw frames rather than restored ones keeps what is below the noise of a single frame.

- **Registration** is one shift for the whole frame: phase correlation for the first guess, then the
  least-squares step of Lucas and Kanade (IJCAI 1981, 674) of the raw frame against the last result.
  The mean is moved by a phase ramp in Fourier space, which neither blurs it nor correlates its
  noise; the frame is mirrored at its border first.
- **Change** is a difference between the new frame and the mean that is more than noise at one of
  four scales. There the past is left out at once, so that a particle that vanishes or moves by
  itself leaves no ghost. It is dropped when the next frame agrees that it has changed, and taken
  back when it does not: one pixel in twenty differs by chance, in every frame.
- **Equal noise everywhere**: where fewer frames could be averaged, the mean is drawn towards the
  single restored frame until its noise is that of the rest. The spatial restorer then meets a frame
  with one noise level, as it was trained for.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.cards import ModelCard
from tem_live.models.macs import Work
from tem_live.models.restorer import Restorer
from tem_live.threads import arithmetic_on

__all__ = ["VideoRestorer"]

_MEMORY = 12.0
"""Frames that are averaged at most; the newest keeps a weight of one over it."""
_SCALES = ((1.2, 1), (2.4, 1), (4.8, 2), (9.6, 4))
"""Blurs at which changes are looked for, and the binning they are computed with, in pixels."""
_CHANGED = 3.2
# With more of the frame changed than this, it is another field of view.
_ALL_CHANGED = 0.6
_FAR_PX, _BEYOND_CHANCE = 8.0, 5.0
"""A shift so far from the drift so far must be likelier by so many standard errors of chance."""
_MARGIN_PX = 16
_PEAKS = 25
"""Shifts that are tried. A lattice offers one for each of its cells."""
_UNSTEADY_PX2 = 0.02
"""How much the drift changes from frame to frame, as a variance."""
_SMALLEST_PX = 64
_SMALL_PX = 1 << 20


@dataclass
class _Past:
    """What is known from the frames before, in the coordinates of the last one."""

    mean: Tensor
    """Running mean of raw frames, (H, W)."""
    frames: Tensor
    """How many of them at each pixel, (H, W)."""
    newest: Tensor
    """The last raw frame, (H, W)."""
    doubted: Tensor
    """1 where it differs from the mean, which is without it there; else 0, (H, W)."""
    restored: Tensor
    """The last result, (H, W)."""


class VideoRestorer(Restorer):
    """Restores a series, frame by frame, each with the help of those before it.

    Frames of a stack, and of successive calls, are taken as successive in time. Another shape or
    another field of view begins anew, as does `reset`.

    Parameters
    ----------
    card : ModelCard
        What it is.
    spatial : Restorer
        Restores single frames.
    """

    def __init__(self, card: ModelCard, spatial: Restorer) -> None:
        super().__init__(card, spatial.device)
        # What does nearly all of the work.
        self.precision, self.engine = spatial.precision, spatial.engine
        self._spatial = spatial
        self._past: _Past | None = None
        self._motion = _Motion()

    def reset(self) -> None:
        """Forget the frames so far."""
        self._past = None

    def work(self, shape: tuple[int, int]) -> Work | None:
        """See `Restorer.work`: the spatial restorer runs twice."""
        once = self._spatial.work(shape)
        return None if once is None else once.times(2)

    def _restore_finite(self, frame: Tensor, mean: float, out: Tensor) -> None:
        single = self._spatial.restore(frame)
        past = self._past
        if past is not None and past.mean.shape != frame.shape:
            past = None
        if past is None or min(frame.shape) < _SMALLEST_PX:
            self._begin(frame, single, out)
            return
        # For a small plane it takes longer to wake another thread than to do its half.
        with arithmetic_on(1 if frame.numel() <= _SMALL_PX else None):
            shift = _register(past.restored, frame, single, self._motion)
            variance = _noise_variance(frame, single)
            known = _settled(_moved(past, shift), frame, variance)
            doubted = _differs(frame, 1.0, known, variance)
        if float(doubted.mean()) > _ALL_CHANGED:
            self._begin(frame, single, out)
            return
        longer, frames = _with(known.mean, known.frames, frame)
        average = torch.where(doubted > 0, frame, longer)
        count = torch.where(doubted > 0, torch.ones_like(frames), frames)
        most = float(count.median())
        even = single + (count / most).sqrt_().clamp_max_(1.0) * (average - single)
        restored = self._spatial.restore(even) if most > 1.0 else single
        # That of the frame, as the spatial restorer sees it: without hits.
        restored = restored + (single.mean() - restored.mean())
        kept = torch.where(doubted > 0, known.mean, longer)
        frames = torch.where(doubted > 0, known.frames, frames)
        # The caller may restore in place, and reuse the frame's memory for the next one.
        self._past = _Past(kept, frames, frame.clone(), doubted, restored)
        out.copy_(restored)

    def _begin(self, frame: Tensor, single: Tensor, out: Tensor) -> None:
        self._motion = _Motion()
        # Copies: the caller may restore in place, and reuse the frame's memory for the next one.
        newest, none = frame.clone(), torch.zeros_like(frame)
        self._past = _Past(newest, torch.ones_like(frame), newest, none, single.clone())
        out.copy_(single)


# ---------------------------------------------------------------------------------- registration


@dataclass
class _Motion:
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


def _register(
    before: Tensor, frame: Tensor, single: Tensor, motion: _Motion
) -> tuple[float, float]:
    """Shift (dy, dx) of the specimen from `before` to `frame` in pixels."""
    spectra = _windowed_spectrum(before), _windowed_spectrum(single)
    guesses = [motion.velocity, *_peaks(*spectra, before.shape[1])]
    # Of two frames that show little, one of the many far shifts is the best one by chance.
    far_costs = _BEYOND_CHANCE * _chance(*spectra)
    # Blurred, so that what finer details lose by rounding a shift does not decide.
    matching = _Matching(_blur(before, 1.0), _blur(single, 1.0))

    def doubt(guess: tuple[float, float]) -> float:
        far = math.dist(guess, motion.velocity) > _FAR_PX
        return matching.distance(guess) + (far_costs if far else 0.0)

    dy, dx = min(guesses, key=doubt)
    # From coarse to fine: the linear step holds for shifts under the blur. The last ones are on the
    # raw frame without any blur, which is the likeliest shift where its noise is white.
    variance = math.inf
    movable = _Movable(before)
    for blur_px, target in ((1.0, single), (0.0, frame), (0.0, frame)):
        template = movable.moved(dy, dx)
        if blur_px:
            template, target = _blur(template, blur_px), _blur(target, blur_px)
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
    highest = correlation == _largest_around(correlation, 2)
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


# ------------------------------------------------------------------------------------ the past


def _moved(past: _Past, shift: tuple[float, float]) -> _Past:
    dy, dx = shift
    if dy == 0.0 and dx == 0.0:
        return past
    whole = round(dy), round(dx)
    frames = torch.roll(past.frames, whole, dims=(0, 1))
    # The number of frames falls off towards what has changed, however the shift was rounded.
    frames = -_largest_around(-frames, 1)
    height, width = frames.shape
    top, left = math.ceil(abs(dy)) + 1, math.ceil(abs(dx)) + 1
    if dy > 0.02:
        frames[: min(top, height)] = 0.0
    elif dy < -0.02:
        frames[max(height - top, 0) :] = 0.0
    if dx > 0.02:
        frames[:, : min(left, width)] = 0.0
    elif dx < -0.02:
        frames[:, max(width - left, 0) :] = 0.0
    doubted = torch.roll(past.doubted, whole, dims=(0, 1)) * (frames > 0)
    mean, newest = _Movable(torch.stack((past.mean, past.newest))).moved(dy, dx)
    return _Past(mean, frames, newest, doubted, past.restored)


class _Movable:
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


def _with(mean: Tensor, frames: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """The running mean with one frame more, and of how many it is by then."""
    mean = torch.where(frames > 0, mean, frame)
    return mean + (frame - mean) / (frames + 1.0), (frames + 1.0).clamp_max_(_MEMORY)


def _settled(past: _Past, frame: Tensor, variance: Tensor) -> _Past:
    """Where the frame before was doubted: decide by this one whether it or the mean is right."""
    if not bool(past.doubted.any()):
        return past
    # Two frames tell what one did by chance from what has changed, which they show more clearly.
    differs = _differs(0.5 * (frame + past.newest), 2.0, past, variance)
    changed, same = past.doubted * differs, past.doubted * (1.0 - differs)
    mean, frames = _with(past.mean, past.frames, past.newest)
    mean = torch.where(same > 0, mean, torch.where(changed > 0, past.newest, past.mean))
    frames = torch.where(same > 0, frames, torch.where(changed > 0, 1.0, past.frames))
    return _Past(mean, frames, past.newest, torch.zeros_like(frame), past.restored)


def _differs(average: Tensor, frames: float, past: _Past, variance: Tensor) -> Tensor:
    """Where an average of frames differs from the past by more than noise: 0 or 1, (H, W)."""
    difference = average - past.mean
    # In units of the noise of a difference, which is less than known where the past is short.
    spread = (variance * (1.0 / frames + 1.0 / past.frames.clamp_min(1.0))).sqrt_()
    z = torch.where(past.frames > 0, difference / spread, torch.zeros_like(difference))
    changed = torch.zeros_like(average)
    height, width = average.shape
    for sigma_px, bin_px in _SCALES:
        binned = z
        if bin_px > 1:
            binned = functional.avg_pool2d(z[None, None], bin_px, ceil_mode=True)[0, 0] * bin_px
        smooth = _significance(binned, sigma_px / bin_px)
        found = (smooth.abs_() > _CHANGED).to(average.dtype)
        found = _largest_around(found, max(1, round(sigma_px / bin_px)))
        if bin_px > 1:
            found = found.repeat_interleave(bin_px, 0).repeat_interleave(bin_px, 1)
        torch.maximum(changed, found[:height, :width], out=changed)
    return changed


def _noise_variance(frame: Tensor, single: Tensor) -> Tensor:
    """Variance of the noise at each pixel: a constant and a part that grows with the intensity."""
    square = (frame - single).square().flatten()
    level = single.flatten().clamp_min(0.0)
    mean, average = float(level.mean()), float(square.mean())
    # A line through the squares of the residual; its slope and its offset cannot be negative.
    spread = float((level - mean).square().mean())
    slope = float(((level - mean) * (square - average)).mean()) / max(spread, 1e-12)
    slope = min(max(slope, 0.0), average / mean if mean > 0 else 0.0)
    offset = max(average - slope * mean, 0.0)
    return (single.clamp_min(0.0) * slope + offset).clamp_min_(1e-3 * average + 1e-12)


def _largest_around(image: Tensor, reach: int) -> Tensor:
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


def _significance(z: Tensor, sigma_px: float) -> Tensor:
    """White noise of unit variance, blurred, in units of its standard deviation then.

    At the border there is less to average, and nothing is counted twice as by mirroring.
    """
    taps = _gaussian(sigma_px)
    reach = len(taps) // 2
    blurred = _convolved(functional.pad(z, (reach, reach, reach, reach)), taps)
    squares = z.new_tensor([tap * tap for tap in taps])
    down, across = (
        functional.conv1d(z.new_ones(1, 1, side), squares[None, None], padding=reach)[0, 0]
        for side in z.shape
    )
    return blurred.div_(down.sqrt()[:, None]).div_(across.sqrt())


def _gaussian(sigma_px: float) -> list[float]:
    """Taps of a Gaussian, which add up to 1."""
    reach = math.ceil(3.0 * sigma_px)
    taps = [math.exp(-0.5 * (place / sigma_px) ** 2) for place in range(-reach, reach + 1)]
    return [tap / sum(taps) for tap in taps]


def _blur(image: Tensor, sigma_px: float) -> Tensor:
    taps = _gaussian(sigma_px)
    reach = len(taps) // 2
    padded = functional.pad(image[None, None], (reach, reach, reach, reach), mode="reflect")
    return _convolved(padded[0, 0], taps)


def _convolved(padded: Tensor, taps: list[float]) -> Tensor:
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
