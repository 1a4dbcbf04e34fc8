"""ASI detectors (Timepix3, Medipix3) through Serval: set up over HTTP, images over TCP.

Serval connects to a port of this program for each measurement and numbers the images within it, so
none is missed unnoticed and what is left of an earlier measurement never reaches this one. What the
stream looks like is in `serval_wire`. Addresses, fields of ``/detector/config`` (times in seconds)
and the states of a measurement are those that instamatic (``camera_serval.py``) and areaDetector's
ADTimePix3 use. Images are always of the whole detector and never binned.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers import serval_wire as wire
from tem_live.drivers.checks import check_buffer, check_settings
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
"""Longest single wait on the stream, so that a stop or a close is noticed."""
_PROBE_AFTER_S = 1.0
"""Silence, past the next image's time, after which Serval is asked what it does."""
_PROBE_S = 1.0
"""How long it may take to answer that."""
_WITHOUT_END = 1_000_000_000
"""Images of a free run."""
_CHIP_PIXELS = 256
_IDLE = ("DA_IDLE", "DA_STOPPED", "")
_PIECE_BYTES = 1 << 20


def _answers(fields: Mapping[str, Any]) -> bool:
    """Whether a Serval answers; any web server may listen there."""
    host, port = str(fields.get("host", "127.0.0.1")), int(fields.get("port", 8080))
    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=0.5)) as line:
            line.request("GET", "/dashboard")
            found = json.loads(line.getresponse().read(1 << 16))
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return isinstance(found, dict) and "Measurement" in found


FAMILY = Family(
    "asi",
    reach=_answers,
    start="start Serval and set camera.host in a profile 'serval' of your own",
    tested_against="an HTTP and TCP server of ours; no peer by others, no camera hardware",
    profile="serval",
)


class ServalOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for Serval.

    Attributes
    ----------
    host : str
        Computer of Serval.
    port : int
        Of its HTTP interface.
    stream_host : str
        Address of this computer as Serval reaches it; "" finds it out.
    stream_port : int
        Port of this computer that Serval connects to; 0 for any that is free.
    mode : {"count", "tot"}
        What a pixel holds: hits, or time over threshold.
    bit_depth : {8, 16, 32}
        Bits of a pixel as Serval sends it.
    dead_time_s : float
        Gap between two images that the detector needs, in seconds; 0 reads it out continuously.
    shape : tuple of int or None
        (height, width) of the detector in pixels; None asks Serval.
    reply_timeout_s : float
        How long Serval may take to answer, and an image may be overdue, in seconds.
    properties : dict
        Fields of ``/detector/config`` to set when it is opened, such as BiasVoltage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Host = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    stream_host: Host = ""
    stream_port: int = Field(default=0, ge=0, le=65535)
    mode: Literal["count", "tot"] = "count"
    bit_depth: Literal[8, 16, 32] = 16
    dead_time_s: float = Field(default=0.0, ge=0, le=10)
    shape: tuple[int, int] | None = None
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)
    properties: dict[str, bool | int | float | str] = Field(default_factory=dict)


