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

from tem_live.drivers.sim_serial import SimulatedUniblitz
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

WINDOW = """
import sys
from tem_live.gui.app import run_gui
run_gui("sim-uniblitz", overrides=[f"column.port={sys.argv[1]}", "restorer.model=none"])
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
    command = [sys.executable, "-c", WINDOW, shutter.cable.port]
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
    supervisor = Supervisor(profile)
    assert not supervisor.wait_ready(AMPLE_S)
    supervisor.release()
    assert "no such column driver" in capfd.readouterr().err
