"""Bragg peaks and invented waves are found and measured."""

from __future__ import annotations

import numpy as np
import pytest

from tem_live.models.blurs import gaussian_blur
from tem_live.models.scores_waves import bragg_kept, bragg_peaks, strongest_wave


def waves(size: int = 192, contrast: float = 0.1, angle: float = 0.3) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size]
    phase = 2 * np.pi * (np.cos(angle) * y + np.sin(angle) * x)
    return 1.0 + contrast * np.cos(phase / 10.0) + contrast / 2 * np.cos(phase / 5.0)


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 2, 2.0])
def test_bragg_peaks_of_waves(angle: float) -> None:
    truth = 20.0 * waves(angle=angle)
    peaks = bragg_peaks(truth, 20.0)
    np.testing.assert_allclose(np.sort(peaks.period_px), [5.0, 10.0], rtol=0.03)
    first = peaks.signal_to_noise[np.argmax(peaks.period_px)]
    second = peaks.signal_to_noise[np.argmin(peaks.period_px)]
    assert first == pytest.approx(2.0 * second, rel=0.1)
    np.testing.assert_allclose(bragg_kept(peaks, truth), 1.0)
    np.testing.assert_allclose(bragg_kept(peaks, 5.0 + 0.5 * truth), 0.5)
    assert not len(bragg_peaks(truth, 1e5).period_px)


def test_bragg_amplitudes_of_a_noisy_frame_are_those_of_the_truth() -> None:
    truth = 20.0 * waves()
    peaks = bragg_peaks(truth, 20.0)
    rng = np.random.default_rng(0)
    kept = np.array([bragg_kept(peaks, rng.poisson(truth)) for _ in range(60)])
    np.testing.assert_allclose(kept.mean(axis=0), 1.0, atol=0.02)
    np.testing.assert_allclose(
        kept.std(axis=0), 1.0 / np.sqrt(2.0) / peaks.signal_to_noise, rtol=0.35
    )
    # A blur takes most of the finer wave, and the figure says how much.
    blurred = bragg_kept(peaks, gaussian_blur(truth, 2.0))
    expected = np.exp(-2.0 * (np.pi * 2.0 / peaks.period_px) ** 2)
    np.testing.assert_allclose(blurred, expected, atol=0.02)


def test_amorphous_texture_has_no_bragg_peaks() -> None:
    rng = np.random.default_rng(1)
    film = 1.0 + 0.5 * gaussian_blur(rng.standard_normal((192, 192)), 1.5)
    assert not len(bragg_peaks(20.0 * film, 20.0).period_px)


def test_strongest_wave_is_found_and_noise_is_none() -> None:
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((256, 256))
    assert strongest_wave(noise)[0] == 0.0
    assert strongest_wave(np.full((64, 64), 3.0))[0] == 0.0
    y, x = np.mgrid[0:256, 0:256]
    amplitude, period = strongest_wave(noise + 0.3 * np.cos(2 * np.pi * (3 * x + y) / 16.0))
    assert amplitude == pytest.approx(0.3, rel=0.2)
    assert period == pytest.approx(16.0 / np.sqrt(10.0), rel=0.02)
