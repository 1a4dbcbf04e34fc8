"""Figures of merit agree with their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tem_live.models import scores
from tem_live.models.blurs import best_gaussian


def test_psnr_of_known_error() -> None:
    truth = np.zeros((8, 8))
    truth[0, 0] = 2.0
    assert scores.psnr_db(truth, truth + 0.2) == pytest.approx(20.0)
    assert scores.psnr_db(truth, truth) == float("inf")
    assert np.isnan(scores.psnr_db(np.ones((4, 4)), np.zeros((4, 4))))


def test_dose_gain_and_error_ratio() -> None:
    rng = np.random.default_rng(2)
    truth = np.full((128, 128), 4.0)
    raw = rng.poisson(truth).astype(np.float32)
    halved = truth + (raw - truth) / 2
    assert scores.dose_gain(truth, raw, halved) == pytest.approx(4.0, rel=1e-4)
    blurred, _ = best_gaussian(truth, raw)
    assert scores.error_ratio(truth, raw, blurred) == pytest.approx(1.0)


def test_psnr_by_the_maximum() -> None:
    truth = np.full((8, 8), 1.0)
    truth[0, 0] = 2.0
    assert scores.psnr_db(truth, truth + 0.2, "max") == pytest.approx(20.0)
    assert scores.psnr_db(truth, truth + 0.2, "range") == pytest.approx(20.0 - 20 * np.log10(2))
    assert np.isnan(scores.psnr_db(np.ones((4, 4)), np.zeros((4, 4)), "max"))


def blobs(size: int = 128) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size]
    return 10.0 + 3.0 * np.sin(x / 7.0) * np.cos(y / 9.0)


@pytest.mark.parametrize("shape", [(64, 70), (41, 33)])
def test_psnr_and_ssim_are_scikit_images(shape: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    truth = blobs()[: shape[0], : shape[1]]
    noisy = np.random.default_rng(0).poisson(truth).astype(np.float64)
    span = float(truth.max() - truth.min())
    theirs = metrics.structural_similarity(
        truth, noisy, data_range=span, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert scores.ssim(truth, noisy) == pytest.approx(theirs, abs=1e-6)
    theirs = metrics.peak_signal_noise_ratio(truth, noisy, data_range=span)
    assert scores.psnr_db(truth, noisy) == pytest.approx(theirs)


def test_ssim_without_a_range() -> None:
    assert scores.ssim(blobs(), blobs()) == pytest.approx(1.0)
    assert np.isnan(scores.ssim(np.ones((32, 32)), blobs(32)))
    assert np.isnan(scores.ssim(blobs(8), blobs(8)))


@pytest.mark.parametrize("shape", [(96, 96), (97, 64), (64, 97)])
def test_frc_of_equal_and_unrelated_images(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.random(shape)
    frequency, same = scores.frc(image, 3.0 * image + 1.0)
    np.testing.assert_allclose(same, 1.0)
    assert frequency[-1] == 0.5
    _, opposite = scores.frc(image, -image)
    np.testing.assert_allclose(opposite, -1.0)
    _, other = scores.frc(image, rng.random(shape))
    assert np.abs(other[5:]).mean() < 0.15
    assert scores.frc_period_px(image, image) == 2.0
    assert np.isnan(scores.frc_period_px(image, np.ones(shape)))
    with pytest.raises(ValueError, match="must be equal"):
        scores.frc(image, image.T[:-1])


@pytest.mark.parametrize("cut_px", [4.0, 10.0])
def test_frc_finds_where_an_image_was_cut(cut_px: float) -> None:
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((256, 256))
    spectrum = np.fft.fft2(truth)
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None, :])
    spectrum[radius > 1.0 / cut_px] = 0.0
    image = np.fft.ifft2(spectrum).real + 0.05 * rng.standard_normal((256, 256))
    assert scores.frc_period_px(truth, image) == pytest.approx(cut_px, rel=0.1)


def test_empty_area_is_what_has_no_detail() -> None:
    truth = np.full((128, 128), 4.0)
    truth[:, 64:] += blobs()[:, 64:] - 10.0
    empty = scores.empty_area(truth)
    assert empty[:, :32].all()
    assert not empty[:, 80:].any()


def test_invented_texture_is_what_the_truth_does_not_explain() -> None:
    rng = np.random.default_rng(2)
    truth = 4.0 + 0.04 * rng.standard_normal((128, 128))
    assert scores.invented_texture(truth, truth) == pytest.approx(0.0, abs=1e-6)
    # Lost detail, contrast of another size and slow shading are not invented.
    shading = np.linspace(0.0, 0.4, 128)
    for image in (np.full_like(truth, 4.0), 2.0 * truth, truth + shading):
        assert scores.invented_texture(truth, image) < 3e-3
    drawn = 0.2 * np.cos(np.mgrid[0:128, 0:128][1] * 2.0)
    expected = 0.2 / np.sqrt(2.0) / 4.0
    assert scores.invented_texture(truth, truth + drawn) == pytest.approx(expected, rel=0.05)
    assert scores.invented_texture(np.full((128, 128), 4.0), truth) == pytest.approx(0.01, rel=0.1)
    assert np.isnan(scores.invented_texture(blobs(), blobs()))


def test_frc_looks_behind_gaps_of_the_spectrum() -> None:
    y, x = np.mgrid[0:256, 0:256]
    lattice = np.cos(2 * np.pi * x / 8.0) + np.cos(2 * np.pi * y / 8.0)
    noise = np.random.default_rng(3).standard_normal((256, 256))
    assert scores.frc_period_px(lattice, lattice + noise) == pytest.approx(8.0, rel=0.1)
