"""What is booked against what the simulated specimen has really taken."""

from __future__ import annotations

import io
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tem_live import ledger as ledgers
from tem_live.errors import DeviceError, RefusedError
from tem_live.ledger_reading import entries, summarise
from tem_live.session import Frame, Session
from tests.tem_live.sims import Opener, sims


@pytest.fixture
def sim() -> Iterator[Opener]:
    """Open a session on a small, fast and absorbing simulated specimen."""
    small = {
        "restorer.model": "none",
        "camera.sensor_height_px": 32,
        "camera.sensor_width_px": 32,
        "camera.exposure_s": 0.002,
        "camera.readout_s": 0.001,
        "camera.mean_transmission": 0.3,
        "camera.overflow": "count",
        "column.dose_rate_e_per_px_s": 4000.0,
    }
    with sims(small) as opener:
        yield opener


def booked(session: Session) -> float:
    return session.stats().fluence_e_per_A2 or 0.0


def run(session: Session, frames: int | None = None, seconds: float | None = None) -> None:
    session.start(frames, seconds)
    assert session.wait(30)


# ------------------------------------------------------------------------------------- the truth


def test_the_booked_fluence_is_the_true_one_whatever_is_changed(sim: Opener):
    session = sim(column__blanker_latency_s=0.01)
    taken: list[Frame] = []
    session.subscribe(taken.append)
    rng = np.random.default_rng(1)
    session.start()
    for number in range(24):
        match number % 6:
            case 0:
                session.exposure_s = float(rng.choice([0.001, 0.002, 0.004]))
            case 1:
                session.dose_rate = float(rng.uniform(1000, 8000))
            case 2:
                session.apply(magnification=float(rng.choice([25_000, 50_000, 100_000])))
            case 3:
                session.blanked = True
            case 4:
                session.blanked = False
            case _:
                session.apply(spot_size=int(rng.integers(2, 5)))
        seen = len(taken)
        deadline = time.monotonic() + 10
        while len(taken) < seen + 42 and time.monotonic() < deadline:
            time.sleep(0.002)
    session.stop()
    # Without frames, too.
    session.blanked = False
    time.sleep(0.05)
    session.blanked = True
    assert session.stats().frames >= 1000
    true = session.true_fluence_e_per_A2
    assert true is not None
    assert true > 1000
    assert booked(session) == pytest.approx(true, rel=0.01)
    # The specimen absorbs, and gaps are not seen: what was detected is far less.
    detected = sum(
        (f.meta.dose_e_per_px or 0) / (10 * (f.meta.pixel_size_nm or 1)) ** 2 for f in taken
    )
    assert detected < 0.5 * true
    assert {f.meta.dose_source for f in taken} == {"incident"}


def test_single_exposures_book_what_they_cost(sim: Opener):
    session = sim(camera__exposure_s=0.1)
    for _ in range(4):
        session.snap()
    assert session.blanked
    true = session.true_fluence_e_per_A2 or 0.0
    # What is in doubt at the moments of blanking is counted, never left out.
    assert 0.9999 * true <= booked(session) <= 1.02 * true


def test_frames_carry_what_came_in_and_what_was_detected(sim: Opener):
    session = sim(camera__exposure_s=0.05, camera__readout_s=0.05)
    frames = list(session.frames(4))
    # 4000 e-/px/s of 4 A^2 for 0.1 s, of which half is exposed and 0.3 of that transmitted.
    for frame in frames[1:]:
        assert frame.meta.fluence_e_per_A2 == pytest.approx(100.0, rel=0.2)
        assert frame.meta.dose_e_per_px == pytest.approx(4000 * 0.05 * 0.3, rel=0.1)
        assert frame.meta.as_dict()["dose_source"] == "incident"


def test_a_column_that_tells_no_rate_leaves_the_detected_dose(sim: Opener):
    session = sim(column__driver="uniblitz", column__port="sim", column__dose_rate_e_per_px_s=None)
    frames = list(session.frames(5))
    assert {frame.meta.dose_source for frame in frames} == {"detected"}
    stats = session.stats()
    assert stats.dose_source == "detected"
    assert booked(session) == pytest.approx(
        sum(max(frame.meta.dose_e_per_px or 0, 0) / 4 for frame in frames)
    )


