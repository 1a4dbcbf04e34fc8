"""Training batches made on the device: a bank of scenes that lives there, and cameras in torch.

The same physics as `tem_live.models.cameras`, a batch at a time, so that a GPU is not starved by
the processor: only the few numbers that describe each sample are drawn in NumPy (by
`cameras.random_camera` itself), every pixel is made where it is used. A batch is a function of
the seed, the step and the rank alone: resuming needs no state of a random generator.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.cameras import BLURS_PX, Camera, random_camera
from tem_live.models.data_lattices import without_lattices
from tem_live.models.training import DataRecipe

__all__ = ["Batch", "DeviceBatches", "expose", "gaussian_error"]

# As scipy.ndimage cuts its Gaussians off: 4 standard deviations of the widest blur, 0.8 px.
_REACH_PX = 3
# A hit is drawn in a square of 5 px.
_XRAY_REACH_PX = 2


@dataclass(frozen=True)
class Batch:
    """Frames and what a restorer shall make of them.

    Attributes
    ----------
    frames, targets : Tensor
        float32 (N, 1, S, S), electrons.
    scale : Tensor
        float32 (N,): the error that the best Gaussian blur is expected to leave, e-^2.
    """

    frames: Tensor
    targets: Tensor
    scale: Tensor


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _blur(images: Tensor, sigmas_px: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Blur each image (N, H, W) by its own Gaussian; also returns the noise power that is left."""
    device = images.device
    axis = torch.arange(-_REACH_PX, _REACH_PX + 1, dtype=torch.float32, device=device)
    sigma = torch.tensor(sigmas_px, dtype=torch.float32, device=device)[:, None]
    reach = torch.floor(4.0 * sigma + 0.5)
    taps = torch.exp(-0.5 * (axis / sigma.clamp_min(1e-3)) ** 2)
    taps = torch.where(axis.abs() <= reach, taps, torch.zeros_like(taps))
    # No blur at all is the middle tap alone.
    taps = taps / taps.sum(dim=1, keepdim=True)
    count = len(sigmas_px)
    padded = functional.pad(images[None], (_REACH_PX,) * 4, mode="reflect")
    rows = functional.conv2d(padded, taps[:, None, :, None], groups=count)
    blurred = functional.conv2d(rows, taps[:, None, None, :], groups=count)[0]
    return blurred, taps.square().sum(dim=1).square()


def _streaks(cameras: Sequence[Camera], size: int, generator: torch.Generator) -> Tensor:
    """Unit-variance noise along the lines of each sample: (N, size, size)."""
    device = generator.device
    lengths = [min(max(int(camera.streak_px), 1), size) for camera in cameras]
    white = _normal((len(cameras), size, 2 * size), generator)
    total = functional.pad(torch.cumsum(white, dim=2, dtype=torch.float64), (1, 0))
    length = torch.tensor(lengths, device=device)[:, None, None]
    start = torch.arange(size, device=device)[None, None, :].expand(len(cameras), size, size)
    field = total.gather(2, start + length) - total.gather(2, start)
    field = (field / torch.sqrt(length)).float()
    # A streak as long as the frame is one value a line.
    whole = torch.tensor([int(c.streak_px) >= size for c in cameras], device=device)
    field = torch.where(whole[:, None, None], white[:, :, :1].expand_as(field), field)
    turned = torch.tensor([c.streak_columns for c in cameras], device=device)[:, None, None]
    return torch.where(turned, field.transpose(1, 2), field)


def _expected_clipped(mean: Tensor, sigma: Tensor) -> Tensor:
    """See `tem_live.models.cameras.expected_clipped`."""
    u = mean / sigma.clamp_min(1e-6)
    bell = torch.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)
    below: Tensor = torch.special.ndtr(u)
    return mean * below + sigma * bell


