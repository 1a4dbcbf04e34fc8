"""DECTRIS detectors: set up over SIMPLON (REST, HTTP), images over ZeroMQ.

The detector numbers the images of a series and the series themselves, so none is missed unnoticed
and what is left of an earlier series never reaches this one. What the stream's messages look like
is in `dectris_wire`, SIMPLON in `dectris_simplon`. The images are never binned here, and always of
the whole sensor as the detector's own ``roi_mode`` defines it.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers import dectris_wire as wire
from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.dectris_simplon import Simplon, answers
from tem_live.drivers.families import Family
from tem_live.drivers.hosts import Host
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
"""Longest single wait for a message, so that a stop or a close is noticed."""
_IDLE_WITHIN_S = 1.0
"""How long the detector may take to come to rest after a series."""
_STREAM_PORTS = {"legacy": 9999, "cbor": 31001}
"""SIMPLON API manual; https://github.com/dectris/documentation, stream_v2/README.md."""
_MOST_IMAGES = 2_000_000_000
"""Images of a free run where ``nimages`` and ``ntrigger`` tell no limit (EIGER2)."""
_DTYPES: dict[int, np.dtype[Any]] = {
    8: np.dtype(np.uint8),
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
}


FAMILY = Family(
    "dectris",
    packages=("zmq", "imagecodecs", "cbor2"),
    install='pip install "tem-live[dectris]"',
    # LiberTEM-live's simulator answers on port 8910.
    reach=lambda fields: answers(fields) or answers({"port": 8910}),
    start="switch the detector on and set camera.host in a profile 'dectris' of your own; without "
    "one: libertem-live-dectris-sim RECORDING --port 8910",
    tested_against="LiberTEM-live 0.3.0's simulator (legacy stream); no camera hardware",
)


class DectrisOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for DECTRIS.

    Attributes
    ----------
    host : str
        The detector control unit.
    port : int
        Of SIMPLON's REST interface.
    stream_port : int or None
        Of its stream; None for 9999 (legacy) or 31001 (cbor).
    stream : {"legacy", "cbor"}
        Format of the stream.
    trigger_mode : {"ints", "exts", "exte"}
        What starts the images: the program, a signal for the series, or a signal for each image.
    keep_settings : bool
        Leave the detector as another program has set it up: nothing is set, series are armed and
        read.
    reply_timeout_s : float
        How long the detector may take to answer, and an image may be overdue, in seconds.
    arm_timeout_s : float
        How long it may take to arm, in seconds.
    properties : dict
        Detector parameters to set when it is opened, by SIMPLON's names, such as compression.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Host = "127.0.0.1"
    port: int = Field(default=80, ge=1, le=65535)
    stream_port: int | None = Field(default=None, ge=1, le=65535)
    stream: Literal["legacy", "cbor"] = "legacy"
    trigger_mode: Literal["ints", "exts", "exte"] = "ints"
    keep_settings: bool = False
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)
    arm_timeout_s: float = Field(default=30.0, gt=0, le=600)
    properties: dict[str, bool | int | float | str] = Field(default_factory=dict)