def test_a_measured_rate_serves_where_the_column_tells_none(sim: Opener):
    # The simulated beam has 100 e-/px/s of 4 A^2.
    session = sim(
        column__driver="uniblitz",
        column__port="sim",
        column__dose_rate_e_per_px_s=None,
        dose__incident_rate_e_per_A2_s=25.0,
        camera__exposure_s=0.05,
    )
    true_before = session.true_fluence_e_per_A2 or 0.0
    frames = list(session.frames(5))
    assert {frame.meta.dose_source for frame in frames} == {"incident"}
    # The shutter takes 20 ms each way, and counts as open meanwhile.
    true = (session.true_fluence_e_per_A2 or 0.0) - true_before
    assert true <= booked(session) <= true + 25 * 0.1


def test_the_dose_rate_per_pixel_follows_the_magnification(sim: Opener):
    session = sim()
    before = session.state
    after = session.apply(magnification=100_000)
    assert after.magnification == 100_000
    assert after.pixel_size_nm == pytest.approx((before.pixel_size_nm or 0) / 2)
    assert after.dose_rate_e_per_px_s == pytest.approx((before.dose_rate_e_per_px_s or 0) / 4)
    assert session.snap().meta.pixel_size_nm == after.pixel_size_nm


def test_spot_size_changes_the_booked_rate(sim: Opener):
    session = sim()
    before = session.state
    after = session.apply(spot_size=4)
    assert after.spot_size == 4
    assert after.dose_rate_e_per_px_s == pytest.approx((before.dose_rate_e_per_px_s or 0) / 2)
    with pytest.raises(RefusedError, match="spot size 99"):
        session.apply(spot_size=99)
    assert session.state.spot_size == 4


def test_a_series_is_not_lit_longer_because_its_frames_are_fetched_late(sim: Opener):
    session = sim(camera__exposure_s=0.01, camera__readout_s=0.0)
    real = session._camera.read_into

    def slowly(buffer: Any, timeout_s: float) -> Any:
        meta = real(buffer, timeout_s)
        time.sleep(0.02)
        return meta

    session._camera.read_into = slowly  # type: ignore[method-assign]
    frames = list(session.frames(40))
    # 1000 e-/A^2/s for 0.4 s; the last frame is fetched after 1.2 s.
    assert (session.true_fluence_e_per_A2 or 0) < 600
    # No exposure was cut, and frames say what they were exposed with.
    assert frames[-1].meta.dose_e_per_px == pytest.approx(12.0, rel=0.1)
    assert not any(frame.meta.blanked for frame in frames)
    assert booked(session) == pytest.approx(session.true_fluence_e_per_A2, rel=0.01)


@pytest.mark.parametrize("seconds", [None, 0.3])
def test_what_was_exposed_before_a_stop_is_fetched(sim: Opener, seconds: float | None):
    session = sim(camera__exposure_s=0.01, camera__readout_s=0.0)
    held, go = threading.Event(), threading.Event()

    def hold_up(taken: object) -> None:
        if session.stats().frames >= 3 and not held.is_set():
            held.set()
            assert go.wait(20)

    session._acquisition.taps.append(hold_up)
    session.start(seconds=seconds)
    assert held.wait(10)
    # The camera goes on by itself: ten frames more or so are exposed.
    time.sleep(0.1 if seconds is None else seconds)
    session.blanked = True
    stopping = threading.Thread(target=session.stop)
    if seconds is None:
        stopping.start()
        deadline = time.monotonic() + 10
        while session._acquisition._stop_request is None and time.monotonic() < deadline:
            time.sleep(0.002)
    go.set()
    assert session.wait(20)
    if seconds is None:
        stopping.join(20)
    stats = session.stats()
    assert stats.stop_reason == ("user" if seconds is None else "seconds")
    # 10 e-/A^2 a frame; the last one is cut short, and the blanker takes a moment.
    assert stats.frames >= min((stats.fluence_e_per_A2 or 0) / 10 - 3, 20)
    assert stats.frames >= 8


