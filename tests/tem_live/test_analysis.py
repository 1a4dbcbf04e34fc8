from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tem_live.analysis import DriftEstimator, RollingMean
from tem_live.binning import binned


def scene(shift: tuple[float, float] = (0, 0), side: int = 256) -> np.ndarray:
    rng = np.random.default_rng(5)
    image = ndimage.gaussian_filter(rng.normal(size=(side + 64, side + 64)), 4)
    return ndimage.shift(image, shift, order=3)[32:-32, 32:-32].astype(np.float32)


def test_drift_is_followed_to_a_fraction_of_a_pixel():
    drift = DriftEstimator()
    assert drift.update(scene()) == (0.0, 0.0)
    for step in range(1, 6):
        found = drift.update(scene((1.5 * step, -2.0 * step)))
    assert found is not None
    assert found == pytest.approx((7.5, -10.0), abs=0.5)


def test_drift_of_a_constant_frame_is_zero():
    drift = DriftEstimator()
    for _ in range(3):
        found = drift.update(np.ones((64, 64), np.float32))
    assert found == (0.0, 0.0)


def test_frames_too_small_for_a_drift():
    assert DriftEstimator().update(np.ones((8, 8), np.float32)) is None


def test_another_frame_size_begins_anew():
    drift = DriftEstimator()
    drift.update(scene())
    drift.update(scene((4, 4)))
    assert drift.update(scene(side=128)) == (0.0, 0.0)


def test_rolling_mean_divides_the_variance_by_its_frames():
    rng = np.random.default_rng(2)
    rolling = RollingMean(8)
    for _ in range(80):
        rolling.update(np, rng.normal(10, 1, (128, 128)).astype(np.float32))
    assert rolling.plane.mean() == pytest.approx(10, abs=0.02)
    assert rolling.plane.var() == pytest.approx(1 / 8, rel=0.1)


def test_rolling_mean_of_the_first_frames_is_their_plain_mean():
    rolling = RollingMean(16)
    for value in (2, 4, 6):
        rolling.update(np, np.full((4, 4), value, np.float32))
    assert np.allclose(rolling.plane, 4)


def test_noise_alone_has_no_drift():
    random = np.random.default_rng(5)
    drift = DriftEstimator()
    found = [drift.update(random.poisson(5, (512, 512)).astype(np.float32)) for _ in range(20)]
    assert found[0] == (0.0, 0.0)
    assert set(found[1:]) == {None}


def test_what_a_restorer_makes_of_noise_has_no_drift():
    random = np.random.default_rng(7)
    drift = DriftEstimator()
    found = []
    for _ in range(20):
        noise = random.poisson(100, (512, 512)).astype(np.float32)
        found.append(drift.update(noise, ndimage.gaussian_filter(noise, 6)))
    assert found[0] == (0.0, 0.0)
    assert set(found[1:]) == {None}


def test_the_restored_frame_tells_a_shift_that_the_raw_one_hides():
    random = np.random.default_rng(8)
    scene = ndimage.gaussian_filter(random.standard_normal((600, 600)), 6) * 2 + 5
    drift = DriftEstimator()
    for shift in (0, 3, 6):
        truth = scene[shift : shift + 512, :512].astype(np.float32)
        raw = random.poisson(truth.clip(0)).astype(np.float32)
        found = drift.update(raw, truth)
    assert found == pytest.approx((-6, 0), abs=0.3)


def test_drift_goes_on_over_a_frame_that_shows_nothing():
    random = np.random.default_rng(6)
    scene = ndimage.gaussian_filter(random.standard_normal((300, 300)), 4) * 40 + 10
    drift = DriftEstimator()
    for shift in (0, 2):
        drift.update(scene[shift : shift + 256, :256].astype(np.float32))
    assert drift.update(random.poisson(5, (256, 256)).astype(np.float32)) is None
    moved = drift.update(scene[5 : 5 + 256, :256].astype(np.float32))
    assert moved is not None
    assert moved[0] == pytest.approx(-5, abs=0.2)


@pytest.mark.parametrize(("shape", "factor"), [((64, 96), 4), ((67, 101), 3), ((20, 20), 1)])
def test_binning_gives_means_and_leaves_the_frame_alone(shape, factor):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = image.copy()
    rows, columns = shape[0] // factor, shape[1] // factor
    cut = image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    np.testing.assert_allclose(binned(image, factor), cut.mean(axis=(1, 3)), atol=1e-6)
    np.testing.assert_array_equal(image, before)