class DectrisCamera:
    """See the module's text.

    Parameters
    ----------
    options : DectrisOptions
        Which detector.
    """

    Options: ClassVar[type[BaseModel]] = DectrisOptions

    def __init__(self, options: DectrisOptions) -> None:
        self._options = options
        self._simplon = Simplon(options.host, options.port, options.reply_timeout_s)
        self._zmq: Any = None
        self._context: Any = None
        self._stream: Any = None
        self._monitor: Any = None
        self._trigger: http.client.HTTPConnection | None = None
        self._name = ""
        self._shape = (0, 0)
        self._dtype: np.dtype[Any] = np.dtype(np.uint16)
        self._range_s = (0.0, 0.0)
        self._exposure_s = 0.0
        self._interval_s = 0.0
        self._trigger_mode = "ints"
        self._series = 0
        self._end: int | None = None
        self._taken = 0
        self._next = 0
        self._heard = 0.0
        self._running = False
        self._halt = threading.Event()
        # ZeroMQ's sockets are for one thread at a time.
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------- as a camera

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera`."""
        self._connected()
        return CameraCapabilities(
            name=self._name,
            sensor_shape=self._shape,
            dtype=self._dtype,
            exposure_range_s=self._range_s,
            has_exposure=not self._options.keep_settings,
        )

    def open(self) -> None:
        """See `Camera`."""
        if self._simplon.version:
            return
        try:
            import zmq
        except ImportError:
            raise NotConnectedError(
                'DECTRIS needs pyzmq: pip install "tem-live[dectris]"'
            ) from None
        self._zmq = zmq
        self._halt.clear()
        try:
            self._simplon.connect()
            self._check_initialised()
            self._name = f"DECTRIS {self._simplon.told('description')}".strip()
            if not self._options.keep_settings:
                for name, value in self._options.properties.items():
                    self._simplon.set(name, value)
                self._set_stream()
            self._read_sensor()
            self._connect_stream()
        except DisconnectedError as error:
            self.close()
            raise NotConnectedError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Camera`."""
        self.stop()
        self._simplon.version = ""
        with self._lock:
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.disable_monitor()
                self._monitor.close(linger=0)
                stream.close(linger=0)
                self._context.term()

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        self._connected()
        roi = check_settings(settings, self.capabilities)
        if not self._options.keep_settings:
            self._set_times(settings.exposure_s)
        self._read_sensor()
        self._exposure_s = self._simplon.number("count_time")
        self._interval_s = max(self._exposure_s, self._simplon.number("frame_time"))
        return CameraState(
            exposure_s=self._exposure_s,
            binning=1,
            roi=(*roi[:2], *self._shape),
            frame_shape=self._shape,
            dtype=self._dtype,
            frame_interval_s=self._interval_s,
            saturation_counts=self._saturation(),
            masked_counts=float(np.iinfo(self._dtype).max),
        )

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        self._connected()
        self._halt.clear()
        self._end = frames
        self._taken = self._next = 0
        self._await_rest()
        self._set_length(frames)
        self._forget_disconnections()
        self._running = True
        try:
            armed = self._simplon.request(
                "PUT", "detector", "command/arm", self._options.arm_timeout_s
            )
            self._series = int(armed["sequence id"])
            self._await_series()
            if self._trigger_mode == "ints":
                # The answer comes when the last image is taken: nobody waits for it.
                self._trigger = self._simplon.begin("command/trigger")
        except (KeyError, TypeError, ValueError):
            self.stop()
            raise RefusedError("the DECTRIS detector names no series when armed") from None
        except BaseException:
            self.stop()
            raise
        self._heard = time.monotonic()

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        trigger, self._trigger = self._trigger, None
        if trigger is not None:
            trigger.close()
        if self._running and self._simplon.version:
            self._running = False
            # At once: "cancel" would wait for the image at hand.
            ended = self._end is not None and self._next >= self._end
            command = "disarm" if ended else "abort"
            with contextlib.suppress(DeviceError):
                self._simplon.request("PUT", "detector", f"command/{command}")

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        self._connected()
        if not self._running:
            raise DisconnectedError("the DECTRIS detector is stopped; start it first")
        check_buffer(buffer, self._shape, self._dtype)
        # What the detector counted and was lost on the way belongs to the series, too.
        if self._end is not None and self._next >= self._end:
            raise EndOfFrames
        image = self._await_image(timeout_s)
        if image.shape != self._shape or image.dtype.newbyteorder("=") != self._dtype:
            raise DisconnectedError(
                f"the DECTRIS detector sends {image.dtype.name} {image.shape[0]}x{image.shape[1]} "
                f"where {self._dtype} {self._shape[0]}x{self._shape[1]} was set; was it changed "
                "by another program?"
            )
        if image.number < self._next:
            raise DisconnectedError(
                f"the DECTRIS detector sent image {image.number} after image {self._next - 1}; "
                "reconnect to it"
            )
        np.copyto(buffer, wire.pixels(image))
        self._next = image.number + 1
        self._taken += 1
        return FrameMeta(
            sequence=image.number,
            host_time_s=time.time(),
            exposure_s=image.exposure_s or self._exposure_s,
            device_time_s=image.time_s,
            raw={"series": image.series, **image.raw},
        )

    # --------------------------------------------------------------------------------- the stream

    def _connect_stream(self) -> None:
        zmq = self._zmq
        self._context = zmq.Context()
        self._stream = self._context.socket(zmq.PULL)
        self._monitor = self._stream.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._stream.connect(f"tcp://{self._stream_address()}")

    def _forget_disconnections(self) -> None:
        with self._lock:
            while self._monitor is not None and self._monitor.poll(0):
                self._monitor.recv_multipart()

    def _await_series(self) -> None:
        """Throw away what is left of earlier series, up to the start of this one."""
        began = heard = time.monotonic()
        while True:
            parts = self._receive(_SLICE_S)
            now = time.monotonic()
            if parts is not None:
                heard = now
                message = None
                with contextlib.suppress(DisconnectedError):
                    message = self._message(parts)
                if isinstance(message, wire.Start) and message.series == self._series:
                    return
            late = now - heard > self._options.reply_timeout_s
            if late or now - began > self._options.arm_timeout_s:
                raise NotConnectedError(
                    f"the DECTRIS detector is armed and {self._stream_address()} sends no series; "
                    "is another program connected to it, or camera.stream_port wrong?"
                )

    def _await_image(self, timeout_s: float) -> wire.Image:
        deadline = time.monotonic() + timeout_s
        while True:
            parts = self._receive(max(0.0, deadline - time.monotonic()))
            message = None if parts is None else self._message(parts)
            if isinstance(message, wire.Image) and message.series == self._series:
                return message
            if isinstance(message, wire.Start | wire.End):
                other = isinstance(message, wire.Start)
                raise DisconnectedError(
                    f"the DECTRIS detector {'began another' if other else 'ended the'} series "
                    f"after {self._taken} images; was it {'armed' if other else 'stopped'} by "
                    "another program?"
                )
            if parts is None:
                self._check_silence()
            if time.monotonic() >= deadline:
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")

    def _message(self, parts: list[bytes]) -> wire.Start | wire.Image | wire.End | None:
        return wire.cbor(parts[0]) if self._options.stream == "cbor" else wire.legacy(parts)

    def _receive(self, wait_s: float) -> list[bytes] | None:
        """The parts of the next message, or None."""
        if self._halt.is_set():
            raise DisconnectedError("the DECTRIS detector was stopped")
        with self._lock:
            if self._stream is None:
                raise DisconnectedError("the DECTRIS detector was closed")
            if not self._stream.poll(int(1e3 * min(wait_s, _SLICE_S))):
                if self._monitor.poll(0):
                    raise DisconnectedError(
                        f"the DECTRIS stream at {self._stream_address()} is gone; start the "
                        "detector and reconnect"
                    )
                return None
            parts: list[bytes] = self._stream.recv_multipart()
        self._heard = time.monotonic()
        return parts

    def _check_silence(self) -> None:
        # Nobody knows when the next signal comes. A detector that is killed is noticed anyway.
        waits = self._trigger_mode == "exte" or (self._trigger_mode == "exts" and not self._taken)
        silent_s = time.monotonic() - self._heard
        if not waits and silent_s > self._interval_s + self._options.reply_timeout_s:
            raise DisconnectedError(
                f"the DECTRIS detector at {self._stream_address()} sends no images for "
                f"{silent_s:.1f} s; start it and reconnect"
            )

    # ------------------------------------------------------------------------------- the detector

    def _connected(self) -> None:
        if not self._simplon.version:
            raise NotConnectedError("the DECTRIS detector is closed; open it first")

    def _check_initialised(self) -> None:
        state = self._simplon.state()
        if state in ("na", "error"):
            raise NotConnectedError(
                f"the DECTRIS detector is in the state '{state}'; initialise it in its web "
                "interface"
            )

    def _await_rest(self) -> None:
        deadline = time.monotonic() + _IDLE_WITHIN_S
        while (state := self._simplon.state()) not in ("idle", ""):
            if time.monotonic() >= deadline:
                raise RefusedError(
                    f"the DECTRIS detector is in use (state '{state}'); end the series of the "
                    "other program, or abort it in the web interface"
                )
            self._halt.wait(_SLICE_S)

    def _set_stream(self) -> None:
        self._simplon.request("PUT", "stream", "config/mode", value="enabled")
        self._simplon.request("PUT", "stream", "config/header_detail", value="basic")
        # Detectors before 2022 know only the legacy format, and no parameter for it.
        try:
            self._simplon.request("PUT", "stream", "config/format", value=self._options.stream)
        except RefusedError:
            if self._options.stream != "legacy":
                raise

    def _read_sensor(self) -> None:
        self._shape = (
            int(self._simplon.number("y_pixels_in_detector")),
            int(self._simplon.number("x_pixels_in_detector")),
        )
        bits = int(self._simplon.number("bit_depth_image"))
        if bits not in _DTYPES:
            raise RefusedError(f"the DECTRIS detector has images of {bits} bits; set 8, 16 or 32")
        self._dtype = _DTYPES[bits]
        if min(self._shape) < 1:
            raise RefusedError(f"the DECTRIS detector has {self._shape[0]}x{self._shape[1]} pixels")
        self._range_s = (
            self._simplon.number("count_time", "min", 1e-6),
            self._simplon.number("count_time", "max", 3600.0),
        )
        if self._options.keep_settings:
            self._range_s = (self._simplon.number("count_time"),) * 2
            self._trigger_mode = str(self._simplon.value("trigger_mode"))
        else:
            self._trigger_mode = self._options.trigger_mode

    def _set_times(self, exposure_s: float) -> None:
        before = self._simplon.value("count_time"), self._simplon.value("frame_time")
        try:
            # In this order, the exposure becomes what the read-out leaves of the frame time.
            self._simplon.set("count_time", exposure_s)
            self._simplon.set("frame_time", exposure_s)
        except RefusedError:
            for name, value in zip(("count_time", "frame_time"), before, strict=True):
                with contextlib.suppress(RefusedError):
                    self._simplon.set(name, value)
            raise

    def _set_length(self, frames: int | None) -> None:
        if self._options.keep_settings:
            length = int(self._simplon.number("nimages")) * int(self._simplon.number("ntrigger"))
            if frames is not None and frames > length:
                raise RefusedError(
                    f"the DECTRIS detector is set to {length} images a series and {frames} are "
                    "wanted; set it to more, or set camera.keep_settings = false"
                )
            return
        # One of them has to be 1 in each mode, before it is chosen.
        self._simplon.set("ntrigger", 1)
        self._simplon.set("nimages", 1)
        self._simplon.set("trigger_mode", self._trigger_mode)
        counter = "ntrigger" if self._trigger_mode == "exte" else "nimages"
        most = int(self._simplon.number(counter, "max", _MOST_IMAGES))
        self._simplon.set(counter, most if frames is None else frames)

    def _saturation(self) -> float:
        # The highest value marks pixels that are masked, so it is no count.
        full = float(np.iinfo(self._dtype).max) - 1
        try:
            cutoff = self._simplon.number("countrate_correction_count_cutoff")
        except RefusedError:
            return full
        return min(full, float(cutoff)) if cutoff > 0 else full

    def _stream_address(self) -> str:
        port = self._options.stream_port or _STREAM_PORTS[self._options.stream]
        return f"{self._options.host}:{port}"
