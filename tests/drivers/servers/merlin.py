"""A small Merlin to break: it takes settings, sends frames in their time, and fails as it is told.

What the driver makes of a sound Merlin is proven against LiberTEM-live's simulator; this one is for
what that cannot do: obey an exposure, refuse, be busy, fall silent, and send nonsense.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

import numpy as np
import numpy.typing as npt

KINDS = {"U08": ">u1", "U16": ">u2", "U32": ">u4"}


def message(body: bytes) -> bytes:
    return b"MPX,%010d,%s" % (len(body) + 1, body)


def frame_header(
    sequence: int,
    shape: tuple[int, int],
    kind: str = "U16",
    chips: int = 1,
    exposure_s: float = 0.01,
    depth: int = 12,
) -> bytes:
    size = 384 if chips == 1 else 768
    words = [
        f"MQ1,{sequence:06d},{size:05d},{chips:02d},{shape[1]:04d},{shape[0]:04d},{kind}",
        "   1x1" if chips == 1 else "  2x2G",
        f"01,2020-05-18 16:51:49.971626,{exposure_s:.6f},0,0,1,1.200000E+2,5.110000E+2",
        "0.000000E+0," * (10 * chips) + f"MQ1A,2020-05-18T16:51:49.971626178Z,10000000ns,{depth},",
    ]
    return ",".join(words).encode().ljust(size, b"\0")


def frame(
    sequence: int, pixels: npt.NDArray[np.integer], kind: str = "U16", exposure_s: float = 0.01
) -> bytes:
    height, width = pixels.shape
    header = frame_header(sequence, (height, width), kind, exposure_s=exposure_s)
    return header + pixels.astype(KINDS[kind]).tobytes()


def raw_frame(sequence: int, pixels: npt.NDArray[np.integer], depth: int, chips: int = 1) -> bytes:
    """A frame as it comes from the chips, pixel by pixel as LiberTEM's ``mib.py`` describes it."""
    height, width = pixels.shape
    if chips == 4:
        upper, lower = pixels[: height // 2], pixels[: height // 2 - 1 : -1, ::-1]
        half = width // 2
        # Side by side from the fourth to the first; turned, the lower right one leads.
        pixels = np.hstack([lower[:, :half], lower[:, half:], upper[:, half:], upper[:, :half]])
    planes = [pixels >> 12, pixels & 0xFFF] if depth == 24 else [pixels]
    sent = b"".join(_raw_row([int(n) for n in row], depth) for plane in planes for row in plane)
    size = pixels.shape[0], pixels.shape[1] * len(planes)
    return frame_header(sequence, size, "R64", chips, depth=depth) + sent


def _raw_row(row: list[int], depth: int) -> bytes:
    if depth == 1:
        words = [row[i : i + 64] for i in range(0, len(row), 64)]
        return b"".join(sum(n << i for i, n in enumerate(w)).to_bytes(8, "big") for w in words)
    size = 1 if depth == 6 else 2
    words = [row[i : i + 8 // size] for i in range(0, len(row), 8 // size)]
    return b"".join(n.to_bytes(size, "big") for word in words for n in reversed(word))


def picture(sequence: int, shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """What frame ``sequence`` (from 0) shows."""
    rows, columns = np.indices(shape)
    return (1000 * sequence + 10 * rows + columns).astype(np.uint16) & 0xFFF


class MerlinServer:
    """A Merlin on two ports, free ones unless given; its attributes say how it fails."""

    def __init__(self, shape: tuple[int, int] = (16, 24), ports: tuple[int, int] = (0, 0)) -> None:
        self.shape = shape
        self.parameters = {
            "SOFTWAREVERSION": "0.67.0.9",
            "IMAGEX": str(shape[1]),
            "IMAGEY": str(shape[0]),
            "COUNTERDEPTH": "12",
            "ACQUISITIONTIME": "10",
            "ACQUISITIONPERIOD": "10",
        }
        self.statuses: dict[str, str] = {}
        """Status of the reply, by command such as ``"SET,GAIN"``."""
        self.coerced: dict[str, str] = {}
        """What parameters read back, whatever was set."""
        self.mute = False
        """Commands are taken and never answered."""
        self.counts_the_comma = True
        """As Merlin does in the length of its replies, and LiberTEM-live's simulator does not."""
        self.runs_by_itself = False
        """It acquires when the data port is connected, and for ever, whatever is commanded."""
        self.before_header = b""
        """Sent ahead of the acquisition header."""
        self.header = message(b"HDR,\nFrames in Acquisition (Number):\t4\nEnd\t")
        """The acquisition header; empty for none."""
        self.send: Callable[[int, bytes], bytes | None] = lambda _, message: message
        """What goes out for a message; None hangs up."""
        self.commands: list[str] = []
        self._data: socket.socket | None = None
        self._lines: list[socket.socket] = []
        self._stopped = threading.Event()
        self._quit = threading.Event()
        self._triggered = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listeners = [socket.create_server(("127.0.0.1", port)) for port in ports]
        self.port, self.data_port = (line.getsockname()[1] for line in self._listeners)

    def __enter__(self) -> MerlinServer:
        self._start(self._serve_control)
        self._start(self._serve_data)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Die: every connection breaks."""
        self._quit.set()
        self._stopped.set()
        self._triggered.set()
        for line in [*self._listeners, *self._lines]:
            _hang_up(line)
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve_control(self) -> None:
        while not self._quit.is_set():
            with contextlib.suppress(OSError):
                line, _ = self._listeners[0].accept()
                self._lines.append(line)
                with line:
                    self._answer(line)

    def _answer(self, line: socket.socket) -> None:
        with line.makefile("rb") as stream:
            while prefix := stream.read(15):
                words = stream.read(int(prefix[4:14]) - 1).decode().split(",")
                self.commands.append(",".join(words))
                if self.mute:
                    continue
                status = self.statuses.get(",".join(words[:2]), "0")
                if status == "0":
                    self._obey(words)
                value = [self.parameters.get(words[1], "")] if words[0] == "GET" else []
                reply = ",".join([words[0], words[1], *value, status])
                length = len(reply) + self.counts_the_comma
                line.sendall(f"MPX,{length:010d},{reply}".encode())

    def _obey(self, words: list[str]) -> None:
        if words[0] == "SET":
            self.parameters[words[1]] = self.coerced.get(words[1], words[2])
        elif self.runs_by_itself:
            return
        elif words[1] == "STARTACQUISITION":
            self._stopped = threading.Event()
            self._triggered.clear()
            stopped = self._stopped
            self._start(lambda: self._acquire(stopped))
        elif words[1] == "SOFTTRIGGER":
            self._triggered.set()
        elif words[1] == "STOPACQUISITION":
            self._stopped.set()
            self._triggered.set()

    def _serve_data(self) -> None:
        while not self._quit.is_set():
            with contextlib.suppress(OSError):
                line, _ = self._listeners[1].accept()
                self._lines.append(line)
                self._data = line
                self._start(lambda line=line: _close_with(line))
                if self.runs_by_itself:
                    self.parameters.update(TRIGGERSTART="0", NUMFRAMESTOACQUIRE="1000000")
                    self._start(lambda: self._acquire(self._quit))

    def _acquire(self, stopped: threading.Event) -> None:
        with contextlib.suppress(OSError):
            line = self._connection()
            line.sendall(self.before_header + self.header)
            if self.parameters["TRIGGERSTART"] != "0":
                self._triggered.wait()
            exposure_s, period_s = (
                float(self.parameters[name]) / 1e3
                for name in ("ACQUISITIONTIME", "ACQUISITIONPERIOD")
            )
            kind = "U32" if self.parameters["COUNTERDEPTH"] == "24" else "U16"
            began = time.monotonic()
            for index in range(int(self.parameters["NUMFRAMESTOACQUIRE"])):
                due = began + (index + 1) * period_s
                if stopped.wait(max(0.0, due - time.monotonic())):
                    return
                body = frame(index + 1, picture(index, self.shape), kind, exposure_s)
                out = self.send(index, message(body))
                if out is None:
                    _hang_up(line)
                    return
                line.sendall(out)

    def _connection(self) -> socket.socket:
        # The client has connected, but this end may not have been told yet.
        while not self._quit.wait(0.01):
            if self._data is not None and self._data.fileno() >= 0:
                return self._data
        raise OSError("the server has ended")


def _close_with(line: socket.socket) -> None:
    """Close as soon as the client does."""
    with contextlib.suppress(OSError):
        line.recv(1)
    _hang_up(line)


def _hang_up(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()