# -------------------------------------------------------------------------------------- budgets


def test_a_cost_is_told_before_it_is_taken(sim: Opener):
    session = sim(dose__budget_e_per_A2=500.0)
    cost = session.cost(0.1)
    assert cost.source == "incident"
    # 1000 e-/A^2/s for the exposure and the gap
    assert cost.e_per_A2 == pytest.approx(101.0)
    assert cost.left_e_per_A2 == pytest.approx(500.0)
    assert cost.fits
    assert not session.cost(0.1, frames=5).fits


@pytest.mark.parametrize("latency_s", [0.0, 0.03])
def test_finite_exposures_never_overspend(sim: Opener, latency_s: float):
    session = sim(
        dose__budget_e_per_A2=150.0,
        camera__exposure_s=0.02,
        column__blanker_latency_s=latency_s,
    )
    taken = 0
    for _ in range(12):
        try:
            session.snap()
        except DeviceError:
            break
        taken += 1
    assert session.stats().stop_reason == "budget"
    assert taken >= 2
    time.sleep(latency_s)
    assert (session.true_fluence_e_per_A2 or 0) <= 150.0
    assert booked(session) <= 150.0


def test_an_exposure_that_does_not_fit_is_not_begun(sim: Opener):
    session = sim(dose__budget_e_per_A2=50.0, camera__exposure_s=0.1)
    with pytest.raises(DeviceError, match="budget"):
        session.snap()
    assert session.true_fluence_e_per_A2 == 0


def test_a_free_running_camera_overspends_by_a_frame_and_the_blanker_at_most(
    sim: Opener, tmp_path: Path
):
    session = sim(
        dose__budget_e_per_A2=100.0, dose__warn_fraction=0.2, column__blanker_latency_s=0.02
    )
    path = session.record(tmp_path / "run")
    run(session)
    stats = session.stats()
    assert stats.stop_reason == "budget"
    assert session.state.recording is None
    assert (path / "zarr.json").is_file()
    assert any("budget of 100 e-/Å² is spent" in text for _, text in session.messages)
    assert any("of the budget" in text and "%" in text for _, text in session.messages)
    time.sleep(0.02)
    true = session.true_fluence_e_per_A2 or 0.0
    assert true <= 100.0 + 1000 * (0.003 + 0.02)
    assert true >= 60.0
    # What the specimen paid for was taken.
    assert stats.frames >= 15


def test_a_beam_without_frames_is_taken_off_when_the_budget_is_spent(sim: Opener):
    session = sim(dose__budget_e_per_A2=60.0)
    session.blanked = False
    deadline = time.monotonic() + 10
    while not session.blanked and time.monotonic() < deadline:
        time.sleep(0.005)
    assert session.blanked
    assert 40 < (session.true_fluence_e_per_A2 or 0) <= 61
    assert any("budget is spent" in text for _, text in session.messages)


def test_a_budget_of_detected_dose_is_not_overspent_by_more_than_a_frame(sim: Opener):
    session = sim(
        column__driver="uniblitz",
        column__port="sim",
        column__dose_rate_e_per_px_s=None,
        # Frames longer than a busy machine may hold the loop up: what it exposes meanwhile is
        # booked as well, and it is the decision that is looked at here.
        camera__beam_e_per_px_s=400.0,
        camera__exposure_s=0.2,
        dose__budget_e_per_A2=60.0,
    )
    run(session)
    stats = session.stats()
    assert stats.stop_reason == "budget"
    # 0.3 of 20 e-/A^2 a frame
    assert booked(session) == pytest.approx(60.0, abs=6.5)


# ------------------------------------------------------------------------------------ the ledger


