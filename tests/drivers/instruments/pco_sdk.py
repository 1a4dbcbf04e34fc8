"""A fake of pco.sdk's functions, after SC2_CamExport.h and PCO_err.h."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from tem_live.drivers import pco_api as driver
from tests.drivers.instruments.sdk import Library, Sensor

# With the bits of the device that real errors have in between.
WRONGVALUE, NOTAVAILABLE = 0xA00A3001, 0x80031013
NODRIVER, DEVICEBUSY, DEVICEOFF = 0x800A2006, 0x800B200B, 0x800B2015
LOSTIMAGE, RECORDING = 0x800B2018, 0x80031017
WARNING = 0xC0080001
METADATA_WORDS = 36


@dataclass
class Buffer:
    memory: ctypes.Array[Any]
    queued: bool = False
    filled: bool = False
    exposure: int = 0
    error: int = 0


class PcoSdk:
    """One camera behind a library that may be broken."""

    def __init__(self) -> None:
        self.sensor = Sensor()
        self.cameras = 1
        self.caps = 0x4000
        self.metadata_mode = 0
        self.delay = (0, 0)
        self.exposure = (10, 2)
        self.region = (1, 1, Sensor.width, Sensor.height)
        self.binning = 1
        self.armed = False
        self.told_size: tuple[int, int] | None = None
        self.tells_losses = False
        self.count_from = 1
        self.buffers: dict[int, Buffer] = {}
        self.order: list[int] = []
        self.seen = 0
        self.open_handles: list[str] = []
        self.library = Library(self, driver.PROTOTYPES)
        self.library.PCO_GetCameraName.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint16]

    def answer(self, name: str) -> int:
        if not self.sensor.present:
            return DEVICEOFF
        return self.sensor.failing.get(name, 0)

    # ------------------------------------------------------------------------ opening and closing

    def PCO_InitializeLib(self) -> int:
        return 0

    def PCO_OpenCamera(self, handle: Any, number: int) -> int:
        assert number == 0
        if not self.cameras:
            return NODRIVER
        if self.sensor.in_use:
            return DEVICEBUSY
        if failed := self.answer("PCO_OpenCamera"):
            return failed
        handle[0] = 0xBC0 << 32
        self.open_handles.append("camera")
        return 0

    def PCO_CloseCamera(self, handle: int) -> int:
        self.open_handles.remove("camera")
        return 0

    def PCO_GetCameraName(self, handle: int, text: int, size: int) -> int:
        ctypes.memmove(text, b"pco.edge 4.2\0", 13)
        return self.answer("PCO_GetCameraName")

    def PCO_GetCameraDescription(self, handle: int, description: Any) -> int:
        about = description[0]
        assert about.wSize == ctypes.sizeof(driver.PcoDescription)
        about.wMaxHorzResStdDESC, about.wMaxVertResStdDESC = Sensor.width, Sensor.height
        about.wDynResDESC = 16
        about.wMaxBinHorzDESC = about.wMaxBinVertDESC = 4
        about.wRoiHorStepsDESC, about.wRoiVertStepsDESC = 4, 1
        about.dwMinExposureDESC, about.dwMaxExposureDESC = 100_000, 10_000
        about.dwGeneralCapsDESC1 = self.caps
        return self.answer("PCO_GetCameraDescription")

    def PCO_GetCameraHealthStatus(self, handle: int, warn: Any, error: Any, status: Any) -> int:
        return self.answer("PCO_GetCameraHealthStatus")

    # -------------------------------------------------------------------------------- the settings

    def changed(self, name: str) -> int:
        if self.sensor.running:
            return RECORDING
        self.armed = False
        return self.answer(name)

    def PCO_SetTriggerMode(self, handle: int, mode: int) -> int:
        return self.changed("PCO_SetTriggerMode") or (WRONGVALUE if mode else 0)

    def PCO_SetAcquireMode(self, handle: int, mode: int) -> int:
        return NOTAVAILABLE

    def PCO_SetTimestampMode(self, handle: int, mode: int) -> int:
        return self.changed("PCO_SetTimestampMode") or (WRONGVALUE if mode else 0)

    def PCO_SetBitAlignment(self, handle: int, alignment: int) -> int:
        return self.changed("PCO_SetBitAlignment") or (0 if alignment == 1 else WRONGVALUE)

    def PCO_SetMetaDataMode(self, handle: int, mode: int, size: Any, version: Any) -> int:
        if not self.caps & 0x4000:
            return NOTAVAILABLE
        self.metadata_mode = mode
        size[0], version[0] = METADATA_WORDS if mode else 0, 1
        return self.changed("PCO_SetMetaDataMode")

    def PCO_SetBinning(self, handle: int, across: int, down: int) -> int:
        if across != down or across not in (1, 2, 4):
            return WRONGVALUE
        self.binning = across
        return self.changed("PCO_SetBinning")

    def PCO_GetBinning(self, handle: int, across: Any, down: Any) -> int:
        across[0] = down[0] = self.binning
        return self.answer("PCO_GetBinning")

    def PCO_SetROI(self, handle: int, x0: int, y0: int, x1: int, y1: int) -> int:
        self.region = (x0, y0, x1, y1)
        return self.changed("PCO_SetROI")

    def PCO_GetROI(self, handle: int, *corners: Any) -> int:
        for corner, value in zip(corners, self.region, strict=True):
            corner[0] = value
        return self.answer("PCO_GetROI")

    def PCO_SetDelayExposureTime(
        self, handle: int, delay: int, exposure: int, delay_base: int, base: int
    ) -> int:
        seconds = exposure * (1e-9, 1e-6, 1e-3)[base]
        if not 1e-4 <= seconds <= 10 or delay:
            return WRONGVALUE
        # In steps of 10 µs.
        self.exposure = (round(seconds * 1e5) * 10, 1)
        return self.changed("PCO_SetDelayExposureTime")

    def PCO_GetDelayExposureTime(
        self, handle: int, delay: Any, exposure: Any, delay_base: Any, base: Any
    ) -> int:
        delay[0], delay_base[0] = 0, 0
        exposure[0], base[0] = self.exposure
        return self.answer("PCO_GetDelayExposureTime")

    def PCO_ArmCamera(self, handle: int) -> int:
        x0, y0, x1, y1 = self.region
        if (
            x0 < 1
            or y0 < 1
            or x1 * self.binning > Sensor.width
            or y1 * self.binning > Sensor.height
        ):
            return WRONGVALUE
        b = self.binning
        self.sensor.binning = b
        self.sensor.roi = ((y0 - 1) * b, (x0 - 1) * b, (y1 - y0 + 1) * b, (x1 - x0 + 1) * b)
        self.sensor.exposure_s = self.exposure[0] * (1e-9, 1e-6, 1e-3)[self.exposure[1]]
        failed = self.changed("PCO_ArmCamera")
        self.armed = not failed
        return failed

    def PCO_GetSizes(self, handle: int, *sizes: Any) -> int:
        rows, columns = self.sensor.shape
        for size, value in zip(sizes, (columns, rows, Sensor.width, Sensor.height), strict=True):
            size[0] = value
        return self.answer("PCO_GetSizes")

    def PCO_GetCOCRuntime(self, handle: int, seconds: Any, nanoseconds: Any) -> int:
        whole = int(self.sensor.exposure_s)
        seconds[0], nanoseconds[0] = whole, round((self.sensor.exposure_s - whole) * 1e9)
        return self.answer("PCO_GetCOCRuntime")

    def PCO_SetImageParameters(
        self, handle: int, across: int, down: int, flags: int, more: int, size: int
    ) -> int:
        assert (down, across) == self.sensor.shape
        assert (flags, more, size) == (1, None, 0)
        return self.answer("PCO_SetImageParameters") or WARNING

    # ---------------------------------------------------------------------------------- the frames

    def PCO_SetRecordingState(self, handle: int, state: int) -> int:
        if failed := self.answer("PCO_SetRecordingState"):
            return failed
        if state:
            assert self.armed
            self.seen = 0
            self.sensor.start()
        else:
            self.sensor.stop()
        return 0

    def PCO_AllocateBuffer(
        self, handle: int, number: Any, size: int, address: Any, event: Any
    ) -> int:
        assert number[0] == -1
        rows, columns = self.sensor.shape
        metadata = 2 * METADATA_WORDS if self.metadata_mode else 0
        assert size >= 2 * rows * columns + metadata
        number[0] = len(self.buffers)
        memory = (ctypes.c_ubyte * size)()
        self.buffers[number[0]] = Buffer(memory)
        address[0] = ctypes.addressof(memory)
        self.open_handles.append("buffer")
        return self.answer("PCO_AllocateBuffer")

    def PCO_FreeBuffer(self, handle: int, number: int) -> int:
        del self.buffers[number]
        self.open_handles.remove("buffer")
        return 0

    def PCO_CancelImages(self, handle: int) -> int:
        self.order.clear()
        return self.answer("PCO_CancelImages")

    def PCO_AddBufferEx(
        self, handle: int, first: int, last: int, number: int, across: int, down: int, bits: int
    ) -> int:
        assert (first, last, bits) == (0, 0, 16)
        assert (down, across) == self.sensor.shape
        self.advance()
        buffer = self.buffers[number]
        buffer.filled, buffer.error = False, 0
        self.order.append(number)
        return self.answer("PCO_AddBufferEx")

    def advance(self) -> None:
        """Fill what was added with what has been exposed since; without a buffer it is lost."""
        exposures = self.sensor.exposures()
        for exposure in range(self.seen, exposures):
            if exposure in self.sensor.lost:
                if self.tells_losses and self.order:
                    self.buffers[self.order.pop(0)].error = LOSTIMAGE
                continue
            if not self.order:
                continue
            buffer = self.buffers[self.order.pop(0)]
            picture = self.sensor.picture(exposure)
            ctypes.memmove(buffer.memory, picture.tobytes(), picture.nbytes)
            buffer.filled, buffer.exposure = True, exposure
        self.seen = exposures

    def PCO_GetBufferStatus(self, handle: int, number: int, library: Any, driver: Any) -> int:
        self.advance()
        buffer = self.buffers[number]
        library[0] = 0xC0000000 | (0x8000 if buffer.filled else 0)
        driver[0] = buffer.error
        return self.answer("PCO_GetBufferStatus")

    def PCO_GetMetaData(self, handle: int, number: int, metadata: Any, *reserved: int) -> int:
        assert reserved == (0, 0)
        told, count = metadata[0], self.buffers[number].exposure + self.count_from
        digits = f"{count:08d}"
        for place in range(4):
            told.bIMAGE_COUNTER_BCD[place] = int(digits[6 - 2 * place : 8 - 2 * place], 16)
        rows, columns = self.told_size or self.sensor.shape
        told.wIMAGE_SIZE_X, told.wIMAGE_SIZE_Y = columns, rows
        told.sSENSOR_TEMPERATURE, told.wDARK_OFFSET = -5, np.uint16(100)
        return self.answer("PCO_GetMetaData")
