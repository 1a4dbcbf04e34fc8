"""Andor sCMOS cameras (Zyla, Neo, Sona, Marana, iStar sCMOS) through SDK3 (``atcore``).

SDK3 fills the buffers that were queued, in order. It has no frame number; each frame carries a
timestamp of the camera's clock, and a gap of that clock in which frames are missing is what tells
of a lost one (`AndorOptions.count_by_clock`). Functions, error numbers and handles are those of
Andor's header atcore.h, features and the order in which a region is set those of the "Andor
Software Development Kit 3" manual, both as pylablib 1.4.5 and andor3 0.3.5 use them; the layout of
the metadata behind an image is theirs, too. A program has one SDK3: one camera of this driver at a
time. Andor's EMCCD cameras have another library (SDK2) and come through Micro-Manager.

**Untested on hardware.** Tested against a fake of the library's functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from ctypes import POINTER, byref, c_double, c_int, c_longlong, c_uint, c_void_p, c_wchar_p
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from tem_live.drivers import native
from tem_live.drivers.device_camera import DeviceCamera, Fetched
from tem_live.drivers.families import Family, Vendor
from tem_live.drivers.guarded import GuardedDevice
from tem_live.drivers.protocols import CameraCapabilities, CameraSettings, CameraState, Roi
from tem_live.errors import (
    DeviceError,
    DisconnectedError,
    NotConnectedError,
    OverflowedError,
    RefusedError,
)

LIBRARY = ("atcore.dll", "libatcore.so")
FOLDERS = (r"C:\Program Files\Andor SDK3", r"C:\Program Files\Andor SOLIS", "/usr/local/lib")
MEND = "install Andor's SDK3 from https://andor.oxinst.com, or set camera.library"

# atcore.h
_SYSTEM = 1
_CODES = {
    1: "NOTINITIALISED",
    2: "NOTIMPLEMENTED",
    3: "READONLY",
    4: "NOTREADABLE",
    5: "NOTWRITABLE",
    6: "OUTOFRANGE",
    7: "INDEXNOTAVAILABLE",
    8: "INDEXNOTIMPLEMENTED",
    9: "EXCEEDEDMAXSTRINGLENGTH",
    10: "CONNECTION",
    11: "NODATA",
    12: "INVALIDHANDLE",
    13: "TIMEDOUT",
    14: "BUFFERFULL",
    15: "INVALIDSIZE",
    16: "INVALIDALIGNMENT",
    17: "COMM",
    18: "STRINGNOTAVAILABLE",
    19: "STRINGNOTIMPLEMENTED",
    37: "NOMEMORY",
    38: "DEVICEINUSE",
    39: "DEVICENOTFOUND",
    100: "HARDWARE_OVERFLOW",
}
_TIMEDOUT, _NODATA, _DEVICEINUSE, _OVERFLOW = 13, 11, 38, 100
_REFUSALS = {*range(2, 10), 15, 18, 19, _DEVICEINUSE}
_TIMESTAMP_CHUNK = 1
_ENCODINGS: dict[str, np.dtype[Any]] = {
    "Mono16": np.dtype("<u2"),
    "Mono32": np.dtype("<u4"),
}
_SQUARE_BINNINGS = (1, 2, 3, 4, 8)
_TEXT_LENGTH = 256
_GAP = 1.5
"""Intervals without a frame from which on one is missing."""

PROTOTYPES: native.Prototypes = {
    "AT_InitialiseLibrary": (c_int, ()),
    "AT_FinaliseLibrary": (c_int, ()),
    "AT_Open": (c_int, (c_int, POINTER(c_int))),
    "AT_Close": (c_int, (c_int,)),
    "AT_IsImplemented": (c_int, (c_int, c_wchar_p, POINTER(c_int))),
    "AT_IsWritable": (c_int, (c_int, c_wchar_p, POINTER(c_int))),
    "AT_SetInt": (c_int, (c_int, c_wchar_p, c_longlong)),
    "AT_GetInt": (c_int, (c_int, c_wchar_p, POINTER(c_longlong))),
    "AT_GetIntMax": (c_int, (c_int, c_wchar_p, POINTER(c_longlong))),
    "AT_SetFloat": (c_int, (c_int, c_wchar_p, c_double)),
    "AT_GetFloat": (c_int, (c_int, c_wchar_p, POINTER(c_double))),
    "AT_GetFloatMin": (c_int, (c_int, c_wchar_p, POINTER(c_double))),
    "AT_GetFloatMax": (c_int, (c_int, c_wchar_p, POINTER(c_double))),
    "AT_SetBool": (c_int, (c_int, c_wchar_p, c_int)),
    "AT_GetBool": (c_int, (c_int, c_wchar_p, POINTER(c_int))),
    "AT_SetEnumString": (c_int, (c_int, c_wchar_p, c_wchar_p)),
    "AT_GetEnumIndex": (c_int, (c_int, c_wchar_p, POINTER(c_int))),
    "AT_GetEnumCount": (c_int, (c_int, c_wchar_p, POINTER(c_int))),
    "AT_GetEnumStringByIndex": (c_int, (c_int, c_wchar_p, c_int, c_void_p, c_int)),
    "AT_Command": (c_int, (c_int, c_wchar_p)),
    "AT_GetString": (c_int, (c_int, c_wchar_p, c_void_p, c_int)),
    "AT_QueueBuffer": (c_int, (c_int, c_void_p, c_int)),
    "AT_WaitBuffer": (c_int, (c_int, POINTER(c_void_p), POINTER(c_int), c_uint)),
    "AT_Flush": (c_int, (c_int,)),
}


FAMILY = Family(
    "andor",
    vendor=Vendor(
        name=f"SDK3 ({LIBRARY[0]})",
        is_there=lambda: native.is_installed(LIBRARY, FOLDERS),
        install=MEND,
    ),
    # SDK3 cannot be asked for its cameras without being started.
    start="switch the camera on, then try: tem-live run --profile andor --frames 1",
    tested_against="a fake of SDK3's functions; no camera hardware",
)


class AndorOptions(native.LibraryOptions):
    """Fields of the profile's ``[camera]`` table, besides those of `native.LibraryOptions`.

    Attributes
    ----------
    index : int
        Which of the cameras that SDK3 finds, from 0.
    buffer_frames : int
        How many buffers are queued.
    count_by_clock : bool
        Whether frames are numbered by the camera's clock, so that a gap counts as lost frames.
        Set it to false where the frames of a sound camera do not come evenly.
    properties : dict
        SDK3 features to set when it is opened, by SDK3's names, such as
        ``SimplePreAmpGainControl = "16-bit (low noise & high well capacity)"``.
    """

    index: int = Field(default=0, ge=0)
    buffer_frames: int = Field(default=16, ge=2, le=4096)
    count_by_clock: bool = True
    properties: dict[str, bool | int | float | str] = Field(default_factory=dict)


class AndorCamera(DeviceCamera):
    """See the module's text.

    Parameters
    ----------
    options : AndorOptions
        Which camera.
    load : callable or None
        Gives the library; None looks for the installed one.
    """

    Options: ClassVar[type[BaseModel]] = AndorOptions

    def __init__(self, options: AndorOptions, load: native.Loader | None = None) -> None:
        load = load or native.loader(LIBRARY, options.library, FOLDERS, MEND)
        device = GuardedDevice(_Atcore(options, load), "Andor's SDK3", options.reply_timeout_s)
        super().__init__(device, "the Andor camera")


class _Atcore:
    def __init__(self, options: AndorOptions, load: native.Loader) -> None:
        self._options = options
        self._load = load
        self._library: Any = None
        self._camera: int | None = None
        self._sensor = (0, 0)
        self._dtype = _ENCODINGS["Mono16"]
        self._row_bytes = 0
        self._image_bytes = 0
        self._interval_s = 0.0
        self._clock_Hz = 0
        self._buffers: dict[int, npt.NDArray[np.uint8]] = {}
        self._before: tuple[int, int] | None = None
        self._acquiring = False

    # ------------------------------------------------------------------------ opening and closing

    def open(self) -> CameraCapabilities:
        library = native.declare(self._load(), PROTOTYPES)
        if code := library.AT_InitialiseLibrary():
            raise NotConnectedError(f"Andor's SDK3 does not start: {_named(code)}; reinstall it")
        self._library = library
        index = self._options.index
        found = self._int("DeviceCount", of=_SYSTEM)
        if index >= found:
            raise NotConnectedError(
                f"Andor's SDK3 finds {found} cameras and none with camera.index = {index}; "
                "switch it on, or set camera.index"
            )
        handle = c_int()
        if code := library.AT_Open(index, byref(handle)):
            remedy = "close the other program" if code == _DEVICEINUSE else "look at its cable"
            raise NotConnectedError(f"the Andor camera cannot be opened: {_named(code)}; {remedy}")
        self._camera = handle.value
        self._set_up()
        return self._capabilities()

    def close(self) -> None:
        self.stop()
        library, self._library = self._library, None
        camera, self._camera = self._camera, None
        if library is not None:
            if camera is not None:
                library.AT_Close(camera)
            library.AT_FinaliseLibrary()

    def _set_up(self) -> None:
        self._set_word("TriggerMode", "Internal")
        self._set_word("CycleMode", "Continuous")
        for name, value in self._options.properties.items():
            self._set(name, value)
        encoding = self._word("PixelEncoding")
        if encoding not in _ENCODINGS:
            self._set_word("PixelEncoding", encoding := "Mono16")
        self._dtype = _ENCODINGS[encoding]
        for name in ("MetadataEnable", "MetadataTimestamp"):
            if self._is("AT_IsImplemented", name) and self._is("AT_IsWritable", name):
                self._call("AT_SetBool", name, 1)
        has_clock = self._is("AT_IsImplemented", "TimestampClockFrequency")
        self._clock_Hz = self._int("TimestampClockFrequency") if has_clock else 0

    def _capabilities(self) -> CameraCapabilities:
        self._sensor = self._int("SensorHeight"), self._int("SensorWidth")
        return CameraCapabilities(
            name=f"Andor {self._text('CameraModel')} {self._text('SerialNumber')}",
            sensor_shape=self._sensor,
            dtype=self._dtype.newbyteorder("="),
            exposure_range_s=(
                self._float("ExposureTime", "AT_GetFloatMin"),
                self._float("ExposureTime", "AT_GetFloatMax"),
            ),
            binnings=self._binnings(),
            has_roi=self._is("AT_IsImplemented", "AOIWidth")
            and self._is("AT_IsWritable", "AOIWidth"),
        )

    def _binnings(self) -> tuple[int, ...]:
        if self._is("AT_IsImplemented", "AOIBinning"):
            words = self._words("AOIBinning")
            sides = {
                int(one) for one, _, other in (w.partition("x") for w in words) if one == other
            }
            return tuple(sorted({1, *sides}))
        if self._is("AT_IsImplemented", "AOIHBin") and self._is("AT_IsWritable", "AOIHBin"):
            longest = min(self._int(name, "AT_GetIntMax") for name in ("AOIHBin", "AOIVBin"))
            return tuple(side for side in _SQUARE_BINNINGS if side <= longest)
        return (1,)

    # -------------------------------------------------------------------------------- the settings

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        if self._is("AT_IsWritable", "AOIWidth"):
            self._set_region(settings.binning, roi)
        elif settings.binning != self._binning():
            self._set_binning(settings.binning)
        self._call("AT_SetFloat", "ExposureTime", settings.exposure_s)
        if self._is("AT_IsWritable", "FrameRate"):
            self._call("AT_SetFloat", "FrameRate", self._float("FrameRate", "AT_GetFloatMax"))
        exposure_s = self._float("ExposureTime")
        self._interval_s = max(exposure_s, 1 / self._float("FrameRate"))
        shape = self._int("AOIHeight"), self._int("AOIWidth")
        self._row_bytes = self._int("AOIStride")
        self._image_bytes = self._int("ImageSizeBytes")
        binning = self._binning()
        top, left = self._int("AOITop") - 1, self._int("AOILeft") - 1
        return CameraState(
            exposure_s=exposure_s,
            binning=binning,
            roi=(top, left, shape[0] * binning, shape[1] * binning),
            frame_shape=shape,
            dtype=self._dtype.newbyteorder("="),
            frame_interval_s=self._interval_s,
            # "the baseline level of the image with current settings" (SDK3 manual).
            offset_counts=float(self._int("Baseline"))
            if self._is("AT_IsImplemented", "Baseline")
            else 0.0,
        )

    def _set_region(self, binning: int, roi: Roi) -> None:
        top, left, height, width = roi
        # From the corner, so that no step of it leaves the sensor. AOIWidth counts binned pixels,
        # AOILeft the sensor's, from 1 (SDK3 manual, "Area of interest").
        for name in ("AOILeft", "AOITop"):
            if self._is("AT_IsWritable", name):
                self._call("AT_SetInt", name, 1)
        if self._binning() != binning:
            self._set_binning(binning)
        self._call("AT_SetInt", "AOIWidth", width // binning)
        self._call("AT_SetInt", "AOILeft", left + 1)
        self._call("AT_SetInt", "AOIHeight", height // binning)
        self._call("AT_SetInt", "AOITop", top + 1)

    def _set_binning(self, binning: int) -> None:
        if self._is("AT_IsImplemented", "AOIBinning"):
            self._set_word("AOIBinning", f"{binning}x{binning}")
            return
        for name in ("AOIHBin", "AOIVBin"):
            self._call("AT_SetInt", name, binning)

    def _binning(self) -> int:
        if self._is("AT_IsImplemented", "AOIBinning"):
            return int(self._word("AOIBinning").partition("x")[0])
        return self._int("AOIHBin") if self._is("AT_IsImplemented", "AOIHBin") else 1

    # ---------------------------------------------------------------------------------- the frames

    def start(self, frames: int | None) -> None:
        self._before = None
        self._flush()
        for _ in range(self._options.buffer_frames):
            # SDK3 wants them aligned to 8 bytes.
            memory = np.zeros(self._image_bytes // 8 + 1, np.uint64).view(np.uint8)
            self._buffers[memory.ctypes.data] = memory
            self._call("AT_QueueBuffer", memory.ctypes.data, self._image_bytes)
        self._acquiring = True
        self._call("AT_Command", "AcquisitionStart")

    def stop(self) -> None:
        if self._acquiring:
            self._acquiring = False
            try:
                self._call("AT_Command", "AcquisitionStop")
            finally:
                self._flush()

    def _flush(self) -> None:
        # The memory is SDK3's until it was told so.
        self._call("AT_Flush")
        self._buffers.clear()

    def fetch(self, buffer: npt.NDArray[Any], wait_s: float) -> Fetched | None:
        address, size = c_void_p(), c_int()
        code = self._library.AT_WaitBuffer(
            self._camera, byref(address), byref(size), round(1e3 * wait_s)
        )
        if code in (_TIMEDOUT, _NODATA):
            return None
        if code == _OVERFLOW:
            raise OverflowedError(
                "the Andor camera's buffer overflowed: its frames were not fetched fast enough; "
                "raise camera.buffer_frames or the exposure, and start again"
            )
        self._check("AT_WaitBuffer", code)
        memory = self._buffers.get(address.value or 0)
        if memory is None or size.value != self._image_bytes:
            raise DisconnectedError(
                f"the Andor camera sent {size.value} bytes where {self._image_bytes} were set; "
                "was it changed by another program?"
            )
        height, width = buffer.shape
        rows = memory[: height * self._row_bytes].reshape(height, self._row_bytes)
        np.copyto(buffer, rows[:, : width * self._dtype.itemsize].view(self._dtype))
        ticks = _timestamp(memory[: self._image_bytes]) if self._clock_Hz else None
        self._call("AT_QueueBuffer", memory.ctypes.data, self._image_bytes)
        if ticks is None:
            return Fetched()
        number = self._numbered(ticks)
        return Fetched(
            number=number if self._options.count_by_clock else None,
            device_time_s=ticks / self._clock_Hz,
            raw={"timestamp": ticks},
        )

    def is_there(self) -> bool:
        present = c_int()
        code = self._library.AT_GetBool(self._camera, "CameraPresent", byref(present))
        # A camera without the feature says so; one that is gone has lost its connection.
        return bool(present.value) if code == 0 else code == 2

    def _numbered(self, ticks: int) -> int:
        if self._before is None:
            number = 0
        else:
            before, at = self._before
            intervals = (ticks - at) / self._clock_Hz / self._interval_s
            number = before + (round(intervals) if intervals > _GAP else 1)
        self._before = number, ticks
        return number

    # ------------------------------------------------------------------------- asking the library

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(self._camera, *arguments)
        self._check(name, code, *(a for a in arguments[:2] if isinstance(a, str | int | float)))

    def _check(self, name: str, code: int, *arguments: Any) -> None:
        if code == 0:
            return
        said = f"Andor's SDK3 answers {name}({', '.join(map(str, arguments))}) with {_named(code)}"
        if code in _REFUSALS:
            raise RefusedError(said)
        raise DisconnectedError(f"{said}; look at the camera's power and cable, and reconnect")

    def _is(self, question: str, feature: str) -> bool:
        answer = c_int()
        self._call(question, feature, byref(answer))
        return bool(answer.value)

    def _int(self, feature: str, question: str = "AT_GetInt", of: int | None = None) -> int:
        value = c_longlong()
        code = getattr(self._library, question)(
            self._camera if of is None else of, feature, byref(value)
        )
        self._check(question, code, feature)
        return value.value

    def _float(self, feature: str, question: str = "AT_GetFloat") -> float:
        value = c_double()
        self._call(question, feature, byref(value))
        return value.value

    def _text(self, feature: str) -> str:
        text = ctypes.create_unicode_buffer(_TEXT_LENGTH)
        self._call("AT_GetString", feature, ctypes.addressof(text), _TEXT_LENGTH)
        return text.value

    def _word_at(self, feature: str, index: int) -> str:
        text = ctypes.create_unicode_buffer(_TEXT_LENGTH)
        address = ctypes.addressof(text)
        self._call("AT_GetEnumStringByIndex", feature, index, address, _TEXT_LENGTH)
        return text.value

    def _word(self, feature: str) -> str:
        index = c_int()
        self._call("AT_GetEnumIndex", feature, byref(index))
        return self._word_at(feature, index.value)

    def _words(self, feature: str) -> list[str]:
        count = c_int()
        self._call("AT_GetEnumCount", feature, byref(count))
        return [self._word_at(feature, index) for index in range(count.value)]

    def _set_word(self, feature: str, word: str) -> None:
        try:
            self._call("AT_SetEnumString", feature, word)
        except RefusedError as error:
            known = ""
            with contextlib.suppress(DeviceError):
                known = f"; it has: {', '.join(self._words(feature))}"
            raise RefusedError(f"{error}{known}") from None

    def _set(self, feature: str, value: bool | float | str) -> None:
        if isinstance(value, str):
            self._set_word(feature, value)
        elif isinstance(value, bool):
            self._call("AT_SetBool", feature, int(value))
        elif isinstance(value, int):
            self._call("AT_SetInt", feature, value)
        else:
            self._call("AT_SetFloat", feature, value)


def _named(code: int) -> str:
    return f"AT_ERR_{_CODES[code]}" if code in _CODES else f"error {code}"


def _timestamp(frame: npt.NDArray[np.uint8]) -> int | None:
    """The camera's clock in the metadata, which is read from its end; None without any.

    Each part is its data, its number and the length of both number and data, 4 bytes each, in the
    order of memory; the image is part 0.
    """
    end = frame.size
    while end >= 8:
        number, length = struct.unpack("<II", frame[end - 8 : end].tobytes())
        if not 4 <= length <= end - 4:
            return None
        if number == _TIMESTAMP_CHUNK and length >= 12:
            at = end - 4 - length
            return int.from_bytes(frame[at : at + 8].tobytes(), "little")
        end -= length + 4
    return None
