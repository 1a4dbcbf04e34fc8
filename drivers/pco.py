"""PCO cameras (Excelitas PCO) through pco.sdk (``SC2_Cam.dll``, ``libpco_sc2cam.so``).

pco.sdk fills the buffers that were added, in order; the camera numbers its images in the metadata
behind each (`PcoOptions.metadata`), which is how lost ones are counted. Functions, structures and
error numbers are those of PCO's headers SC2_CamExport.h, SC2_SDKStructures.h, SC2_common.h and
PCO_err.h, as PCO's own package pco 2.6.0 and pylablib 1.4.5 have them; that a filled buffer is told
by bit 15 of ``dwStatusDll`` is in PCO's example of PCO_GetBufferStatus. The library comes with
PCO's package on the Python Package Index, for Windows and Linux, or with pco.sdk itself.

**Untested on hardware.** Tested against a fake of the library's functions; the real library (of pco
2.6.0, Linux) was only loaded and asked for a camera that is not there. pco.edge on Camera Link
needs further calls and is not served; it comes through Micro-Manager.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections import deque
from ctypes import POINTER, byref, c_int16, c_int32, c_uint8, c_uint16, c_uint32, c_void_p
from importlib.util import find_spec
from pathlib import Path
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

LIBRARY = ("SC2_Cam.dll", "libpco_sc2cam.so.1", "libpco_sc2cam.so")
MEND = 'pip install "tem-live[pco]" (the maker\'s package), or set camera.library'

# PCO_err.h: the bits of the device in between are left out.
_DEVICE_BITS = 0x0FFF0000
_IS_ERROR, _IS_WARNING = 0x80000000, 0x40000000
_COMMON = 0xA0000000
_LAYER, _FIRMWARE = 0x0000F000, 0x00001000
_CODES = {
    0xA0000001: "WRONGVALUE",
    0xA0000002: "INVALIDHANDLE",
    0xA0000003: "NOMEMORY",
    0xA0000005: "TIMEOUT",
    0xA0000006: "BUFFERSIZE",
    0xA0000007: "NOTINIT",
    0xA0000011: "LIBRARYVERSION",
    0xA0000012: "CAMERAVERSION",
    0xA0000013: "NOTAVAILABLE",
    0x80001001: "FIRMWARE_TELETIMEOUT",
    0x80001003: "FIRMWARE_NOACK",
    0x80002001: "DRIVER_NOTINIT",
    0x80002006: "DRIVER_NODRIVER: no camera is connected",
    0x80002007: "DRIVER_IOFAILURE",
    0x8000200B: "DRIVER_DEVICEBUSY: another program has it",
    0x80002010: "DRIVER_BUFFER_CANCELLED",
    0x80002014: "DRIVER_BUFFER_SYSTEMOFF",
    0x80002015: "DRIVER_DEVICEOFF",
    0x80002017: "DRIVER_BUSRESET",
    0x80002018: "DRIVER_BUFFER_LOSTIMAGE",
    0x80002030: "DRIVER_HEAD_LOST",
    0x80002031: "DRIVER_HEAD_POWER_DOWN",
    0x80002032: "DRIVER_CAMERA_BUSY",
    0x80003004: "SDKDLL_NOTAVAILABLE",
    0x80003008: "SDKDLL_BUFCNTEXHAUSTED",
    0x80003009: "SDKDLL_ALREADYOPENED: another program has it",
    0x8000300D: "SDKDLL_DLLNOTFOUND: no camera, or no driver of its interface",
    0x80003010: "SDKDLL_RECORDINGMUSTBEON",
}
_REFUSALS = {0xA0000001, 0xA0000006, 0xA0000013, 0x80002032, 0x80003004}
_GONE = {0x80001001, 0x80001003}
"""Errors of the firmware's layer that are none of its own."""
_LOSTIMAGE = 0x80002018

