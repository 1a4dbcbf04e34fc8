"""Waves that stand out of the noise in a part of the frame."""

from __future__ import annotations

import math

import pytest
import torch

from tem_live.models.network import BLOCK, CONDITIONS, DoseUNet
from tem_live.models.waves import _basis, _products, _sum_of, lattice_waves


def noise(seed: int, shape: tuple[int, ...] = (1, 256, 256)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lattice(period_px: float, angle: float = 0.3, side: int = 256) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phase = 2 * math.pi * (math.sin(angle) * y + math.cos(angle) * x) / period_px
    return torch.cos(phase)[None]


def test_little_of_pure_noise_is_kept():
    assert float(lattice_waves(noise(1)).std()) < 0.15


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2])
@pytest.mark.parametrize("period_px", [3.3, 16.0])
def test_a_lattice_in_noise_as_strong_is_kept_and_the_noise_is_not(period_px, angle):
    truth = lattice(period_px, angle)
    kept = lattice_waves(truth + noise(2))
    assert float((kept - truth).square().mean()) < 0.1
    slope = float((kept * truth).mean() / truth.square().mean())
    assert slope == pytest.approx(1.0, abs=0.1)


def test_vacuum_beside_a_crystal_stays_empty():
    truth = lattice(8.0)
    truth[:, :, 128:] = 0
    kept = lattice_waves(truth + noise(3))
    assert float(kept[:, :, 192:].std()) < 0.15
    assert float((kept - truth)[:, :, :96].square().mean()) < 0.1


def test_streaks_of_a_camera_are_no_waves():
    frame = noise(4) + 0.5 * noise(5, (1, 256, 1))
    assert float(lattice_waves(frame).std()) < 0.25


def test_blurred_noise_is_noise():
    kernel = torch.tensor([0.25, 0.5, 0.25])
    frame = torch.nn.functional.conv2d(
        noise(6)[:, None], (kernel[:, None] * kernel[None, :])[None, None], padding=1
    )[:, 0]
    assert float(lattice_waves(frame).std() / frame.std()) < 0.3


def test_each_frame_of_a_batch_is_treated_alone():
    frames = torch.cat([lattice(8.0) + noise(7), noise(8)])
    together = lattice_waves(frames)
    assert torch.allclose(together[0], lattice_waves(frames[:1])[0], atol=1e-5)
    assert torch.allclose(together[1], lattice_waves(frames[1:])[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 65, 131), (2, 100, 70)])
def test_any_size_from_one_window_on(shape):
    assert lattice_waves(noise(9, shape)).shape == shape


def test_frames_smaller_than_a_window_and_constant_ones_have_no_waves():
    assert not lattice_waves(noise(10, (1, 40, 200))).any()
    assert not lattice_waves(torch.zeros(1, 128, 128)).any()


def test_windows_that_nothing_is_taken_from_add_up_to_the_frame():
    frame = noise(11, (2, 128, 160))
    basis, inverse = _basis(32, frame.device)
    products = _products(frame, basis, 16)
    # Twice what is given is put together: each sign of the vertical frequency once.
    whole = _sum_of(2 * products, inverse, 16)
    assert torch.allclose(whole[:, 16:-16, 16:-16], frame[:, 16:-16, 16:-16], atol=1e-5)


def test_an_untrained_network_gives_a_little_of_the_waves():
    network = DoseUNet((16, 24), (1, 1), waves=True)
    blocks = torch.zeros(1, BLOCK**2, 8, 8)
    waves = torch.ones_like(blocks)
    out = network(blocks, torch.zeros(1, CONDITIONS), waves)
    assert torch.allclose(out, torch.sigmoid(torch.tensor(-3.0)) * waves, atol=1e-4)
