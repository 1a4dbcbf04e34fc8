"""Hamamatsu cameras through DCAM-API 4 (``dcamapi.dll``, ``libdcamapi.so``).

DCAM fills a ring of frames and counts them; one that was overwritten before it was fetched is seen
as a jump of that count, one that the camera or the bus lost as a jump of its frame stamp where the
camera has one. Names, numbers and structures are those of Hamamatsu's headers dcamapi4.h and
dcamprop.h (DCAM-SDK4, https://dcam-api.com/), compared with the copies that pylablib 1.4.5 and
olive-camera-dcamapi were made from. A program has one DCAM: one camera of this driver at a time.

**Untested on hardware.** Tested against a fake of the library's functions. Not found in these
sources and left out: whether CONVERSIONFACTOR_OFFSET is the pedestal of the image in counts.
"""

from __future__ import annotations

import contextlib
import ctypes
from ctypes import byref, c_double, c_int32
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from tem_live.drivers import dcam_api as api
from tem_live.drivers import native
from tem_live.drivers.device_camera import DeviceCamera, Fetched
from tem_live.drivers.families import Family, Vendor
from tem_live.drivers.guarded import GuardedDevice
from tem_live.drivers.protocols import CameraCapabilities, CameraSettings, CameraState, Roi
from tem_live.errors import DeviceError, DisconnectedError, NotConnectedError, RefusedError

LIBRARY = ("dcamapi.dll", "libdcamapi.so")
FOLDERS = ("/usr/local/lib",)
_GAPS = 2
"""Frames of the ring that are not fetched any more: DCAM may be writing there."""
MEND = "install Hamamatsu's DCAM-API from https://dcam-api.com, or set camera.library"

FAMILY = Family(
    "hamamatsu",
    vendor=Vendor(
        name=f"DCAM-API ({LIBRARY[0]})",
        is_there=lambda: native.is_installed(LIBRARY, FOLDERS),
        install=MEND,
    ),
    # DCAM cannot be asked for its cameras without being started.
    start="switch the camera on, then try: tem-live run --profile hamamatsu --frames 1",
    tested_against="a fake of DCAM's functions; no camera hardware",
)


class HamamatsuOptions(native.LibraryOptions):
    """Fields of the profile's ``[camera]`` table, besides those of `native.LibraryOptions`.

    Attributes
    ----------
    index : int
        Which of the cameras that DCAM finds, from 0.
    buffer_frames : int
        Frames of DCAM's ring.
    properties : dict
        DCAM properties to set when it is opened, by DCAM's names, such as ``"READOUT SPEED"``, with
        DCAM's numbers.
    """

    index: int = Field(default=0, ge=0)
    buffer_frames: int = Field(default=32, ge=4, le=4096)
    properties: dict[str, float] = Field(default_factory=dict)


class HamamatsuCamera(DeviceCamera):
    """See the module's text.

    Parameters
    ----------
    options : HamamatsuOptions
        Which camera.
    load : callable or None
        Gives the library; None looks for the installed one.
    """

    Options: ClassVar[type[BaseModel]] = HamamatsuOptions

    def __init__(self, options: HamamatsuOptions, load: native.Loader | None = None) -> None:
        load = load or native.loader(LIBRARY, options.library, FOLDERS, MEND)
        device = GuardedDevice(_Dcam(options, load), "DCAM", options.reply_timeout_s)
        super().__init__(device, "the Hamamatsu camera")


