"""Gatan cameras: DigitalMicrograph with the SerialEMCCD plug-in, over its socket.

The plug-in takes one exposure per request and serves one program: a new connection ends the earlier
one. It numbers nothing, but sends one image per request, so none is lost between request and reply;
the next exposure is asked for as soon as an image is here. It cannot end an exposure: after a stop
the next answer comes when the one at hand is over. What it looks like on the wire is in
`gatan_wire`. Without the plug-in, `gatan_dm` answers the same requests from within
DigitalMicrograph's own Python.
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

from tem_live.drivers import gatan_wire as wire
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

FAMILY = Family(
    "gatan",
    reach=lambda fields: listens(fields, port=48890),
    start="start DigitalMicrograph with SERIALEMCCD_PORT set and set camera.host in a profile "
    "'gatan' of your own",
    tested_against="a protocol server of ours and a fake DigitalMicrograph module; no peer by "
    "others, no camera hardware",
)

_SLICE_S = 0.1
"""Longest single wait on the socket, so that a stop or a close is noticed."""
_DTYPE = np.dtype(np.uint16)

# DM script: https://github.com/mastcu/SerialEMCCD, TemplatePlugIn.cpp, uses the same functions.
_SIZE = """number width, height
CM_CCD_GetSize(camera, width, height)
Exit(65536 * height + width)"""
_TAKEN = """object parameters
parameters = CM_CreateAcquisitionParameters_FullCCD(camera, {processing}, {exposure}, {bin}, {bin})
CM_Validate_AcquisitionParameters(camera, parameters)
number across, down
CM_GetBinning(parameters, across, down)
Exit({what})"""


class GatanOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for Gatan.

    Attributes
    ----------
    host : str
        Computer of DigitalMicrograph.
    port : int
        SERIALEMCCD_PORT of that computer.
    camera : int
        Number of the camera in DigitalMicrograph, from 0.
    processing : {"raw", "dark", "gain"}
        Unprocessed, dark subtracted, or gain normalised by DigitalMicrograph too.
    read_mode : {"linear", "counting", "super-resolution"} or None
        Of a K2 or K3; None for other cameras.
    scaling : float
        What a K2 or K3 multiplies its counts with before they become whole numbers.
    binnings : tuple of int
        Binnings of the camera.
    exposure_range_s : tuple of float
        Shortest and longest exposure of the camera, in seconds.
    reply_timeout_s : float
        How long an answer, or an image past its exposure, may take, in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Host = "127.0.0.1"
    port: int = Field(default=48890, ge=1, le=65535)
    camera: int = Field(default=0, ge=0, le=63)
    processing: Literal["raw", "dark", "gain"] = "gain"
    read_mode: Literal["linear", "counting", "super-resolution"] | None = None
    scaling: float = Field(default=1.0, gt=0, le=1e4)
    binnings: tuple[int, ...] = (1, 2, 4, 8)
    exposure_range_s: tuple[float, float] = (0.001, 1000.0)
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)


class GatanCamera:
    """See the module's text.

    Parameters
    ----------
    options : GatanOptions
        Which camera of which DigitalMicrograph.
    """

    Options: ClassVar[type[BaseModel]] = GatanOptions

    def __init__(self, options: GatanOptions) -> None:
        self._options = options
        self._line: socket.socket | None = None
        self._open = False
        self._name = ""
        self._sensor = (0, 0)
        self._state: CameraState | None = None
        self._request = b""
        self._image: wire.ImageReply | None = None
        self._heard = 0.0
        self._busy_until = 0.0
        self._end: int | None = None
        self._taken = 0
        self._running = False
        self._halt = threading.Event()
        # One request at a time, and no socket is closed while someone waits on it.
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------- as a camera

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera`."""
        self._connected()
        return CameraCapabilities(
            name=self._name,
            sensor_shape=self._sensor,
            dtype=_DTYPE,
            exposure_range_s=self._options.exposure_range_s,
            binnings=tuple(sorted({1, *self._options.binnings})),
            has_roi=True,
        )

    def open(self) -> None:
        """See `Camera`."""
        if self._open:
            return
        options = self._options
        self._halt.clear()
        try:
            cameras = self._number(wire.Function.GET_NUMBER_OF_CAMERAS)
            if options.camera >= cameras:
                raise NotConnectedError(
                    f"DigitalMicrograph has {cameras} cameras, numbered from 0; "
                    f"set camera.camera to less than {cameras}"
                )
            self._select()
            self._sensor = self._read_sensor()
            version = self._number(wire.Function.GET_DM_VERSION)
            self._name = f"Gatan camera {options.camera}, DigitalMicrograph {version}"
            self._open = True
        except DisconnectedError as error:
            self.close()
            raise NotConnectedError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Camera`."""
        self.stop()
        with self._lock:
            self._open = False
            self._state = None
            self._hang_up()

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        self._connected()
        with self._lock:
            roi = check_settings(settings, self.capabilities)
            exposure_s = self._took("CM_GetExposure(parameters)", settings)
            binning = round(self._took("across", settings))
            if binning != settings.binning:
                raise RefusedError(
                    f"binning {settings.binning} is refused; DigitalMicrograph takes {binning}"
                )
            self._request = self._request_for(roi, binning, exposure_s)
            self._state = CameraState(
                exposure_s=exposure_s,
                binning=binning,
                # Its regions begin at whole binned pixels.
                roi=(roi[0] // binning * binning, roi[1] // binning * binning, *roi[2:]),
                frame_shape=(roi[2] // binning, roi[3] // binning),
                dtype=_DTYPE,
                frame_interval_s=exposure_s,
                saturation_counts=65535.0,
            )
            return self._state

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        self._connected()
        with self._lock:
            if self._state is None:
                raise RefusedError("the camera is not configured; configure it first")
            self._give_up_image()
            self._halt.clear()
            self._end, self._taken = frames, 0
            # Another program may have chosen another camera.
            self._select()
            if frames != 0:
                self._ask_for_image()
            self._running = True

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        with self._lock:
            self._running = False
            self._give_up_image()

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        self._connected()
        state = self._state
        if not self._running or state is None:
            raise DisconnectedError("the Gatan camera is stopped; start it first")
        check_buffer(buffer, state.frame_shape, _DTYPE)
        if self._taken == self._end:
            raise EndOfFrames
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                if self._halt.is_set() or not self._open:
                    raise DisconnectedError("the Gatan camera was stopped")
                if self._image is None:
                    # The last one was refused or torn.
                    self._ask_for_image()
                if self._receive(min(_SLICE_S, max(0.0, deadline - time.monotonic()))):
                    return self._take(buffer, state)
            if time.monotonic() >= deadline:
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")

    # ---------------------------------------------------------------------------------- the images

    def _request_for(self, roi: Roi, binning: int, exposure_s: float) -> bytes:
        top, left, height, width = (side // binning for side in roi)
        return wire.image_request(
            (height, width), (top, left), binning, exposure_s, self._options.processing
        )

    def _ask_for_image(self) -> None:
        assert self._state is not None
        self._send(self._request)
        self._image = wire.ImageReply(self._state.frame_shape)
        self._heard = time.monotonic()
        self._busy_until = self._heard + self._state.exposure_s

    def _receive(self, wait_s: float) -> bool:
        """Take what has come; whether the image is whole."""
        image, line = self._image, self._line
        if image is None or line is None:
            raise DisconnectedError("the Gatan camera was closed")
        until = time.monotonic() + wait_s
        try:
            while not image.done:
                line.settimeout(max(0.0, until - time.monotonic()))
                count = line.recv_into(image.room())
                if count == 0:
                    raise ConnectionError(
                        "it closed the connection: it ended, or another program came"
                    )
                self._heard = time.monotonic()
                if image.took(count):
                    line.settimeout(self._options.reply_timeout_s)
                    line.sendall(wire.HANDSHAKE)
        except (TimeoutError, BlockingIOError):
            self._check_silence(image)
        except OSError as error:
            self._give_up_image()
            raise self._gone(error) from None
        except (RefusedError, DisconnectedError):
            # After it no byte of the line can be trusted.
            self._give_up_image()
            raise
        return image.done

    def _check_silence(self, image: wire.ImageReply) -> None:
        now = time.monotonic()
        since = self._heard if image.begun else max(self._heard, self._busy_until)
        if now - since > self._options.reply_timeout_s:
            what = "stopped amid an image" if image.begun else "sends no image"
            self._give_up_image()
            raise self._gone(f"it {what} for {now - self._heard:.1f} s")

    def _take(self, buffer: npt.NDArray[Any], state: CameraState) -> FrameMeta:
        assert self._image is not None
        image, self._image = self._image, None
        self._taken += 1
        arrived = time.time()
        if self._taken != self._end:
            # The camera exposes while this image goes its way.
            with contextlib.suppress(DisconnectedError):
                self._ask_for_image()
        np.copyto(buffer, image.pixels())
        return FrameMeta(
            sequence=self._taken - 1,
            host_time_s=arrived,
            exposure_s=state.exposure_s,
            raw={"processing": self._options.processing},
        )

    def _give_up_image(self) -> None:
        # Its bytes would be taken for the next answer, and nothing else ends it.
        if self._image is not None:
            self._image = None
            self._hang_up()

    # --------------------------------------------------------------------------- DigitalMicrograph

    def _connected(self) -> None:
        if not self._open:
            raise NotConnectedError("the Gatan camera is closed; open it first")

    def _select(self) -> None:
        options = self._options
        self._ask(wire.Function.SELECT_CAMERA, (options.camera,), what=f"camera {options.camera}")
        if options.read_mode is not None:
            self._ask(
                wire.Function.SET_READ_MODE,
                (wire.READ_MODES[options.read_mode],),
                doubles=(options.scaling,),
                what=f"the read mode {options.read_mode}",
            )

    def _read_sensor(self) -> tuple[int, int]:
        packed = round(self._script(_SIZE, "the size of the sensor"))
        height, width = divmod(packed, 65536)
        if height < 1 or width < 1 or height > 65535:
            raise RefusedError(f"DigitalMicrograph tells a sensor of {height}x{width} pixels")
        return height, width

    def _took(self, what: str, settings: CameraSettings) -> float:
        """What DigitalMicrograph makes of the settings, without an exposure."""
        # Its camera manager counts the kinds of processing from 1.
        text = _TAKEN.format(
            processing=wire.PROCESSING[self._options.processing] + 1,
            exposure=f"{settings.exposure_s:.9g}",
            bin=settings.binning,
            what=what,
        )
        return self._script(text, f"{settings.exposure_s:g} s at binning {settings.binning}")

    def _script(self, text: str, what: str) -> float:
        head = (
            "object camera = ObjectAt(CM_GetCameras(CM_GetCameraManager()), "
            f"{self._options.camera})\n"
        )
        script = wire.Function.EXECUTE_SCRIPT
        reply = self._ask(script, flags=(0,), text=head + text, doubles_back=1, what=what)
        (value,) = reply.doubles
        if value == wire.SCRIPT_FAILED or not np.isfinite(value):
            raise RefusedError(f"DigitalMicrograph refuses {what}")
        return value

    def _number(self, function: wire.Function) -> int:
        what = function.name.lower().replace("_", " ")
        return self._ask(function, numbers_back=1, what=what).numbers[0]

    def _ask(
        self,
        function: wire.Function,
        numbers: tuple[int, ...] = (),
        *,
        flags: tuple[int, ...] = (),
        doubles: tuple[float, ...] = (),
        text: str = "",
        numbers_back: int = 0,
        doubles_back: int = 0,
        what: str,
    ) -> wire.Reply:
        """Ask and wait for the answer. Raises `RefusedError` or `DisconnectedError`."""
        shape = wire.Shape(numbers=numbers_back, doubles=doubles_back)
        with self._lock:
            line = self._send(wire.message(function, numbers, flags, doubles, text))
            # An exposure that was given up is still going on.
            busy_s = max(0.0, self._busy_until - time.monotonic())
            deadline = time.monotonic() + busy_s + self._options.reply_timeout_s
            try:
                head = _exactly(line, 4, deadline)
                rest = _exactly(line, wire.reply_bytes(head, shape) - 4, deadline)
            except OSError as error:
                self._hang_up()
                raise self._gone(error) from None
            except DisconnectedError:
                self._hang_up()
                raise
            return wire.reply(head + rest, shape, what)

    def _send(self, message: bytes) -> socket.socket:
        options = self._options
        try:
            if self._line is None:
                address = (options.host, options.port)
                self._line = socket.create_connection(address, options.reply_timeout_s)
                self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._line.settimeout(options.reply_timeout_s)
            self._line.sendall(message)
        except OSError as error:
            self._hang_up()
            raise self._gone(error) from None
        return self._line

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def _gone(self, why: BaseException | str) -> DisconnectedError:
        said = "it does not answer" if isinstance(why, TimeoutError) else " ".join(str(why).split())
        return DisconnectedError(
            f"no DigitalMicrograph answers at {self._options.host}:{self._options.port} "
            f"({said or type(why).__name__}); start it with SERIALEMCCD_PORT set, close other "
            "programs on it, or set camera.host and camera.port"
        )


def _exactly(line: socket.socket, count: int, deadline: float) -> bytes:
    """So many bytes; raises `OSError` when they do not come in time."""
    received = bytearray()
    while len(received) < count:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        line.settimeout(left_s)
        piece = line.recv(count - len(received))
        if not piece:
            raise ConnectionError("it closed the connection: it ended, or another program came")
        received += piece
    return bytes(received)
