"""The session and its pipeline on a camera whose faults the test decides."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tem_live import session as session_module
from tem_live.errors import (
    CalibrationError,
    DeviceError,
    DisconnectedError,
    InputError,
    OverflowedError,
    RecordingError,
    RefusedError,
)
from tem_live.pipeline import writing
from tem_live.recording import read_recording
from tem_live.session import Session
from tem_live.state import Frame
from tests.tem_live.fakes import FakeCamera, FakeColumn
from tests.tem_live.sims import square

Opener = Callable[..., Session]


class Slow:
    """A restorer that takes its time, or fails."""

    name = "slow"
    device = "cpu"
    card = None

    def __init__(self, seconds: float = 0.0, fail: bool = False, concurrent: bool = False) -> None:
        self.concurrent = concurrent
        self.seconds = seconds
        self.fail = fail
        self.gate = threading.Event()

    def restore(self, counts: Any, out: Any = None) -> Any:
        time.sleep(self.seconds)
        if self.fail:
            raise RuntimeError("out of memory")
        return out.copy_(counts * 0.5)


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("tem-live")}


def _fails(frames: int | None = None) -> None:
    raise DeviceError("the camera does not start")


def run_to_end(session: Session, frames: int | None = None) -> None:
    session.start(frames)
    assert session.wait(20)


# ------------------------------------------------------------------------------------- one run


def test_a_run_takes_its_frames_books_their_dose_and_ends_blanked(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn
):
    session = fake_session()
    camera.interval_s = 0.01
    run_to_end(session, 20)
    stats = session.stats()
    assert (stats.frames, stats.dropped_raw, stats.stop_reason) == (20, 0, "frames")
    # 500 e-/px/s on a pixel of 1 A^2, 0.01 s, 20 frames, and what a busy computer adds to them.
    assert 100.0 <= (stats.fluence_e_per_A2 or 0) < 300.0
    assert stats.dose_source == "incident"
    # The fake camera's counts are 100 + sequence over a pedestal of 100, at 10 counts/e-.
    assert stats.dose_e_per_px == pytest.approx(np.arange(20).mean() / 10)
    assert column.blanked
    assert column.log[-1] == "blank"


def test_the_beam_is_blanked_while_nothing_runs(fake_session: Opener, column: FakeColumn):
    column.set_blanked(False)
    session = fake_session()
    assert session.blanked is True
    session.start()
    assert session.blanked is False
    session.stop()
    assert session.blanked is True
    assert session.stats().stop_reason == "user"


def test_closing_ends_every_thread_and_blanks(fake_session: Opener, column: FakeColumn):
    session = fake_session()
    session.start()
    assert threads()
    session.close()
    session.close()
    assert not threads()
    assert column.blanked
    with pytest.raises(DisconnectedError, match="closed"):
        session.start()


def test_seconds_end_a_run(fake_session: Opener):
    session = fake_session()
    session.start(seconds=0.2)
    assert session.wait(5)
    assert session.stats().stop_reason == "seconds"


def test_old_objects_are_not_looked_through_in_a_run(
    fake_session: Opener, camera: FakeCamera, monkeypatch: pytest.MonkeyPatch
):
    session = fake_session()
    session.start()
    assert gc.get_freeze_count() > 10_000
    session.stop()
    assert gc.get_freeze_count() == 0
    monkeypatch.setattr(camera, "start", _fails)
    with pytest.raises(DeviceError):
        session.start()
    assert gc.get_freeze_count() == 0


def test_two_runs_at_once_are_refused(fake_session: Opener):
    session = fake_session()
    session.start()
    with pytest.raises(RefusedError, match="stop it first"):
        session.start()


def test_frames_yields_owned_calibrated_frames(fake_session: Opener):
    session = fake_session()
    frames = list(session.frames(5))
    assert [f.meta.frame_id for f in frames] == [0, 1, 2, 3, 4]
    for frame in frames:
        assert frame.raw.dtype == np.uint16
        assert np.allclose(frame.electrons, (frame.raw.astype(float) - 100) / 10)
        assert frame.restored is None
    assert session.snap().meta.frame_id == 5


def test_raw_and_restored_of_a_pair_never_mix(
    fake_session: Opener, camera: FakeCamera, monkeypatch: pytest.MonkeyPatch
):
    session = fake_session()
    camera.interval_s = 0.002
    session._processor.set_restorer(Slow(0.003))
    seen = [frame for frame in session.frames(60) if frame.restored is not None]
    assert seen
    for frame in seen:
        assert frame.restored is not None
        assert np.allclose(frame.restored, frame.electrons * 0.5)
        assert np.allclose(frame.electrons, frame.meta.sequence / 10)


class Pairs(Slow):
    """A restorer whose first frame waits until a second one is being restored."""

    def __init__(self) -> None:
        super().__init__(concurrent=True)
        self.at_once = 0
        self.most = 0
        self.lock = threading.Lock()
        self.calls = 0

    def restore(self, counts: Any, out: Any = None) -> Any:
        with self.lock:
            self.calls += 1
            first = self.calls == 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            if self.at_once == 2:
                self.gate.set()
        if first:
            # Longer than the second one takes: it would overtake.
            assert self.gate.wait(10)
            time.sleep(0.05)
        with self.lock:
            self.at_once -= 1
        return out.copy_(counts * 0.5)


def test_two_frames_are_restored_at_once_and_handed_on_in_order(
    fake_session: Opener, camera: FakeCamera, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tem_live.pipeline.processing.arithmetic_threads", lambda: 2)
    session = fake_session()
    camera.interval_s = 0.01
    restorer = Pairs()
    session._processor.set_restorer(restorer)
    order: list[int] = []
    end = session.subscribe(
        lambda frame: order.append(frame.meta.frame_id), lambda _, restored: restored
    )
    run_to_end(session, 30)
    end()
    assert restorer.most == 2
    assert len(order) == restorer.calls > 2
    assert order == sorted(order)
    stats = session.stats()
    assert stats.restored + stats.restore_skipped == stats.frames == 30


# ------------------------------------------------------------------------------ what gives way


def test_a_slow_restorer_is_skipped_and_no_raw_frame_is_lost(
    fake_session: Opener, camera: FakeCamera
):
    session = fake_session()
    camera.interval_s = 0.002
    session._processor.set_restorer(Slow(0.02))
    run_to_end(session, 100)
    stats = session.stats()
    assert stats.frames == 100
    assert stats.dropped_raw == 0
    assert stats.restored + stats.restore_skipped == 100
    assert stats.restore_skipped > 10


def test_a_restorer_slower_than_the_ring_is_long_loses_no_raw_frame(
    fake_session: Opener, camera: FakeCamera
):
    session = fake_session(pipeline={"slots": 8}, camera={"timeout_s": 0.2})
    camera.interval_s = 0.005
    session._processor.set_restorer(Slow(0.5))
    began_s = time.monotonic()
    frames = list(session.frames(60))
    took_s = time.monotonic() - began_s
    assert [frame.meta.frame_id for frame in frames] == list(range(60))
    stats = session.stats()
    assert (stats.frames, stats.dropped_raw) == (60, 0)
    # 3 where the 60 frames take 0.3 s; on a machine that does much else they take longer.
    assert 1 <= stats.restored <= took_s / 0.5 + 2
    assert stats.restored + stats.restore_skipped == 60


def test_a_display_takes_the_newest_and_the_rest_is_counted(
    fake_session: Opener, camera: FakeCamera
):
    session = fake_session()
    assert session.newest() is None
    run_to_end(session, 10)
    newest = session.newest()
    assert newest is not None
    assert newest.meta.frame_id == 9
    assert session.stats().display_skipped == 9
    assert session.newest() is None


def test_a_display_may_leave_the_newest_where_it_lives(fake_session: Opener):
    session = fake_session()
    assert session.newest_on_device() is None
    assert session.rolling_mean_on_device() is None
    session._processor.set_restorer(Slow(0.0))
    run_to_end(session, 4)
    frame = session.newest_on_device()
    assert frame is not None
    assert frame.meta.frame_id == 3
    assert session.newest() is None
    assert frame.restored is not None
    electrons, restored = frame.electrons.part(), frame.restored.part()
    assert electrons.shape == restored.shape == frame.electrons.shape
    assert electrons.mean() == pytest.approx(frame.meta.dose_e_per_px, rel=1e-5)
    mean = session.rolling_mean_on_device()
    assert mean is not None
    np.testing.assert_array_equal(mean.part(), session.rolling_mean())
    # Its memory is its own: the frames that follow leave it alone.
    run_to_end(session, 40)
    np.testing.assert_array_equal(frame.electrons.part(), electrons)
    np.testing.assert_array_equal(frame.restored.part(), restored)


def test_a_restorer_that_fails_is_switched_off_and_raw_goes_on(fake_session: Opener):
    session = fake_session()
    session._processor.set_restorer(Slow(fail=True))
    run_to_end(session, 10)
    assert session.stats().frames == 10
    assert ("error", "restorer 'slow' failed and is off, raw goes on: out of memory") in list(
        session.messages
    )


def test_a_lost_raw_frame_ends_the_run_blanked(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn
):
    session = fake_session()
    camera.skip_at = 5
    run_to_end(session, 20)
    assert "lost 3 frame(s)" in (session.stats().stop_reason or "")
    assert session.stats().dropped_raw == 3
    assert column.blanked


def test_a_lost_raw_frame_is_only_counted_where_the_user_chose_so(
    fake_session: Opener, camera: FakeCamera
):
    session = fake_session(camera={"overflow": "count"})
    camera.skip_at = 5
    run_to_end(session, 20)
    stats = session.stats()
    assert (stats.frames, stats.dropped_raw, stats.stop_reason) == (17, 3, "frames") or (
        stats.frames,
        stats.dropped_raw,
    ) == (20, 3)


# --------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "fault", [DisconnectedError("unplugged"), OverflowedError("too fast"), ValueError("a bug")]
)
def test_a_camera_that_fails_ends_the_run_blanked_and_told(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn, fault: Exception
):
    session = fake_session()

    def fail(sequence: int) -> None:
        if sequence == 7:
            raise fault

    camera.before_frame = fail
    reasons: list[str] = []
    session.stopped.connect(lambda reason: reasons.append(reason))
    run_to_end(session)
    assert session.stats().frames == 7
    assert reasons[0].startswith("error: ")
    assert str(fault) in reasons[0]
    assert column.blanked
    assert any(level == "error" for level, _ in session.messages)
    camera.before_frame = lambda sequence: None
    run_to_end(session, 3)
    assert camera.opened == 2, "the camera was opened anew"
    assert session.stats().stop_reason == "frames"


def test_a_camera_that_falls_silent_is_given_its_timeout(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn
):
    session = fake_session()
    camera.interval_s = 1e9
    began = time.monotonic()
    run_to_end(session)
    assert 0.4 < time.monotonic() - began < 3
    assert "no frame from the camera" in (session.stats().stop_reason or "")
    assert column.blanked


def test_a_setting_after_a_loss_opens_the_camera_anew(fake_session: Opener, camera: FakeCamera):
    session = fake_session()

    def fail(sequence: int) -> None:
        raise DisconnectedError("unplugged")

    camera.before_frame = fail
    run_to_end(session)
    camera.before_frame = lambda sequence: None
    camera.close()
    session.exposure_s = 0.02
    assert session.exposure_s == 0.02
    run_to_end(session, 3)
    assert session.stats().frames == 3


def test_frames_raises_what_ended_the_run(fake_session: Opener, camera: FakeCamera):
    session = fake_session()

    def fail(sequence: int) -> None:
        if sequence == 2:
            raise DisconnectedError("unplugged")

    camera.before_frame = fail
    with pytest.raises(DeviceError, match="unplugged"):
        list(session.frames(5))


def test_who_blanks_and_unblanks_at_once_leaves_booked_what_is(
    fake_session: Opener, column: FakeColumn, monkeypatch: pytest.MonkeyPatch
):
    session = fake_session()
    session.blanked = False
    others: list[threading.Thread] = []

    def look(column: FakeColumn) -> bool:
        seen = column._blanked
        if seen and not others:
            # Another thread unblanks just after this one has looked.
            others.append(threading.Thread(target=lambda: session._beam.set_blanked(False)))
            others[0].start()
            others[0].join(0.2)
        return seen

    monkeypatch.setattr(FakeColumn, "blanked", property(look))
    session._beam.set_blanked(True)
    others[0].join(10)
    assert not column._blanked
    assert session.blanked is False
    assert session._account.clock.on
    session.blanked = True
    assert not session._account.clock.on


def test_a_blanker_that_does_not_answer_is_shouted_about(fake_session: Opener, column: FakeColumn):
    session = fake_session()
    session.start()
    column.blanker_broken = True
    session.blank_now()
    session.stop()
    column.blanker_broken = False
    assert any("COULD NOT BE BLANKED" in text for _, text in session.messages)


def test_blank_now_does_not_wait_for_a_stuck_camera(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn
):
    session = fake_session()
    release = threading.Event()
    camera.before_frame = lambda sequence: release.wait(10) and None
    session.start()
    time.sleep(0.05)
    began = time.monotonic()
    session.blank_now()
    assert time.monotonic() - began < 0.5
    assert column.blanked
    release.set()


def test_blank_now_outlasts_a_start_that_still_waits(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn
):
    session = fake_session()

    def fail(sequence: int) -> None:
        raise DisconnectedError("unplugged")

    camera.before_frame = fail
    run_to_end(session)
    assert isinstance(session.run_error, DisconnectedError)
    camera.before_frame = lambda sequence: None
    # A start after a loss opens the camera anew, which takes its time.
    opening, opened = threading.Event(), threading.Event()
    real = camera.open

    def slow_open() -> None:
        opening.set()
        assert opened.wait(10)
        real()

    camera.open = slow_open  # type: ignore[method-assign]
    errors: list[Exception] = []

    def start() -> None:
        try:
            session.start()
        except RefusedError as error:
            errors.append(error)

    starter = threading.Thread(target=start)
    starter.start()
    assert opening.wait(10)
    session.blank_now()
    opened.set()
    starter.join(10)
    assert "blanked meanwhile" in str(errors[0])
    assert column.blanked
    assert not session.state.running
    session.start(3)
    assert session.wait(10)
    assert session.run_error is None


def test_a_setting_cannot_undo_blank_now(fake_session: Opener, column: FakeColumn):
    session = fake_session()
    real = session._set_model

    def blanked_meanwhile(name: str) -> None:
        session.blank_now()
        real(name)

    session._set_model = blanked_meanwhile  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="meanwhile"):
        session.apply(model="none", blanked=False)
    assert column.blanked


def test_no_blanker_is_said(fake_session: Opener):
    session = fake_session(column={"driver": "none", "dose_rate_e_per_px_s": None})
    assert session.blanked is None
    session.blank_now()
    assert any("no beam blanker" in text for _, text in session.messages)
    with pytest.raises(RefusedError, match="blanker"):
        session.blanked = True
    with pytest.raises(RefusedError, match="dose rate"):
        session.dose_rate = 5.0


# --------------------------------------------------------------------------------- settings


def test_settings_are_read_back_and_hold_from_the_next_frame(
    fake_session: Opener, camera: FakeCamera
):
    session = fake_session()
    camera.interval_s = 0.005
    session.start()
    session.exposure_s = 0.25
    assert session.exposure_s == 0.25
    for frame in session.frames(3):
        assert frame.meta.exposure_s == 0.25
    session.stop()


def test_a_refused_setting_leaves_the_run_going(fake_session: Opener, camera: FakeCamera):
    session = fake_session()
    camera.interval_s = 0.005
    session.start()
    with pytest.raises(RefusedError, match="longest exposure"):
        session.exposure_s = 99.0
    assert session.exposure_s == 0.01
    assert len(list(session.frames(3))) == 3
    assert session.state.running


def test_frames_that_memory_does_not_hold_are_refused_and_those_before_go_on(
    fake_session: Opener, camera: FakeCamera, monkeypatch: pytest.MonkeyPatch
):
    camera.shape = (32, 32)
    session = fake_session()
    session.binning = 2

    def full(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr("tem_live.frames._mapped", full)
    with pytest.raises(InputError, match=r"lower pipeline\.slots"):
        session.binning = 1
    assert session.binning == 2
    session.start(3)
    assert session.wait(10.0)
    assert session.stats().frames == 3
    frame = session.newest()
    assert frame is not None
    assert frame.raw.shape == (16, 16)


def test_binning_keeps_the_dose_rate_of_the_specimen(fake_session: Opener, camera: FakeCamera):
    session = fake_session()
    assert session.dose_rate == pytest.approx(500)
    session.apply(binning=2)
    assert session.state.frame_shape == (16, 24)
    assert session.state.pixel_size_nm == pytest.approx(0.2)
    assert session.dose_rate == pytest.approx(2000)
    assert session.snap().raw.shape == (16, 24)


def test_a_setting_that_does_not_exist(fake_session: Opener):
    with pytest.raises(RefusedError, match="no setting 'exposure'"):
        fake_session().apply(exposure=1.0)


def test_dose_rate_is_what_the_column_took(fake_session: Opener):
    session = fake_session()
    session.dose_rate = 1e9
    assert session.dose_rate == pytest.approx(1e4)


def test_budget_stops_before_it_is_overspent(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn
):
    # 50 e-/A^2 a frame
    session = fake_session(camera={"exposure_s": 0.1}, dose={"budget_e_per_A2": 230.0})
    camera.interval_s = 0.1
    run_to_end(session, 100)
    stats = session.stats()
    assert (stats.frames, stats.stop_reason) == (4, "budget")
    assert 200.0 <= (stats.fluence_e_per_A2 or 0) <= 230.0
    assert column.blanked


def test_without_a_column_the_detected_dose_is_booked(fake_session: Opener):
    session = fake_session(column={"driver": "none", "dose_rate_e_per_px_s": None})
    run_to_end(session, 20)
    # mean of the frames' (sequence / 10) e-/px on a pixel of 1 A^2
    assert session.stats().fluence_e_per_A2 == pytest.approx(np.arange(20).sum() / 10)


# ------------------------------------------------------------------------------- references


def test_dark_reference_is_taken_blanked_used_and_found_again(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn
):
    camera.value = lambda sequence: 140 if column.blanked else 190
    session = fake_session()
    path = session.take_reference("dark", 4)
    assert path.is_file()
    assert session.snap().electrons.mean() == pytest.approx(5.0)
    assert column.blanked
    session.close()
    again = fake_session()
    assert again.snap().electrons.mean() == pytest.approx(5.0)


def test_gain_reference_evens_the_sensor_out(fake_session: Opener, camera: FakeCamera):
    response = np.ones((32, 48))
    response[:, 24:] = 0.5
    camera.value = lambda sequence: (100 + 80 * response).astype(np.uint16)  # type: ignore[assignment,return-value]
    session = fake_session()
    assert session.snap().electrons.std() > 1
    session.take_reference("gain", 4)
    assert session.snap().electrons.std() == pytest.approx(0, abs=1e-5)


def test_reference_of_another_size_is_told_and_not_used(fake_session: Opener, camera: FakeCamera):
    session = fake_session()
    session.take_reference("dark", 4)
    session.apply(binning=2)
    assert any("dark reference is 32x48" in text for _, text in session.messages)
    session.snap()


def test_a_reference_needs_frames(fake_session: Opener):
    with pytest.raises(CalibrationError, match="at least 2"):
        fake_session().take_reference("dark", 1)


def test_a_named_reference_that_does_not_fit_stops_the_opening(
    fake_session: Opener, tmp_path: Path
):
    session = fake_session()
    path = session.take_reference("dark", 4, tmp_path / "dark.npz")
    session.close()
    with pytest.raises(CalibrationError, match="dark reference is 32x48"):
        fake_session(camera={"binning": 2}, calibration={"dark": str(path)})


# ------------------------------------------------------------- an opening that does not succeed


def fails(*_: Any, **__: Any) -> Any:
    raise DisconnectedError("it does not answer")


STEPS = {
    "restorer": ("tem_live.session.make_restorer", []),
    "ledger": ("tem_live.session.Ledger", []),
    "camera": ("tests.tem_live.fakes.FakeCamera.open", ["camera"]),
    "column": ("tests.tem_live.fakes.FakeColumn.open", ["column", "camera"]),
    "what the column can do": ("tem_live.beam.ColumnParts.of", ["column", "camera"]),
    "supervisor": ("tem_live.beam.Beam.watch_over", ["column", "camera"]),
    "writer": ("tem_live.session.Writer", ["column", "camera"]),
    "processing": ("tem_live.session.Processor", ["column", "camera"]),
    "acquisition": ("tem_live.session.Acquisition", ["column", "camera"]),
    "dose rate told": ("tests.tem_live.fakes.FakeColumn.dose_rate_e_per_A2_s", ["column"]),
    "configuring": ("tests.tem_live.fakes.FakeCamera.configure", ["column", "camera"]),
    "dose rate set": ("tests.tem_live.fakes.FakeColumn.set_dose_rate", ["column", "camera"]),
}


@pytest.mark.parametrize("step", STEPS)
def test_an_opening_that_fails_closes_what_was_opened_and_blanks(
    fake_session: Opener,
    camera: FakeCamera,
    column: FakeColumn,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
):
    where, closed = STEPS[step]
    monkeypatch.setattr(where, property(fails) if where.endswith("A2_s") else fails)
    with pytest.raises(DisconnectedError, match="it does not answer"):
        fake_session()
    if "column" in closed:
        assert column.log[-1] == "close"
    if "open" in column.log:
        assert column.log.index("blank") < column.log.index("close")
        assert column.blanked
    assert ("close" in camera.calls) == (camera.opened > 0 or "camera" in closed)
    assert not threads()


def test_an_opening_that_fails_with_the_beam_on_says_so(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FakeCamera, "configure", fails)
    column.blanker_broken = True
    with pytest.raises(DeviceError, match="it does not answer; and THE BEAM COULD NOT BE BLANKED"):
        fake_session()
    assert camera.calls[-1] == "close"
    assert not threads()


def test_a_device_that_cannot_be_closed_leaves_the_others_closed(
    fake_session: Opener, camera: FakeCamera, column: FakeColumn, monkeypatch: pytest.MonkeyPatch
):
    session = fake_session()
    with monkeypatch.context() as patch:
        patch.setattr(FakeColumn, "close", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.close()
    assert camera.calls[-1] == "close"
    assert not threads()


# ------------------------------------------------------------------------------- recording


class Sink:
    """A recorder in memory that fails when told."""

    def __init__(self, fail_at: int | None = None, slow_s: float = 0.0) -> None:
        self.events: list[tuple[str, int]] = []
        self.metas: list[dict[str, Any]] = []
        self.closed = False
        self.fail_at = fail_at
        self.slow_s = slow_s

    def start(self, *layout: Any) -> None:
        self.events.append(("start", layout[0][0]))

    def write_raw(self, frame_id: int, raw: Any, meta: dict[str, Any]) -> None:
        time.sleep(self.slow_s)
        if frame_id == self.fail_at:
            raise RecordingError("disk full; 3 frames are kept")
        json.dumps(meta)
        self.metas.append(meta)
        self.events.append(("raw", int(raw[0, 0])))

    def write_restored(self, frame_id: int, restored: Any) -> None:
        self.events.append(("restored", frame_id))

    def note(self, attributes: dict[str, Any]) -> None:
        self.events.append(("note", len(attributes)))

    def close(self) -> None:
        self.closed = True


def test_raw_is_recorded_before_restored_and_the_file_is_closed(fake_session: Opener):
    session = fake_session()
    session._processor.set_restorer(Slow())
    sink = Sink()
    session._writer.open(sink)
    run_to_end(session, 10)
    assert sink.closed
    assert [v for kind, v in sink.events if kind == "raw"] == [100 + n for n in range(10)]
    for n in {v for kind, v in sink.events if kind == "restored"}:
        assert sink.events.index(("restored", n)) > sink.events.index(("raw", 100 + n))
    assert [m["dose_e_per_px"] for m in sink.metas] == pytest.approx([n / 10 for n in range(10)])
    assert session.stats().recorded == 10


def test_a_full_disk_ends_the_run_blanked_and_told(fake_session: Opener, column: FakeColumn):
    session = fake_session()
    sink = Sink(fail_at=3)
    session._writer.open(sink)
    run_to_end(session)
    assert "disk full; 3 frames are kept" in (session.stats().stop_reason or "")
    assert sink.closed
    assert column.blanked
    assert str(session.recording_error) == "disk full; 3 frames are kept"


def test_a_disk_that_cannot_keep_up_ends_the_run_and_keeps_all_it_took(
    fake_session: Opener, column: FakeColumn
):
    session = fake_session(pipeline={"slots": 4}, camera={"timeout_s": 0.2})
    sink = Sink(slow_s=0.5)
    session._writer.open(sink)
    run_to_end(session)
    stats = session.stats()
    assert "the disk cannot keep up" in (stats.stop_reason or "")
    assert len(sink.metas) == stats.frames
    assert column.blanked


def test_a_disk_that_hangs_ends_the_run_blanked_and_told_and_gets_its_frames_in_the_end(
    fake_session: Opener, column: FakeColumn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(writing, "SILENT_S", 0.2)
    session = fake_session(pipeline={"slots": 4}, camera={"timeout_s": 0.2})
    answers = threading.Event()
    sink = Sink()
    write = sink.write_raw

    def hang(frame_id: int, raw: Any, meta: dict[str, Any]) -> None:
        assert answers.wait(30)
        write(frame_id, raw, meta)

    sink.write_raw = hang  # type: ignore[method-assign]
    session._writer.open(sink)
    try:
        run_to_end(session)
        stats = session.stats()
        assert "the disk cannot keep up" in (stats.stop_reason or "")
        assert column.blanked
        assert any("its disk took nothing" in text for _, text in session.messages)
        with pytest.raises(RecordingError, match="is not written yet"):
            session.record(tmp_path / "next")
        assert not (tmp_path / "next.zarr").exists()
    finally:
        answers.set()
    session.close()
    assert sink.closed
    assert len(sink.metas) == stats.frames
    assert not threads()


def test_a_session_closes_though_the_disk_of_its_recording_hangs(
    fake_session: Opener, column: FakeColumn, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writing, "SILENT_S", 0.1)
    session = fake_session()
    answers = threading.Event()
    sink = Sink()
    sink.write_raw = lambda *_: answers.wait(30)  # type: ignore[method-assign, assignment]
    session._writer.open(sink)
    session.start(2)
    session.close()
    assert column.log[-1] == "close"
    assert column.blanked
    assert not sink.closed
    answers.set()
    session._writer._thread.join(10)
    assert sink.closed


def test_a_new_layout_is_announced_to_the_recorder(fake_session: Opener, camera: FakeCamera):
    camera.interval_s = 0.005
    session = fake_session()
    sink = Sink()
    session._writer.open(sink)
    session.start()
    list(session.frames(2))
    session.apply(binning=2)
    list(session.frames(2))
    session.stop()
    assert [v for kind, v in sink.events if kind == "start"] == [32, 16]


def test_a_session_needs_its_column_only_to_have_what_it_has(
    fake_session: Opener, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session_module, "make_column", lambda profile, camera: None)
    session = fake_session(column={"driver": "none", "dose_rate_e_per_px_s": None})
    run_to_end(session, 3)
    assert session.stats().frames == 3


def test_a_real_recording_of_a_run_opens_in_plain_zarr(
    fake_session: Opener, camera: FakeCamera, tmp_path: Path
):
    import zarr

    camera.interval_s = 0.005
    session = fake_session()
    session._processor.set_restorer(Slow())
    path = session.record(tmp_path / "run")
    session.start()
    list(session.frames(5))
    session.apply(binning=2)
    list(session.frames(5))
    session.stop()
    assert session.recording_error is None
    assert session.state.recording is None
    root = zarr.open_group(path, mode="r")
    assert root.attrs["complete"] is True
    assert root.attrs["profile"]["name"] == "fake"  # type: ignore[index,call-overload]
    first, second = root["raw/0"], root["segment_1/raw/0"]
    assert first.shape[1:] == (32, 48)  # type: ignore[union-attr]
    assert second.shape[1:] == (16, 24)  # type: ignore[union-attr]
    assert first.shape[0] + second.shape[0] == session.stats().frames  # type: ignore[union-attr]
    # Every restart of the fake camera counts from 100 anew; the restored plane is half of it.
    raw, restored = np.asarray(first), np.asarray(root["restored/0"])
    assert raw[0, 0, 0] == 100
    known = np.isfinite(restored[:, 0, 0])
    assert known.any()
    assert np.allclose(restored[known], (raw[known] - 100.0) / 10 * 0.5)


def test_recording_over_something_is_refused(fake_session: Opener, tmp_path: Path):
    (tmp_path / "there.zarr").mkdir()
    with pytest.raises(InputError, match="exists"):
        fake_session().record(tmp_path / "there")


def test_a_second_recording_at_once_is_refused(fake_session: Opener, tmp_path: Path):
    session = fake_session()
    session.record(tmp_path / "a")
    with pytest.raises(RefusedError, match="already recording"):
        session.record(tmp_path / "b")
    assert session.stop_recording() == tmp_path / "a.zarr"
    session.record(tmp_path / "b")


def test_a_recording_says_which_model_and_precision_were_at_work(tmp_path: Path):
    with session_module.open_session(
        "sim", {**square(64), "camera.exposure_s": 0.005, "restorer.precision": "float32"}
    ) as session:
        assert session.state.precision == "float32"
        session.record(tmp_path / "run")
        session.start()
        list(session.frames(3))
        session.model = "none"
        since = session._acquisition.next_id
        assert session.state.precision is None
        list(session.frames(3))
        session.stop()
    recording = read_recording(tmp_path / "run.zarr")
    first, second = recording.attributes["models"]
    assert (first["model"], first["precision"], first["device"]) == ("fast", "float32", "cpu")
    assert first["engine"] == "torch"
    assert len(first["model_sha256"]) == 64
    assert (second["model"], second["precision"]) == ("none", None)
    assert first["from_frame"] == 0
    assert 3 <= second["from_frame"] <= since
    assert recording.attributes["precision"] == "float32"
    assert recording.attributes["profile"]["restorer"]["precision"] == "float32"
    # Of a frame's line, only what was known when it was written.
    line = recording.segments[0].frames[0]
    assert "frame_id" in line
    assert not {"model", "restore_binning", "latency_ms", "drift_px"} & line.keys()


def test_frames_are_restored_binned_where_that_is_asked_for(tmp_path: Path):
    with session_module.open_session(
        "sim", {**square(256), "camera.exposure_s": 0.02, "restorer.binning": 2}
    ) as session:
        assert session.state.restore_binning == 2
        session.record(tmp_path / "run")
        session.start()

        def first(binning: int) -> Frame:
            # Those on their way were restored as it was before.
            return next(
                frame
                for frame in session.frames(400)
                if frame.restored is not None and frame.meta.restore_binning == binning
            )

        frames = [first(2)]
        loaded = session._whole
        session.restore_binning = 4
        frames.append(first(4))
        with pytest.raises(RefusedError, match="one of 1, 2, 4, 8, not by 3"):
            session.restore_binning = 3
        assert session.state.restore_binning == 4
        session.apply(restore_binning=1)
        frames.append(first(1))
        # It is not loaded again for that.
        assert session._whole is loaded
        session.model = "gaussian"
        session.restore_binning = 2
        session.model = "none"
        session.stop()
    for frame in frames:
        assert frame.restored is not None
        assert frame.restored.shape == (256, 256)
        assert frame.meta.model == "fast"
    models = read_recording(tmp_path / "run.zarr").attributes["models"]
    assert [(model["model"], model["restore_binning"]) for model in models] == [
        ("fast", 2),
        ("fast", 4),
        ("fast", 1),
        ("gaussian", 1),
        ("gaussian", 2),
        ("none", 1),
    ]


def test_a_model_that_cannot_be_noted_ends_the_run_as_a_broken_recording_does(
    fake_session: Opener, column: FakeColumn
):
    session = fake_session()
    sink = Sink()

    def full(attributes: dict[str, Any]) -> None:
        raise RecordingError("disk full; 3 frames are kept")

    sink.note = full  # type: ignore[method-assign]
    session._writer.open(sink)
    session._recording.path = Path("somewhere.zarr")
    session.start()
    session.model = "none"
    assert session.wait(10)
    assert session.stats().stop_reason == "error: disk full; 3 frames are kept"
    assert column.blanked