class ServalCamera:
    """See the module's text.

    Parameters
    ----------
    options : ServalOptions
        Which Serval.
    """

    Options: ClassVar[type[BaseModel]] = ServalOptions

    def __init__(self, options: ServalOptions) -> None:
        self._options = options
        self._open = False
        self._name = ""
        self._shape = (0, 0)
        self._range_s = (0.0, 0.0)
        self._dtype = wire.DTYPES[options.bit_depth]
        self._state: CameraState | None = None
        self._line: socket.socket | None = None
        self._images = wire.Images()
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._destination: Any = None
        self._first = 0
        self._next = 0
        self._end: int | None = None
        self._taken = 0
        self._heard = self._probed = 0.0
        self._running = False
        self._halt = threading.Event()
        # No socket is closed while someone waits on it.
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
        )

    def open(self) -> None:
        """See `Camera`."""
        if self._open:
            return
        self._halt.clear()
        try:
            dashboard = self._table("/dashboard")
            if not isinstance(dashboard.get("Detector"), dict):
                raise NotConnectedError(
                    "Serval has no detector connected; connect it in its interface "
                    f"(http://{self._address()}/detector/connect)"
                )
            self._read_detector()
            kind = dashboard["Detector"].get("DetectorType", "detector")
            version = (dashboard.get("Server") or {}).get("SoftwareVersion", "")
            self._name = f"ASI {kind}, Serval {version}".strip()
            if self._options.properties:
                self._set(self._options.properties)
            self._open = True
        except DisconnectedError as error:
            raise NotConnectedError(str(error)) from None

    def close(self) -> None:
        """See `Camera`."""
        self.stop()
        self._open = False
        self._state = None

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        self._connected()
        roi = check_settings(settings, self.capabilities)
        before = self._table("/detector/config")
        gap_s = self._options.dead_time_s
        try:
            self._set(
                {
                    "ExposureTime": settings.exposure_s,
                    "TriggerPeriod": settings.exposure_s + gap_s,
                    "TriggerMode": "AUTOTRIGSTART_TIMERSTOP" if gap_s else "CONTINUOUS",
                }
            )
        except RefusedError:
            with contextlib.suppress(RefusedError):
                self._request("PUT", "/detector/config", before)
            raise
        taken = self._table("/detector/config")
        exposure_s = _number(taken, "ExposureTime")
        self._state = CameraState(
            exposure_s=exposure_s,
            binning=1,
            roi=roi,
            frame_shape=self._shape,
            dtype=self._dtype,
            frame_interval_s=max(exposure_s, _number(taken, "TriggerPeriod")),
            saturation_counts=float(np.iinfo(self._dtype).max),
        )
        return self._state

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        self._connected()
        if self._state is None:
            raise RefusedError("the camera is not configured; configure it first")
        self._check_idle()
        self._halt.clear()
        self._end = frames
        self._taken = self._first = self._next = 0
        if frames != 0:
            self._set({"nTriggers": _WITHOUT_END if frames is None else frames})
        self._images = wire.Images()
        self._running = True
        try:
            if frames != 0:
                self._begin()
        except BaseException:
            self.stop()
            raise
        self._heard = self._probed = time.monotonic()

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        was_running, self._running = self._running, False
        with self._lock:
            line, self._line = self._line, None
            if line is not None:
                line.close()
        if was_running and self._open:
            with contextlib.suppress(DeviceError):
                self._request("GET", "/measurement/stop", timeout_s=_PROBE_S)
                destination, self._destination = self._destination, None
                if destination is not None:
                    self._request("PUT", "/server/destination", destination, timeout_s=_PROBE_S)

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        self._connected()
        state = self._state
        if not self._running or state is None:
            raise DisconnectedError("the ASI detector is stopped; start it first")
        check_buffer(buffer, self._shape, self._dtype)
        # What the detector counted and was lost on the way belongs to the series, too.
        if self._end is not None and self._next >= self._end:
            raise EndOfFrames
        image = self._await_image(state, timeout_s)
        pixels = image.pixels
        if pixels.shape != self._shape or pixels.dtype.newbyteorder("=") != self._dtype:
            raise DisconnectedError(
                f"Serval sends {pixels.dtype.name} {pixels.shape[0]}x{pixels.shape[1]} where "
                f"{self._dtype} {self._shape[0]}x{self._shape[1]} belongs; set camera.bit_depth "
                "and camera.shape, or was it changed by another program?"
            )
        # Nobody says whether Serval begins at 0 or at 1.
        if self._taken == 0 and image.number == 1:
            self._first = 1
        sequence = image.number - self._first
        if sequence < self._next:
            raise DisconnectedError(
                f"Serval sent image {image.number} after image {self._next - 1 + self._first}; "
                "was it started again by another program?"
            )
        np.copyto(buffer, pixels)
        self._next = sequence + 1
        self._taken += 1
        return FrameMeta(
            sequence=sequence,
            host_time_s=time.time(),
            exposure_s=state.exposure_s,
            device_time_s=image.time_s,
            raw=image.raw,
        )

    # --------------------------------------------------------------------------------- the stream

    def _begin(self) -> None:
        options = self._options
        self._destination = self._request("GET", "/server/destination")
        address = options.stream_host or self._own_address()
        with socket.create_server(("", options.stream_port)) as listener:
            port = listener.getsockname()[1]
            base = f"tcp://connect@{address}:{port}"
            image = {"Base": base, "Format": "jsonimage", "Mode": options.mode}
            self._request("PUT", "/server/destination", {"Image": [image]})
            self._request("GET", "/measurement/start")
            listener.settimeout(options.reply_timeout_s)
            try:
                line, _ = listener.accept()
            except OSError:
                raise NotConnectedError(
                    f"Serval measures and does not connect to {address}:{port}; open that port in "
                    "this computer's firewall, or set camera.stream_host and camera.stream_port"
                ) from None
        with self._lock:
            self._line = line

    def _own_address(self) -> str:
        # No packet is sent: it only tells which of this computer's addresses leads there.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            try:
                line.connect((self._options.host, self._options.port))
            except OSError as error:
                raise self._gone(error) from None
            return str(line.getsockname()[0])

    def _await_image(self, state: CameraState, timeout_s: float) -> wire.Image:
        deadline = time.monotonic() + timeout_s
        while True:
            if self._halt.is_set():
                raise DisconnectedError("the ASI detector was stopped")
            image = self._images.next()
            if image is not None:
                # The second counter of a Medipix3 has the same numbers.
                if image.threshold == 0:
                    return image
                continue
            received = self._receive(max(0.0, deadline - time.monotonic()))
            if not received:
                self._check_silence(state)
            # What is there already is taken even without time to wait.
            if time.monotonic() >= deadline + (_SLICE_S if received else 0.0):
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")

    def _receive(self, wait_s: float) -> bool:
        """Take what has come; whether there was anything."""
        with self._lock:
            if self._line is None:
                raise DisconnectedError("the ASI detector was closed")
            self._line.settimeout(min(wait_s, _SLICE_S))
            try:
                count = self._line.recv_into(self._piece)
            except (TimeoutError, BlockingIOError):
                return False
            except OSError as error:
                raise self._gone(error) from None
        if count == 0:
            raise DisconnectedError(
                f"Serval ended its stream after {self._taken} images; was it stopped by another "
                "program? Start Serval and reconnect"
            )
        self._images.feed(self._piece[:count])
        self._heard = time.monotonic()
        return True

    def _check_silence(self, state: CameraState) -> None:
        now = time.monotonic()
        silent_s = now - self._heard
        overdue_s = silent_s - state.frame_interval_s
        if min(overdue_s, now - self._probed) > _PROBE_AFTER_S:
            # One that is killed or stuck is noticed before the image is given up.
            status = self._status(_PROBE_S)
            self._probed = time.monotonic()
            if status in _IDLE:
                raise DisconnectedError(
                    f"Serval stopped measuring after {self._taken} images; was it stopped by "
                    "another program?"
                )
        if overdue_s > self._options.reply_timeout_s:
            what = "stopped amid an image" if self._images.in_an_image else "sends no images"
            raise self._gone(f"it {what} for {silent_s:.1f} s")

    # ------------------------------------------------------------------------------------- Serval

    def _connected(self) -> None:
        if not self._open:
            raise NotConnectedError("the ASI detector is closed; open it first")

    def _read_detector(self) -> None:
        info = self._table("/detector/info")
        self._shape = self._options.shape or _shape(info)
        low, high = info.get("TimerMinVal"), info.get("TimerMaxVal")
        self._range_s = (
            low if isinstance(low, float) and low > 0 else 1e-6,
            high if isinstance(high, float) and high > 0 else 3600.0,
        )

    def _status(self, timeout_s: float | None = None) -> str:
        """What Serval's measurement is doing; "" where there is none."""
        found = self._table("/dashboard", timeout_s).get("Measurement")
        return str(found.get("Status", "")) if isinstance(found, dict) else ""

    def _check_idle(self) -> None:
        status = self._status()
        if status not in _IDLE:
            raise RefusedError(
                f"the ASI detector is in use (Serval's measurement is '{status}'); end the "
                f"measurement of the other program (http://{self._address()}/measurement/stop)"
            )

    def _set(self, fields: Mapping[str, Any]) -> None:
        """Set fields of the detector's configuration and make sure that it took them."""
        config = self._table("/detector/config")
        unknown = [name for name in fields if name not in config]
        if unknown:
            raise RefusedError(
                f"Serval's detector has no '{unknown[0]}'; it has {', '.join(config)}"
            )
        self._request("PUT", "/detector/config", {**config, **fields})

    def _table(self, path: str, timeout_s: float | None = None) -> dict[str, Any]:
        found = self._request("GET", path, timeout_s=timeout_s)
        if not isinstance(found, dict):
            raise DisconnectedError(
                f"{self._address()} is no Serval: it answers {path} with something else; set "
                "camera.host and camera.port"
            )
        return found

    def _request(
        self,
        method: Literal["GET", "PUT"],
        path: str,
        value: Any = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Ask Serval; what it answers. Raises `RefusedError` or `DisconnectedError`."""
        options = self._options
        line = http.client.HTTPConnection(
            options.host, options.port, timeout=timeout_s or options.reply_timeout_s
        )
        body = None if value is None else json.dumps(value)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            line.request(method, path, body=body, headers=headers)
            reply = line.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from None
        finally:
            line.close()
        if not 200 <= reply.status < 300:
            said = " ".join(text.decode("utf-8", "replace").split())[:200]
            raise RefusedError(f"Serval refuses {method} {path}: {reply.status} {said}".strip())
        try:
            return json.loads(text)
        except ValueError:
            # Commands are answered in plain words.
            return None

    def _address(self) -> str:
        return f"{self._options.host}:{self._options.port}"

    def _gone(self, why: BaseException | str) -> DisconnectedError:
        said = "it does not answer" if isinstance(why, TimeoutError) else " ".join(str(why).split())
        return DisconnectedError(
            f"no Serval answers at {self._address()} ({said or type(why).__name__}); start it, or "
            "set camera.host and camera.port"
        )


def _shape(info: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the detector in pixels from what Serval tells of its chips."""
    count, across, down = (info.get(name) for name in ("PixCount", "RowLen", "NumberOfRows"))
    if isinstance(count, int) and isinstance(across, int) and isinstance(down, int):
        shape = _CHIP_PIXELS * down, _CHIP_PIXELS * across
        if min(shape) > 0 and shape[0] * shape[1] == count:
            return shape
    raise RefusedError(
        f"Serval tells a detector of {count} pixels in {down} rows of {across} chips; set "
        "camera.shape to its height and width"
    )


def _number(table: Mapping[str, Any], name: str) -> float:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError(f"Serval tells {value!r} as {name}")
    return float(value)
