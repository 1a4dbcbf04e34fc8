"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tem_live.errors import InputError
from tem_live.models import losses, scores

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = torch.ones(1)


def checkerboard(size: int = 16, amplitude: float = 1.0) -> torch.Tensor:
    """Mean 0, standard deviation `amplitude`."""
    y, x = np.mgrid[:size, :size]
    return torch.tensor(amplitude * (-1.0) ** (y + x), dtype=torch.float32)[None, None]


def test_error_ratio_is_a_root_of_quotients() -> None:
    target = torch.zeros(2, 1, 4, 4)
    restored = torch.stack([torch.full((1, 4, 4), 3.0), torch.full((1, 4, 4), 1.0)])
    scale = torch.tensor([9.0, 4.0])
    expected = (math.sqrt(1.001) + math.sqrt(0.251)) / 2
    assert float(losses.ErrorRatioLoss()(restored, target, scale)) == pytest.approx(expected)
    assert float(losses.NoisyTargetLoss()(restored, target, scale)) == pytest.approx(0.625)


def test_a_teacher_changes_where_frames_are_drawn_to_not_what_they_weigh() -> None:
    generator = torch.Generator().manual_seed(3)
    target, taught = torch.rand(2, 2, 1, 4, 4, generator=generator)
    scale = torch.tensor([9.0, 0.4])

    def gradient(loss: torch.nn.Module, *more: torch.Tensor) -> torch.Tensor:
        restored = torch.zeros(2, 1, 4, 4, requires_grad=True)
        loss(restored, target, scale, *more).backward()
        assert restored.grad is not None
        return restored.grad

    plain = gradient(losses.ErrorRatioLoss())
    torch.testing.assert_close(gradient(losses.TaughtLoss(0.0), taught), plain)
    torch.testing.assert_close(gradient(losses.TaughtLoss(0.7), target), plain)
    torch.testing.assert_close(gradient(losses.TaughtLoss(1.0), taught), plain * taught / target)


def test_the_noisy_target_loss_has_its_minimum_at_the_mean() -> None:
    targets = torch.tensor([0.0, 0.0, 0.0, 12.0]).reshape(4, 1, 1, 1)
    guesses = torch.linspace(0.0, 6.0, 61)
    found = [
        float(losses.NoisyTargetLoss()(torch.full((4, 1, 1, 1), float(g)), targets, torch.ones(4)))
        for g in guesses
    ]
    assert float(guesses[int(np.argmin(found))]) == pytest.approx(3.0, abs=1e-5)


def test_contrast_is_that_of_the_target_with_a_floor() -> None:
    target = 5.0 + checkerboard(amplitude=4.0)
    x, y = losses.unit_contrast(target + 8.0, target)
    torch.testing.assert_close(y, checkerboard())
    torch.testing.assert_close(x, checkerboard() + 2.0)
    flat = torch.full((1, 1, 4, 4), 7.0)
    x, y = losses.unit_contrast(flat + 0.05, flat)
    torch.testing.assert_close(x, torch.full_like(x, 0.5), atol=1e-5, rtol=0)
    assert float(y.abs().max()) == 0.0


def test_pixel_mean_and_std() -> None:
    target = 5.0 + checkerboard(amplitude=4.0)
    # In units of the contrast: 0.5 everywhere; no change; 1.75 against 1.
    assert float(losses.PixelLoss()(target + 2.0, target, ONE)) == pytest.approx(0.5)
    assert float(losses.MeanLoss()(target + 2.0, target, ONE)) == pytest.approx(0.5)
    assert float(losses.StdLoss()(target + 2.0, target, ONE)) == pytest.approx(0.0, abs=1e-6)
    wider = 5.0 + checkerboard(amplitude=7.0)
    assert float(losses.MeanLoss()(wider, target, ONE)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.StdLoss()(wider, target, ONE)) == pytest.approx(0.75)


def test_ssim_is_that_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((2, 24, 30), dtype=np.float32) + 3.0
    image = truth + rng.normal(0.0, 0.2, truth.shape).astype(np.float32)
    expected = 1.0 - np.mean([scores.ssim(t, i) for t, i in zip(truth, image, strict=True)])
    given = losses.OneMinusSsim()(
        torch.from_numpy(image)[:, None], torch.from_numpy(truth)[:, None], torch.ones(2)
    )
    assert float(given) == pytest.approx(expected, abs=1e-4)


