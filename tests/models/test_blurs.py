"""Blurs are Gaussian, and the best one is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tem_live.models.blurs import SIGMAS_PX, best_gaussian, gaussian_blur
from tem_live.models.scores import mse


@pytest.mark.parametrize("shape", [(64, 64), (33, 70)])
def test_gaussian_blur_is_scipys(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    ours = gaussian_blur(image, 2.0)
    theirs = ndimage.gaussian_filter(image, 2.0, mode="reflect", truncate=8)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ours.mean() == pytest.approx(image.mean(), rel=1e-5)


def test_best_gaussian_is_the_best_of_all_sigmas() -> None:
    rng = np.random.default_rng(1)
    truth = gaussian_blur(rng.random((96, 96)), 5.0) * 20
    noisy = rng.poisson(truth).astype(np.float32)
    image, sigma = best_gaussian(truth, noisy)
    errors = [mse(truth, gaussian_blur(noisy, s)) for s in SIGMAS_PX]
    assert mse(truth, image) <= min(errors) * (1 + 1e-5)
    np.testing.assert_allclose(image, gaussian_blur(noisy, sigma), atol=1e-3)
    assert 0.7 <= sigma <= 40.0


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        best_gaussian(np.zeros((4, 4)), np.zeros((4, 5)))
