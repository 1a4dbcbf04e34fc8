from __future__ import annotations

import pytest

from tem_live.dose import DoseMeter, per_A2, per_pixel


def test_a_pixel_of_a_tenth_of_a_nanometre_is_one_square_angstrom():
    assert per_A2(5.0, 0.1) == pytest.approx(5.0)
    assert per_A2(5.0, 1.0) == pytest.approx(0.05)
    assert per_pixel(per_A2(7.0, 0.37), 0.37) == pytest.approx(7.0)


def test_nothing_booked_is_not_zero():
    assert DoseMeter().fluence_e_per_A2 is None


def test_a_million_small_frames_are_not_lost_to_rounding():
    meter = DoseMeter()
    meter.book(1e6)
    for _ in range(10_000):
        meter.book(1e-11)
    assert meter.fluence_e_per_A2 == pytest.approx(1e6 + 1e-7, rel=0, abs=2e-10)