def test_whitening_removes_brightness_and_contrast() -> None:
    board = checkerboard(16)
    whitening = losses.WhiteningLoss(floor=0.05)
    # A box of 2 px holds two of each: mean 0, variance 1; so does one of 4, 8 or 16 px.
    inner = whitening.whitened(board, 2)[..., 4:-4, 4:-4]
    torch.testing.assert_close(inner, board[..., 4:-4, 4:-4] / math.sqrt(1.0 + 0.05**2))
    # Twice the contrast about any mean: (2 / sqrt(4 + f²) - 1 / sqrt(1 + f²)) is all that is left.
    # Mirrored borders of an even box keep the board's balance only inside, so the mean over the
    # frame is not exactly it.
    loss = float(whitening(3.0 + 2.0 * board, board, ONE))
    assert loss < 0.02
    assert float(whitening(-board, board, ONE)) > 1.5


def test_whitening_weights() -> None:
    """Of a step in one pixel each box sees its own share."""
    torch.manual_seed(0)
    target = torch.randn(1, 1, 32, 32)
    restored = target + 0.3 * torch.randn(1, 1, 32, 32)
    whitening = losses.WhiteningLoss()
    x, y = losses.unit_contrast(restored, target)
    parts = [
        float((whitening.whitened(x, box) - whitening.whitened(y, box)).abs().mean())
        for box in (2, 4, 8, 16)
    ]
    expected = float(np.dot(parts, [1.0, 1.33, 1.66, 2.0])) / (1.0 + 1.33 + 1.66 + 2.0)
    assert float(whitening(restored, target, ONE)) == pytest.approx(expected, rel=1e-5)
    assert len(set(parts)) == 4


def test_spectral_loss_of_a_single_pixel() -> None:
    # One pixel of 3 contrasts: |F| is 3 / size everywhere in an orthonormal transform.
    target = checkerboard(8)
    restored = target.clone()
    restored[0, 0, 2, 5] += 3.0
    expected = (3.0 / 8.0) ** 0.125
    assert float(losses.SpectralLoss()(restored, target, ONE)) == pytest.approx(expected, rel=1e-4)
    # Nothing but the floor is left of equal images; the gradient stays finite there.
    same = target.clone().requires_grad_()
    loss = losses.SpectralLoss()(same, target, ONE)
    assert float(loss.detach()) == pytest.approx(1e-6**0.0625, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, same)
    assert torch.isfinite(gradient).all()


def test_lobato_is_the_weighted_sum() -> None:
    torch.manual_seed(1)
    target = 5.0 + torch.randn(2, 1, 32, 32)
    restored = target + 0.2 * torch.randn(2, 1, 32, 32)
    two = torch.ones(2)
    parts = [
        float(part(restored, target, two))
        for part in (
            losses.PixelLoss(),
            losses.WhiteningLoss(),
            losses.SpectralLoss(),
            losses.MeanLoss(),
            losses.StdLoss(),
        )
    ]
    loss = losses.LobatoLoss(pixel=1.0, whitening=2.0, spectral=3.0, mean=4.0, std=0.0)
    expected = parts[0] + 2.0 * parts[1] + 3.0 * parts[2] + 4.0 * parts[3]
    assert float(loss(restored, target, two)) == pytest.approx(expected, rel=1e-5)


def test_relativistic_losses() -> None:
    # Targets look 2 more real than restored images do: log(1 + e^-2) from either side.
    real, fake = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 1.0)
    own, restorer = losses.relativistic_losses(real, fake)
    assert float(own) == pytest.approx(2.0 * math.log1p(math.exp(-2.0)), rel=1e-5)
    assert float(restorer) == pytest.approx(2.0 * math.log1p(math.exp(2.0)), rel=1e-5)


def test_patch_gan_judges_patches_of_70_px() -> None:
    torch.manual_seed(0)
    gan = losses.PatchGan(width=4)
    image = torch.randn(1, 1, 128, 128)
    before = gan(image)
    assert before.shape == (1, 1, 14, 14)
    image[0, 0, 64, 64] += 1.0
    changed = (gan(image) - before).abs()[0, 0] > 0
    # Every eighth pixel has a patch; a pixel is in those of 70 px around it.
    assert int(changed.any(dim=0).sum()) in (8, 9)


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_every_loss_can_be_named_and_falls(name: str) -> None:
    torch.manual_seed(2)
    target = 5.0 + torch.randn(1, 1, 32, 32)
    noise = torch.randn(1, 1, 32, 32)
    loss = losses.make_loss(name)
    restored = (target + noise).requires_grad_()
    far = loss(restored, target, ONE)
    (gradient,) = torch.autograd.grad(far, restored)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0.0
    assert float(loss(target + 0.1 * noise, target, ONE)) < float(far.detach())


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(InputError, match="lobato"):
        losses.make_loss("l3")
