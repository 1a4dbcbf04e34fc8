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
from ctypes import POINTER, byref, c_double, c_int32, c_uint32, c_void_p
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers import native
from tem_live.drivers.device_camera import DeviceCamera, Fetched
from tem_live.drivers.families import Family, Vendor
from tem_live.drivers.guarded import GuardedDevice
from tem_live.drivers.protocols import CameraCapabilities, CameraSettings, CameraState, Roi
from tem_live.errors import DeviceError, DisconnectedError, NotConnectedError, RefusedError

LIBRARY = ("dcamapi.dll", "libdcamapi.so")
FOLDERS = ("/usr/local/lib",)
MEND = "install Hamamatsu's DCAM-API from https://dcam-api.com, or set camera.library"

# dcamprop.h
_TRIGGERSOURCE, _TRIGGERSOURCE_INTERNAL = 0x00100110, 1
_EXPOSURETIME = 0x001F0110
_BINNING = 0x00401110
_SUBARRAYHPOS, _SUBARRAYHSIZE = 0x00402110, 0x00402120
_SUBARRAYVPOS, _SUBARRAYVSIZE = 0x00402130, 0x00402140
_SUBARRAYMODE, _OFF, _ON = 0x00402150, 1, 2
_TIMING_READOUTTIME = 0x00403010
_INTERNAL_FRAMEINTERVAL = 0x00403820
_FRAMESTAMP_PRODUCER, _FRAMESTAMP_NONE = 0x00410A20, 1
_BITSPERCHANNEL = 0x00420130
_IMAGE_WIDTH, _IMAGE_HEIGHT, _IMAGE_PIXELTYPE = 0x00420210, 0x00420220, 0x00420270
_SYSTEM_ALIVE, _OFFLINE = 0x00FF0010, 1
_NEXT_ID = 0
"""DCAMPROP_OPTION_SUPPORT: `dcamprop_getnextid` goes through what the camera has."""

# dcamapi4.h
_MODEL, _CAMERAID = 0x04000104, 0x04000102
_FRAMEREADY, _STOPPED = 0x0002, 0x0010
_START_SEQUENCE = -1
_PIXELTYPES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}
_BINNINGS = (1, 2, 4, 8, 16)
_TEXT_BYTES = 256
_CODES = {
    0x80000101: "BUSY",
    0x80000102: "ABORT",
    0x80000103: "NOTREADY",
    0x80000106: "TIMEOUT",
    0x80000110: "EXCLUDED: another program has it",
    0x80000201: "NORESOURCE",
    0x80000203: "NOMEMORY",
    0x80000204: "NOMODULE",
    0x80000205: "NODRIVER",
    0x80000206: "NOCAMERA",
    0x80000207: "NOGRABBER",
    0x80000301: "LOSTFRAME",
    0x80000806: "INVALIDCAMERA",
    0x80000807: "INVALIDHANDLE",
    0x80000808: "INVALIDPARAM",
    0x80000821: "INVALIDVALUE",
    0x80000822: "OUTOFRANGE",
    0x80000823: "NOTWRITABLE",
    0x80000824: "NOTREADABLE",
    0x80000825: "INVALIDPROPERTYID",
    0x80000828: "NOPROPERTY",
    0x8000082C: "ACCESSDENY",
    0x8000082D: "NOVALUETEXT",
    0x8000082E: "WRONGPROPERTYVALUE",
    0x80000830: "DISHARMONY",
    0x80000833: "INVALIDFRAMEINDEX",
    0x80000F03: "NOTSUPPORT",
    0x80000F07: "NOCONNECTION",
    0x81001001: "FAILOPENBUS",
    0x82001001: "FAILOPENCAMERA",
    0x83001002: "FAILREADCAMERA",
    0x83001003: "FAILWRITECAMERA",
}
_ABORT, _TIMEOUT, _LOSTFRAME = 0x80000102, 0x80000106, 0x80000301
_REFUSALS = {0x80000101, 0x80000103, 0x80000110, 0x80000808, *range(0x80000821, 0x80000831)}
_REFUSALS |= {0x80000F03}
_GAPS = 2
"""Frames of the ring that are not fetched any more: DCAM may be writing there."""


class DcamInit(ctypes.Structure):
    """DCAMAPI_INIT."""

    _fields_ = (
        ("size", c_int32),
        ("iDeviceCount", c_int32),
        ("reserved", c_int32),
        ("initoptionbytes", c_int32),
        ("initoption", c_void_p),
        ("guid", c_void_p),
    )