def test_a_named_area_remembers_across_sessions(sim: Opener):
    for budget in (150.0, 150.0):
        session = sim(
            dose__area="grid3-square5", dose__budget_e_per_A2=budget, camera__exposure_s=0.02
        )
        run(session, frames=3)
        session.close()
    assert session.stats().area_fluence_e_per_A2 == pytest.approx(126, rel=0.15)
    third = sim(dose__area="grid3-square5", dose__budget_e_per_A2=150.0, camera__exposure_s=0.02)
    assert third.stats().left_e_per_A2 == pytest.approx(24, rel=0.8)
    run(third, frames=3)
    assert third.stats().stop_reason == "budget"
    third.close()
    summary = summarise("grid3-square5")
    assert summary.fluence_e_per_A2 <= 150.0
    assert summary.open_since is None
    rows = list(entries("grid3-square5"))
    assert sum(row["e_per_A2"] or 0 for row in rows) == pytest.approx(summary.fluence_e_per_A2)
    assert rows[0]["event"] == "exposure"


def test_the_ledger_holds_all_that_the_specimen_took(sim: Opener):
    session = sim(dose__area="a")
    run(session, frames=50)
    session.blanked = False
    time.sleep(0.05)
    session.blanked = True
    session.close()
    true = session.true_fluence_e_per_A2
    assert summarise("a").fluence_e_per_A2 == pytest.approx(true, rel=0.01)
    assert summarise("a").frames == 50


def test_another_area_begins_at_its_own_fluence(sim: Opener):
    session = sim(dose__area="a", dose__budget_e_per_A2=200.0)
    run(session, frames=10)
    on_a = session.stats().area_fluence_e_per_A2 or 0.0
    session.area = "b"
    assert session.state.area == "b"
    assert session.stats().left_e_per_A2 == pytest.approx(200.0)
    run(session, frames=10)
    session.area = "a"
    assert session.stats().area_fluence_e_per_A2 == pytest.approx(on_a, rel=1e-6)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("area", ["a", None])
def test_a_ledger_that_cannot_be_written_ends_the_run_of_a_named_area(
    sim: Opener, area: str | None
):
    session = sim(dose__area=area)
    session.start()
    list(session.frames(3))
    file = session._account._ledger._file
    assert file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    os.close(full)
    if area is None:
        list(session.frames(3))
        session.stop()
        assert session.stats().stop_reason == "user"
    else:
        assert session.wait(10)
        assert "ledger" in (session.stats().stop_reason or "")
    assert session.blanked
    assert sum("cannot be written" in text for _, text in session.messages) == 1


@pytest.mark.parametrize("area", ["a", None])
def test_a_ledger_whose_disk_hangs_ends_the_run_of_a_named_area(
    sim: Opener, area: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ledgers, "SILENT_S", 0.1)
    session = sim(dose__area=area)
    answers = threading.Event()
    written = ledgers._put_line

    def hang(file: io.FileIO, entry: dict[str, Any]) -> None:
        assert answers.wait(30)
        written(file, entry)

    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    session.message.connect(lambda level, text: told.put(text))
    session.start()
    list(session.frames(3))
    try:
        monkeypatch.setattr(ledgers, "_put_line", hang)
        assert "the disk does not answer" in told.get(timeout=10)
        if area is None:
            # Counted in memory, and the frames go on.
            list(session.frames(3))
            session.stop()
        else:
            assert session.wait(10)
            assert "the disk does not answer" in (session.stats().stop_reason or "")
        assert session.blanked
        frames, fluence = session.stats().frames, booked(session)
    finally:
        answers.set()
    session.close()
    summary = summarise(area)
    assert summary.frames == frames
    assert summary.fluence_e_per_A2 == pytest.approx(fluence, rel=1e-6)
    assert summary.open_since is None


# --------------------------------------------------------------------------------- the detector


def test_the_beam_does_not_come_on_where_it_would_harm_the_detector(sim: Opener):
    session = sim(dose__max_rate_e_per_px_s=3000.0)
    with pytest.raises(RefusedError, match="more than the 3000"):
        session.snap()
    with pytest.raises(RefusedError, match="more than the 3000"):
        session.blanked = False
    assert session.true_fluence_e_per_A2 == 0
    session.dose_rate = 2000.0
    session.snap()


