"""A request and reply link over a serial port, for instruments that answer in lines.

The port is anything that pyserial opens: ``COM3``, ``/dev/ttyUSB0``, a URL such as
``socket://192.168.0.7:4001`` (a serial server) or ``rfc2217://…``, or ``sim`` for the instrument
that the driver simulates in this process. All methods may be called from any thread. A link that
lost its port opens it again by itself with the next request, and what came in between is thrown
away. pyserial: https://pyserial.readthedocs.io/en/latest/pyserial_api.html
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import serial
from serial.tools import list_ports

from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

SIMULATED = "sim"
"""Name of the port behind which the driver simulates its instrument."""

_SLICE_S = 0.05
"""How long one wait for bytes lasts: by then a link that was closed meanwhile notices."""
_SENT_WITHIN_S = 2.0
"""By when a request has left, at 300 baud too; who closes the link waits that long at most."""
_LONGEST_REPLY = 4096
_LONGEST_STALE = 1 << 16


class Port(Protocol):
    """What a link needs of a port; ``serial.Serial`` has it."""

    dtr: bool
    rts: bool

    @property
    def in_waiting(self) -> int:
        """Bytes that have come."""

    def read(self, size: int = 1) -> bytes:
        """Up to ``size`` bytes, after a short wait at most."""

    def write(self, data: bytes) -> int | None:
        """Send all of ``data``."""

    def close(self) -> None:
        """Give the port back."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How to talk to an instrument; always 8 data bits, no parity, 1 stop bit.

    Attributes
    ----------
    port : str
        Name or URL of the port; see the module's text.
    baud : int
        Bits per second.
    timeout_s : float
        How long an answer may take, in seconds.
    terminator : bytes
        What ends a request.
    reply_ends : bytes
        Any of these bytes ends a reply; empty lines are skipped, so that CR, LF, CRLF and LFCR
        are all understood.
    xonxoff : bool
        Software flow control.
    dtr, rts : bool
        Levels of the control lines from the moment the port is opened.
    """

    port: str
    baud: int = 9600
    timeout_s: float = 1.0
    terminator: bytes = b"\r"
    reply_ends: bytes = b"\r\n"
    xonxoff: bool = False
    dtr: bool = True
    rts: bool = True


class SerialLink:
    """See the module's text.

    Parameters
    ----------
    settings : LinkSettings
        The port and how to talk.
    greet : callable, optional
        Called whenever the port was opened anew, before any other request: sets the instrument
        up. An error in it closes the port again.
    simulator : callable, optional
        Makes the simulated instrument's end for the port ``sim``.

    Attributes
    ----------
    timeout_s : float
        How long an answer may take from now on, in seconds.
    """

    def __init__(
        self,
        settings: LinkSettings,
        greet: Callable[[], None] | None = None,
        simulator: Callable[[], Port] | None = None,
    ) -> None:
        self._settings = settings
        self._greet = greet
        self._simulator = simulator
        self.timeout_s = settings.timeout_s
        # One conversation at a time, and a conversation may use the methods below.
        self._lock = threading.RLock()
        self._depth = 0
        self._wanted = False
        self._port: Port | None = None
        self._pending = bytearray()

    @property
    def name(self) -> str:
        """The port, as the user knows it."""
        return self._settings.port

    @property
    def is_open(self) -> bool:
        """Whether the link was opened and not closed since; its port may be lost all the same."""
        return self._wanted

    def open(self) -> None:
        """Open the port and greet the instrument; idempotent.

        Raises
        ------
        NotConnectedError
            There is no such port, or it is in use.
        """
        with self._lock:
            if self._port is None:
                self._wanted = True
                try:
                    self._connect()
                except BaseException:
                    self._wanted = False
                    raise

    def close(self) -> None:
        """Close the port; idempotent. Who waits for an answer gets a `DisconnectedError`."""
        self._wanted = False
        with self._lock:
            self._drop()

    @contextlib.contextmanager
    def conversation(self) -> Iterator[None]:
        """Have the instrument to oneself for several requests that belong together.

        Raises
        ------
        NotConnectedError
            The link is closed, or its lost port is not back yet.
        DisconnectedError
            The port was lost meanwhile.
        """
        with self._lock:
            if not self._wanted:
                raise (
                    self._closed_meanwhile()
                    if self._depth
                    else NotConnectedError(f"the port {self.name} is closed; open it first")
                )
            if self._port is None:
                self._connect()
            self._depth += 1
            try:
                yield
            except serial.SerialTimeoutException:
                raise DeviceTimeoutError(
                    f"{self.name} does not take what is sent to it; switch the instrument on and "
                    "check its flow control"
                ) from None
            except _FAILURES as error:
                self._drop()
                raise DisconnectedError(
                    f"{self.name} was unplugged or switched off ({_said(error)}); plug it in "
                    "again, it is then found by itself"
                ) from None
            finally:
                self._depth -= 1

    def query(self, request: bytes) -> bytes:
        """Send a request and return the line that answers it, without its end.

        What came unasked before is thrown away. After an error the reply may still be on its
        way: it is the driver's to get back into step.

        Raises
        ------
        NotConnectedError, DisconnectedError
            As `conversation`; the link was closed while it waited.
        DeviceTimeoutError
            No complete answer came in time.
        DeviceError
            Bytes came without end, as with a wrong baud rate.
        """
        with self.conversation():
            self.send(request)
            return self.read_line(f"no answer to {request.decode('latin-1')!r}")

    def send(self, request: bytes) -> None:
        """Send a request that is not answered. Raises as `query`."""
        self.send_raw(request + self._settings.terminator)

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are. Raises as `query`."""
        with self.conversation():
            port = self._connected()
            self._forget_input(port)
            port.write(data)
            self._await_sent(port)

    def command(self, data: bytes) -> None:
        """Send bytes as they are to an instrument that says nothing.

        What it says all the same, or a bad line, keeps no command from it. Raises as `query`.
        """
        with self.conversation():
            port = self._connected()
            port.write(data)
            self._await_sent(port)
            for _ in range(_LONGEST_STALE // _LONGEST_REPLY):
                if not (waiting := port.in_waiting):
                    break
                port.read(min(waiting, _LONGEST_REPLY))

    def check(self) -> None:
        """Raise a `DisconnectedError` where the port is gone, as far as it shows."""
        with self.conversation():
            _ = self._connected().in_waiting

    def read_line(self, complaint: str = "nothing came") -> bytes:
        """Return the next line without its end, skipping empty ones. Raises as `query`."""
        with self.conversation():
            port = self._connected()
            deadline = time.monotonic() + self.timeout_s
            late = False
            while (line := self._take_line()) is None:
                if not self._wanted:
                    raise self._closed_meanwhile()
                if len(self._pending) > _LONGEST_REPLY:
                    self._pending.clear()
                    raise DeviceError(f"{self.name} sends noise; check its baud rate and cable")
                if late:
                    raise DeviceTimeoutError(
                        f"{self.name}: {complaint} within {self.timeout_s:g} s; check that the "
                        "instrument is on, its cable and its baud rate"
                    )
                # Looked at before reading: what came while this thread slept still counts.
                late = time.monotonic() >= deadline
                self._pending += port.read(max(1, min(port.in_waiting, _LONGEST_REPLY)))
            return line

    def set_line(self, line: Literal["dtr", "rts"], asserted: bool) -> None:
        """Set a control line of the port.

        Raises
        ------
        RefusedError
            The port has no such line.
        NotConnectedError, DisconnectedError
            As `conversation`.
        """
        with self.conversation():
            port = self._connected()
            try:
                setattr(port, line, asserted)
            except _FAILURES as error:
                if getattr(error, "errno", None) in (errno.ENOTTY, errno.EINVAL):
                    raise RefusedError(
                        f"{self.name} has no {line.upper()} line; take a port that has"
                    ) from None
                raise
            # Windows says nothing when the line of a lost port is set; this it refuses.
            _ = port.in_waiting

    # --------------------------------------------------------------------------------- internals

    def _connect(self) -> None:
        self._pending.clear()
        self._port = self._open_port()
        try:
            if self._greet is not None:
                self._greet()
        except BaseException:
            self._drop()
            raise

    def _closed_meanwhile(self) -> DisconnectedError:
        return DisconnectedError(f"the port {self.name} was closed meanwhile; open it again")

    def _connected(self) -> Port:
        if self._port is None:
            raise DisconnectedError(f"{self.name} was lost in the middle of a conversation")
        return self._port

    def _open_port(self) -> Port:
        settings = self._settings
        if settings.port == SIMULATED:
            if self._simulator is None:
                raise NotConnectedError("this driver simulates no instrument; name a real port")
            return self._simulator()
        try:
            port = serial.serial_for_url(
                settings.port,
                do_not_open=True,
                baudrate=settings.baud,
                timeout=_SLICE_S,
                write_timeout=_SENT_WITHIN_S,
                xonxoff=settings.xonxoff,
                exclusive=True,
            )
            # Before opening: a line that starts at the wrong level would flash the beam.
            port.dtr, port.rts = settings.dtr, settings.rts
            port.open()
        except _CANNOT_OPEN as error:
            raise NotConnectedError(_cannot_open(settings.port, error)) from None
        opened: Port = port
        return opened

    def _drop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            with contextlib.suppress(*_FAILURES):
                port.close()

    def _forget_input(self, port: Port) -> None:
        self._pending.clear()
        forgotten = 0
        while (waiting := port.in_waiting) > 0:
            forgotten += len(port.read(min(waiting, _LONGEST_REPLY)))
            if forgotten > _LONGEST_STALE:
                raise DeviceError(f"{self.name} sends without being asked; check its baud rate")

    def _await_sent(self, port: Port) -> None:
        # flush() waits for ever where the other end holds the line; URLs have no true count.
        deadline = time.monotonic() + _SENT_WITHIN_S
        while isinstance(port, serial.Serial) and port.out_waiting > 0:
            if time.monotonic() > deadline:
                raise serial.SerialTimeoutException
            time.sleep(0.0005)

    def _take_line(self) -> bytes | None:
        """The first complete line of what has come, taken from it; None if there is none."""
        ends = self._settings.reply_ends
        text = bytes(self._pending).lstrip(ends)
        at = min((n for n in map(text.find, _each(ends)) if n >= 0), default=-1)
        if at < 0:
            self._pending = bytearray(text)
            return None
        self._pending = bytearray(text[at + 1 :])
        return text[:at]


def _each(ends: bytes) -> Iterator[bytes]:
    return (ends[n : n + 1] for n in range(len(ends)))


def _cannot_open(port: str, error: Exception) -> str:
    said = _said(error)
    if "://" in port:
        return f"cannot open {port}: {said}; check the address and that the server runs"
    code = error.errno if isinstance(error, OSError) else None
    # On Windows pyserial hands the reason on as text alone.
    if code in (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EAGAIN) or "PermissionError" in said:
        return (
            f"{port} is in use or closed to you; end the other program that has it "
            "(on Linux be a member of the group dialout)"
        )
    if code == errno.ENOENT or "FileNotFoundError" in said:
        said = "it is not there"
    return f"cannot open the port {port}: {said}; correct 'port', {ports_here()}"


def ports_here() -> str:
    """The serial ports of this computer in one line, for messages."""
    found = [
        entry.device
        if entry.description in (None, "", "n/a")
        else f"{entry.device} ({entry.description})"
        for entry in sorted(list_ports.comports(), key=lambda entry: str(entry.device))
    ]
    return f"there are: {', '.join(found)}" if found else "this computer has no serial port now"


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _failures() -> tuple[type[Exception], ...]:
    """What pyserial raises when a port fails; its own errors are OSErrors."""
    try:
        import termios
    except ImportError:  # Windows
        return (OSError,)
    return (OSError, termios.error)


_FAILURES = _failures()
_CANNOT_OPEN: tuple[type[Exception], ...] = (*_FAILURES, ValueError)
