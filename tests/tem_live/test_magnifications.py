from __future__ import annotations

import math
from pathlib import Path

import pytest

from tem_live.dose_calibration import calibrate_dose
from tem_live.drivers.protocols import ColumnParts
from tem_live.errors import ProfileError
from tem_live.magnifications import MagnificationTable
from tem_live.profiles import MagnificationProfile, load_profile
from tem_live.session import open_session

PROFILE = """
[camera]
driver = "sim"
exposure_s = 0.005
sensor_height_px = 64
sensor_width_px = 64
overflow = "count"
pixel_size_nm = 7.0

[column]
driver = "{column}"

[beam_monitor]
driver = "keithley"
port = "sim"

[restorer]
model = "none"

[[magnifications]]
magnification = 100000
pixel_size_nm = 0.093

[[magnifications]]
magnification = 50000
pixel_size_nm = 0.21
beam_area_nm2 = 5000
"""


def table() -> MagnificationTable:
    return MagnificationTable(
        [
            MagnificationProfile(magnification=10_000, pixel_size_nm=1.0),
            MagnificationProfile(magnification=40_000, pixel_size_nm=0.3, beam_area_nm2=1e6),
        ]
    )


def test_a_calibrated_step_is_taken_as_it_was_measured():
    assert table().pixel_size_nm(10_000) == 1.0
    assert table().pixel_size_nm(40_200) == 0.3
    assert table().beam_area_nm2(39_800) == 1e6


def test_between_them_pixels_are_scaled_from_the_nearest_and_areas_unknown():
    assert table().pixel_size_nm(15_000) == pytest.approx(1.0 * 10 / 15)
    assert table().pixel_size_nm(30_000) == pytest.approx(0.3 * 40 / 30)
    assert table().beam_area_nm2(10_000) is None
    assert table().beam_area_nm2(30_000) is None
    assert MagnificationTable([]).pixel_size_nm(1000) is None


def test_a_column_without_magnification_is_left_as_it_is():
    assert table().applied_to(ColumnParts()) == ColumnParts()


@pytest.mark.parametrize("wrong", [{"magnification": 0}, {"magnification": 1, "pixel_size_nm": 0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, float], tmp_path: Path):
    path = tmp_path / "wrong.toml"
    lines = "\n".join(f"{key} = {value}" for key, value in wrong.items())
    path.write_text(f'[camera]\ndriver = "sim"\n[[magnifications]]\n{lines}\n')
    with pytest.raises(ProfileError, match="magnifications"):
        load_profile(path)


def test_pixel_map_and_dose_rate_go_by_what_was_measured(tmp_path: Path):
    path = tmp_path / "microscope.toml"
    path.write_text(PROFILE.format(column="sim"))
    with open_session(str(path)) as session:
        assert session.state.pixel_size_nm == pytest.approx(0.21)
        assert session.beam_area_nm2 == 5000
        place = session.place
        assert place is not None
        assert place.width_nm == pytest.approx(64 * 0.21)
        assert place.beam is not None
        assert place.beam[2] == pytest.approx(math.sqrt(5000 / math.pi))
        session.apply(binning=2)
        assert session.state.pixel_size_nm == pytest.approx(0.42)
        session.apply(binning=1, magnification=100_000)
        assert session.state.pixel_size_nm == pytest.approx(0.093)
        # What is not calibrated is as the column tells it.
        assert session.beam_area_nm2 not in (None, 5000)
        session.apply(magnification=25_000)
        assert session.state.pixel_size_nm == pytest.approx(0.42)


def test_the_current_is_spread_over_the_calibrated_area(tmp_path: Path):
    path = tmp_path / "microscope.toml"
    path.write_text(PROFILE.format(column="sim"))
    with open_session(str(path)) as session:
        told = session._beam._column.beam_area_nm2  # type: ignore[union-attr]
        found = calibrate_dose(session)
    assert found.beam_area_nm2 == 5000
    rates = found.rates_e_per_A2_s
    assert rates["current"] == pytest.approx(rates["column"] * told / 5000, rel=0.05)
    # And the two that disagree are shown to do so.
    assert found.disagreement == pytest.approx(5000 / told - 1, rel=0.05)


def test_a_column_that_tells_no_magnification_is_told(tmp_path: Path):
    path = tmp_path / "microscope.toml"
    path.write_text(
        PROFILE.format(column="uniblitz").replace('"uniblitz"', '"uniblitz"\nport = "sim"')
    )
    with open_session(str(path)) as session:
        assert any("[[magnifications]] is not used" in text for _, text in session.messages)
        assert session.state.pixel_size_nm == pytest.approx(7.0)
