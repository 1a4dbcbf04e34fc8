"""Training batches of scanned images, STEM and SEM, on the processor.

A scene is distorted by a random chain of `tem_live.models.distortions`; the target is what the
chain leaves to a restorer (everything but the detector's blur and the drift within the frame).

This module imports torch; import it lazily.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tem_live.models.blurs import gaussian_blur
from tem_live.models.cameras import BLURS_PX
from tem_live.models.data_device import Batch
from tem_live.models.distortions import Chain, sem_chain, stem_chain, tem_chain
from tem_live.models.training import DataRecipe

__all__ = ["ScanBatches", "least_blur_error"]

Array = npt.NDArray[np.float32]

_CHAINS = {"stem": stem_chain, "sem": sem_chain, "tem": tem_chain}


def least_blur_error(frame: Array, target: Array) -> float:
    """MSE that the best of nine Gaussian blurs of this very frame leaves, in e-^2.

    Where lines are displaced, nothing that is known of the noise alone gives it.
    """
    best = min(
        float(np.mean((gaussian_blur(frame, s) - target) ** 2)) if s else _mse(frame, target)
        for s in BLURS_PX
    )
    # A frame that is perfect already must not count without bound.
    return max(best, 1e-4 * max(float(np.mean(target)), 0.1))


def _mse(frame: Array, target: Array) -> float:
    return float(np.mean((frame - target) ** 2))


class ScanBatches:
    """Makes the batch of any step; see `tem_live.models.lightning_data.BatchMaker`.

    Parameters
    ----------
    recipe : DataRecipe
        Family, crops and doses (``poisson`` is the share of frames with counting noise alone).
    seed : int
        The recipe's.
    bank : ndarray
        float16 (scenes, S, S), mean 1.
    """

    def __init__(self, recipe: DataRecipe, seed: int, bank: npt.NDArray[np.float16]) -> None:
        self.recipe = recipe
        self.seed = seed
        self._bank = bank

    def make(self, step: int, rank: int = 0) -> Batch:
        """Make the batch of one step for one of several devices."""
        data = self.recipe
        rng = np.random.default_rng([self.seed, 7927, step, rank])
        side = self._bank.shape[1]
        size = min(int(data.crops_px[step % len(data.crops_px)]), side)
        count = max(1, round(data.batch_px / size**2))
        frames = np.empty((count, 1, size, size), dtype=np.float32)
        targets = np.empty_like(frames)
        scale = np.empty(count, dtype=np.float32)
        for i in range(count):
            low, high = data.dose_core if rng.random() < 0.75 else data.dose_range
            dose = np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))
            frame, target = self._chain(rng).pair(rng, self._crop(rng, size) * dose)
            frames[i, 0], targets[i, 0] = frame, target
            scale[i] = least_blur_error(frame, target)
        return Batch(torch.from_numpy(frames), torch.from_numpy(targets), torch.from_numpy(scale))

    def _chain(self, rng: np.random.Generator) -> Chain:
        from tem_live.models.distortions import CountingNoise

        if rng.random() < self.recipe.poisson:
            return Chain((CountingNoise(quantum_e=1.0),))
        return _CHAINS[self.recipe.family](rng)

    def _crop(self, rng: np.random.Generator, size: int) -> Array:
        scene = self._bank[int(rng.integers(len(self._bank)))]
        y, x = rng.integers(0, scene.shape[0] - size + 1, 2)
        crop = np.rot90(scene[y : y + size, x : x + size], int(rng.integers(4)))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return np.ascontiguousarray(crop, dtype=np.float32)