# sc2_defs.h, SC2_SDKStructures.h
_HAS_METADATA = 0x00004000
_METADATA_ON, _METADATA_OFF = 1, 0
_TIMESTAMP_OFF = 0
_TRIGGER_AUTO = 0
_ACQUIRE_AUTO = 0
_LSB = 1
_READ_WHILE_RECORDING = 1
_FILLED = 0x00008000
_NEW_BUFFER = -1
_TIME_BASES_S = (1e-9, 1e-6, 1e-3)
_BUFFERS_AT_MOST = 16
_POLL_S = 0.001
_TEXT_BYTES = 100


class PcoDescription(ctypes.Structure):
    """PCO_Description."""

    _pack_ = 1
    _fields_ = (
        ("wSize", c_uint16),
        ("wSensorTypeDESC", c_uint16),
        ("wSensorSubTypeDESC", c_uint16),
        ("wMaxHorzResStdDESC", c_uint16),
        ("wMaxVertResStdDESC", c_uint16),
        ("wMaxHorzResExtDESC", c_uint16),
        ("wMaxVertResExtDESC", c_uint16),
        ("wDynResDESC", c_uint16),
        ("wMaxBinHorzDESC", c_uint16),
        ("wBinHorzSteppingDESC", c_uint16),
        ("wMaxBinVertDESC", c_uint16),
        ("wBinVertSteppingDESC", c_uint16),
        ("wRoiHorStepsDESC", c_uint16),
        ("wRoiVertStepsDESC", c_uint16),
        ("wNumADCsDESC", c_uint16),
        ("wMinSizeHorzDESC", c_uint16),
        ("dwPixelRateDESC", c_uint32 * 4),
        ("ZZdwDummypr", c_uint32 * 20),
        ("wConvFactDESC", c_uint16 * 4),
        ("sCoolingSetpoints", c_int16 * 10),
        ("ZZwDummycv", c_uint16 * 8),
        ("wSoftRoiHorStepsDESC", c_uint16),
        ("wSoftRoiVertStepsDESC", c_uint16),
        ("wIRDESC", c_uint16),
        ("wMinSizeVertDESC", c_uint16),
        ("dwMinDelayDESC", c_uint32),
        ("dwMaxDelayDESC", c_uint32),
        ("dwMinDelayStepDESC", c_uint32),
        ("dwMinExposureDESC", c_uint32),
        ("dwMaxExposureDESC", c_uint32),
        ("dwMinExposureStepDESC", c_uint32),
        ("dwMinDelayIRDESC", c_uint32),
        ("dwMaxDelayIRDESC", c_uint32),
        ("dwMinExposureIRDESC", c_uint32),
        ("dwMaxExposureIRDESC", c_uint32),
        ("wTimeTableDESC", c_uint16),
        ("wDoubleImageDESC", c_uint16),
        ("sMinCoolSetDESC", c_int16),
        ("sMaxCoolSetDESC", c_int16),
        ("sDefaultCoolSetDESC", c_int16),
        ("wPowerDownModeDESC", c_uint16),
        ("wOffsetRegulationDESC", c_uint16),
        ("wColorPatternDESC", c_uint16),
        ("wPatternTypeDESC", c_uint16),
        ("wDummy1", c_uint16),
        ("wDummy2", c_uint16),
        ("wNumCoolingSetpoints", c_uint16),
        ("dwGeneralCapsDESC1", c_uint32),
        ("dwGeneralCapsDESC2", c_uint32),
        ("dwExtSyncFrequency", c_uint32 * 4),
        ("dwGeneralCapsDESC3", c_uint32),
        ("dwGeneralCapsDESC4", c_uint32),
        ("ZZdwDummy", c_uint32 * 40),
    )