def expose(
    scenes: Tensor,
    doses: Sequence[float],
    cameras: Sequence[Camera],
    rng: np.random.Generator,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take a frame of each scene with a camera of its own.

    Parameters
    ----------
    scenes : Tensor
        float32 (N, S, S), relative intensity.
    doses : sequence of float
        Electrons per pixel where a scene is 1.
    cameras : sequence of Camera
        One for each scene; blur up to 0.8 px.
    rng : numpy.random.Generator
        Where and how many X-rays hit.
    generator : torch.Generator
        Source of all noise, on the device of `scenes`.

    Returns
    -------
    frames, targets : Tensor
        float32 (N, S, S), electrons; as `tem_live.models.cameras.expose` makes them.
    sigma : Tensor
        float32 (N,), standard deviation of the noise per pixel in electrons, before clipping.
    """
    count, size, _ = scenes.shape
    device = scenes.device

    def each(name: str) -> Tensor:
        return _column([float(getattr(camera, name)) for camera in cameras], device)

    dose, excess, read = _column(doses, device), each("excess"), each("read_e")
    streak, offset, residue = each("streak"), each("column_offset"), each("gain_residue")
    signal = scenes * dose
    frame = torch.poisson(signal, generator=generator)
    frame = frame + torch.sqrt(excess * signal) * _normal(signal.shape, generator)
    blurs = [camera.blur_px for camera in cameras]
    power = torch.ones(count, device=device)
    if any(blurs):
        frame, power = _blur(frame, blurs)
        signal, _ = _blur(signal, blurs)
    variance = power[:, None, None] * (1.0 + excess) * signal + read**2
    white = variance.mean(dim=(1, 2), keepdim=True).sqrt()
    frame = frame * (1.0 + residue * _normal(signal.shape, generator))
    frame = frame + read * _normal(signal.shape, generator)
    if any(camera.streak for camera in cameras):
        frame = frame + streak * white * _streaks(cameras, size, generator)
    frame = frame + offset * white * _normal((count, 1, size), generator)
    variance = variance + (residue * signal) ** 2 + (streak**2 + offset**2) * white**2
    sigma = variance.mean(dim=(1, 2)).sqrt()
    clipped = torch.tensor(
        [c.clip and (c.read_e > 0.0 or c.excess > 0.0 or c.streak > 0.0) for c in cameras],
        device=device,
    )[:, None, None]
    frame = torch.where(clipped, frame.clamp_min(0.0), frame)
    target = torch.where(clipped, _expected_clipped(signal, variance.sqrt()), signal)
    level = dose.clamp_min(1.0)
    frame = _with_defects(frame, each("defects"), level, generator)
    return _with_xrays(frame, cameras, level, rng), target, sigma


def _with_defects(
    frame: Tensor, share: Tensor, level: Tensor, generator: torch.Generator
) -> Tensor:
    """Pixels that are hot or dead, half of each."""
    draw = torch.rand((2, *frame.shape), generator=generator, device=frame.device)
    # Of the pixels drawn, the place within [0, share) is as random as the choice itself.
    place = draw[0] / share.clamp_min(1e-12)
    hot = level * torch.exp(1.0 + 3.5 * draw[1])
    frame = torch.where(place < 0.5, hot, frame)
    return torch.where((place >= 0.5) & (place < 1.0), torch.zeros_like(frame), frame)


def _with_xrays(
    frame: Tensor, cameras: Sequence[Camera], level: Tensor, rng: np.random.Generator
) -> Tensor:
    """Blobs of a few pixels."""
    _, size, _ = frame.shape
    hits = [int(rng.poisson(camera.xrays * size**2 / 1e6)) for camera in cameras]
    if not any(hits):
        return frame
    device = frame.device
    total = sum(hits)
    sample = torch.tensor(np.repeat(np.arange(len(hits)), hits), device=device)
    centre = torch.tensor(rng.integers(0, size, (2, total)), device=device)
    spread = torch.tensor(rng.uniform(0.3, 1.0, total), dtype=torch.float32, device=device)
    boost = torch.tensor(rng.uniform(2.0, 5.5, total), dtype=torch.float32, device=device)
    energy = level[sample, 0, 0] * torch.exp(boost)
    near = torch.arange(-_XRAY_REACH_PX, _XRAY_REACH_PX + 1, device=device)
    dy, dx = torch.meshgrid(near, near, indexing="ij")
    distance = (dy**2 + dx**2).float()
    blob = energy[:, None, None] * torch.exp(-distance / (2.0 * spread[:, None, None] ** 2))
    y = centre[0][:, None, None] + dy
    x = centre[1][:, None, None] + dx
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    where = sample[:, None, None].expand_as(y)
    return frame.index_put((where[inside], y[inside], x[inside]), blob[inside], accumulate=True)


def _cosines(size: int, device: torch.device) -> Tensor:
    """Orthonormal DCT-II as a matrix."""
    k = torch.arange(size, dtype=torch.float64, device=device)
    matrix = torch.cos(math.pi * (k[None, :] + 0.5) * k[:, None] / size) * math.sqrt(2.0 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix.float()


def gaussian_error(targets: Tensor, sigma: Tensor) -> Tensor:
    """MSE that the best of nine Gaussian blurs is expected to leave; float32 (N,), e-^2.

    As `tem_live.models.cameras.gaussian_error`, for targets (N, S, S) and their noise (N,).
    """
    size = targets.shape[-1]
    device = targets.device
    cosines = _cosines(size, device)
    spectrum = cosines @ (targets - targets.mean(dim=(1, 2), keepdim=True)) @ cosines.T
    spectrum[:, 0, 0] = 0.0
    power = spectrum.square()
    w = (math.pi * torch.arange(size, dtype=torch.float32, device=device) / size) ** 2
    g = torch.exp(-0.5 * w * torch.tensor(BLURS_PX, device=device)[:, None] ** 2)  # (blurs, S)
    # sum P (1 - gy gx)^2 for every blur, expanded
    single = torch.einsum("ki,nij,kj->nk", g, power, g)
    double = torch.einsum("ki,nij,kj->nk", g * g, power, g * g)
    bias = (power.sum(dim=(1, 2))[:, None] - 2.0 * single + double).clamp_min(0.0)
    noise = sigma[:, None] ** 2 * g.square().mean(dim=1)[None] ** 2
    return (bias / size**2 + noise).amin(dim=1)


class DeviceBatches:
    """Makes the batch of any step.

    Parameters
    ----------
    recipe : DataRecipe
        Crops, doses, cameras.
    seed : int
        The recipe's.
    bank : ndarray
        float16 (scenes, S, S), mean 1; moved to the device whole (9000 scenes of 256 px: 1.2 GB).
    device : torch.device or str
        Where.
    """

    def __init__(
        self,
        recipe: DataRecipe,
        seed: int,
        bank: np.ndarray[tuple[int, ...], np.dtype[np.float16]],
        device: torch.device | str,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.device = torch.device(device)
        # A memory map cannot be shared with torch; on the processor it is read as it is used.
        self._mapped = bank if self.device.type == "cpu" else None
        self._bank = None if self._mapped is bank else torch.from_numpy(bank[:]).to(self.device)
        self._scenes, self._side = bank.shape[:2]

    def make(self, step: int, rank: int = 0) -> Batch:
        """Make the batch of one step for one of several devices."""
        data = self.recipe
        rng = np.random.default_rng([self.seed, 7919, step, rank])
        generator = torch.Generator(self.device)
        generator.manual_seed(int(rng.integers(2**62)))
        size = min(int(data.crops_px[step % len(data.crops_px)]), self._side)
        count = max(1, round(data.batch_px / size**2))
        scenes = torch.stack([self._crop(rng, size) for _ in range(count)])
        doses: list[float] = []
        contrasts: list[float] = []
        for _ in range(count):
            weak = rng.random() < 0.4
            contrasts.append(float(np.exp(rng.uniform(np.log(0.1), 0.0))) if weak else 1.0)
            low, high = data.dose_core if rng.random() < 0.75 else data.dose_range
            doses.append(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        scenes = (1.0 + _column(contrasts, self.device) * (scenes - 1.0)).clamp_min(0.0)
        cameras = [random_camera(rng, data.poisson) for _ in range(count)]
        frames, targets, sigma = expose(scenes, doses, cameras, rng, generator)
        # Before the lattices are gone: what is left counts by its share of the whole error.
        scale = gaussian_error(targets, sigma.clamp_min(0.02))
        without_lattices(frames, targets)
        return Batch(frames[:, None], targets[:, None], scale)

    def _crop(self, rng: np.random.Generator, size: int) -> Tensor:
        index = int(rng.integers(self._scenes))
        y, x = (int(v) for v in rng.integers(0, self._side - size + 1, 2))
        turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
        window = (index, slice(y, y + size), slice(x, x + size))
        if self._bank is not None:
            crop = self._bank[window].float()
        else:
            assert self._mapped is not None
            crop = torch.from_numpy(self._mapped[window].astype(np.float32))
        crop = torch.rot90(crop, turns, (0, 1))
        return crop.flip(1) if mirrored else crop
