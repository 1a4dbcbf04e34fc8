"""The beam after the program is gone: real processes, a shutter on a pseudo-terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zarr

from tem_live.drivers.sim_serial import SimulatedUniblitz
from tem_live.profiles import Profile
from tem_live.recovery import recover
from tem_live.session import Session, open_session
from tem_live.supervisor import Report, Supervisor, last_report
from tests.drivers.instruments.cable import Cable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
AMPLE_S = 60.0
PROGRAM = """
import sys, time
from tem_live.session import open_session
session = open_session("sim-uniblitz", [f"column.port={sys.argv[1]}", "restorer.model=none"])
session.start()
print(session._beam._supervisor._process.pid, flush=True)
time.sleep(600)
"""

HANGING_PROGRAM = """
import ctypes, sys, time
import tem_live.supervisor
from tem_live.session import open_session
tem_live.supervisor.SILENCE_S = 1.5
folder = sys.argv[2]
session = open_session("sim-uniblitz", [f"column.port={sys.argv[1]}", "restorer.model=none"])
session.record(folder)
session.start()
while session.stats().recorded < 5:
    time.sleep(0.01)
print("hangs", flush=True)
# Keeps the interpreter's lock.
ctypes.PyDLL(None).sleep(600)
"""

WINDOW = """
import sys
from pathlib import Path
from tem_live.gui.app import run_gui
settings = [f"column.port={sys.argv[1]}", "restorer.model=none"]
# To be recorded from the start: a real shutter does not open by itself otherwise.
run_gui("sim-uniblitz", overrides=settings, out=Path(sys.argv[2]))
"""


class Shutter:
    """A shutter on a cable; `closed` is what its light barrier would say."""

    def __init__(self, folder: Path) -> None:
        self._changed = threading.Condition()
        self.closed = True
        self._instrument = SimulatedUniblitz(self._move)
        self.cable = Cable(self._instrument.receive, folder)

    def _move(self, channel: int, opened: bool) -> None:
        with self._changed:
            self.closed = not opened
            self._changed.notify_all()

    def wait(self, closed: bool) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.closed is closed, AMPLE_S)


@pytest.fixture
def shutter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shutter]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    shutter = Shutter(tmp_path)
    with shutter.cable:
        yield shutter


@pytest.fixture
def program(shutter: Shutter) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program that has let the beam through, and its supervisor's process id."""
    command = [sys.executable, "-c", PROGRAM, shutter.cable.port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            supervisor = int(process.stdout.readline())
            assert shutter.wait(closed=False)
            yield process, supervisor
        finally:
            process.kill()


def session_on(shutter: Shutter) -> Session:
    return open_session(
        "sim-uniblitz", [f"column.port={shutter.cable.port}", "restorer.model=none"]
    )


def eventually(is_so: Callable[[], bool]) -> bool:
    waiting = threading.Event()
    for _ in range(int(AMPLE_S / 0.05)):
        if is_so():
            return True
        waiting.wait(0.05)
    return False


def test_a_killed_program_leaves_the_beam_blanked_and_the_next_one_says_so(
    shutter: Shutter, program: tuple[subprocess.Popen[str], int]
) -> None:
    process, _ = program
    process.kill()
    assert shutter.wait(closed=True)
    found: list[Report] = []
    assert eventually(lambda: (r := last_report()) is not None and not found.append(r))
    assert found[0].error is None
    assert found[0].profile == "sim-uniblitz"
    assert "the beam was blanked for it" in str(found[0])
    assert last_report() is None


def test_a_killed_window_leaves_the_beam_blanked(shutter: Shutter, tmp_path: Path) -> None:
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "XDG_CONFIG_HOME": str(tmp_path)}
    recording = tmp_path / "window.zarr"
    command = [sys.executable, "-c", WINDOW, shutter.cable.port, str(recording)]
    with subprocess.Popen(command, env=environment) as process:
        try:
            assert shutter.wait(closed=False)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert shutter.wait(closed=True)
    found: list[Report] = []
    assert eventually(lambda: (r := last_report()) is not None and not found.append(r))
    assert found[0].error is None


def test_a_shutter_on_a_port_exposes_whatever_the_camera_is(shutter: Shutter) -> None:
    for port, nothing in (("sim", True), (shutter.cable.port, False)):
        settings = [f"column.port={port}", "restorer.model=none"]
        with open_session("sim-uniblitz", settings) as session:
            assert session.exposes_nothing is nothing