class PcoMetadata(ctypes.Structure):
    """PCO_METADATA_STRUCT."""

    _pack_ = 1
    _fields_ = (
        ("wSize", c_uint16),
        ("wVersion", c_uint16),
        # First byte least significant, two decimal digits a byte, from 1.
        ("bIMAGE_COUNTER_BCD", c_uint8 * 4),
        ("bIMAGE_TIME_US_BCD", c_uint8 * 3),
        ("bIMAGE_TIME_SEC_BCD", c_uint8),
        ("bIMAGE_TIME_MIN_BCD", c_uint8),
        ("bIMAGE_TIME_HOUR_BCD", c_uint8),
        ("bIMAGE_TIME_DAY_BCD", c_uint8),
        ("bIMAGE_TIME_MON_BCD", c_uint8),
        ("bIMAGE_TIME_YEAR_BCD", c_uint8),
        ("bIMAGE_TIME_STATUS", c_uint8),
        ("wEXPOSURE_TIME_BASE", c_uint16),
        ("dwEXPOSURE_TIME", c_uint32),
        ("dwFRAMERATE_MILLIHZ", c_uint32),
        ("sSENSOR_TEMPERATURE", c_int16),
        ("wIMAGE_SIZE_X", c_uint16),
        ("wIMAGE_SIZE_Y", c_uint16),
        ("bBINNING_X", c_uint8),
        ("bBINNING_Y", c_uint8),
        ("dwSENSOR_READOUT_FREQUENCY", c_uint32),
        ("wSENSOR_CONV_FACTOR", c_uint16),
        ("dwCAMERA_SERIAL_NO", c_uint32),
        ("wCAMERA_TYPE", c_uint16),
        ("bBIT_RESOLUTION", c_uint8),
        ("bSYNC_STATUS", c_uint8),
        ("wDARK_OFFSET", c_uint16),
        ("bTRIGGER_MODE", c_uint8),
        ("bDOUBLE_IMAGE_MODE", c_uint8),
        ("bCAMERA_SYNC_MODE", c_uint8),
        ("bIMAGE_TYPE", c_uint8),
        ("wCOLOR_PATTERN", c_uint16),
        ("wCAMERA_SUBTYPE", c_uint16),
        ("dwEVENT_NUMBER", c_uint32),
        ("wIMAGE_SIZE_X_Offset", c_uint16),
        ("wIMAGE_SIZE_Y_Offset", c_uint16),
        ("bREADOUT_MODE", c_uint8),
    )


