"""Large areas keep their electrons, and noise is no difference of level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from tem_live.models.areas import area_part


@pytest.mark.parametrize("blur_px", [0.0, 1.0])
def test_noise_is_left_alone(blur_px: float) -> None:
    left = []
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal((256, 300))
        if blur_px:
            noise = ndimage.gaussian_filter(noise, blur_px)
        part = area_part(torch.from_numpy(noise.astype(np.float32)))
        left.append(0.0 if part is None else float(part.square().mean()) / noise.var())
    # White noise scatters the means of 1024 pixels by 1e-3 in this unit.
    assert np.mean(left) < 1e-4 * (1.0 + 4.0 * np.pi * blur_px**2)


@pytest.mark.parametrize("shape", [(256, 256), (200, 333)])
def test_a_level_that_was_missed_comes_back(shape: tuple[int, int]) -> None:
    residual = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    truth = np.zeros(shape, np.float32)
    truth[64:160, 32:128] = 0.4
    part = area_part(torch.from_numpy(residual + truth))
    assert part is not None
    assert part.shape == shape
    error = float(np.square(part.numpy() - truth).mean())
    assert error < 0.25 * float(np.square(truth).mean())
    assert float(part[80:144, 48:112].mean()) == pytest.approx(0.4, abs=0.05)


def test_small_and_silent_residuals() -> None:
    assert area_part(torch.zeros(512, 512)) is None
    assert area_part(torch.randn(64, 96)) is None
    assert area_part(torch.randn(1, 1)) is None
