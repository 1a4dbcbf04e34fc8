"""The dose calibrated on a simulated instrument whose true values are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tem_live.dose_calibration import (
    DoseCalibration,
    as_rows,
    calibrate_dose,
    calibration_path,
    disagreement,
    saved_calibration,
)
from tem_live.errors import CalibrationError, InputError, ProfileError, RefusedError
from tem_live.profiles import load_profile
from tem_live.session import Session

GAIN = 40.0
RATE_E_PER_A2_S = 125.0
Opener = Callable[..., Session]


@pytest.fixture
def sim() -> Iterator[Opener]:
    """Open a session on an empty beam with a picoammeter in it."""
    opened: list[Session] = []

    def open_sim(**changes: Any) -> Session:
        settings: dict[str, Any] = {
            "restorer.model": "none",
            "camera.scene": "vacuum",
            "camera.sensor_height_px": 256,
            "camera.sensor_width_px": 256,
            "camera.exposure_s": 0.01,
            "column.dose_rate_e_per_px_s": 500.0,
            "beam_monitor.driver": "keithley",
            "beam_monitor.port": "sim",
        }
        settings.update({key.replace("__", "."): value for key, value in changes.items()})
        session = Session(load_profile("sim", settings))
        opened.append(session)
        return session

    yield open_sim
    for session in opened:
        session.close()


@pytest.fixture
def calibration(sim: Opener) -> DoseCalibration:
    return calibrate_dose(sim(), vacuum=True)


def made(**changes: Any) -> DoseCalibration:
    fields: dict[str, Any] = {
        "profile": "sim",
        "taken": "2026-01-01T12:00:00",
        "counts_per_electron": 44.0,
        "counts_interval": (43.0, 45.0),
        "offset_counts": 100.0,
        "read_noise_counts": 28.0,
        "assumptions": (),
        "rates_e_per_A2_s": {"column": 100.0, "current": 120.0},
        "disagreement": 0.2,
        "use": "current",
        "current_A": 1e-9,
        "beam_area_nm2": 1e4,
        "exposure_s": 0.01,
        "binning": 1,
        "pixel_size_nm": 0.2,
        "spot_size": 3,
        "magnification": 50_000.0,
    }
    return DoseCalibration(**{**fields, **changes})


def test_all_is_found_within_a_twentieth_of_the_truth(calibration: DoseCalibration):
    assert calibration.counts_per_electron == pytest.approx(GAIN, rel=0.05)
    assert set(calibration.rates_e_per_A2_s) == {"column", "current", "vacuum"}
    for rate in calibration.rates_e_per_A2_s.values():
        assert rate == pytest.approx(RATE_E_PER_A2_S, rel=0.05)
    assert calibration.disagreement is not None
    assert calibration.disagreement < 0.05
    assert calibration.offset_counts == pytest.approx(100.0, abs=1.0)
    assert calibration.use == "column"
    assert (calibration.exposure_s, calibration.binning) == (0.01, 1)
    assert (calibration.spot_size, calibration.magnification) == (3, 50_000.0)


def test_what_was_set_is_set_back_and_the_beam_is_off(sim: Opener):
    session = sim()
    before = session.state
    calibrate_dose(session)
    after = session.state
    assert after.dose_rate_e_per_px_s == pytest.approx(before.dose_rate_e_per_px_s)
    assert after.exposure_s == before.exposure_s
    assert session.blanked


def test_a_calibration_that_fails_leaves_the_one_before_in_use(
    sim: Opener, monkeypatch: pytest.MonkeyPatch
):
    session = sim()
    session.use_dose_calibration(made())

    def broken(points: Any, excess_noise: float | None) -> Any:
        # Nothing of the earlier one is in what is measured.
        assert session.dose_calibration is None
        raise CalibrationError("the noise does not grow with the mean")

    monkeypatch.setattr("tem_live.photon_transfer.estimate_gain", broken)
    with pytest.raises(CalibrationError, match="does not grow"):
        calibrate_dose(session)
    assert session.dose_calibration == made()
    assert session.state.counts_per_electron == 44.0


def test_without_a_rate_to_set_the_exposure_is_varied(sim: Opener):
    session = sim(
        column__driver="uniblitz",
        column__port="sim",
        column__dose_rate_e_per_px_s=None,
        camera__beam_e_per_px_s=500.0,
    )
    found = calibrate_dose(session, vacuum=True, beam_area_nm2=session.beam_area_nm2)
    assert found.counts_per_electron == pytest.approx(GAIN, rel=0.05)
    # Nobody knows the illuminated area here, so the current says nothing.
    assert found.current_A is not None
    assert set(found.rates_e_per_A2_s) == {"vacuum"}
    assert found.rate_e_per_A2_s == pytest.approx(RATE_E_PER_A2_S, rel=0.05)
    assert session.exposure_s == 0.01
    # From now on what comes in is booked.
    assert session.snap().meta.dose_source == "detected"
    session.use_dose_calibration(found)
    assert session.snap().meta.dose_source == "incident"


def test_a_kept_calibration_is_used_by_the_next_session(sim: Opener):
    session = sim()
    session.close()
    made().save(calibration_path("sim"))
    assert saved_calibration("sim") == made()
    again = sim()
    assert again.state.counts_per_electron == 44.0
    # Its current said 1.2 times what the column tells, and is the one in use.
    assert again.dose_rate == pytest.approx(500.0)
    assert again._beam._column.dose_rate_e_per_A2_s == pytest.approx(125.0 / 1.2)  # type: ignore[union-attr]
    # The profile has the last word on the gain.
    assert sim(camera__counts_per_electron=39.0).state.counts_per_electron == 39.0


def test_a_broken_calibration_is_said(sim: Opener):
    path = calibration_path("sim")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(CalibrationError, match="tem-live calibrate dose"):
        sim()


def test_a_silent_column_is_believed_under_the_same_conditions_alone():
    kept = made(rates_e_per_A2_s={"vacuum": 90.0}, use="vacuum")
    assert kept.rate(None, 3, 50_000.0) == 90.0
    assert kept.rate(None, 4, 50_000.0) is None
    assert kept.rate(None, 3, 60_000.0) is None
    assert made().rate(200.0, 5, 1.0) == pytest.approx(240.0)


def test_the_sources_are_shown_side_by_side():
    rows = as_rows(made())
    assert [row["source"] for row in rows] == ["column", "current"]
    assert rows[0]["relative"] == pytest.approx(1 / 1.2)
    assert rows[1]["in use"] is True
    assert rows[1]["e-/px/s"] == pytest.approx(480.0)


def test_how_much_the_sources_disagree():
    assert disagreement([1.0]) is None
    assert disagreement([100.0, 120.0, 110.0]) == pytest.approx(0.2)
    assert disagreement([1.0, 0.0]) == float("inf")


def test_a_source_that_there_is_not_is_refused(sim: Opener):
    with pytest.raises(InputError, match="there is column, current"):
        calibrate_dose(sim(), use="vacuum")


def test_the_current_is_read_with_the_beam_on_and_blanked_after(sim: Opener):
    session = sim()
    area = session.beam_area_nm2
    assert area is not None
    assert session.read_current() == pytest.approx(-12500.0 * area * 1.602e-19, rel=1e-3)
    assert session.blanked


def test_no_monitor_is_said(sim: Opener):
    with pytest.raises(RefusedError, match="no beam monitor"):
        sim(beam_monitor__driver="none", beam_monitor__port="sim").read_current()


def test_a_monitor_that_there_is_not_is_refused(sim: Opener, tmp_path: Path):
    with pytest.raises(ProfileError, match=r"no such beam_monitor driver; known: keithley"):
        sim(beam_monitor__driver="cup")
    with pytest.raises(ProfileError, match=r"beam_monitor\.baut"):
        sim(beam_monitor__baut=9600)
