"""The program's end of the process that talks to Micro-Manager (`pycromanager_child`).

Every question has a deadline: a process that misses it is killed, since nothing else ends a call of
pycromanager to a server that is gone. So is one that falls silent while frames are to come.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import (
    DeviceError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

_STARTS_WITHIN_S = 60.0
"""For Python to start and to import pycromanager, on a busy computer."""
_FINDS_WITHIN_S = 2.0
"""For pycromanager to give up a server that does not answer, besides the time for an answer."""
_LOADS_WITHIN_S = 120.0
"""For a core in the process to load its configuration."""
_GOES_WITHIN_S = 2.0
_LONGEST_SILENCE_S = 1.0
"""After that, whether there is still a server is looked at."""

_FAILURES = ("refused", "absent", "failed")
"""What an answer has instead of what was asked for."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """What to connect to.

    Attributes
    ----------
    backend : {"java", "python"}
        Micro-Manager's own server, or a core within the process.
    port : int
        Of the server.
    path, config_file : str or None
        Folder of the adapters and configuration, for the core within the process.
    buffer_MB : int
        Circular buffer of the core within the process, in megabytes.
    reply_timeout_s : float
        How long an answer may take, in seconds.
    """

    backend: str
    port: int
    path: str | None
    config_file: str | None
    buffer_MB: int
    reply_timeout_s: float

    @property
    def answers(self) -> bool:
        """Whether anything listens there; always for the core within the process."""
        if self.backend != "java":
            return True
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5):
                return True
        except OSError:
            return False

    @property
    def absent(self) -> str:
        """What to say when nothing does."""
        return (
            f"no Micro-Manager answers on port {self.port}: start it, switch on "
            "Tools > Options > Run server on port, and try again"
        )


class Link:
    """A running process with its core connected.

    Parameters
    ----------
    server : Server
        What to connect to.

    Raises
    ------
    NotConnectedError
        There is no Micro-Manager, or it does not answer in time. No process is left behind.
    """

    def __init__(self, server: Server) -> None:
        if not server.answers:
            raise NotConnectedError(server.absent)
        self._server = server
        self._lock = threading.Lock()
        self._asked: dict[int, queue.SimpleQueue[Message | None]] = {}
        self._number = 0
        self._runs = 0
        self._heard = time.monotonic()
        self._gone = False
        self._why = ""
        self.frames: queue.SimpleQueue[Message] = queue.SimpleQueue()
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NO_WINDOW
        # A group of its own: Ctrl+C on the terminal is for the program, which ends in order.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tem_live.drivers.pycromanager_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            creationflags=flags,
            start_new_session=sys.platform != "win32",
        )
        self._listener = threading.Thread(target=self._listen, name="pycromanager", daemon=True)
        self._listener.start()
        java = server.backend == "java"
        try:
            self.ask("hello", _STARTS_WITHIN_S)
            self.version = self.ask(
                "connect",
                server.reply_timeout_s + (_FINDS_WITHIN_S if java else _LOADS_WITHIN_S),
                backend=server.backend,
                port=server.port,
                path=server.path,
                config_file=server.config_file,
                buffer_MB=server.buffer_MB,
            )["version"]
        except NotConnectedError as error:
            self.kill("")
            text = f"{server.absent} ({error})" if java else str(error)
            raise NotConnectedError(text) from None
        except DeviceError as error:
            self.kill("")
            raise NotConnectedError(str(error)) from None
        except BaseException:
            self.kill("")
            raise

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return not self._gone

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, do: str, timeout_s: float, **fields: Any) -> Message:
        """Have a command carried out and return what it gave; from any thread.

        Raises
        ------
        RefusedError, NotConnectedError, DisconnectedError
            As the process found, or it did not answer in time and was killed.
        """
        inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        with self._lock:
            if self._gone:
                raise DisconnectedError(self._lost())
            self._number += 1
            number = self._number
            self._asked[number] = inbox
        self._send({"id": number, "do": do, **fields})
        try:
            reply = inbox.get(timeout=timeout_s)
        except queue.Empty:
            self.kill(f"Micro-Manager did not answer within {timeout_s:.3g} s")
            raise DisconnectedError(self._lost()) from None
        finally:
            self._asked.pop(number, None)
        if reply is None:
            raise DisconnectedError(self._lost())
        if "refused" in reply:
            raise RefusedError(reply["refused"])
        if "absent" in reply:
            raise NotConnectedError(reply["absent"])
        if "failed" in reply:
            raise DisconnectedError(f"Micro-Manager failed: {reply['failed']}")
        found: Message = reply["is"]
        return found

    def new_run(self) -> int:
        """A number for the next series; what is left of earlier ones is forgotten."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.frames.get_nowait()
        self._runs += 1
        return self._runs

    def next_frame(self, wait_s: float) -> Message | None:
        """The next message about a frame, or None; looks after the process meanwhile.

        Raises
        ------
        DisconnectedError
            The process or the server is gone, or hangs; then the process was killed.
        """
        with contextlib.suppress(queue.Empty):
            return self.frames.get(timeout=wait_s)
        if self._gone:
            raise DisconnectedError(self._lost())
        silent_s = time.monotonic() - self._heard
        if silent_s > _LONGEST_SILENCE_S and not self._server.answers:
            self.kill(f"Micro-Manager's server on port {self._server.port} is gone")
        elif silent_s > self._server.reply_timeout_s:
            self.kill(f"Micro-Manager has not answered for {silent_s:.1f} s")
        if self._gone:
            raise DisconnectedError(self._lost())
        return None

    def free(self, slot: int) -> None:
        """Tell that a slot was read."""
        self._send({"free": slot})

    def close(self, timeout_s: float) -> None:
        """End the process in order within this time, else kill it."""
        if not self._gone:
            with contextlib.suppress(DeviceError):
                self.ask("leave", timeout_s)
        self._end(_GOES_WITHIN_S)

    def kill(self, why: str) -> None:
        """End the process at once; ``why`` is what later questions are told."""
        with self._lock:
            self._why = self._why or why
            self._gone = True
        self._process.kill()
        self._end(_GOES_WITHIN_S)

    # --------------------------------------------------------------------------------- internals

    def _end(self, timeout_s: float) -> None:
        with self._lock:
            self._gone = True
            stdin = self._process.stdin
            assert stdin is not None
            with contextlib.suppress(OSError):
                stdin.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if threading.current_thread() is not self._listener:
            self._listener.join()

    def _lost(self) -> str:
        why = self._why or "the process that talks to Micro-Manager has ended"
        return f"{why}; see that Micro-Manager runs, and connect again"

    def _send(self, message: Message) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        # That the process is gone is noticed by the listener.
        with self._lock, contextlib.suppress(OSError, ValueError):
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                self._heard = time.monotonic()
                try:
                    message = heard(line)
                except ValueError as error:
                    # Torn where the process was killed while it wrote; else nothing can be trusted.
                    with self._lock:
                        self._why = self._why or str(error)
                    break
                if "id" in message:
                    inbox = self._asked.get(message["id"])
                    if inbox is not None:
                        inbox.put(message)
                elif "run" in message:
                    self.frames.put(message)
        with self._lock:
            self._gone = True
            waiting = list(self._asked.values())
        for inbox in waiting:
            inbox.put(None)


