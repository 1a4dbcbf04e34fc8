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
import sys
import time
from collections import deque
from ctypes import byref, c_int16, c_uint16, c_uint32, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from tem_live.drivers import native
from tem_live.drivers import pco_api as api
from tem_live.drivers.device_camera import DeviceCamera, Fetched
from tem_live.drivers.families import Family, Vendor
from tem_live.drivers.guarded import GuardedDevice
from tem_live.drivers.protocols import CameraCapabilities, CameraSettings, CameraState, Roi
from tem_live.errors import DeviceError, DisconnectedError, NotConnectedError, RefusedError

LIBRARY = ("SC2_Cam.dll", "libpco_sc2cam.so.1", "libpco_sc2cam.so")
_POLL_S = 0.001
MEND = 'pip install "tem-live[pco]" (the maker\'s package), or set camera.library'


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
        # pco 2.6 is for Python up to 3.12; after that the extra has nothing in it.
        install='pip install "tem-live[pco]"'
        if sys.version_info < (3, 13)
        else "install pco.sdk from PCO, and set camera.library where it is not found",
    ),
    # pco.sdk cannot be asked for its cameras without opening one.
    start="switch the camera on, then try: tem-live run --profile pco --frames 1",
    tested_against="a fake of pco.sdk's functions; no camera hardware",
)


class PcoOptions(native.LibraryOptions):
    """Fields of the profile's ``[camera]`` table, besides those of `native.LibraryOptions`.

    Attributes
    ----------
    buffer_frames : int
        How many buffers are given to the library, 16 at most.
    metadata : bool
        Have the camera number its images in the metadata behind them, where it can; otherwise
        they are counted here, and a loss is seen only where the library tells of it.
    """

    buffer_frames: int = Field(default=8, ge=2, le=api.BUFFERS_AT_MOST)
    metadata: bool = True


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
        self._about = api.PcoDescription()
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
        self._library = native.declare(self._load(), api.PROTOTYPES)
        self._check("PCO_InitializeLib", self._library.PCO_InitializeLib())
        handle = c_void_p()
        try:
            self._check("PCO_OpenCamera", self._library.PCO_OpenCamera(byref(handle), 0))
        except RefusedError as error:
            raise NotConnectedError(f"{error}; close the other program") from None
        self._camera = handle.value
        self._call("PCO_SetRecordingState", 0)
        self._about = api.PcoDescription(wSize=ctypes.sizeof(api.PcoDescription))
        self._call("PCO_GetCameraDescription", byref(self._about))
        name = ctypes.create_string_buffer(api.TEXT_BYTES)
        self._call("PCO_GetCameraName", ctypes.addressof(name), api.TEXT_BYTES)
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
        self._call("PCO_SetTriggerMode", api.TRIGGER_AUTO)
        # A time stamp would be written over pixels.
        for name, value in (
            ("PCO_SetTimestampMode", api.TIMESTAMP_OFF),
            ("PCO_SetAcquireMode", api.ACQUIRE_AUTO),
            ("PCO_SetBitAlignment", api.LSB),
        ):
            # Not every camera has these.
            with contextlib.suppress(RefusedError):
                self._call(name, value)
        self._metadata_bytes = 0
        if self._about.dwGeneralCapsDESC1 & api.HAS_METADATA:
            words, version = c_uint16(), c_uint16()
            mode = api.METADATA_ON if self._options.metadata else api.METADATA_OFF
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
        exposure_s = exposure.value * api.TIME_BASES_S[base.value]
        seconds, nanoseconds = c_uint32(), c_uint32()
        self._call("PCO_GetCOCRuntime", byref(seconds), byref(nanoseconds))
        self._call("PCO_SetImageParameters", columns, rows, api.READ_WHILE_RECORDING, None, 0)
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
            number, address, event = c_int16(api.NEW_BUFFER), c_void_p(), c_void_p()
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
        if of_driver.value & ~api.DEVICE_BITS == api.LOSTIMAGE:
            # The buffer is given back without an image, and is added again.
            self._lost += 1
            self._added.popleft()
            self._add(number, address)
            return False
        self._check("PCO_GetBufferStatus", of_driver.value)
        return bool(of_library.value & api.FILLED)

    def _metadata(self, number: int, shape: tuple[int, ...]) -> api.PcoMetadata:
        told = api.PcoMetadata(wSize=ctypes.sizeof(api.PcoMetadata))
        self._call("PCO_GetMetaData", number, byref(told), 0, 0)
        if (told.wIMAGE_SIZE_Y, told.wIMAGE_SIZE_X) != shape:
            raise DisconnectedError(
                f"the PCO camera sent {told.wIMAGE_SIZE_Y}x{told.wIMAGE_SIZE_X} pixels where "
                f"{shape[0]}x{shape[1]} were set; was it changed by another program?"
            )
        return told

    def _numbered(self, told: api.PcoMetadata | None) -> Fetched:
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
        if not code & api.IS_ERROR or code & api.IS_WARNING:
            return
        bare = code & ~api.DEVICE_BITS
        if code & api.COMMON == api.COMMON:
            # An error of all layers: which one it was is left out.
            bare &= ~api.LAYER
        said = f"pco.sdk's {name} says {api.CODES.get(bare, 'an error')} (0x{code:08X})"
        firmware = bare & api.LAYER == api.FIRMWARE and bare not in api.GONE
        if bare in api.REFUSALS or firmware:
            raise RefusedError(said)
        raise DisconnectedError(
            f"{said}; look at the camera's power and cable, close other programs, and reconnect"
        )

    def _words(self, name: str, count: int) -> tuple[int, ...]:
        words = [c_uint16() for _ in range(count)]
        self._call(name, *(byref(word) for word in words))
        return tuple(word.value for word in words)


def _binnings(about: api.PcoDescription) -> tuple[int, ...]:
    longest = min(about.wMaxBinHorzDESC, about.wMaxBinVertDESC)
    # Stepping 0: powers of two; 1: all.
    sides = range(1, longest + 1)
    binary = about.wBinHorzSteppingDESC == 0 or about.wBinVertSteppingDESC == 0
    return tuple(side for side in sides if not binary or side & (side - 1) == 0) or (1,)


def _in_time_base(seconds: float) -> tuple[int, int]:
    """A time as a 32-bit number and the finest unit (0: ns, 1: µs, 2: ms) that holds it."""
    for base, unit_s in enumerate(api.TIME_BASES_S):
        value = round(seconds / unit_s)
        if value < 1 << 32:
            return value, base
    raise RefusedError(f"an exposure of {seconds:g} s is refused; it is too long")