class DcamOpen(ctypes.Structure):
    """DCAMDEV_OPEN."""

    _fields_ = (("size", c_int32), ("index", c_int32), ("hdcam", c_void_p))


class DcamString(ctypes.Structure):
    """DCAMDEV_STRING."""

    _fields_ = (("size", c_int32), ("iString", c_int32), ("text", c_void_p), ("textbytes", c_int32))


class DcamAttribute(ctypes.Structure):
    """DCAMPROP_ATTR."""

    _fields_ = (
        ("cbSize", c_int32),
        ("iProp", c_int32),
        ("option", c_int32),
        ("iReserved1", c_int32),
        ("attribute", c_int32),
        ("iGroup", c_int32),
        ("iUnit", c_int32),
        ("attribute2", c_int32),
        ("valuemin", c_double),
        ("valuemax", c_double),
        ("valuestep", c_double),
        ("valuedefault", c_double),
        ("nMaxChannel", c_int32),
        ("iReserved3", c_int32),
        ("nMaxView", c_int32),
        ("iProp_NumberOfElement", c_int32),
        ("iProp_ArrayBase", c_int32),
        ("iPropStep_Element", c_int32),
    )


class DcamValueText(ctypes.Structure):
    """DCAMPROP_VALUETEXT."""

    _fields_ = (
        ("cbSize", c_int32),
        ("iProp", c_int32),
        ("value", c_double),
        ("text", c_void_p),
        ("textbytes", c_int32),
    )


class DcamTimestamp(ctypes.Structure):
    """DCAM_TIMESTAMP."""

    _fields_ = (("sec", c_uint32), ("microsec", c_int32))


class DcamFrame(ctypes.Structure):
    """DCAMBUF_FRAME."""

    _fields_ = (
        ("size", c_int32),
        ("iKind", c_int32),
        ("option", c_int32),
        ("iFrame", c_int32),
        ("buf", c_void_p),
        ("rowbytes", c_int32),
        ("type", c_int32),
        ("width", c_int32),
        ("height", c_int32),
        ("left", c_int32),
        ("top", c_int32),
        ("timestamp", DcamTimestamp),
        ("framestamp", c_int32),
        ("camerastamp", c_int32),
    )


class DcamWaitOpen(ctypes.Structure):
    """DCAMWAIT_OPEN."""

    _fields_ = (
        ("size", c_int32),
        ("supportevent", c_int32),
        ("hwait", c_void_p),
        ("hdcam", c_void_p),
    )


class DcamWait(ctypes.Structure):
    """DCAMWAIT_START; the time in milliseconds."""

    _fields_ = (
        ("size", c_int32),
        ("eventhappened", c_int32),
        ("eventmask", c_int32),
        ("timeout", c_int32),
    )


class DcamTransfer(ctypes.Structure):
    """DCAMCAP_TRANSFERINFO."""

    _fields_ = (
        ("size", c_int32),
        ("iKind", c_int32),
        ("nNewestFrameIndex", c_int32),
        ("nFrameCount", c_int32),
    )


PROTOTYPES: native.Prototypes = {
    "dcamapi_init": (c_int32, (POINTER(DcamInit),)),
    "dcamapi_uninit": (c_int32, ()),
    "dcamdev_open": (c_int32, (POINTER(DcamOpen),)),
    "dcamdev_close": (c_int32, (c_void_p,)),
    "dcamdev_getstring": (c_int32, (c_void_p, POINTER(DcamString))),
    "dcamprop_getattr": (c_int32, (c_void_p, POINTER(DcamAttribute))),
    "dcamprop_getvalue": (c_int32, (c_void_p, c_int32, POINTER(c_double))),
    "dcamprop_setvalue": (c_int32, (c_void_p, c_int32, c_double)),
    "dcamprop_getnextid": (c_int32, (c_void_p, POINTER(c_int32), c_int32)),
    "dcamprop_getname": (c_int32, (c_void_p, c_int32, c_void_p, c_int32)),
    "dcamprop_getvaluetext": (c_int32, (c_void_p, POINTER(DcamValueText))),
    "dcambuf_alloc": (c_int32, (c_void_p, c_int32)),
    "dcambuf_release": (c_int32, (c_void_p, c_int32)),
    "dcambuf_lockframe": (c_int32, (c_void_p, POINTER(DcamFrame))),
    "dcamcap_start": (c_int32, (c_void_p, c_int32)),
    "dcamcap_stop": (c_int32, (c_void_p,)),
    "dcamcap_transferinfo": (c_int32, (c_void_p, POINTER(DcamTransfer))),
    "dcamwait_open": (c_int32, (POINTER(DcamWaitOpen),)),
    "dcamwait_close": (c_int32, (c_void_p,)),
    "dcamwait_start": (c_int32, (c_void_p, POINTER(DcamWait))),
}


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


class HamamatsuOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for Hamamatsu.

    Attributes
    ----------
    index : int
        Which of the cameras that DCAM finds, from 0.
    library : str or None
        The library's file, where it is not in the system's folders.
    buffer_frames : int
        Frames of DCAM's ring.
    properties : dict
        DCAM properties to set when it is opened, by DCAM's names, such as ``"READOUT SPEED"``, with
        DCAM's numbers.
    reply_timeout_s : float
        How long the library may take for a call in the course of a run, in seconds, before it is
        given up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(default=0, ge=0)
    library: str | None = None
    buffer_frames: int = Field(default=32, ge=4, le=4096)
    properties: dict[str, float] = Field(default_factory=dict)
    reply_timeout_s: float = Field(default=5.0, gt=0, le=600)


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
        self._library = native.declare(self._load(), PROTOTYPES)
        init = DcamInit(size=ctypes.sizeof(DcamInit))
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
        opened = DcamOpen(size=ctypes.sizeof(DcamOpen), index=index)
        try:
            self._call("dcamdev_open", byref(opened))
        except RefusedError as error:
            raise NotConnectedError(f"{error}; close the other program") from None
        self._camera = opened.hdcam
        wait = DcamWaitOpen(size=ctypes.sizeof(DcamWaitOpen), hdcam=self._camera)
        self._call("dcamwait_open", byref(wait))
        self._wait = wait.hwait
        self._set(_TRIGGERSOURCE, _TRIGGERSOURCE_INTERNAL)
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
            self._set(_SUBARRAYMODE, _OFF)
            self._sensor = tuple(  # type: ignore[assignment]
                int(self._attribute(name).valuemax) for name in (_SUBARRAYVSIZE, _SUBARRAYHSIZE)
            )
            self._has_roi = True
        except RefusedError:
            self._has_roi = False
        binnings = tuple(n for n in _BINNINGS if self._has_value(_BINNING, n)) or (1,)
        if 1 in binnings and len(binnings) > 1:
            self._set(_BINNING, 1)
        if not self._has_roi:
            self._sensor = int(self._get(_IMAGE_HEIGHT)), int(self._get(_IMAGE_WIDTH))
        self._has_stamp = self._get_or(_FRAMESTAMP_PRODUCER, _FRAMESTAMP_NONE) != _FRAMESTAMP_NONE
        exposure = self._attribute(_EXPOSURETIME)
        return CameraCapabilities(
            name=f"Hamamatsu {self._string(_MODEL)} {self._string(_CAMERAID)}".strip(),
            sensor_shape=self._sensor,
            dtype=self._pixel_type(),
            exposure_range_s=(exposure.valuemin, exposure.valuemax),
            binnings=tuple(sorted({1, *binnings})),
            has_roi=self._has_roi,
        )

    # -------------------------------------------------------------------------------- the settings

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        if self._get_or(_BINNING, 1) != settings.binning:
            self._set(_BINNING, settings.binning)
        if self._has_roi:
            self._set_roi(roi)
        self._set(_EXPOSURETIME, settings.exposure_s)
        exposure_s = self._get(_EXPOSURETIME)
        shape = int(self._get(_IMAGE_HEIGHT)), int(self._get(_IMAGE_WIDTH))
        interval_s = max(
            exposure_s, self._get_or(_INTERNAL_FRAMEINTERVAL, self._get_or(_TIMING_READOUTTIME, 0))
        )
        dtype = self._pixel_type()
        bits = int(self._get_or(_BITSPERCHANNEL, 8 * dtype.itemsize))
        binning = int(self._get_or(_BINNING, 1))
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
        self._set(_SUBARRAYMODE, _OFF)
        if roi == (0, 0, *self._sensor):
            return
        names = (_SUBARRAYVPOS, _SUBARRAYHPOS, _SUBARRAYVSIZE, _SUBARRAYHSIZE)
        for name, value in zip(names, roi, strict=True):
            step = self._attribute(name).valuestep
            if step > 1 and value % step:
                raise RefusedError(
                    f"the region {roi} is refused; the camera takes multiples of {step:g} px"
                )
            self._set(name, value)
        self._set(_SUBARRAYMODE, _ON)

    def _get_roi(self) -> Roi:
        if not self._has_roi or self._get(_SUBARRAYMODE) != _ON:
            return (0, 0, *self._sensor)
        top, left = int(self._get(_SUBARRAYVPOS)), int(self._get(_SUBARRAYHPOS))
        return top, left, int(self._get(_SUBARRAYVSIZE)), int(self._get(_SUBARRAYHSIZE))

    def _pixel_type(self) -> np.dtype[Any]:
        told = int(self._get(_IMAGE_PIXELTYPE))
        if told not in _PIXELTYPES:
            raise RefusedError(
                f"the camera sends pixels of DCAM's type {told}; set it to MONO8 or MONO16 with "
                "camera.properties"
            )
        return _PIXELTYPES[told]

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
        while self._library.dcamprop_getnextid(self._camera, byref(number), _NEXT_ID) > 0:
            if not number.value or number.value in (known for _, known in found):
                break
            text = ctypes.create_string_buffer(_TEXT_BYTES)
            self._call("dcamprop_getname", self._camera, number.value, text, _TEXT_BYTES)
            found.append((text.value.decode(errors="replace"), number.value))
        return found

    # ---------------------------------------------------------------------------------- the frames

    def start(self, frames: int | None) -> None:
        self._next = self._lost = 0
        self._first_stamp = None
        self._call("dcambuf_alloc", self._camera, self._options.buffer_frames)
        self._capturing = True
        self._call("dcamcap_start", self._camera, _START_SEQUENCE)

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
            return self._get_or(_SYSTEM_ALIVE, _OFFLINE + 1) != _OFFLINE
        except DeviceError:
            return False

    def _await(self, wait_s: float) -> bool:
        wait = DcamWait(
            size=ctypes.sizeof(DcamWait),
            eventmask=_FRAMEREADY | _STOPPED,
            timeout=max(1, round(1e3 * wait_s)),
        )
        code = self._library.dcamwait_start(self._wait, byref(wait)) & 0xFFFFFFFF
        if code in (_TIMEOUT, _ABORT):
            return False
        if code == _LOSTFRAME:
            # The next frame's stamp tells how many; without a stamp, one is known of.
            self._lost += not self._has_stamp
            return False
        self._check("dcamwait_start", code)
        if wait.eventhappened & _STOPPED and not wait.eventhappened & _FRAMEREADY:
            raise DisconnectedError("the Hamamatsu camera stopped by itself; start it again")
        return True

    def _transferred(self) -> int:
        info = DcamTransfer(size=ctypes.sizeof(DcamTransfer))
        self._call("dcamcap_transferinfo", self._camera, byref(info))
        return int(info.nFrameCount)

    def _copy(self, buffer: npt.NDArray[Any]) -> DcamFrame:
        frame = DcamFrame(
            size=ctypes.sizeof(DcamFrame), iFrame=self._next % self._options.buffer_frames
        )
        self._call("dcambuf_lockframe", self._camera, byref(frame))
        dtype = _PIXELTYPES.get(frame.type)
        if (frame.height, frame.width) != buffer.shape or dtype != buffer.dtype:
            raise DisconnectedError(
                f"the Hamamatsu camera sent {frame.height}x{frame.width} pixels of DCAM's type "
                f"{frame.type} where {buffer.shape[0]}x{buffer.shape[1]} of {buffer.dtype} were "
                "set; was it changed by another program?"
            )
        image = native.rows_at(frame.buf, frame.height, frame.rowbytes, frame.width, buffer.dtype)
        np.copyto(buffer, image)
        return frame

    def _numbered(self, frame: DcamFrame) -> Fetched:
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
        said = f"DCAM's {name} says {_CODES.get(code, 'an unknown error')} (0x{code:08X})"
        if code in _REFUSALS:
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

    def _attribute(self, name: int) -> DcamAttribute:
        attribute = DcamAttribute(cbSize=ctypes.sizeof(DcamAttribute), iProp=name)
        self._call("dcamprop_getattr", self._camera, byref(attribute))
        return attribute

    def _has_value(self, name: int, value: int) -> bool:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        asked = DcamValueText(
            cbSize=ctypes.sizeof(DcamValueText),
            iProp=name,
            value=value,
            text=ctypes.addressof(text),
            textbytes=_TEXT_BYTES,
        )
        try:
            self._call("dcamprop_getvaluetext", self._camera, byref(asked))
        except RefusedError:
            return False
        return True

    def _string(self, name: int) -> str:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        asked = DcamString(
            size=ctypes.sizeof(DcamString),
            iString=name,
            text=ctypes.addressof(text),
            textbytes=_TEXT_BYTES,
        )
        self._call("dcamdev_getstring", self._camera, byref(asked))
        return text.value.decode(errors="replace").strip()
