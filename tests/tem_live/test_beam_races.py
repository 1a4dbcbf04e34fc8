"""What is asked for while something else is under way: the beam never comes on behind it."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tem_live.errors import DisconnectedError, RecordingError, RefusedError, TemLiveError
from tem_live.ledger import Ledger
from tem_live.session import Session
from tests.tem_live.fakes import FakeCamera, FakeColumn

OpenFake = Callable[..., Session]


class Compiling:
    """A restorer that takes its time before the first frame."""

    name = "compiling"
    device = "cpu"
    card = None
    concurrent = False
    precision = None
    binning = 1

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.begun = threading.Event()

    def prepare(self, shape: tuple[int, int]) -> None:
        self.begun.set()
        time.sleep(self._seconds)

    def restore(self, frame: Any, out: Any = None) -> Any:
        return out.copy_(frame)


def compiling(session: Session, seconds: float = 0.3) -> Compiling:
    restorer = Compiling(seconds)
    session._processor.set_restorer(restorer)  # type: ignore[arg-type]
    return restorer


def quietly(work: Callable[[], object]) -> threading.Thread:
    """Do it on another thread, whatever comes of it."""

    def run() -> None:
        with contextlib.suppress(TemLiveError):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_stop_that_comes_during_a_start_is_for_that_run(
    fake_session: OpenFake, camera: FakeCamera, column: FakeColumn
) -> None:
    camera.interval_s = 0.01
    session = fake_session()
    restorer = compiling(session)
    starting = quietly(session.start)
    assert restorer.begun.wait(10)
    session.stop("user")
    starting.join(10)
    assert not session.state.running
    assert session.stats().stop_reason == "user"
    assert "unblank" not in column.log
    # The next one is not stopped by it.
    session.start(2)
    assert session.wait(10)
    assert session.stats().stop_reason == "frames"


def test_an_interrupted_start_does_not_go_on(
    fake_session: OpenFake,
    camera: FakeCamera,
    column: FakeColumn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera.interval_s = 0.01
    session = fake_session()
    restorer = compiling(session)
    begin = session._acquisition.start

    def interrupted(*given: Any) -> Any:
        begin(*given)
        assert restorer.begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(session._acquisition, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.start(seconds=60)
    session.stop("user")
    closing = threading.Thread(target=session.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert "unblank" not in column.log
    assert column.blanked


@pytest.mark.parametrize("how", ["stop", "guard", "blanked"])
def test_what_blanks_during_a_setting_is_not_undone_by_it(
    fake_session: OpenFake, camera: FakeCamera, column: FakeColumn, how: str
) -> None:
    camera.interval_s = 0.01
    session = fake_session()
    configure, setting = camera.configure, threading.Event()

    def slow(settings: Any) -> Any:
        setting.set()
        time.sleep(0.3)
        return configure(settings)

    session.start()
    camera.configure = slow  # type: ignore[method-assign]
    applying = quietly(lambda: session.apply(exposure_s=0.03))
    assert setting.wait(10)
    before = len(column.log)
    if how == "stop":
        session.stop()
    elif how == "guard":
        session._on_too_bright("2000 e-/px/s")
    else:
        session.blanked = True
    applying.join(10)
    if how == "blanked":
        # The run goes on in the dark.
        assert session.state.running
    else:
        assert session.wait(10)
    assert "unblank" not in column.log[before:]
    assert column.blanked


def test_a_mode_does_not_light_what_a_run_left_in_the_dark(
    fake_session: OpenFake,
    camera: FakeCamera,
    column: FakeColumn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera.interval_s = 0.01
    session = fake_session(modes={"record": {"exposure_s": 0.03}})
    # Optics that take longer than the run.
    monkeypatch.setattr(session, "_set_unbinned_rate", lambda rate: session.wait(10))
    session.start(seconds=0.2)
    session.use_mode("record")
    assert session.stats().stop_reason == "seconds"
    assert column.blanked


def test_a_camera_that_fails_in_every_way_ends_the_run_all_the_same(
    fake_session: OpenFake, camera: FakeCamera, column: FakeColumn, tmp_path: Path
) -> None:
    def gone(*_: Any) -> None:
        raise OSError("access violation")

    stop = camera.stop
    session = fake_session()
    session.record(tmp_path / "out")
    camera.before_frame = camera.stop = gone  # type: ignore[method-assign]
    session.start()
    assert session.wait(10)
    camera.stop = stop  # type: ignore[method-assign]
    assert "access violation" in str(session.stats().stop_reason)
    assert session.state.recording is None
    assert column.blanked
    assert [level for level, _ in session.messages] == ["error"]


def test_a_ledger_that_fails_at_once_ends_the_run_of_its_area(
    fake_session: OpenFake,
    camera: FakeCamera,
    column: FakeColumn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Ledger) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ledger, "_begin", full)
    camera.interval_s = 0.01
    session = fake_session(dose={"area": "square1", "budget_e_per_A2": 1e6})
    compiling(session)
    quietly(lambda: session.start(1000)).join(10)
    assert session.wait(10)
    assert "No space left" in str(session.messages)
    assert session.stats().frames < 1000
    assert column.blanked
    # Nor does another, until there is a ledger again.
    with pytest.raises(RecordingError, match="set the area again"):
        session.start(2)
    monkeypatch.undo()
    session.area = "square1"
    session.start(2)
    assert session.wait(10)
    assert session.stats().stop_reason == "frames"


def test_a_calibration_leaves_recordings_alone(
    fake_session: OpenFake, camera: FakeCamera, tmp_path: Path
) -> None:
    camera.interval_s = 0.002
    session = fake_session()
    path = session.record(tmp_path / "out")
    with pytest.raises(RefusedError, match="recording is going on"):
        session.take_reference("dark", 5)
    with pytest.raises(RefusedError, match="recording is going on"):
        session.take_raw(5)
    assert session.state.recording == path


@pytest.mark.parametrize("taken", ["dark", "gain", "raw"])
def test_a_session_that_is_closed_does_not_wait_for_a_calibration(
    fake_session: OpenFake, camera: FakeCamera, column: FakeColumn, taken: str
) -> None:
    camera.interval_s = 0.01
    session = fake_session()
    ended: list[TemLiveError] = []

    def calibrate() -> None:
        try:
            if taken == "raw":
                session.take_raw(100_000)
            else:
                session.take_reference("gain" if taken == "gain" else "dark", 100_000)
        except TemLiveError as error:
            ended.append(error)

    calibrating = quietly(calibrate)
    while session.stats().frames < 3:
        time.sleep(0.005)
    closing = quietly(session.close)
    closing.join(10)
    calibrating.join(10)
    assert not closing.is_alive()
    assert not calibrating.is_alive()
    assert column.blanked
    assert len(ended) == 1
    assert "of 100000 frames came" in str(ended[0])


def test_a_run_is_not_begun_amid_a_reference(fake_session: OpenFake, camera: FakeCamera) -> None:
    camera.interval_s = 0.005
    session = fake_session()
    session.start()
    taking = quietly(lambda: session.take_reference("dark", 20))
    while session.stats().stop_reason is None:
        time.sleep(0.001)
    # The run that was on goes on after it, and this one comes too late.
    with pytest.raises(RefusedError, match="a run is going on"):
        session.start(2)
    taking.join(10)
    assert not taking.is_alive()
    assert session.state.running


def test_who_asks_a_closed_session_is_answered(fake_session: OpenFake) -> None:
    session = fake_session()
    acquisition = session._acquisition
    session.close()
    with pytest.raises(DisconnectedError, match="session is closed"):
        acquisition.call(lambda: None).result(5)


def test_who_asks_while_a_session_is_closed_is_answered(
    fake_session: OpenFake, camera: FakeCamera
) -> None:
    camera.interval_s = 0.2
    session = fake_session()
    session.start()
    acquisition = session._acquisition
    closing = quietly(session.close)
    answers: list[bool] = []
    while closing.is_alive():
        with contextlib.suppress(DisconnectedError):
            acquisition.call(lambda: None).result(5)
        answers.append(True)
    assert answers


def test_a_limited_run_is_as_long_after_a_reference(
    fake_session: OpenFake, camera: FakeCamera
) -> None:
    camera.interval_s = 0.002
    session = fake_session()
    session.start(seconds=1.0)
    session.take_reference("dark", 5)
    assert session.state.running
    assert session.wait(5)
    assert session.stats().stop_reason == "seconds"


def test_a_camera_that_was_lost_while_idle_is_opened_again(
    fake_session: OpenFake, camera: FakeCamera
) -> None:
    session = fake_session()
    start, opened = camera.start, camera.opened

    def dead(frames: int | None = None) -> None:
        if camera.opened == opened:
            raise DisconnectedError("the server is gone; start it and reconnect")
        start(frames)

    camera.start = dead  # type: ignore[method-assign]
    with pytest.raises(DisconnectedError):
        session.start(2)
    session.start(2)
    assert session.wait(10)
    assert session.stats().stop_reason == "frames"
    assert camera.opened == opened + 1
