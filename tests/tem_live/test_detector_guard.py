from __future__ import annotations

import numpy as np
import pytest

from tem_live.detector_guard import DetectorGuard, brightest_block


class Told:
    def __init__(self, limit: float | None, counting: float | None = None) -> None:
        self.over: list[str] = []
        self.lost: list[str] = []
        self.guard = DetectorGuard(limit, counting, self.over.append, self.lost.append)


def frame(value: float = 1.0, side: int = 64) -> np.ndarray:
    return np.full((side, side), value, np.float32)


def test_a_small_bright_spot_is_found_where_the_mean_is_low():
    told, plane = Told(100.0), frame(1.0)
    plane[16:32, 32:48] = 20.0
    told.guard.look(plane, 0.1, 1)
    assert "200 e-/px/s are more than the 100" in told.over[0]


def test_one_hot_pixel_is_not_a_bright_spot():
    told, plane = Told(100.0), frame(1.0)
    plane[20, 20] = 1000.0
    told.guard.look(plane, 0.1, 1)
    assert not told.over


@pytest.mark.parametrize(("binning", "over"), [(1, True), (2, False)])
def test_the_limit_is_one_of_unbinned_pixels(binning: int, over: bool):
    told = Told(100.0)
    told.guard.look(frame(20.0), 0.1, binning)
    assert bool(told.over) is over


def test_coincidence_loss_is_told_once_a_run():
    told = Told(None, 50.0)
    for _ in range(3):
        told.guard.look(frame(10.0), 0.1, 1)
    told.guard.run_begins()
    told.guard.look(frame(10.0), 0.1, 1)
    told.guard.look(frame(4.0), 0.1, 1)
    assert len(told.lost) == 2
    assert not told.over


def test_without_limits_nothing_is_looked_at():
    told = Told(None)
    told.guard.look(None, 0.1, 1)
    assert told.guard.why_not(1e9) is None


def test_frames_smaller_than_a_block():
    assert brightest_block(np.arange(6.0).reshape(2, 3)) == 2.5
    assert brightest_block(frame(3.0, side=17)) == 3.0
