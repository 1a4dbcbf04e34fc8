"""Registration of two frames, also where little or nothing shows which shift it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from tem_live.models import load_restorer
from tem_live.models.registration import Motion, Movable, register
from tem_live.models.testscenes import reference_scene

DOSE = 5.0


@pytest.fixture(scope="module")
def fast():
    return load_restorer("fast", device="cpu")


@pytest.mark.parametrize("seed", [1, 5, 10])
def test_a_lattice_is_not_off_by_a_cell(fast, seed):
    # Of pitch 11.3 px: what a rounded shift leaves is more than what tells one cell from the next.
    rng = np.random.default_rng(seed)
    large = reference_scene("crystal", 288, 0)
    frames = []
    for shift in ((0.0, 0.0), (2.8, 4.15)):
        truth = DOSE * np.maximum(ndimage.shift(large, shift, order=3)[48:-48, 48:-48], 0.0)
        frames.append(torch.from_numpy(rng.poisson(truth).astype(np.float32)))
    first, single = (fast.restore(frame) for frame in frames)
    found = register(first, frames[1], single, Motion())
    assert found == pytest.approx((2.8, 4.15), abs=0.2)


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5, 6])
def test_frames_that_show_nothing_are_not_shifted_far(fast, seed):
    # At 2 e-/px this film is below the noise, and some far shift always fits best by chance.
    rng = np.random.default_rng(seed)
    truth = 2.0 * np.maximum(reference_scene("thin_film", 288, 0), 0.0)
    before, frame = (torch.from_numpy(rng.poisson(truth).astype(np.float32)) for _ in range(2))
    first, single = fast.restore(before), fast.restore(frame)
    found = register(first, frame, single, Motion())
    assert np.hypot(*found) < 3.0


@pytest.mark.parametrize("scene", ["thin_film", "section"])
def test_a_stage_that_jumps_is_followed(fast, scene):
    large = reference_scene(scene, 384, 0)
    rng = np.random.default_rng(1)
    frames = []
    for top, left in ((48, 48), (17, 70)):
        truth = DOSE * np.maximum(large[top : top + 288, left : left + 288], 0.0)
        frames.append(torch.from_numpy(rng.poisson(truth).astype(np.float32)))
    first, single = (fast.restore(frame) for frame in frames)
    found = register(first, frames[1], single, Motion())
    assert found == pytest.approx((31.0, -22.0), abs=1.0)


def test_a_moved_image_is_the_one_that_was_taken_there():
    # Waves of whole periods are moved by fractions of a pixel without a loss, but at the border.
    y, x = np.mgrid[:96, :96].astype(np.float32)

    def taken(dy, dx):
        return torch.from_numpy(np.sin((y - dy) / 3.0) + np.cos((x - dx) / 2.0))

    moved = Movable(torch.stack((taken(0.0, 0.0), 2.0 * taken(0.0, 0.0)))).moved(1.3, -0.4)
    assert moved.shape == (2, 96, 96)
    inside = (slice(24, -24), slice(24, -24))
    torch.testing.assert_close(moved[0][inside], taken(1.3, -0.4)[inside], atol=0.02, rtol=0.0)
    torch.testing.assert_close(moved[1], 2.0 * moved[0])


def test_a_steady_drift_is_expected_and_a_jump_believed():
    motion = Motion()
    for _ in range(8):
        motion.follow((1.0, -0.5), 0.05)
    assert motion.velocity == pytest.approx((1.0, -0.5), abs=0.02)
    # A shift that hardly tells anything changes little, one beyond doubt all.
    assert motion.follow((2.0, -0.5), 1.0) == pytest.approx((1.0, -0.5), abs=0.1)
    assert motion.follow((30.0, 4.0), 0.05) == pytest.approx((30.0, 4.0))
