"""The temporal restorer: what it gains on moving scenes, and that it shows no ghosts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tem_live.models import load_restorer
from tem_live.models.scores import mse
from tem_live.models.testscenes import reference_scene

SIDE = 192
DOSE = 5.0


@pytest.fixture(scope="module")
def fast():
    return load_restorer("fast", device="cpu")


@pytest.fixture
def video():
    return load_restorer("video", device="cpu")


def moving(scene, speed_px, frames, seed=1):
    """Truth and frame of a scene that drifts, both (SIDE, SIDE) float32."""
    rng = np.random.default_rng(seed)
    large = reference_scene(scene, SIDE + 96, 0)
    for step in range(frames):
        moved = ndimage.shift(large, (0.56 * speed_px * step, 0.83 * speed_px * step), order=3)
        truth = DOSE * np.maximum(moved[48:-48, 48:-48], 0.0)
        yield truth.astype(np.float32), rng.poisson(truth).astype(np.float32)


def discs(extra=()):
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.full((SIDE, SIDE), DOSE)
    for cy, cx, radius, contrast in [
        (60, 60, 8, 0.4),
        (190, 60, 14, 0.3),
        (60, 200, 12, 0.5),
        *extra,
    ]:
        image *= 1 - contrast / (1 + np.exp((np.hypot(y - cy, x - cx) - radius) / 0.8))
    return image


@pytest.mark.parametrize(
    ("scene", "speed_px", "most"),
    [("section", 0.1, 0.6), ("section", 0.5, 0.6), ("crystal", 5.0, 0.6)],
)
def test_frames_before_are_worth_electrons(video, fast, scene, speed_px, most):
    single, series = [], []
    for step, (truth, frame) in enumerate(moving(scene, speed_px, 7)):
        restored = video.restore(frame)
        assert restored.mean() == pytest.approx(frame.mean(), rel=1e-3)
        if step >= 5:
            series.append(mse(truth, restored))
            single.append(mse(truth, fast.restore(frame)))
    assert np.mean(series) < most * np.mean(single)


def test_a_film_of_little_contrast_is_brought_into_register(video, fast):
    # Parts of it that hardly overlap differ by little, too: only the share that is left tells.
    single, series = [], []
    for step, (truth, frame) in enumerate(moving("thin_film", 0.5, 9, seed=3)):
        restored = video.restore(frame)
        if step >= 7:
            series.append(mse(truth, restored))
            single.append(mse(truth, fast.restore(frame)))
    assert np.mean(series) < 0.75 * np.mean(single)


def test_what_differs_by_chance_is_not_forgotten(video):
    # In each frame one pixel in twenty does, of a specimen that stands still.
    rng = np.random.default_rng(2)
    for _ in range(12):
        video.restore(rng.poisson(discs()).astype(np.float32))
    past = video._past
    assert past is not None
    assert past.doubted.mean() < 0.12
    assert past.frames.mean() > 8.5
    assert np.percentile(past.frames.numpy(), 5) > 1


def test_what_has_changed_stays_changed(video):
    rng = np.random.default_rng(3)
    place = np.hypot(*(np.mgrid[:SIDE, :SIDE] - 96)) < 8
    there, gone = discs([(96, 96, 8, 0.5)]), discs()
    for _ in range(7):
        video.restore(rng.poisson(there).astype(np.float32))
    lost = (gone - there)[place].mean()
    for _ in range(4):
        after = video.restore(rng.poisson(gone).astype(np.float32))
        assert abs((gone - after)[place].mean()) < 0.1 * lost


@pytest.mark.parametrize(("radius", "contrast"), [(4, 0.6), (8, 0.5), (15, 0.4)])
def test_a_particle_that_vanishes_is_gone_in_the_next_frame(video, radius, contrast):
    rng = np.random.default_rng(0)
    there, gone = discs([(96, 96, radius, contrast)]), discs()
    y, x = np.mgrid[:SIDE, :SIDE]
    place = np.hypot(y - 96, x - 96) < radius
    for _ in range(7):
        before = video.restore(rng.poisson(there).astype(np.float32))
    lost = (gone - there)[place].mean()
    assert (gone - before)[place].mean() > 0.7 * lost
    after = video.restore(rng.poisson(gone).astype(np.float32))
    assert abs((gone - after)[place].mean()) < 0.1 * lost


def test_the_first_frame_and_a_new_field_are_as_good_as_on_their_own(video, fast):
    fields = [next(moving(name, 0.0, 1)) for name in ("nanoparticles", "section")]
    assert np.allclose(video.restore(fields[0][1]), fast.restore(fields[0][1]), atol=1e-5)
    truth, frame = fields[1]
    assert mse(truth, video.restore(frame)) < 1.1 * mse(truth, fast.restore(frame))
    video.reset()
    assert np.allclose(video.restore(frame), fast.restore(frame), atol=1e-5)


def test_a_stack_is_a_series_and_frames_may_be_restored_in_place(video):
    frames = np.stack([frame for _, frame in moving("section", 0.3, 4)])
    stack = video.restore(frames)
    video.reset()
    one_by_one = []
    for frame in frames:
        buffer = frame.copy()
        video.restore(buffer, out=buffer)
        one_by_one.append(buffer)
    assert np.allclose(stack, np.stack(one_by_one), atol=1e-4)


def test_another_dose_another_shape_and_odd_frames(video, fast):
    rng = np.random.default_rng(2)
    for shape, dose in (
        ((96, 131), 5),
        ((96, 131), 50),
        ((40, 40), 5),
        ((40, 40), 5),
        ((70, 90), 0),
    ):
        frame = rng.poisson(np.full(shape, dose)).astype(np.float32)
        restored = video.restore(frame)
        assert restored.shape == shape
        assert np.isfinite(restored).all()
        assert restored.mean() == pytest.approx(frame.mean(), abs=1e-3)
    broken = rng.poisson(np.full((70, 90), 5.0)).astype(np.float32)
    broken[3, 4] = np.nan
    assert np.isfinite(video.restore(broken)).all()


def test_blanked_and_back(video, fast):
    rng = np.random.default_rng(3)
    scene = discs()
    for beam in (1, 1, 0, 0, 1):
        restored = video.restore(rng.poisson(scene * beam).astype(np.float32))
        assert restored.mean() == pytest.approx(DOSE * beam * scene.mean() / DOSE, abs=0.1)
    assert not video.concurrent
    assert (video.precision, video.engine) == (fast.precision, fast.engine)
    assert video.gmac((512, 512)) == pytest.approx(2 * load_restorer("fast").gmac((512, 512)))
