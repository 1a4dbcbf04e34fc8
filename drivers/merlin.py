"""Quantum Detectors Merlin (Medipix3): commands on TCP port 6341, frames on TCP port 6342.

Merlin numbers the frames of an acquisition, so none is missed unnoticed, and sends a header ahead
of each acquisition, so what is left of an earlier one never reaches this one. What the messages
look like is in `merlin_wire`, with its sources; Merlin counts times in milliseconds. The detector
counts electrons; it has no binning and no read-out region here.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers import merlin_wire as wire
from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.families import Family, listens
from tem_live.drivers.hosts import Host
from tem_live.drivers.merlin_raw import DTYPES
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    EndOfFrames,
    FrameMeta,
)
from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

_SLICE_S = 0.1
"""Longest single wait on a socket, so that a stop or a close is noticed."""
_QUIET_S = 0.03
"""Nothing for so long, and the line is empty."""
_STOPS_WITHIN_S = 0.3
"""Data that still come after this are no remainder: Merlin was told to stop and answered."""
_HEADER_WITHIN_S = 1.0
"""By when the header of an acquisition is there, where there is anything."""
_GOODBYE_S = 0.5
"""Longest wait until Merlin has closed its end of the data port, too."""
_WITHOUT_END = 1_000_000_000
"""Frames of a free run. Merlin takes 42 949 672 950 (instamatic camera_merlin.py)."""
_PIECE_BYTES = 1 << 20
_TRIGGER_START = {"internal": "0", "external": "1", "soft": "5"}
"""TRIGGERSTART: at once, rising edge, SOFTTRIGGER (ADMerlin, instamatic camera_merlin.py)."""

FAMILY = Family(
    "merlin",
    reach=lambda fields: listens(fields, port=6341),
    start="start Merlin's software and set camera.host in a profile 'merlin' of your own; without "
    "one: libertem-live-mib-sim FILE.hdr --host 127.0.0.1",
    tested_against="LiberTEM-live 0.3.0's simulator; no camera hardware",
)


class MerlinOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for a Merlin.

    Attributes
    ----------
    host : str
        Where the Merlin software runs.
    port, data_port : int
        Its command and its data port.
    trigger : {"internal", "soft", "external"}
        What starts the frames: the start of the series itself, a SOFTTRIGGER that is sent as soon
        as Merlin is armed, or a rising edge at its trigger input, one for each frame.
    counter_depth : {1, 6, 12, 24} or None
        Bits of a pixel's counter to set; None leaves them.
    reply_timeout_s : float
        How long Merlin may take to answer, and a frame may be overdue, in seconds.
    properties : dict
        Merlin parameters to set when it is opened, by Merlin's names, such as CONTINUOUSRW.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Host = "127.0.0.1"
    port: int = Field(default=6341, ge=1, le=65535)
    data_port: int = Field(default=6342, ge=1, le=65535)
    trigger: Literal["internal", "soft", "external"] = "internal"
    counter_depth: Literal[1, 6, 12, 24] | None = None
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)
    properties: dict[str, str | int | float] = Field(default_factory=dict)


class MerlinCamera:
    """See the module's text.

    Parameters
    ----------
    options : MerlinOptions
        Which Merlin.
    """

    Options: ClassVar[type[BaseModel]] = MerlinOptions

    def __init__(self, options: MerlinOptions) -> None:
        self._options = options
        self._control: socket.socket | None = None
        self._data: socket.socket | None = None
        self._data_is_fresh = False
        self._messages = wire.Messages()
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._name = ""
        self._shape = (0, 0)
        self._depth = 12
        self._exposure_s = 0.0
        self._interval_s = 0.0
        self._end: int | None = None
        self._taken = 0
        self._next = 0
        self._heard = 0.0
        self._running = False
        self._halt = threading.Event()
        # One question at a time, and no socket is closed while someone waits on it.
        self._control_lock = threading.Lock()
        self._data_lock = threading.Lock()

    # ------------------------------------------------------------------------------- as a camera

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera`."""
        self._connected()
        return CameraCapabilities(
            name=self._name,
            sensor_shape=self._shape,
            dtype=DTYPES[self._depth],
            # Merlin tells no limits; what it does not take it refuses.
            exposure_range_s=(1e-6, 3600.0),
        )

    def open(self) -> None:
        """See `Camera`."""
        if self._control is not None:
            return
        options = self._options
        self._halt.clear()
        self._control = self._connect(options.port)
        try:
            version = self._told("SOFTWAREVERSION")
            self._name = f"Merlin {version}".strip()
            self._data = self._connect(options.data_port)
            self._data_is_fresh = True
            for name, value in options.properties.items():
                self._set(name, value)
            if options.counter_depth is not None:
                self._set("COUNTERDEPTH", options.counter_depth)
            self._read_sensor()
        except DisconnectedError as error:
            self.close()
            raise NotConnectedError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Camera`."""
        self.stop()
        control, self._control = self._control, None
        if control is not None:
            _hang_up(control)
        # A Merlin that still serves this client would leave the next one waiting.
        self._close_data(_GOODBYE_S)

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        self._connected()
        roi = check_settings(settings, self.capabilities)
        before = self._get("ACQUISITIONTIME"), self._get("ACQUISITIONPERIOD")
        try:
            # Frame on frame; Merlin makes the period as long as its read-out needs.
            self._set("ACQUISITIONTIME", _milliseconds(settings.exposure_s))
            self._set("ACQUISITIONPERIOD", _milliseconds(settings.exposure_s))
        except RefusedError:
            for name, value in zip(("ACQUISITIONTIME", "ACQUISITIONPERIOD"), before, strict=True):
                with contextlib.suppress(RefusedError):
                    self._set(name, value)
            raise
        self._read_sensor()
        self._exposure_s = self._number("ACQUISITIONTIME") / 1e3
        self._interval_s = max(self._exposure_s, self._number("ACQUISITIONPERIOD") / 1e3)
        return CameraState(
            exposure_s=self._exposure_s,
            binning=1,
            roi=roi,
            frame_shape=self._shape,
            dtype=DTYPES[self._depth],
            frame_interval_s=self._interval_s,
            saturation_counts=float(2**self._depth - 1),
        )

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        self._connected()
        self._halt.clear()
        self._end = frames
        self._taken = self._next = 0
        trigger = self._options.trigger
        count = _WITHOUT_END if frames is None else frames
        self._set("NUMFRAMESTOACQUIRE", count)
        self._set("TRIGGERSTART", _TRIGGER_START[trigger])
        # The exposure ends by its time, whatever another program had set.
        self._set("TRIGGERSTOP", 0)
        if trigger != "internal":
            self._set("NUMFRAMESPERTRIGGER", 1 if trigger == "external" else count)
        if not self._data_is_fresh and not self._is_quiet():
            # It has not obeyed the last stop.
            self._reconnect_data()
        self._data_is_fresh = False
        self._messages = wire.Messages()
        self._running = True
        try:
            self._ask("CMD", "STARTACQUISITION")
            # Merlin says so when it is armed: an earlier trigger would be lost.
            self._await_acquisition()
            if trigger == "soft":
                self._ask("CMD", "SOFTTRIGGER")
        except BaseException:
            self.stop()
            if self._control is None:
                self._close_data()
            raise
        self._heard = time.monotonic()

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        if self._running and self._control is not None:
            self._running = False
            with contextlib.suppress(DeviceError):
                self._ask("CMD", "STOPACQUISITION")

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        self._connected()
        if not self._running:
            raise DisconnectedError("the Merlin is stopped; start it first")
        dtype = DTYPES[self._depth]
        check_buffer(buffer, self._shape, dtype)
        # What the detector counted and was lost on the way belongs to the series, too.
        if self._end is not None and self._next >= self._end:
            raise EndOfFrames
        body = self._await_frame(timeout_s)
        header = wire.frame_header(body)
        if header.shape != self._shape or header.dtype.newbyteorder("=") != dtype:
            raise DisconnectedError(
                f"Merlin sends {header.dtype.name} {header.shape[0]}x{header.shape[1]} where "
                f"{dtype} {self._shape[0]}x{self._shape[1]} was set; was it changed by another "
                "program?"
            )
        # Merlin counts from 1.
        sequence = header.sequence - 1
        if sequence < self._next:
            raise DisconnectedError(
                f"Merlin sent frame {sequence} after frame {self._next - 1}; does another program "
                "use it, or its second counter?"
            )
        np.copyto(buffer, wire.pixels(header, body))
        self._next = sequence + 1
        self._taken += 1
        return FrameMeta(
            sequence=sequence,
            host_time_s=time.time(),
            exposure_s=header.exposure_s,
            device_time_s=header.time_s,
            raw=header.raw,
        )

    # ------------------------------------------------------------------------------ the data port

    def _is_quiet(self) -> bool:
        """Throw away what is left in the line; False if it goes on coming or the line is broken."""
        deadline = time.monotonic() + _STOPS_WITHIN_S
        self._messages = wire.Messages()
        try:
            while time.monotonic() < deadline:
                if not self._receive(_QUIET_S):
                    return True
                self._messages.next()
        except DisconnectedError:
            return False
        return False

    def _await_acquisition(self) -> None:
        began = time.monotonic()
        may_reconnect = True
        # The first message that is found is an acquisition header.
        while self._messages.next() is None:
            received = self._receive(_SLICE_S)
            waited_s = time.monotonic() - began
            if received and may_reconnect and waited_s > _HEADER_WITHIN_S:
                # Frames of an earlier acquisition, which has not ended.
                may_reconnect = False
                self._reconnect_data()
            elif waited_s >= self._options.reply_timeout_s:
                raise NotConnectedError(
                    f"Merlin is armed and sends no header on port {self._options.data_port}; "
                    "is another program connected to it? Close that one"
                )

    def _await_frame(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while True:
            if self._halt.is_set():
                raise DisconnectedError("the Merlin was stopped")
            body = self._messages.next()
            if body is not None:
                if wire.is_frame(body):
                    return body
                raise DisconnectedError(
                    f"Merlin began another acquisition after {self._taken} frames; "
                    "was it started by another program?"
                )
            received = self._receive(max(0.0, deadline - time.monotonic()))
            if not received:
                self._check_silence()
            # What is there already is taken even without time to wait.
            if time.monotonic() >= deadline + (_SLICE_S if received else 0.0):
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")

    def _check_silence(self) -> None:
        silent_s = time.monotonic() - self._heard
        limit_s = self._options.reply_timeout_s
        if not self._messages.in_a_message:
            if self._options.trigger == "external":
                return
            limit_s += self._interval_s
        if silent_s > limit_s:
            what = "stopped amid a frame" if self._messages.in_a_message else "sends no frames"
            raise DisconnectedError(
                f"Merlin at {self._options.host}:{self._options.data_port} {what} for "
                f"{silent_s:.1f} s; start it and reconnect"
            )

    def _receive(self, wait_s: float) -> bool:
        """Take what the data port has; whether there was anything."""
        with self._data_lock:
            if self._data is None:
                raise DisconnectedError("the Merlin was closed")
            self._data.settimeout(min(wait_s, _SLICE_S))
            try:
                count = self._data.recv_into(self._piece)
            except (TimeoutError, BlockingIOError):
                return False
            except OSError as error:
                raise self._gone(self._options.data_port, error) from None
        if count == 0:
            if self._halt.is_set():
                raise DisconnectedError("the Merlin was stopped")
            raise self._gone(self._options.data_port, "it closed the connection")
        self._messages.feed(self._piece[:count])
        self._heard = time.monotonic()
        return True

    def _reconnect_data(self) -> None:
        self._close_data()
        self._data = self._connect(self._options.data_port)
        self._messages = wire.Messages()

    def _close_data(self, wait_s: float = 0.0) -> None:
        with self._data_lock:
            data, self._data = self._data, None
            if data is None:
                return
            with contextlib.suppress(OSError):
                data.shutdown(socket.SHUT_WR)
                began = time.monotonic()
                while (passed_s := time.monotonic() - began) < wait_s:
                    data.settimeout(wait_s - passed_s)
                    # One that is still sending notices when nobody takes it.
                    if not data.recv_into(self._piece) or passed_s > _SLICE_S:
                        break
            _hang_up(data)

    # --------------------------------------------------------------------------- the command port

    def _connected(self) -> None:
        if self._control is None:
            raise NotConnectedError("the Merlin is closed; open it first")

    def _connect(self, port: int) -> socket.socket:
        options = self._options
        try:
            return socket.create_connection((options.host, port), options.reply_timeout_s)
        except OSError as error:
            raise NotConnectedError(
                f"no Merlin answers at {options.host}:{port} ({_said(error)}); start its software, "
                "close other programs on it, or set camera.host, camera.port and camera.data_port"
            ) from None

    def _ask(self, kind: Literal["GET", "SET", "CMD"], name: str, value: str = "") -> str:
        """Send a command; its value for GET. Raises `RefusedError` or `DisconnectedError`."""
        options = self._options
        words = (kind, name, value) if kind == "SET" else (kind, name)
        with self._control_lock:
            control = self._control
            if control is None:
                raise DisconnectedError("the Merlin was closed")
            deadline = time.monotonic() + options.reply_timeout_s
            try:
                control.settimeout(options.reply_timeout_s)
                control.sendall(wire.message(*words))
                prefix = _exactly(control, wire.PREFIX_BYTES, deadline)
                body = _exactly(control, wire.body_bytes(prefix), deadline)
                if not wire.reply_is_whole(body):
                    body += _exactly(control, 1, deadline)
            except OSError as error:
                # A late answer would be taken for that to the next question.
                _hang_up(control)
                raise self._gone(options.port, error) from None
            value_read, status = wire.reply(body, kind, name)
        if status != "0":
            why = wire.STATUS.get(status, f"status {status}")
            raise RefusedError(
                f"Merlin refuses {','.join(words)}: {why}; is another program using it?"
                if status in ("1", "4")
                else f"Merlin refuses {','.join(words)}: {why}"
            )
        return value_read

    def _get(self, name: str) -> str:
        return self._ask("GET", name)

    def _set(self, name: str, value: str | float) -> None:
        self._ask("SET", name, str(value))

    def _number(self, name: str) -> float:
        value = self._get(name)
        try:
            return float(value)
        except ValueError:
            raise RefusedError(f"Merlin answers {value!r} for {name}, not a number") from None

    def _told(self, name: str) -> str:
        """What Merlin says of itself; "" where it does not know."""
        try:
            value = self._get(name)
        except RefusedError:
            return ""
        return "" if value == "undef" else value

    def _read_sensor(self) -> None:
        # LiberTEM-live (detectors/merlin/connection.py) asks for the size in this way.
        self._shape = int(self._number("IMAGEY")), int(self._number("IMAGEX"))
        self._depth = int(self._number("COUNTERDEPTH"))
        if min(self._shape) < 1 or self._depth not in DTYPES:
            raise RefusedError(
                f"Merlin has {self._shape[0]}x{self._shape[1]} pixels of {self._depth} bits; "
                "set camera.counter_depth to 1, 6, 12 or 24"
            )

    def _gone(self, port: int, why: BaseException | str) -> DisconnectedError:
        return DisconnectedError(
            f"Merlin at {self._options.host}:{port} is gone ({_said(why)}); "
            "start it, close other programs on it, and reconnect"
        )


def _exactly(line: socket.socket, count: int, deadline: float) -> bytes:
    """So many bytes; raises `OSError` when they do not come in time."""
    received = bytearray()
    while len(received) < count:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it does not answer")
        line.settimeout(left_s)
        piece = line.recv(count - len(received))
        if not piece:
            raise ConnectionError("it closed the connection")
        received += piece
    return bytes(received)


def _hang_up(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.9g}"


def _said(why: BaseException | str) -> str:
    if isinstance(why, TimeoutError):
        return "it does not answer"
    return " ".join(str(why).split()) or type(why).__name__