class _Dcam:
    def __init__(self, options: HamamatsuOptions, load: native.Loader) -> None:
        self._options = options
        self._load = load
        self._library: Any = None
        self._camera: int | None = None
        self._wait: int | None = None
        self._sensor = (0, 0)
        self._has_roi = False
        self._has_stamp = False
        self._state: CameraState | None = None
        self._next = 0
        self._lost = 0
        self._first_stamp: int | None = None
        self._capturing = False

    # ------------------------------------------------------------------------ opening and closing

    def open(self) -> CameraCapabilities:
        self._library = native.declare(self._load(), api.PROTOTYPES)
        init = api.DcamInit(size=ctypes.sizeof(api.DcamInit))
        try:
            self._call("dcamapi_init", byref(init))
        except DeviceError:
            self._library = None
            raise
        index = self._options.index
        if index >= init.iDeviceCount:
            raise NotConnectedError(
                f"DCAM finds {init.iDeviceCount} cameras and none with camera.index = {index}; "
                "switch it on, or set camera.index"
            )
        opened = api.DcamOpen(size=ctypes.sizeof(api.DcamOpen), index=index)
        try:
            self._call("dcamdev_open", byref(opened))
        except RefusedError as error:
            raise NotConnectedError(f"{error}; close the other program") from None
        self._camera = opened.hdcam
        wait = api.DcamWaitOpen(size=ctypes.sizeof(api.DcamWaitOpen), hdcam=self._camera)
        self._call("dcamwait_open", byref(wait))
        self._wait = wait.hwait
        self._set(api.TRIGGERSOURCE, api.TRIGGERSOURCE_INTERNAL)
        self._set_properties()
        return self._capabilities()

    def close(self) -> None:
        self.stop()
        with contextlib.suppress(DeviceError):
            if self._wait is not None:
                self._call("dcamwait_close", self._wait)
        with contextlib.suppress(DeviceError):
            if self._camera is not None:
                self._call("dcamdev_close", self._camera)
        with contextlib.suppress(DeviceError):
            if self._library is not None:
                self._call("dcamapi_uninit")
        self._library = self._camera = self._wait = None

    def _capabilities(self) -> CameraCapabilities:
        try:
            self._set(api.SUBARRAYMODE, api.OFF)
            self._sensor = tuple(  # type: ignore[assignment]
                int(self._attribute(name).valuemax)
                for name in (api.SUBARRAYVSIZE, api.SUBARRAYHSIZE)
            )
            self._has_roi = True
        except RefusedError:
            self._has_roi = False
        binnings = tuple(n for n in api.BINNINGS if self._has_value(api.BINNING, n)) or (1,)
        if 1 in binnings and len(binnings) > 1:
            self._set(api.BINNING, 1)
        if not self._has_roi:
            self._sensor = int(self._get(api.IMAGE_HEIGHT)), int(self._get(api.IMAGE_WIDTH))
        self._has_stamp = (
            self._get_or(api.FRAMESTAMP_PRODUCER, api.FRAMESTAMP_NONE) != api.FRAMESTAMP_NONE
        )
        exposure = self._attribute(api.EXPOSURETIME)
        return CameraCapabilities(
            name=f"Hamamatsu {self._string(api.MODEL)} {self._string(api.CAMERAID)}".strip(),
            sensor_shape=self._sensor,
            dtype=self._pixel_type(),
            exposure_range_s=(exposure.valuemin, exposure.valuemax),
            binnings=tuple(sorted({1, *binnings})),
            has_roi=self._has_roi,
        )

    # -------------------------------------------------------------------------------- the settings

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        if self._get_or(api.BINNING, 1) != settings.binning:
            self._set(api.BINNING, settings.binning)
        if self._has_roi:
            self._set_roi(roi)
        self._set(api.EXPOSURETIME, settings.exposure_s)
        exposure_s = self._get(api.EXPOSURETIME)
        shape = int(self._get(api.IMAGE_HEIGHT)), int(self._get(api.IMAGE_WIDTH))
        interval_s = max(
            exposure_s,
            self._get_or(api.INTERNAL_FRAMEINTERVAL, self._get_or(api.TIMING_READOUTTIME, 0)),
        )
        dtype = self._pixel_type()
        bits = int(self._get_or(api.BITSPERCHANNEL, 8 * dtype.itemsize))
        binning = int(self._get_or(api.BINNING, 1))
        self._state = CameraState(
            exposure_s=exposure_s,
            binning=binning,
            roi=self._get_roi(),
            frame_shape=shape,
            dtype=dtype,
            frame_interval_s=interval_s,
            saturation_counts=float(2**bits - 1),
        )
        return self._state

    def _set_roi(self, roi: Roi) -> None:
        # With the mode off, position and size may be set in any order.
        self._set(api.SUBARRAYMODE, api.OFF)
        if roi == (0, 0, *self._sensor):
            return
        names = (api.SUBARRAYVPOS, api.SUBARRAYHPOS, api.SUBARRAYVSIZE, api.SUBARRAYHSIZE)
        for name, value in zip(names, roi, strict=True):
            step = self._attribute(name).valuestep
            if step > 1 and value % step:
                raise RefusedError(
                    f"the region {roi} is refused; the camera takes multiples of {step:g} px"
                )
            self._set(name, value)
        self._set(api.SUBARRAYMODE, api.ON)

    def _get_roi(self) -> Roi:
        if not self._has_roi or self._get(api.SUBARRAYMODE) != api.ON:
            return (0, 0, *self._sensor)
        top, left = int(self._get(api.SUBARRAYVPOS)), int(self._get(api.SUBARRAYHPOS))
        return top, left, int(self._get(api.SUBARRAYVSIZE)), int(self._get(api.SUBARRAYHSIZE))

    def _pixel_type(self) -> np.dtype[Any]:
        told = int(self._get(api.IMAGE_PIXELTYPE))
        if told not in api.PIXELTYPES:
            raise RefusedError(
                f"the camera sends pixels of DCAM's type {told}; set it to MONO8 or MONO16 with "
                "camera.properties"
            )
        return api.PIXELTYPES[told]

    def _set_properties(self) -> None:
        if not self._options.properties:
            return
        known = dict(self._properties())
        for name, value in self._options.properties.items():
            if name not in known:
                raise RefusedError(
                    f"the camera has no property '{name}'; it has: {', '.join(known)}"
                )
            self._set(known[name], value)

    def _properties(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        number = c_int32(0)
        while self._library.dcamprop_getnextid(self._camera, byref(number), api.NEXT_ID) > 0:
            if not number.value or number.value in (known for _, known in found):
                break
            text = ctypes.create_string_buffer(api.TEXT_BYTES)
            self._call("dcamprop_getname", self._camera, number.value, text, api.TEXT_BYTES)
            found.append((text.value.decode(errors="replace"), number.value))
        return found

    # ---------------------------------------------------------------------------------- the frames

    def start(self, frames: int | None) -> None:
        self._next = self._lost = 0
        self._first_stamp = None
        self._call("dcambuf_alloc", self._camera, self._options.buffer_frames)
        self._capturing = True
        self._call("dcamcap_start", self._camera, api.START_SEQUENCE)

    def stop(self) -> None:
        if not self._capturing:
            return
        self._capturing = False
        try:
            self._call("dcamcap_stop", self._camera)
        finally:
            self._call("dcambuf_release", self._camera, 0)

    def fetch(self, buffer: npt.NDArray[Any], wait_s: float) -> Fetched | None:
        if self._transferred() <= self._next and not self._await(wait_s):
            return None
        while (count := self._transferred()) > self._next:
            oldest = count - self._options.buffer_frames + _GAPS
            self._next = max(self._next, oldest)
            frame = self._copy(buffer)
            # Not overwritten while it was being copied.
            if self._transferred() - self._next <= self._options.buffer_frames - _GAPS:
                fetched = self._numbered(frame)
                self._next += 1
                return fetched
        return None

    def is_there(self) -> bool:
        try:
            return self._get_or(api.SYSTEM_ALIVE, api.OFFLINE + 1) != api.OFFLINE
        except DeviceError:
            return False

    def _await(self, wait_s: float) -> bool:
        wait = api.DcamWait(
            size=ctypes.sizeof(api.DcamWait),
            eventmask=api.FRAMEREADY | api.STOPPED,
            timeout=max(1, round(1e3 * wait_s)),
        )
        code = self._library.dcamwait_start(self._wait, byref(wait)) & 0xFFFFFFFF
        if code in (api.TIMEOUT, api.ABORT):
            return False
        if code == api.LOSTFRAME:
            # The next frame's stamp tells how many; without a stamp, one is known of.
            self._lost += not self._has_stamp
            return False
        self._check("dcamwait_start", code)
        if wait.eventhappened & api.STOPPED and not wait.eventhappened & api.FRAMEREADY:
            raise DisconnectedError("the Hamamatsu camera stopped by itself; start it again")
        return True

    def _transferred(self) -> int:
        info = api.DcamTransfer(size=ctypes.sizeof(api.DcamTransfer))
        self._call("dcamcap_transferinfo", self._camera, byref(info))
        return int(info.nFrameCount)

    def _copy(self, buffer: npt.NDArray[Any]) -> api.DcamFrame:
        frame = api.DcamFrame(
            size=ctypes.sizeof(api.DcamFrame), iFrame=self._next % self._options.buffer_frames
        )
        self._call("dcambuf_lockframe", self._camera, byref(frame))
        dtype = api.PIXELTYPES.get(frame.type)
        if (frame.height, frame.width) != buffer.shape or dtype != buffer.dtype:
            raise DisconnectedError(
                f"the Hamamatsu camera sent {frame.height}x{frame.width} pixels of DCAM's type "
                f"{frame.type} where {buffer.shape[0]}x{buffer.shape[1]} of {buffer.dtype} were "
                "set; was it changed by another program?"
            )
        image = native.rows_at(frame.buf, frame.height, frame.rowbytes, frame.width, buffer.dtype)
        np.copyto(buffer, image)
        return frame

    def _numbered(self, frame: api.DcamFrame) -> Fetched:
        stamp = int(frame.framestamp)
        if self._first_stamp is None:
            self._first_stamp = stamp - self._next
        missed = stamp - self._first_stamp - self._next if self._has_stamp else 0
        self._lost = max(self._lost, missed)
        time = frame.timestamp
        return Fetched(
            number=self._next + self._lost,
            device_time_s=time.sec + 1e-6 * time.microsec if time.sec or time.microsec else None,
            raw={"framestamp": stamp, "camerastamp": int(frame.camerastamp)},
        )

    # ------------------------------------------------------------------------- asking the library

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments) & 0xFFFFFFFF)

    def _check(self, name: str, code: int) -> None:
        # Errors are negative, as DCAMERR is a signed number.
        if code < 0x80000000:
            return
        said = f"DCAM's {name} says {api.CODES.get(code, 'an unknown error')} (0x{code:08X})"
        if code in api.REFUSALS:
            raise RefusedError(said)
        raise DisconnectedError(f"{said}; look at the camera's power and cable, and reconnect")

    def _get(self, name: int) -> float:
        value = c_double()
        self._call("dcamprop_getvalue", self._camera, name, byref(value))
        return value.value

    def _get_or(self, name: int, otherwise: float) -> float:
        """A property, or what stands for it where the camera has none."""
        try:
            return self._get(name)
        except RefusedError:
            return otherwise

    def _set(self, name: int, value: float) -> None:
        self._call("dcamprop_setvalue", self._camera, name, value)

    def _attribute(self, name: int) -> api.DcamAttribute:
        attribute = api.DcamAttribute(cbSize=ctypes.sizeof(api.DcamAttribute), iProp=name)
        self._call("dcamprop_getattr", self._camera, byref(attribute))
        return attribute

    def _has_value(self, name: int, value: int) -> bool:
        text = ctypes.create_string_buffer(api.TEXT_BYTES)
        asked = api.DcamValueText(
            cbSize=ctypes.sizeof(api.DcamValueText),
            iProp=name,
            value=value,
            text=ctypes.addressof(text),
            textbytes=api.TEXT_BYTES,
        )
        try:
            self._call("dcamprop_getvaluetext", self._camera, byref(asked))
        except RefusedError:
            return False
        return True

    def _string(self, name: int) -> str:
        text = ctypes.create_string_buffer(api.TEXT_BYTES)
        asked = api.DcamString(
            size=ctypes.sizeof(api.DcamString),
            iString=name,
            text=ctypes.addressof(text),
            textbytes=api.TEXT_BYTES,
        )
        self._call("dcamdev_getstring", self._camera, byref(asked))
        return text.value.decode(errors="replace").strip()