_Code = c_uint32
PROTOTYPES: native.Prototypes = {
    "PCO_InitializeLib": (_Code, ()),
    "PCO_OpenCamera": (_Code, (POINTER(c_void_p), c_uint16)),
    "PCO_CloseCamera": (_Code, (c_void_p,)),
    "PCO_GetCameraName": (_Code, (c_void_p, c_void_p, c_uint16)),
    "PCO_GetCameraDescription": (_Code, (c_void_p, POINTER(PcoDescription))),
    "PCO_GetCameraHealthStatus": (
        _Code,
        (c_void_p, POINTER(c_uint32), POINTER(c_uint32), POINTER(c_uint32)),
    ),
    "PCO_SetRecordingState": (_Code, (c_void_p, c_uint16)),
    "PCO_SetTriggerMode": (_Code, (c_void_p, c_uint16)),
    "PCO_SetAcquireMode": (_Code, (c_void_p, c_uint16)),
    "PCO_SetTimestampMode": (_Code, (c_void_p, c_uint16)),
    "PCO_SetBitAlignment": (_Code, (c_void_p, c_uint16)),
    "PCO_SetMetaDataMode": (_Code, (c_void_p, c_uint16, POINTER(c_uint16), POINTER(c_uint16))),
    "PCO_GetMetaData": (_Code, (c_void_p, c_int16, POINTER(PcoMetadata), c_uint32, c_uint32)),
    "PCO_SetBinning": (_Code, (c_void_p, c_uint16, c_uint16)),
    "PCO_GetBinning": (_Code, (c_void_p, POINTER(c_uint16), POINTER(c_uint16))),
    "PCO_SetROI": (_Code, (c_void_p, c_uint16, c_uint16, c_uint16, c_uint16)),
    "PCO_GetROI": (_Code, (c_void_p, *(POINTER(c_uint16),) * 4)),
    "PCO_SetDelayExposureTime": (_Code, (c_void_p, c_uint32, c_uint32, c_uint16, c_uint16)),
    "PCO_GetDelayExposureTime": (
        _Code,
        (c_void_p, POINTER(c_uint32), POINTER(c_uint32), POINTER(c_uint16), POINTER(c_uint16)),
    ),
    "PCO_ArmCamera": (_Code, (c_void_p,)),
    "PCO_GetSizes": (_Code, (c_void_p, *(POINTER(c_uint16),) * 4)),
    "PCO_GetCOCRuntime": (_Code, (c_void_p, POINTER(c_uint32), POINTER(c_uint32))),
    "PCO_SetImageParameters": (
        _Code,
        (c_void_p, c_uint16, c_uint16, c_uint32, c_void_p, c_int32),
    ),
    "PCO_AllocateBuffer": (
        _Code,
        (c_void_p, POINTER(c_int16), c_uint32, POINTER(c_void_p), POINTER(c_void_p)),
    ),
    "PCO_FreeBuffer": (_Code, (c_void_p, c_int16)),
    "PCO_AddBufferEx": (
        _Code,
        (c_void_p, c_uint32, c_uint32, c_int16, c_uint16, c_uint16, c_uint16),
    ),
    "PCO_GetBufferStatus": (_Code, (c_void_p, c_int16, POINTER(c_uint32), POINTER(c_uint32))),
    "PCO_CancelImages": (_Code, (c_void_p,)),
}


def folders() -> list[str]:
    """Where the library may be: in PCO's Python package, or where pco.sdk installs it."""
    found = [
        r"C:\Program Files\PCO Digital Camera Toolbox\pco.sdk\bin",
        r"C:\Program Files (x86)\PCO Digital Camera Toolbox\pco.sdk\bin64",
    ]
    package = find_spec("pco")
    for place in (package.submodule_search_locations or []) if package else []:
        found += [str(Path(place) / name) for name in ("win_x64", "lnx_amd64", "lnx_arm64")]
    return found


FAMILY = Family(
    "pco",
    vendor=Vendor(
        name=f"pco.sdk ({LIBRARY[0]})",
        is_there=lambda: native.is_installed(LIBRARY, folders()),
        install='pip install "tem-live[pco]"',
    ),
    # pco.sdk cannot be asked for its cameras without opening one.
    start="switch the camera on, then try: tem-live run --profile pco --frames 1",
    tested_against="a fake of pco.sdk's functions; no camera hardware",
)


class PcoOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for PCO.

    Attributes
    ----------
    library : str or None
        The library's file, where it is in none of the usual places.
    buffer_frames : int
        How many buffers are given to the library, 16 at most.
    metadata : bool
        Have the camera number its images in the metadata behind them, where it can; otherwise
        they are counted here, and a loss is seen only where the library tells of it.
    reply_timeout_s : float
        How long the library may take for a call in the course of a run, in seconds, before it is
        given up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: str | None = None
    buffer_frames: int = Field(default=8, ge=2, le=_BUFFERS_AT_MOST)
    metadata: bool = True
    reply_timeout_s: float = Field(default=5.0, gt=0, le=600)


class PcoCamera(DeviceCamera):
    """See the module's text.

    Parameters
    ----------
    options : PcoOptions
        The library and the buffers; the first camera that the library finds is opened.
    load : callable or None
        Gives the library; None looks for the installed one.
    """

    Options: ClassVar[type[BaseModel]] = PcoOptions

    def __init__(self, options: PcoOptions, load: native.Loader | None = None) -> None:
        load = load or native.loader(LIBRARY, options.library, folders(), MEND)
        device = GuardedDevice(_PcoSdk(options, load), "pco.sdk", options.reply_timeout_s)
        super().__init__(device, "the PCO camera")


