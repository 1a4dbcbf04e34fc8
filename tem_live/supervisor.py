"""A second process that blanks the beam when the program is gone or stands still.

A program that is killed cannot clean up after itself, and one that hangs does not even notice.
`Supervisor` starts ``python -m tem_live.supervisor`` beside a session, holds one end of a pipe, and
gives a sign of life over it every second.

- When the operating system closes that end, because the session's process has ended however it
  did, the supervisor connects to the column by the same profile and blanks the beam. A session that
  ends in order says so first.
- When no sign has come for `SILENCE_S` and a little, it does the same beside the program. Where
  the column takes no second connection, as a serial port, the program is ended: it is of no use any
  more, and what it recorded so far is on the disk.

It cannot help where the host itself stops, where both processes are killed at once, or where the
column does not answer: a blanker with a fail-safe of its own is better. What it did is told on the
terminal, and by `last_report` to the next session; to this one if it goes on after all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import platformdirs
from pydantic import BaseModel

from tem_live.drivers.protocols import Blanker, Camera, Column
from tem_live.errors import TemLiveError
from tem_live.instrument import make_camera, make_column
from tem_live.profiles import Profile

SILENCE_S = 15.0
"""A program that gives no sign for so long stands still. What it does in Python it does in parts of
milliseconds, and what takes longer lets other threads go on."""

_BEAT_S = 1.0
_READY = "ready"
_BLANKED = "blanked"
_RELEASE = "release"
_ALIVE = "alive"
_END = ""
_GIVE_UP_S = 60.0
# A host that slept wakes the supervisor first, perhaps.
_GRACE_S = 3.0
# How long it is tried beside a program that stands still.
_BESIDE_S = 3.0
_RETRY_S = 0.5
_ENDS_S = 5.0


@dataclass(frozen=True)
class Report:
    """What a supervisor did when its program was gone or stood still.

    Attributes
    ----------
    at : str
        Local time, ISO 8601.
    profile : str
        Name of the instrument's profile.
    error : str or None
        Why the beam could not be blanked; None where it was.
    program : str
        What became of the program, as the end of a sentence.
    """

    at: str
    profile: str
    error: str | None
    program: str = "ended without a word"

    def __str__(self) -> str:
        if self.error is None:
            return f"the program {self.program} at {self.at}; the beam was blanked for it"
        return (
            f"the program {self.program} at {self.at}, and THE BEAM COULD NOT BE BLANKED, "
            f"close the valves: {self.error}"
        )


class Supervisor:
    """The session's end: starts the process, and releases it when all is in order.

    Parameters
    ----------
    profile : Profile
        Whose column is to be blanked.
    on_blanked : callable
        Called, from a thread of its own, where this program stood still, the beam was blanked for
        it, and it goes on nevertheless.

    Raises
    ------
    OSError
        No process can be started.
    """

    def __init__(self, profile: Profile, on_blanked: Callable[[], None]) -> None:
        self._on_blanked = on_blanked
        self._over = threading.Event()
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ready = False
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        # A group of its own: Ctrl+C on the terminal is for the program, which ends in order.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tem_live.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            creationflags=flags,
            start_new_session=sys.platform != "win32",
        )
        self._listener = threading.Thread(
            target=self._listen, name="tem-live supervisor", daemon=True
        )
        self._listener.start()
        watched = _Watched(profile=profile, process=os.getpid(), silence_s=SILENCE_S)
        self._heart = threading.Thread(
            target=self._live, args=(watched,), name="tem-live sign of life", daemon=True
        )
        self._heart.start()

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether it watches; waits for its start at most this long."""
        if not self._ready:
            with contextlib.suppress(queue.Empty):
                self._ready = self._said.get(timeout=timeout_s) == _READY
        return self._ready and self.alive

    def release(self, blanked: bool = True) -> None:
        """End it; idempotent.

        Parameters
        ----------
        blanked : bool
            Whether the beam is known to be off. If not, the process does first what it is for.
        """
        stdin = self._process.stdin
        assert stdin is not None
        self._over.set()
        self._heart.join(_ENDS_S)
        if self._heart.is_alive():
            # It takes nothing any more, and would not take what comes now.
            self._process.kill()
            self._heart.join()
        if not stdin.closed:
            with contextlib.suppress(OSError):
                if blanked:
                    self._say(_RELEASE)
            with contextlib.suppress(OSError):
                stdin.close()
        try:
            self._process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            if blanked:
                self._process.kill()
                self._process.wait()
            else:
                # It goes on without us, as long as it takes.
                self._process.returncode = 0
                return
        self._listener.join()

    def _say(self, line: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def _live(self, watched: _Watched) -> None:
        with contextlib.suppress(OSError):
            self._say(watched.model_dump_json())
            while not self._over.wait(_BEAT_S):
                self._say(_ALIVE)

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                if line.strip() == _BLANKED:
                    self._on_blanked()
                else:
                    self._said.put(line.strip())
        self._said.put("")


def last_report() -> Report | None:
    """What a supervisor of this user had to do since this was last asked; None for nothing."""
    path = _report_path()
    try:
        found = Report(**json.loads(path.read_text(encoding="utf-8")))
        path.unlink()
    except (OSError, ValueError, TypeError):
        return None
    return found


class _Watched(BaseModel):
    """What the program says of itself."""

    profile: Profile
    process: int
    silence_s: float


def main() -> int:
    """The supervisor's process; returns its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # As the program writes it, and not in the code page of this Windows.
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    try:
        watched = _Watched.model_validate_json(sys.stdin.readline())
        camera = make_camera(watched.profile)
        column = make_column(watched.profile, camera)
    except (TemLiveError, ValueError) as error:
        sys.stderr.write(f"tem-live supervisor: it cannot watch: {error}\n")
        return 2
    # Not by isinstance: that would ask a column that is not open whether it is blanked.
    if column is None or not hasattr(column, "set_blanked"):
        return 2
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()
    hearing = threading.Thread(target=_hear, args=(heard,), daemon=True)
    hearing.start()
    _say(_READY)
    status = _watch(watched, heard, camera, column)
    # Python does not end well while a thread waits for its standard input.
    hearing.join(_ENDS_S)
    return status


def _watch(watched: _Watched, heard: queue.SimpleQueue[str], camera: Camera, column: Column) -> int:
    """Until the program has ended, or was; returns the exit status."""
    word: str | None = _ALIVE
    while True:
        # Once it stands still, nothing more is done until there is a sign of it again.
        word = heard.get() if word is None else _next(heard, watched.silence_s)
        if word == _RELEASE:
            return 0
        if word == _END:
            return _report(watched, _blank(camera, column, _GIVE_UP_S))
        if word is None:
            if _blank(camera, column, _BESIDE_S) is not None:
                what = _end(watched.process)
                return _report(watched, _blank(camera, column, _GIVE_UP_S), what)
            _report(watched, None, "stood still")
            _let_go(camera, column)
            _say(_BLANKED)


def _end(process: int) -> str:
    """End the program; returns what became of it, as `Report` has it."""
    try:
        # Windows, which has no SIGKILL, ends a process by any other signal.
        os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    except OSError as error:
        return f"stood still, could not be ended ({error})"
    return "stood still, and was ended,"


def _hear(heard: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        heard.put(line.strip())
    heard.put(_END)


def _next(heard: queue.SimpleQueue[str], silence_s: float) -> str | None:
    """What the program says, `_END` at its end; None where it says nothing for so long."""
    for seconds in (silence_s, _GRACE_S):
        with contextlib.suppress(queue.Empty):
            return heard.get(timeout=seconds)
    return None


def _say(word: str) -> None:
    # Nobody may be there to hear it.
    with contextlib.suppress(OSError):
        sys.stdout.write(word + "\n")
        sys.stdout.flush()


def _report(watched: _Watched, error: str | None, program: str = "ended without a word") -> int:
    """Tell the terminal and the next session; returns the exit status."""
    at = datetime.now().isoformat(timespec="seconds")
    report = Report(at, watched.profile.name, error, program)
    path = _report_path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(report)), encoding="utf-8")
    # The terminal may be gone with the program.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"tem-live supervisor: {report}\n")
    return 0 if error is None else 3


def _blank(camera: Camera, column: Column, give_up_s: float) -> str | None:
    """Blank, again and again until it succeeds; returns what kept it from that, at last."""
    deadline = time.monotonic() + give_up_s
    while True:
        try:
            try:
                column.open()
            except TemLiveError:
                # Some columns live behind the connection of their camera.
                camera.open()
                column.open()
            assert isinstance(column, Blanker)
            column.set_blanked(True)
        except Exception as error:
            text = " ".join(str(error).split())
        else:
            return None
        # A port or a server may need a moment to notice that its client is gone.
        _let_go(camera, column)
        if time.monotonic() > deadline:
            return text
        time.sleep(_RETRY_S)


def _let_go(camera: Camera, column: Column) -> None:
    for device in (column, camera):
        with contextlib.suppress(Exception):
            device.close()


def _report_path() -> Path:
    return Path(platformdirs.user_state_dir("tem_live", appauthor=False)) / "supervisor.json"


if __name__ == "__main__":
    sys.exit(main())