def test_a_program_that_hangs_is_ended_and_the_beam_blanked(
    shutter: Shutter, tmp_path: Path
) -> None:
    recording = tmp_path / "hung.zarr"
    command = [sys.executable, "-c", HANGING_PROGRAM, shutter.cable.port, str(recording)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hangs\n"
            assert not shutter.closed
            # The port is the program's: nobody else can send the command.
            assert shutter.wait(closed=True)
            assert process.wait(AMPLE_S) == -signal.SIGKILL
        finally:
            process.kill()
    found: list[Report] = []
    assert eventually(lambda: (r := last_report()) is not None and not found.append(r))
    assert "stood still, and was ended, at" in str(found[0])
    assert found[0].error is None
    recover(recording)
    assert zarr.open_group(recording, mode="r")["raw/0"].shape[0] >= 5


def test_a_program_that_goes_on_after_all_is_told(
    shutter: Shutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session("sim-uniblitz", ["restorer.model=none"]) as session:
        profile = session.profile.model_copy(
            update={
                "column": session.profile.column.model_copy(update={"port": shutter.cable.port})
            }
        )
    monkeypatch.setattr("tem_live.supervisor.SILENCE_S", 0.5)
    monkeypatch.setattr("tem_live.supervisor._BEAT_S", 600.0)
    told = threading.Event()
    shutter.closed = False
    supervisor = Supervisor(profile, told.set)
    try:
        assert supervisor.wait_ready(AMPLE_S)
        assert shutter.wait(closed=True)
        assert told.wait(AMPLE_S)
        report = last_report()
        assert report is not None
        assert "the program stood still at" in str(report)
        # It watches on.
        assert supervisor.alive
    finally:
        supervisor.release()
    assert supervisor._process.returncode == 0
    assert last_report() is None


def test_a_session_that_stood_still_keeps_the_beam_off(shutter: Shutter, tmp_path: Path) -> None:
    folder = tmp_path / "tem_live"
    folder.mkdir()
    with session_on(shutter) as session:
        session.start()
        assert shutter.wait(closed=False)
        (folder / "supervisor.json").write_text(
            '{"at": "2026-05-01T12:00:00", "profile": "p", "error": null, "program": "stood still"}'
        )
        supervisor = session._beam._supervisor
        assert supervisor is not None
        supervisor._on_blanked()
        assert shutter.closed
        assert session.blanked is True
        session.stop()
        assert any("stood still at 2026-05-01" in text for _, text in session.messages)


def test_the_next_session_tells(shutter: Shutter, tmp_path: Path) -> None:
    folder = tmp_path / "tem_live"
    folder.mkdir()
    (folder / "supervisor.json").write_text(
        '{"at": "2026-05-01T12:00:00", "profile": "p", "error": "no answer"}'
    )
    with session_on(shutter) as session:
        [(level, text)] = [m for m in session.messages if "2026-05-01" in m[1]]
    assert level == "error"
    assert "COULD NOT BE BLANKED" in text
    (folder / "supervisor.json").write_text("{ broken")
    assert last_report() is None


def test_it_goes_on_trying_until_the_shutter_is_back(
    shutter: Shutter, program: tuple[subprocess.Popen[str], int]
) -> None:
    process, _ = program
    shutter.cable.unplug()
    process.kill()
    process.wait()
    threading.Event().wait(1.0)
    assert not shutter.closed
    shutter.cable.plug()
    assert shutter.wait(closed=True)


def test_an_interrupt_of_the_terminal_is_not_for_it(
    shutter: Shutter, program: tuple[subprocess.Popen[str], int]
) -> None:
    process, supervisor = program
    os.kill(supervisor, signal.SIGINT)
    process.kill()
    assert shutter.wait(closed=True)


def test_a_session_that_ends_in_order_releases_it(shutter: Shutter) -> None:
    before = set(threading.enumerate())
    session = session_on(shutter)
    supervisor = session._beam._supervisor
    assert supervisor is not None
    assert supervisor.wait_ready(AMPLE_S)
    session.start()
    assert shutter.wait(closed=False)
    session.close()
    assert shutter.wait(closed=True)
    assert not supervisor.alive
    assert supervisor._process.returncode == 0
    assert last_report() is None
    assert set(threading.enumerate()) <= before


def test_a_beam_that_cannot_be_blanked_at_the_end_is_left_to_it(shutter: Shutter) -> None:
    session = session_on(shutter)
    session.start()
    assert shutter.wait(closed=False)
    shutter.cable.unplug()
    closing = threading.Thread(target=session.close)
    closing.start()
    threading.Event().wait(0.5)
    shutter.cable.plug()
    assert shutter.wait(closed=True)
    closing.join(AMPLE_S)
    assert not closing.is_alive()


def test_without_it_the_user_is_told(shutter: Shutter) -> None:
    session = session_on(shutter)
    assert session._beam._supervisor is not None
    session._beam._supervisor._process.kill()
    session._beam._supervisor._process.wait()
    session.start()
    session.close()
    assert any("no second process watches" in text for _, text in session.messages)


def test_simulated_beams_need_none() -> None:
    with open_session("sim-uniblitz", ["restorer.model=none"]) as session:
        assert session._beam._supervisor is None
    with open_session("sim", ["restorer.model=none"]) as session:
        assert session._beam._supervisor is None


def test_a_profile_that_it_cannot_read_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    with open_session("sim", ["restorer.model=none"]) as session:
        profile = session.profile.model_copy(
            update={"column": session.profile.column.model_copy(update={"driver": "gone"})}
        )
    supervisor = Supervisor(profile, lambda: None)
    assert not supervisor.wait_ready(AMPLE_S)
    supervisor.release()
    assert "no such column driver" in capfd.readouterr().err


def test_what_it_sends_does_not_depend_on_the_code_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pipe of a Western European Windows.
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    received = bytearray()

    def receive(data: bytes) -> bytes:
        received.extend(data)
        return b""

    with open_session("sim", ["restorer.model=none"]) as session:
        profile = session.profile
    with Cable(receive, tmp_path) as cable:
        column = {
            "driver": "serial-line",
            "port": cable.port,
            "blank_text": "\xff\x01\xc1",
            "unblank_text": "\xff\x02",
        }
        given = profile.model_dump(mode="json", exclude_none=True) | {"column": column}
        supervisor = Supervisor(Profile.model_validate(given), lambda: None)
        assert supervisor.wait_ready(AMPLE_S)
        supervisor.release(blanked=False)
        assert eventually(lambda: bytes(received).endswith(b"\xff\x01\xc1"))
        report = last_report()
        assert report is not None
        assert report.error is None