class _PcoSdk:
    def __init__(self, options: PcoOptions, load: native.Loader) -> None:
        self._options = options
        self._load = load
        self._library: Any = None
        self._camera: int | None = None
        self._about = PcoDescription()
        self._metadata_bytes = 0
        self._shape = (0, 0)
        # Those that were added, the oldest first, with their address.
        self._added: deque[tuple[int, int]] = deque()
        self._allocated: list[int] = []
        self._first_count: int | None = None
        self._taken = 0
        self._lost = 0
        self._recording = False

    # ------------------------------------------------------------------------ opening and closing

    def open(self) -> CameraCapabilities:
        self._library = native.declare(self._load(), PROTOTYPES)
        self._check("PCO_InitializeLib", self._library.PCO_InitializeLib())
        handle = c_void_p()
        try:
            self._check("PCO_OpenCamera", self._library.PCO_OpenCamera(byref(handle), 0))
        except RefusedError as error:
            raise NotConnectedError(f"{error}; close the other program") from None
        self._camera = handle.value
        self._call("PCO_SetRecordingState", 0)
        self._about = PcoDescription(wSize=ctypes.sizeof(PcoDescription))
        self._call("PCO_GetCameraDescription", byref(self._about))
        name = ctypes.create_string_buffer(_TEXT_BYTES)
        self._call("PCO_GetCameraName", ctypes.addressof(name), _TEXT_BYTES)
        self._set_up()
        about = self._about
        return CameraCapabilities(
            name=name.value.decode(errors="replace"),
            sensor_shape=(about.wMaxVertResStdDESC, about.wMaxHorzResStdDESC),
            dtype=np.dtype(np.uint16),
            exposure_range_s=(1e-9 * about.dwMinExposureDESC, 1e-3 * about.dwMaxExposureDESC),
            binnings=_binnings(about),
            has_roi=bool(about.wRoiHorStepsDESC and about.wRoiVertStepsDESC),
        )

    def close(self) -> None:
        self.stop()
        camera, self._camera = self._camera, None
        if camera is not None:
            self._library.PCO_CloseCamera(camera)

    def _set_up(self) -> None:
        self._call("PCO_SetTriggerMode", _TRIGGER_AUTO)
        # A time stamp would be written over pixels.
        for name, value in (
            ("PCO_SetTimestampMode", _TIMESTAMP_OFF),
            ("PCO_SetAcquireMode", _ACQUIRE_AUTO),
            ("PCO_SetBitAlignment", _LSB),
        ):
            # Not every camera has these.
            with contextlib.suppress(RefusedError):
                self._call(name, value)
        self._metadata_bytes = 0
        if self._about.dwGeneralCapsDESC1 & _HAS_METADATA:
            words, version = c_uint16(), c_uint16()
            mode = _METADATA_ON if self._options.metadata else _METADATA_OFF
            self._call("PCO_SetMetaDataMode", mode, byref(words), byref(version))
            self._metadata_bytes = 2 * words.value if self._options.metadata else 0

    # -------------------------------------------------------------------------------- the settings

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        binning = settings.binning
        top, left, height, width = roi
        steps = self._about.wRoiVertStepsDESC, self._about.wRoiHorStepsDESC
        whole = roi == (0, 0, self._about.wMaxVertResStdDESC, self._about.wMaxHorzResStdDESC)
        if not whole and any(
            n // binning % step for n, step in zip(roi, steps * 2, strict=True) if step
        ):
            raise RefusedError(
                f"the region {roi} is refused; the camera takes multiples of {steps[0]} rows and "
                f"{steps[1]} columns of binned pixels"
            )
        self._call("PCO_SetBinning", binning, binning)
        # In binned pixels, from 1, the last one included.
        self._call(
            "PCO_SetROI",
            left // binning + 1,
            top // binning + 1,
            (left + width) // binning,
            (top + height) // binning,
        )
        exposure, base = _in_time_base(settings.exposure_s)
        self._call("PCO_SetDelayExposureTime", 0, exposure, 0, base)
        self._call("PCO_ArmCamera")
        return self._read_back()

    def _read_back(self) -> CameraState:
        across, down = self._words("PCO_GetBinning", 2)
        if across != down:
            raise RefusedError(f"the camera took a binning of {across} by {down}")
        first_x, first_y, _, _ = self._words("PCO_GetROI", 4)
        columns, rows, _, _ = self._words("PCO_GetSizes", 4)
        delay, exposure = c_uint32(), c_uint32()
        delay_base, base = c_uint16(), c_uint16()
        self._call(
            "PCO_GetDelayExposureTime",
            byref(delay),
            byref(exposure),
            byref(delay_base),
            byref(base),
        )
        exposure_s = exposure.value * _TIME_BASES_S[base.value]
        seconds, nanoseconds = c_uint32(), c_uint32()
        self._call("PCO_GetCOCRuntime", byref(seconds), byref(nanoseconds))
        self._call("PCO_SetImageParameters", columns, rows, _READ_WHILE_RECORDING, None, 0)
        self._shape = rows, columns
        return CameraState(
            exposure_s=exposure_s,
            binning=across,
            roi=((first_y - 1) * across, (first_x - 1) * across, rows * across, columns * across),
            frame_shape=self._shape,
            dtype=np.dtype(np.uint16),
            frame_interval_s=max(exposure_s, seconds.value + 1e-9 * nanoseconds.value),
            saturation_counts=float(2**self._about.wDynResDESC - 1),
        )

    # ---------------------------------------------------------------------------------- the frames

    def start(self, frames: int | None) -> None:
        self._first_count = None
        self._taken = self._lost = 0
        self._recording = True
        rows, columns = self._shape
        row_bytes = 2 * columns
        # The metadata take whole rows behind the image.
        size = row_bytes * (rows + -(-self._metadata_bytes // row_bytes))
        buffers = []
        for _ in range(self._options.buffer_frames):
            number, address, event = c_int16(_NEW_BUFFER), c_void_p(), c_void_p()
            self._call("PCO_AllocateBuffer", byref(number), size, byref(address), byref(event))
            self._allocated.append(number.value)
            buffers.append((number.value, address.value or 0))
        self._call("PCO_SetRecordingState", 1)
        for buffer in buffers:
            self._add(*buffer)

    def stop(self) -> None:
        if not self._recording:
            return
        self._recording = False
        self._added.clear()
        # A camera that is gone answers neither; the memory is freed all the same.
        with contextlib.suppress(DeviceError):
            self._call("PCO_CancelImages")
        with contextlib.suppress(DeviceError):
            self._call("PCO_SetRecordingState", 0)
        while self._allocated:
            self._library.PCO_FreeBuffer(self._camera, self._allocated.pop())

    def _add(self, number: int, address: int) -> None:
        rows, columns = self._shape
        bits = self._about.wDynResDESC
        self._call("PCO_AddBufferEx", 0, 0, number, columns, rows, bits)
        self._added.append((number, address))

    def fetch(self, buffer: npt.NDArray[Any], wait_s: float) -> Fetched | None:
        deadline = time.monotonic() + wait_s
        while not self._oldest_is_filled():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            time.sleep(min(left_s, _POLL_S))
        number, address = self._added.popleft()
        rows, columns = self._shape
        np.copyto(buffer, native.rows_at(address, rows, 2 * columns, columns, buffer.dtype))
        told = self._metadata(number, buffer.shape) if self._metadata_bytes else None
        self._add(number, address)
        fetched = self._numbered(told)
        self._taken += 1
        return fetched

    def is_there(self) -> bool:
        warnings, errors, status = c_uint32(), c_uint32(), c_uint32()
        try:
            self._call("PCO_GetCameraHealthStatus", byref(warnings), byref(errors), byref(status))
        except DeviceError:
            return False
        return True

    def _oldest_is_filled(self) -> bool:
        number, address = self._added[0]
        of_library, of_driver = c_uint32(), c_uint32()
        self._call("PCO_GetBufferStatus", number, byref(of_library), byref(of_driver))
        if of_driver.value & ~_DEVICE_BITS == _LOSTIMAGE:
            # The buffer is given back without an image, and is added again.
            self._lost += 1
            self._added.popleft()
            self._add(number, address)
            return False
        self._check("PCO_GetBufferStatus", of_driver.value)
        return bool(of_library.value & _FILLED)

    def _metadata(self, number: int, shape: tuple[int, ...]) -> PcoMetadata:
        told = PcoMetadata(wSize=ctypes.sizeof(PcoMetadata))
        self._call("PCO_GetMetaData", number, byref(told), 0, 0)
        if (told.wIMAGE_SIZE_Y, told.wIMAGE_SIZE_X) != shape:
            raise DisconnectedError(
                f"the PCO camera sent {told.wIMAGE_SIZE_Y}x{told.wIMAGE_SIZE_X} pixels where "
                f"{shape[0]}x{shape[1]} were set; was it changed by another program?"
            )
        return told

    def _numbered(self, told: PcoMetadata | None) -> Fetched:
        if told is None:
            return Fetched(number=self._taken + self._lost)
        count = 0
        for pair in reversed(told.bIMAGE_COUNTER_BCD):
            count = 100 * count + 10 * (pair >> 4) + (pair & 0xF)
        if self._first_count is None:
            self._first_count = count - self._lost
        raw = {
            "image_counter": count,
            "sensor_temperature_C": told.sSENSOR_TEMPERATURE,
            "dark_offset": told.wDARK_OFFSET,
        }
        return Fetched(number=count - self._first_count, raw=raw)

    # ------------------------------------------------------------------------- asking the library

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(self._camera, *arguments))

    def _check(self, name: str, code: int) -> None:
        if not code & _IS_ERROR or code & _IS_WARNING:
            return
        bare = code & ~_DEVICE_BITS
        if code & _COMMON == _COMMON:
            # An error of all layers: which one it was is left out.
            bare &= ~_LAYER
        said = f"pco.sdk's {name} says {_CODES.get(bare, 'an error')} (0x{code:08X})"
        firmware = bare & _LAYER == _FIRMWARE and bare not in _GONE
        if bare in _REFUSALS or firmware:
            raise RefusedError(said)
        raise DisconnectedError(
            f"{said}; look at the camera's power and cable, close other programs, and reconnect"
        )

    def _words(self, name: str, count: int) -> tuple[int, ...]:
        words = [c_uint16() for _ in range(count)]
        self._call(name, *(byref(word) for word in words))
        return tuple(word.value for word in words)


def _binnings(about: PcoDescription) -> tuple[int, ...]:
    longest = min(about.wMaxBinHorzDESC, about.wMaxBinVertDESC)
    # Stepping 0: powers of two; 1: all.
    sides = range(1, longest + 1)
    binary = about.wBinHorzSteppingDESC == 0 or about.wBinVertSteppingDESC == 0
    return tuple(side for side in sides if not binary or side & (side - 1) == 0) or (1,)


def _in_time_base(seconds: float) -> tuple[int, int]:
    """A time as a 32-bit number and the finest unit (0: ns, 1: µs, 2: ms) that holds it."""
    for base, unit_s in enumerate(_TIME_BASES_S):
        value = round(seconds / unit_s)
        if value < 1 << 32:
            return value, base
    raise RefusedError(f"an exposure of {seconds:g} s is refused; it is too long")
