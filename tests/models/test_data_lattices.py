"""Lattices are taken out of frames to train on, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tem_live.models.data_device import DeviceBatches
from tem_live.models.data_lattices import lattice_of, without_lattices
from tem_live.models.training import DataRecipe


def lattice(side: int = 128) -> Tensor:
    """float32 (side, side), a mean of 10 and two waves of an amplitude of 2."""
    y, x = np.indices((side, side))
    turns = 2.0 * np.pi / 128.0
    waves = np.cos(turns * (21 * x + 6 * y)) + np.cos(turns * (21 * y - 6 * x))
    return torch.from_numpy((10.0 + 2.0 * waves).astype(np.float32))


def poisson(seed: int, image: Tensor) -> Tensor:
    return torch.poisson(image, generator=torch.Generator().manual_seed(seed))


def test_a_lattice_is_found_with_a_mean_of_nothing() -> None:
    scene = lattice()
    found = lattice_of(poisson(1, scene))
    assert found is not None
    assert abs(float(found.mean())) < 1e-4
    assert float((scene - scene.mean() - found).square().mean()) < 0.05 * float(scene.var())


@pytest.mark.parametrize("side", [(128, 128), (70, 90)])
def test_in_noise_and_in_nothing_is_none(side: tuple[int, int]) -> None:
    assert lattice_of(poisson(3, torch.full(side, 10.0))) is None
    assert lattice_of(torch.full(side, 3.0)) is None


def test_only_frames_that_have_one_are_changed() -> None:
    scenes = torch.stack([lattice(), torch.full((128, 128), 10.0)])
    frames = poisson(1, scenes)
    left, targets = frames.clone(), scenes.clone()
    without_lattices(left, targets)
    assert torch.equal(left[1], frames[1])
    assert torch.equal(targets[1], scenes[1])
    # What frame and target lost is the same, and hardly any of the lattice is left.
    torch.testing.assert_close(frames[0] - left[0], scenes[0] - targets[0], atol=1e-5, rtol=0)
    assert float(targets[0].var()) < 0.05 * float(scenes[0].var())
    assert float(left[0].mean()) == pytest.approx(float(frames[0].mean()), abs=1e-4)


def test_batches_of_simulated_scenes_have_none_beyond_doubt() -> None:
    bank = np.stack([lattice().numpy() / 10.0] * 2).astype(np.float16)
    recipe = DataRecipe(
        scenes=2, scene_px=128, crops_px=(128,), batch_px=4 * 128**2, poisson=1.0,
        dose_range=(10.0, 20.0), dose_core=(10.0, 20.0),
    )  # fmt: skip
    batch = DeviceBatches(recipe, 5, bank, "cpu").make(0)
    for frame, target in zip(batch.frames[:, 0], batch.targets[:, 0], strict=True):
        assert lattice_of(frame) is None
        noise = float((frame - target).var())
        assert noise == pytest.approx(float(target.mean()), rel=0.1)
        # Of 0.04 times the square of the mean, weak contrast aside.
        assert float(target.var()) < 0.004 * float(target.mean()) ** 2
    assert batch.frames.requires_grad is False
