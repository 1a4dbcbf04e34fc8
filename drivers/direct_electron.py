"""Direct Electron cameras: DE-Server over its deapi protocol (protobuf on TCP port 13240).

Frames come through the server's movie buffer, which delivers every frame of an acquisition in order
with its number; the exposure of a frame is the inverse of the server's frames per second. The
server's hardware binning averages, where binning here sums, so it is left off. What the client
library does not raise (an unknown property, a server that is gone) is told apart here.
Library: https://github.com/directelectron/deapi.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.families import Family, listens
from tem_live.drivers.hosts import Host
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    EndOfFrames,
    FrameMeta,
    Roi,
)
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)

_SLICE_S = 0.2
"""Longest single wait inside the server, so that a stop need not wait for a long exposure."""
_QUESTIONS = 4
"""As many as the library asks at most when it connects."""
_MOST_LOST = 100_000
"""Frames between two others; more were no loss but nonsense."""

FAMILY = Family(
    "direct-electron",
    packages=("deapi",),
    install='pip install "tem-live[direct-electron]"',
    reach=lambda fields: listens(fields, port=13240),
    start="start DE-Server; without one: de-twin serve --camera DESim --soap 5002 --deapi 13240 "
    "--host 127.0.0.1",
    tested_against="de-twin 0.3.0; no camera hardware",
    profile="de-twin",
)


class DirectElectronOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for Direct Electron.

    Attributes
    ----------
    host : str
        Where DE-Server runs.
    port : int
        Its command port.
    reply_timeout_s : float
        How long the server may take to answer one request, in seconds.
    properties : dict
        Server properties to set when it is opened, by the server's names. They outlive the
        connection.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Host = "127.0.0.1"
    port: int = Field(default=13240, ge=1, le=65535)
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)
    properties: dict[str, str | int | float] = Field(default_factory=dict)


class DirectElectronCamera:
    """See the module's text.

    Parameters
    ----------
    options : DirectElectronOptions
        Which server.
    """

    Options: ClassVar[type[BaseModel]] = DirectElectronOptions

    def __init__(self, options: DirectElectronOptions) -> None:
        self._options = options
        self._client: Any = None
        self._name = ""
        self._sensor = (0, 0)
        self._fps_range = (0.0, 0.0)
        self._exposure_s = 0.0
        self._shape = (0, 0)
        self._roi: Roi | None = None
        self._header_bytes = 0
        self._buffer_bytes = 0
        self._end: int | None = None
        self._taken = 0
        self._next = 0
        self._running = False
        self._halt = threading.Event()
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------- as a camera

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera`."""
        self._connected()
        low, high = self._fps_range
        return CameraCapabilities(
            name=f"Direct Electron {self._name}",
            sensor_shape=self._sensor,
            dtype=np.dtype(np.uint16),
            exposure_range_s=(1 / high, 1 / low),
            has_roi=True,
        )

    def open(self) -> None:
        """See `Camera`."""
        if self._client is not None:
            return
        try:
            from deapi import Client
        except ImportError:
            raise NotConnectedError(
                'Direct Electron needs deapi: pip install "tem-live[direct-electron]"'
            ) from None
        options = self._options
        client = Client()
        # The library logs each frame; what matters is raised here.
        logging.getLogger("DECameraClientLib").setLevel(logging.CRITICAL)
        client.usingMmf = False
        # The library waits half a minute and more for each of its questions.
        watchdog = threading.Timer(_QUESTIONS * options.reply_timeout_s, _hang_up, [client])
        watchdog.daemon = True
        began = time.monotonic()
        try:
            # As long as it may take: the library tries to connect without end.
            address = options.host, options.port
            socket.create_connection(address, options.reply_timeout_s).close()
            watchdog.start()
            client.connect(options.host, options.port)
        except Exception as error:
            with contextlib.suppress(AttributeError, OSError):
                client.socket.close()
            late = time.monotonic() - began >= options.reply_timeout_s
            raise NotConnectedError(
                f"no DE-Server answers at {options.host}:{options.port} "
                f"({'it does not answer' if late else _said(error)}); "
                "start it, or set camera.host and camera.port"
            ) from None
        finally:
            watchdog.cancel()
        self._client = client
        self._halt.clear()
        try:
            self._name = str(client.camera)
            for name, value in options.properties.items():
                self._set(name, value)
            self._set("Grabbing - Frames Per Buffer", 1)
            for axis in "XY":
                # Where an earlier client left it on; a camera that has none refuses.
                with contextlib.suppress(RefusedError):
                    self._set(f"Hardware Binning {axis}", 1)
            self._sensor = (
                int(self._get("Sensor Size Y (pixels)")),
                int(self._get("Sensor Size X (pixels)")),
            )
            self._fps_range = self._range("Frames Per Second")
        except DisconnectedError as error:
            self.close()
            raise NotConnectedError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Camera`."""
        self.stop()
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.disconnect()

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        self._connected()
        roi = check_settings(settings, self.capabilities)
        self._set_roi(roi)
        try:
            self._set("Frames Per Second", 1 / settings.exposure_s)
        except RefusedError:
            with contextlib.suppress(RefusedError):
                self._set_roi(self._roi or (0, 0, *self._sensor))
            raise
        self._roi = roi
        return self._read_back(roi)

    def _set_roi(self, roi: Roi) -> None:
        top, left, height, width = roi
        with self._lock:
            taken = self._asked(lambda client: client.set_hw_roi(left, top, width, height))
        if not taken:
            raise RefusedError(f"DE-Server refuses the region {roi}; align it or read the whole")

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        self._connected()
        self._end = frames
        self._taken = self._next = 0
        # One acquisition of so many frames; 0 acquisitions repeat until stopped.
        self._set("Exposure Time (seconds)", (frames or 100) * self._exposure_s)
        self._halt.clear()
        with self._lock:
            started = self._asked(
                lambda client: client.start_acquisition(0 if frames is None else 1, True)
            )
            if started is False:
                raise RefusedError("DE-Server refuses to start; is another program acquiring?")
        info = self._movie_buffer()
        if (info.imageH, info.imageW) != self._shape:
            with contextlib.suppress(OSError):
                self._send_stop()
            if not info.imageH:
                raise DeviceTimeoutError(
                    f"DE-Server prepared no frame within {self._options.reply_timeout_s:g} s; "
                    "start again, or raise 'reply_timeout_s' (a simulator compiles when it is new)"
                )
            raise RefusedError(
                f"DE-Server sends frames of {info.imageH}x{info.imageW} where "
                f"{self._shape[0]}x{self._shape[1]} were set"
            )
        self._header_bytes = info.headerBytes
        self._buffer_bytes = info.headerBytes + info.imageBufferBytes
        self._running = True

    def _movie_buffer(self) -> Any:
        """What a frame in the server's buffer is like; waited for while it prepares the first."""
        deadline = time.monotonic() + self._options.reply_timeout_s
        while True:
            with self._lock:
                info = self._asked(lambda client: client.get_movie_buffer_info())
            if info.imageH or time.monotonic() > deadline or self._halt.wait(_SLICE_S):
                return info

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        if self._running and self._client is not None:
            self._running = False
            with contextlib.suppress(OSError):
                self._send_stop()

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        self._connected()
        if not self._running:
            raise DisconnectedError("the Direct Electron camera is stopped; start it first")
        check_buffer(buffer, self._shape, np.dtype(np.uint16))
        # What the detector counted and was lost on the way belongs to the series, too.
        if self._end is not None and self._next >= self._end:
            raise EndOfFrames
        deadline = time.monotonic() + timeout_s
        data = self._await_frame(deadline, timeout_s)
        if len(data) != self._header_bytes + buffer.nbytes:
            raise DisconnectedError(
                f"DE-Server sent {len(data)} bytes where {self._header_bytes} and {buffer.nbytes} "
                "of pixels were set; was it changed by another program?"
            )
        number = int(np.frombuffer(data, np.int64, count=1)[0])
        if not self._next <= number <= self._next + _MOST_LOST:
            raise DisconnectedError(
                f"DE-Server sent frame {number} where frame {self._next} belongs; reconnect, and "
                "look for another program on it"
            )
        pixels = np.frombuffer(data, np.uint16, offset=self._header_bytes)
        np.copyto(buffer, pixels.reshape(buffer.shape))
        self._taken += 1
        self._next = number + 1
        return FrameMeta(
            sequence=number,
            host_time_s=time.time(),
            exposure_s=self._exposure_s,
            raw={"frame_number": number},
        )

    # --------------------------------------------------------------------------------- internals

    def _connected(self) -> Any:
        if self._client is None:
            raise NotConnectedError("the Direct Electron camera is closed; open it first")
        return self._client

    def _send_stop(self) -> None:
        # As the library's stop_acquisition does, which waits for ever where nobody answers.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.settimeout(1.0)
            line.sendto(b"PyClientStopAcq", (self._options.host, self._options.port))
            line.recv(32)

    def _asked(self, question: Callable[[Any], Any]) -> Any:
        """Ask the server; whatever breaks on the way means that it is gone."""
        client = self._connected()
        # The library waits half a minute and more for a server that is stuck: hang up before.
        watchdog = threading.Timer(self._options.reply_timeout_s, _hang_up, [client])
        watchdog.daemon = True
        watchdog.start()
        try:
            return question(client)
        except Exception as error:
            # The library trips over replies that never came in ways that say nothing to a user.
            why = f" ({_said(error)})" if isinstance(error, OSError) else ""
            raise DisconnectedError(
                f"DE-Server at {self._options.host}:{self._options.port} is gone{why}; "
                "start it and reconnect"
            ) from None
        finally:
            watchdog.cancel()

    def _get(self, name: str) -> Any:
        with self._lock:
            value = self._asked(lambda client: client.get_property(name))
        # The library answers False for what it does not know, and for nothing else.
        if value is False:
            raise RefusedError(f"DE-Server knows no property '{name}'; is it a current version?")
        return value

    def _set(self, name: str, value: str | float) -> None:
        with self._lock:
            taken = self._asked(lambda client: client.set_property(name, value))
        if not taken:
            raise RefusedError(f"DE-Server refuses '{name}' = {value!r}; see its property's range")

    def _range(self, name: str) -> tuple[float, float]:
        with self._lock:
            spec = self._asked(lambda client: client.get_property_spec(name))
        try:
            low, high = (float(part) for part in spec.category.split(",")[:2])
        except (AttributeError, ValueError):
            return 0.01, 1e6
        return max(low, 1e-3), high

    def _read_back(self, roi: Roi) -> CameraState:
        self._exposure_s = 1 / float(self._get("Frames Per Second"))
        self._shape = (
            int(self._get("Image Size Y (pixels)")),
            int(self._get("Image Size X (pixels)")),
        )
        top, left, _, _ = roi
        try:
            pixel_size_nm = float(self._get("Specimen Pixel Size X (nanometers)"))
        except (RefusedError, TypeError, ValueError):
            pixel_size_nm = 0.0
        return CameraState(
            exposure_s=self._exposure_s,
            binning=1,
            roi=(top, left, *self._shape),
            frame_shape=self._shape,
            dtype=np.dtype(np.uint16),
            frame_interval_s=self._exposure_s,
            pixel_size_nm=pixel_size_nm or None,
        )

    def _await_frame(self, deadline: float, timeout_s: float) -> Any:
        from deapi.data_types import MovieBufferStatus

        while True:
            if self._halt.is_set():
                raise DisconnectedError("the Direct Electron camera was stopped")
            wait_s = min(max(deadline - time.monotonic(), 0.0), _SLICE_S)
            with self._lock:
                status, _, _, data = self._asked(
                    lambda client: client.get_movie_buffer(
                        bytearray(), self._buffer_bytes, 1, int(1e3 * wait_s)  # noqa: B023
                    )
                )  # fmt: skip
            if status == MovieBufferStatus.OK:
                return data
            if status == MovieBufferStatus.FINISHED:
                if self._end is not None and self._taken >= self._end:
                    raise EndOfFrames
                raise DisconnectedError(
                    f"DE-Server ended the acquisition after {self._taken} frames; "
                    "was it stopped by another program?"
                )
            if status != MovieBufferStatus.TIMEOUT:
                raise DisconnectedError(
                    f"DE-Server at {self._options.host}:{self._options.port} sends no frames any "
                    f"more ({status.name.lower()}); was it set up anew by another program? See "
                    "that it runs, and reconnect"
                )
            if time.monotonic() >= deadline:
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")


def _hang_up(client: Any) -> None:
    with contextlib.suppress(AttributeError, OSError):
        client.socket.shutdown(socket.SHUT_RDWR)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
