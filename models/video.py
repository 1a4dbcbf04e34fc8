"""A causal temporal restorer: the frames before this one, moved to where the specimen is now.

Each frame is restored on its own first (the spatial restorer). With that, the running mean of the
**raw** frames before is brought into register, what has changed since is found and forgotten, the
new raw frame is added, and the mean is restored once more, as a frame of so many times the dose.
Averaging raw frames rather than restored ones keeps what is below the noise of a single frame.

- **Registration** is one shift for the whole frame, of the raw frame against the last result; the
  mean is moved without being blurred, see `tem_live.models.registration`.
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

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.cards import ModelCard
from tem_live.models.macs import Work
from tem_live.models.plane_filters import convolved, gaussian_taps, largest_around
from tem_live.models.registration import Motion, Movable, register
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
_SMALLEST_PX = 64
"""Of a smaller side, frames are restored on their own."""
_SMALL_PX = 1 << 20
"""Pixels of a plane up to which one thread is quicker than several."""


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
        self._motion = Motion()

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
            shift = register(past.restored, frame, single, self._motion)
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
        self._motion = Motion()
        # Copies: the caller may restore in place, and reuse the frame's memory for the next one.
        newest, none = frame.clone(), torch.zeros_like(frame)
        self._past = _Past(newest, torch.ones_like(frame), newest, none, single.clone())
        out.copy_(single)


def _moved(past: _Past, shift: tuple[float, float]) -> _Past:
    dy, dx = shift
    if dy == 0.0 and dx == 0.0:
        return past
    whole = round(dy), round(dx)
    frames = torch.roll(past.frames, whole, dims=(0, 1))
    # The number of frames falls off towards what has changed, however the shift was rounded.
    frames = -largest_around(-frames, 1)
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
    mean, newest = Movable(torch.stack((past.mean, past.newest))).moved(dy, dx)
    return _Past(mean, frames, newest, doubted, past.restored)


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
        found = largest_around(found, max(1, round(sigma_px / bin_px)))
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


def _significance(z: Tensor, sigma_px: float) -> Tensor:
    """White noise of unit variance, blurred, in units of its standard deviation then.

    At the border there is less to average, and nothing is counted twice as by mirroring.
    """
    taps = gaussian_taps(sigma_px)
    reach = len(taps) // 2
    blurred = convolved(functional.pad(z, (reach, reach, reach, reach)), taps)
    squares = z.new_tensor([tap * tap for tap in taps])
    down, across = (
        functional.conv1d(z.new_ones(1, 1, side), squares[None, None], padding=reach)[0, 0]
        for side in z.shape
    )
    return blurred.div_(down.sqrt()[:, None]).div_(across.sqrt())