def heard(line: str) -> Message:
    """A message of the process, as `pycromanager_child` describes them.

    Raises
    ------
    ValueError
        It is none.
    """
    nonsense = ValueError(
        f"the process that talks to Micro-Manager sent {line[:60]!r}, which is no message"
    )
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise nonsense from None
    if not isinstance(message, dict):
        raise nonsense
    kinds = {name: type(value) for name, value in message.items()}
    is_answer = kinds.get("id") is int and (
        kinds.get("is") is dict or any(kinds.get(name) is str for name in _FAILURES)
    )
    is_frame = kinds.get("slot") is int and kinds.get("tags") is dict and kinds.get("time") is float
    is_end = kinds.get("ended") is str and kinds.get("text") is str
    if is_answer or "beat" in kinds or (kinds.get("run") is int and (is_frame or is_end)):
        return message
    raise nonsense


class Slots:
    """Frames in memory that both processes see; made and removed by this one.

    Parameters
    ----------
    shape : tuple of int
        Of a frame.
    dtype : numpy dtype
        Of its pixels.
    """

    _MOST_BYTES = 1 << 28

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        frame_bytes = shape[0] * shape[1] * dtype.itemsize
        self.count = max(2, min(16, self._MOST_BYTES // frame_bytes))
        self._lock = threading.Lock()
        self._open = True
        # macOS takes 31 characters.
        self._memory = SharedMemory(
            f"tem_live_{secrets.token_hex(6)}", create=True, size=self.count * frame_bytes
        )

    @property
    def name(self) -> str:
        """Under which the other process finds it."""
        return self._memory.name

    def fits(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> bool:
        """Whether it is for such frames."""
        return self._open and (self.shape, self.dtype) == (shape, dtype)

    def read(self, slot: int, buffer: npt.NDArray[Any]) -> None:
        """Copy a frame out.

        Raises
        ------
        DisconnectedError
            The memory was removed meanwhile, or has no such slot.
        """
        if not 0 <= slot < self.count:
            raise DisconnectedError(f"the process that talks to Micro-Manager has no slot {slot}")
        with self._lock:
            if not self._open:
                raise DisconnectedError("the camera was closed")
            at = slot * buffer.nbytes
            np.copyto(buffer, np.ndarray(self.shape, self.dtype, self._memory.buf, at))

    def remove(self) -> None:
        """Give the memory back; idempotent."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._memory.close()
            with contextlib.suppress(FileNotFoundError):
                self._memory.unlink()
