"""Figures of merit agree with their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tem_live.models import scores


def test_psnr_of_known_error() -> None:
    truth = np.zeros((8, 8))
    truth[0, 0] = 2.0
    assert scores.psnr_db(truth, truth + 0.2) == pytest.approx(20.0)
    assert scores.psnr_db(truth, truth) == float("inf")
    assert np.isnan(scores.psnr_db(np.ones((4, 4)), np.zeros((4, 4))))


@pytest.mark.parametrize("shape", [(64, 64), (33, 70)])
def test_gaussian_blur_is_scipys(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    ours = scores.gaussian_blur(image, 2.0)
    theirs = ndimage.gaussian_filter(image, 2.0, mode="reflect", truncate=8)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ours.mean() == pytest.approx(image.mean(), rel=1e-5)


def test_best_gaussian_is_the_best_of_all_sigmas() -> None:
    rng = np.random.default_rng(1)
    truth = scores.gaussian_blur(rng.random((96, 96)), 5.0) * 20
    noisy = rng.poisson(truth).astype(np.float32)
    image, sigma = scores.best_gaussian(truth, noisy)
    errors = [scores.mse(truth, scores.gaussian_blur(noisy, s)) for s in scores.SIGMAS_PX]
    assert scores.mse(truth, image) <= min(errors) * (1 + 1e-5)
    np.testing.assert_allclose(image, scores.gaussian_blur(noisy, sigma), atol=1e-3)
    assert 0.7 <= sigma <= 40.0


def test_dose_gain_and_error_ratio() -> None:
    rng = np.random.default_rng(2)
    truth = np.full((128, 128), 4.0)
    raw = rng.poisson(truth).astype(np.float32)
    halved = truth + (raw - truth) / 2
    assert scores.dose_gain(truth, raw, halved) == pytest.approx(4.0, rel=1e-4)
    blurred, _ = scores.best_gaussian(truth, raw)
    assert scores.error_ratio(truth, raw, blurred) == pytest.approx(1.0)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        scores.best_gaussian(np.zeros((4, 4)), np.zeros((4, 5)))


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


# -- Bragg peaks -----------------------------------------------------------------------------


def waves(size: int = 192, contrast: float = 0.1, angle: float = 0.3) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size]
    phase = 2 * np.pi * (np.cos(angle) * y + np.sin(angle) * x)
    return 1.0 + contrast * np.cos(phase / 10.0) + contrast / 2 * np.cos(phase / 5.0)


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 2, 2.0])
def test_bragg_peaks_of_waves(angle: float) -> None:
    truth = 20.0 * waves(angle=angle)
    peaks = scores.bragg_peaks(truth, 20.0)
    np.testing.assert_allclose(np.sort(peaks.period_px), [5.0, 10.0], rtol=0.03)
    first = peaks.signal_to_noise[np.argmax(peaks.period_px)]
    second = peaks.signal_to_noise[np.argmin(peaks.period_px)]
    assert first == pytest.approx(2.0 * second, rel=0.1)
    np.testing.assert_allclose(scores.bragg_kept(peaks, truth), 1.0)
    np.testing.assert_allclose(scores.bragg_kept(peaks, 5.0 + 0.5 * truth), 0.5)
    assert not len(scores.bragg_peaks(truth, 1e5).period_px)


def test_bragg_amplitudes_of_a_noisy_frame_are_those_of_the_truth() -> None:
    truth = 20.0 * waves()
    peaks = scores.bragg_peaks(truth, 20.0)
    rng = np.random.default_rng(0)
    kept = np.array([scores.bragg_kept(peaks, rng.poisson(truth)) for _ in range(60)])
    np.testing.assert_allclose(kept.mean(axis=0), 1.0, atol=0.02)
    np.testing.assert_allclose(
        kept.std(axis=0), 1.0 / np.sqrt(2.0) / peaks.signal_to_noise, rtol=0.35
    )
    # A blur takes most of the finer wave, and the figure says how much.
    blurred = scores.bragg_kept(peaks, scores.gaussian_blur(truth, 2.0))
    expected = np.exp(-2.0 * (np.pi * 2.0 / peaks.period_px) ** 2)
    np.testing.assert_allclose(blurred, expected, atol=0.02)


def test_amorphous_texture_has_no_bragg_peaks() -> None:
    rng = np.random.default_rng(1)
    film = 1.0 + 0.5 * scores.gaussian_blur(rng.standard_normal((192, 192)), 1.5)
    assert not len(scores.bragg_peaks(20.0 * film, 20.0).period_px)


def test_strongest_wave_is_found_and_noise_is_none() -> None:
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((256, 256))
    assert scores.strongest_wave(noise)[0] == 0.0
    assert scores.strongest_wave(np.full((64, 64), 3.0))[0] == 0.0
    y, x = np.mgrid[0:256, 0:256]
    amplitude, period = scores.strongest_wave(noise + 0.3 * np.cos(2 * np.pi * (3 * x + y) / 16.0))
    assert amplitude == pytest.approx(0.3, rel=0.2)
    assert period == pytest.approx(16.0 / np.sqrt(10.0), rel=0.02)


# -- bias of tiles ---------------------------------------------------------------------------


def test_standard_error_of_white_and_of_streaked_tiles() -> None:
    rng = np.random.default_rng(3)
    white = rng.poisson(5.0, (12, 256, 320)).astype(float)
    error = scores.tile_standard_error(white)
    assert error.shape == (4, 5)
    np.testing.assert_allclose(error, np.sqrt(5.0) / 64.0, rtol=0.25)
    # Whole-row noise of variance 1 averages over 64 rows only.
    streaked = white + rng.standard_normal((12, 256, 1))
    expected = np.sqrt(5.0 / 64**2 + 1.0 / 64)
    np.testing.assert_allclose(scores.tile_standard_error(streaked), expected, rtol=0.35)


def test_tile_bias_is_in_standard_errors() -> None:
    raw = np.random.default_rng(4).poisson(5.0, (130, 192)).astype(float)
    error = np.full((2, 3), np.sqrt(5.0) / 64.0)
    assert not scores.tile_bias(raw, raw, error).any()
    shifted = raw.copy()
    shifted[64:128, 128:192] += 3.0 * np.sqrt(5.0) / 64.0
    np.testing.assert_allclose(
        scores.tile_bias(raw, shifted, error), [[0, 0, 0], [0, 0, 3]], atol=1e-9
    )
    truth = scores.tile_bias(raw, np.full_like(raw, 5.0), error)
    assert 0.3 < truth.std() < 2.5
    hot = np.zeros(raw.shape, dtype=bool)
    hot[70, 130] = True
    raw[70, 130] = 1e5
    assert abs(scores.tile_bias(raw, np.full_like(raw, 5.0), error, hot)).max() < 5.0
