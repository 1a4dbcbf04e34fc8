"""Training batches of the user's own images, mixed with simulated scenes.

Pairs and series come with targets. A single frame has none: what the start restorer makes of it
is taken for the specimen, and the noise is made again by example (`NoiseByExample`), so that the
network learns this camera's noise on this kind of specimen. It cannot learn detail from it that
the restorer does not show.

A lattice is taken out of frames and targets, for the restorer takes it out before its network.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import fft as sp_fft
from scipy import ndimage, special
from torch.nn import functional

from tem_live.models.cameras import gaussian_error
from tem_live.models.data_device import Batch, DeviceBatches
from tem_live.models.data_lattices import lattice_of
from tem_live.models.pairs import Example

__all__ = ["NoiseByExample", "OwnBatches", "noise_level"]

Array = npt.NDArray[np.float32]
Restore = Callable[[Array], Array]

_CLASSES = 10
_LEVELS = 256
# Reach of the noise's correlation that is kept, along and across its lines.
_ALONG_PX, _ACROSS_PX = 24.0, 1.5


def noise_level(frame: Array, restored: Array) -> float:
    """Standard deviation of what a restorer takes away, in electrons."""
    return float(np.std(frame - restored))


def _lattice_of(frame: Array) -> Array:
    """float32 (H, W), e-/px; zeros where there is none."""
    found = lattice_of(torch.from_numpy(np.ascontiguousarray(frame, dtype=np.float32)))
    return np.zeros_like(frame, dtype=np.float32) if found is None else found.numpy()


class NoiseByExample:
    """Makes the noise of one frame again, on any image of its range.

    The frame's pixels are sorted into classes of restored intensity; each class has a distribution
    of its own, whatever its form (clipping included). Neighbours are tied by a normal field with
    the measured correlation along rows and columns, whose ranks choose from those distributions.

    Parameters
    ----------
    frame, restored : ndarray
        float32 (H, W), e-/px.
    """

    def __init__(self, frame: Array, restored: Array) -> None:
        edges = np.quantile(restored, np.linspace(0.0, 1.0, _CLASSES + 1)[1:-1])
        index = np.digitize(restored, edges)
        ranks = (np.arange(_LEVELS) + 0.5) / _LEVELS
        members = [index == i for i in range(_CLASSES) if (index == i).sum() >= _LEVELS]
        members = members or [np.ones(frame.shape, dtype=np.bool_)]
        self._levels = np.array([restored[m].mean() for m in members], dtype=np.float64)
        noise = frame - restored
        self._noise = np.array([np.quantile(noise[m], ranks) for m in members])
        # The restorer keeps the mean of the frame, not of each class.
        self._noise -= self._noise.mean(axis=1, keepdims=True)
        self._floor = float(frame.min()) if float((frame <= frame.min()).mean()) > 0.01 else None
        spread = np.sqrt(ndimage.gaussian_filter(noise * noise, 8.0))
        unit = noise / np.maximum(spread, 1e-6)
        power = np.abs(np.fft.fft2(unit - unit.mean())) ** 2
        correlation = np.fft.ifft2(power).real
        self._correlation = correlation / correlation[0, 0]

    def field(self, rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
        """A normal field, unit variance, with the noise's correlation."""
        height, width = shape
        full_height, full_width = self._correlation.shape
        y = np.minimum(np.arange(height), height - np.arange(height))
        x = np.minimum(np.arange(width), width - np.arange(width))
        y, x = np.minimum(y, full_height // 2), np.minimum(x, full_width // 2)
        rows = np.outer(np.exp(-0.5 * (y / _ACROSS_PX) ** 2), np.exp(-0.5 * (x / _ALONG_PX) ** 2))
        columns = np.outer(
            np.exp(-0.5 * (y / _ALONG_PX) ** 2), np.exp(-0.5 * (x / _ACROSS_PX) ** 2)
        )
        tied = self._correlation[np.ix_(y, x)] * np.maximum(rows, columns)
        transfer = np.sqrt(np.maximum(sp_fft.fft2(tied).real, 1e-3))
        white = sp_fft.fft2(rng.standard_normal(shape))
        made = np.asarray(sp_fft.ifft2(white * transfer).real)
        return np.asarray(made / made.std())

    def expose(self, rng: np.random.Generator, clean: Array) -> Array:
        """Add noise to an image; float32 (H, W), e-/px."""
        height, width = clean.shape
        rank = special.ndtr(self.field(rng, (height, width))) * _LEVELS - 0.5
        place = np.clip(rank, 0.0, _LEVELS - 1.001)
        low = place.astype(np.int64)
        part = place - low
        if len(self._levels) == 1:
            noise = (1 - part) * self._noise[0, low] + part * self._noise[0, low + 1]
        else:
            between = np.interp(clean, self._levels, np.arange(len(self._levels)))
            at = np.minimum(between.astype(np.int64), len(self._levels) - 2)
            weight = between - at
            below = (1 - part) * self._noise[at, low] + part * self._noise[at, low + 1]
            above = (1 - part) * self._noise[at + 1, low] + part * self._noise[at + 1, low + 1]
            noise = (1 - weight) * below + weight * above
        frame = np.asarray(clean + noise, dtype=np.float32)
        return frame if self._floor is None else np.maximum(frame, np.float32(self._floor))


class OwnBatches:
    """Makes the batch of any step; see `tem_live.models.lightning_data.BatchMaker`.

    Parameters
    ----------
    examples : sequence of Example
        To train on, e-/px.
    restore : callable
        The start restorer, (H, W) to (H, W).
    simulated : DeviceBatches or None
        Simulated scenes to mix in, so that the network does not forget what it could.
    share : float
        Share of simulated samples, 0 to 1.
    batch_px, crop_px : int
        Size of a batch and of its crops.
    seed : int
        Of the recipe.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        restore: Restore,
        simulated: DeviceBatches | None,
        *,
        share: float,
        batch_px: int,
        crop_px: int,
        seed: int,
    ) -> None:
        lattices = [_lattice_of(e.frame) for e in examples]
        self._examples = tuple(
            Example(e.frame - lattice, None if e.target is None else e.target - lattice)
            for e, lattice in zip(examples, lattices, strict=True)
        )
        self._simulated = simulated if share > 0.0 else None
        self._share = share if simulated is not None else 0.0
        least = min(min(e.frame.shape) for e in self._examples)
        self._crop = min(crop_px, least // 32 * 32)
        self._count = max(1, round(batch_px / self._crop**2))
        self._seed = seed
        self._restored = [
            restore(e.frame) - lattice for e, lattice in zip(examples, lattices, strict=True)
        ]
        self._noise = [
            NoiseByExample(e.frame, r) if e.target is None else None
            for e, r in zip(self._examples, self._restored, strict=True)
        ]
        self._sigma = [
            noise_level(e.frame, r) for e, r in zip(self._examples, self._restored, strict=True)
        ]

    def make(self, step: int, rank: int = 0) -> Batch:
        """Make the batch of one step."""
        rng = np.random.default_rng([self._seed, 7933, step, rank])
        own = self._count - int(rng.binomial(self._count, self._share))
        frames = np.empty((self._count, 1, self._crop, self._crop), dtype=np.float32)
        targets = np.empty_like(frames)
        scale = np.empty(self._count, dtype=np.float32)
        for i in range(own):
            frames[i, 0], targets[i, 0], scale[i] = self._sample(rng)
        batch = Batch(torch.from_numpy(frames), torch.from_numpy(targets), torch.from_numpy(scale))
        if own < self._count and self._simulated is not None:
            made = self._simulated.make(step, rank)
            for i in range(own, self._count):
                self._take(batch, i, made, i - own)
        return batch

    def _take(self, batch: Batch, place: int, made: Batch, number: int) -> None:
        """Copy a simulated sample; where it is smaller than the crops are its edges go on."""
        number %= made.frames.shape[0]
        size = made.frames.shape[-1]
        pad = (0, max(0, self._crop - size)) * 2
        for to, source in ((batch.frames, made.frames), (batch.targets, made.targets)):
            image = source[number : number + 1]
            if pad[1]:
                image = functional.pad(image, pad, mode="replicate")
            to[place] = image[0, :, : self._crop, : self._crop]
        batch.scale[place] = made.scale[number]

    def _sample(self, rng: np.random.Generator) -> tuple[Array, Array, float]:
        number = int(rng.integers(len(self._examples)))
        example, restored = self._examples[number], self._restored[number]
        height, width = example.frame.shape
        y = int(rng.integers(0, height - self._crop + 1))
        x = int(rng.integers(0, width - self._crop + 1))
        window = np.s_[y : y + self._crop, x : x + self._crop]
        # Turning by 90 degrees would turn a camera's streaks, too.
        flip = np.s_[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
        clear = np.ascontiguousarray(restored[window][flip])
        error = gaussian_error(clear, self._sigma[number])
        noise = self._noise[number]
        if noise is not None:
            return noise.expose(rng, clear), clear, error
        assert example.target is not None
        return (
            np.ascontiguousarray(example.frame[window][flip]),
            np.ascontiguousarray(example.target[window][flip]),
            error,
        )