def test_a_rate_raised_too_far_takes_the_beam_off(sim: Opener):
    session = sim(dose__max_rate_e_per_px_s=5000.0)
    session.start()
    session.dose_rate = 8000.0
    assert session.wait(10)
    assert "protect the detector" in (session.stats().stop_reason or "")
    assert session.blanked


def test_what_the_detector_sees_takes_the_beam_off(sim: Opener):
    # Nobody knows the rate here; the frames tell.
    session = sim(
        column__driver="uniblitz",
        column__port="sim",
        column__dose_rate_e_per_px_s=None,
        camera__beam_e_per_px_s=4000.0,
        camera__exposure_s=0.01,
        dose__max_rate_e_per_px_s=500.0,
    )
    run(session)
    assert "protect the detector" in (session.stats().stop_reason or "")
    assert session.blanked


# -------------------------------------------------------------------------------- low-dose modes

MODES = {
    "modes.search.magnification": 12_500,
    "modes.search.dose_rate_e_per_px_s": 100.0,
    "modes.search.exposure_s": 0.01,
    "modes.search.binning": 2,
    "modes.record.magnification": 50_000,
    "modes.record.spot_size": 3,
    "modes.record.dose_rate_e_per_px_s": 4000.0,
    "modes.record.exposure_s": 0.02,
    "modes.record.binning": 1,
}


def test_modes_set_all_their_optics_in_the_dark(sim: Opener):
    session = sim(**MODES)
    assert {"search", "record"} <= set(session.modes)
    assert session.mode is None
    state = session.use_mode("search")
    assert (state.mode, state.magnification, state.binning) == ("search", 12_500, 2)
    assert state.exposure_s == 0.01
    # Of an unbinned pixel of 0.8 nm; the state's is that of four of them.
    assert state.dose_rate_e_per_px_s == pytest.approx(400.0)
    session.snap()
    state = session.use_mode("record")
    assert (state.spot_size, state.binning, state.exposure_s) == (3, 1, 0.02)
    assert state.dose_rate_e_per_px_s == pytest.approx(4000.0)
    assert booked(session) == pytest.approx(session.true_fluence_e_per_A2, rel=0.02)
    session.exposure_s = 0.01
    assert session.state.mode is None
    with pytest.raises(RefusedError, match="there is no mode 'squint'; modes: search"):
        session.use_mode("squint")


def test_a_mode_is_changed_during_a_run_and_the_beam_comes_back(sim: Opener):
    session = sim(**MODES)
    session.start()
    list(session.frames(3))
    session.use_mode("search")
    assert session.blanked is False
    assert {frame.meta.binning for frame in session.frames(3)} == {2}
    session.blanked = True
    session.use_mode("record")
    assert session.blanked
    session.stop()


def test_a_mode_that_is_refused_leaves_the_beam_off(sim: Opener):
    session = sim(modes__record__spot_size=99)
    session.start()
    with pytest.raises(RefusedError, match="spot size"):
        session.use_mode("record")
    assert session.blanked
    session.stop()
    shifting = sim(
        modes__aside__beam_shift_nm=[100.0, 0.0],
        modes__aside__image_shift_nm=[100.0, 0.0],
        column__driver="uniblitz",
        column__port="sim",
        column__dose_rate_e_per_px_s=None,
    )
    with pytest.raises(RefusedError, match="image cannot be shifted"):
        shifting.use_mode("aside")


def test_an_image_shift_that_is_refused_leaves_the_beam_off(sim: Opener):
    session = sim(modes__focus__image_shift_nm=[1e6, 0.0])
    session.start()
    with pytest.raises(RefusedError, match="image can be shifted by"):
        session.use_mode("focus")
    assert session.blanked
    # The beam is still where its dose is booked.
    assert session.place is not None
    assert session.place.beam is not None
    assert session.place.beam[:2] == (0.0, 0.0)
    session.stop()
