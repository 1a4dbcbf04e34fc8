"""Starts the detector simulators of LiberTEM-live, which others wrote.

They are programs of an environment of their own: ``pip install libertem-live==0.3.0 flask`` there,
and name its folder of programs in ``LIBERTEM_LIVE_BIN``, or have it on the PATH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

START_S = 60.0


def program(name: str) -> str:
    """Path of a simulator; the test is skipped where there is none."""
    found = shutil.which(name, path=os.environ.get("LIBERTEM_LIVE_BIN")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; LIBERTEM_LIVE_BIN names its folder")
    return found


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as line:
        line.settimeout(0.5)
        return line.connect_ex(("127.0.0.1", port)) == 0


class Peer:
    """A running simulator, each a process of its own.

    Parameters
    ----------
    command : list of str
        Program and arguments.
    ready : tuple of str
        It is ready when it has printed all of these.
    log : Path
        Takes what it prints.
    """

    def __init__(self, command: list[str], ready: tuple[str, ...], log: Path) -> None:
        with log.open("wb") as file:
            # In a group of its own: the DECTRIS simulator is more than one process.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        # Not told by connecting: these simulators serve one client at a time.
        while not all(word in log.read_text() for word in ready):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                pytest.fail(f"{command[0]} did not start: {log.read_text()[-300:]}")
            time.sleep(0.05)

    def end(self) -> None:
        """Kill it with all its processes."""
        if self.process.returncode is None:
            if sys.platform == "win32":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
