"""A fake of SDK3's functions, after atcore.h and the SDK3 manual."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np

from tem_live.drivers import andor as driver
from tests.drivers.instruments.sdk import Library, Sensor

NOTIMPLEMENTED, NOTWRITABLE, OUTOFRANGE, CONNECTION, TIMEDOUT = 2, 5, 6, 10, 13
NOTAVAILABLE, INUSE, OVERFLOW = 18, 38, 100
CLOCK_HZ = 100_000_000
CLOCK_FROM = 5_000_000
PADDING = 8


class Atcore:
    """One camera behind a library that may be broken."""

    def __init__(self) -> None:
        self.sensor = Sensor()
        self.cameras = 1
        self.open_handles: list[str] = []
        self.region = {"AOILeft": 1, "AOITop": 1}
        self.words = {
            "TriggerMode": ["Software", "Internal"],
            "CycleMode": ["Fixed", "Continuous"],
            "PixelEncoding": ["Mono12Packed", "Mono16", "Mono32"],
            "AOIBinning": ["1x1", "2x2", "4x4", "8x1"],
            "SimplePreAmpGainControl": ["12-bit", "16-bit"],
        }
        self.chosen = dict.fromkeys(self.words, 0)
        self.bools = {"MetadataEnable": 0, "MetadataTimestamp": 0}
        self.has_baseline = True
        self.short_by = 0
        self.overflowed = False
        self.queue: list[tuple[int, int]] = []
        self.filled: list[tuple[int, int]] = []
        self.seen = 0
        self.width = Sensor.width
        self.height = Sensor.height
        self.library = Library(self, driver.PROTOTYPES)

    # ------------------------------------------------------------------------ opening and closing

    def AT_InitialiseLibrary(self) -> int:
        self.open_handles.append("library")
        return 0

    def AT_FinaliseLibrary(self) -> int:
        self.open_handles.remove("library")
        return 0

    def AT_Open(self, index: int, handle: Any) -> int:
        if self.sensor.in_use:
            return INUSE
        if not self.sensor.present:
            return CONNECTION
        self.open_handles.append("camera")
        handle[0] = 77
        return 0

    def AT_Close(self, handle: int) -> int:
        self.open_handles.remove("camera")
        return 0

    # -------------------------------------------------------------------------------- the features

    @property
    def has_metadata(self) -> bool:
        return bool(self.bools.get("MetadataEnable") and self.bools.get("MetadataTimestamp"))

    @property
    def row_bytes(self) -> int:
        return 2 * self.sensor.shape[1] + PADDING

    @property
    def image_bytes(self) -> int:
        return self.sensor.shape[0] * self.row_bytes + (8 + 16 if self.has_metadata else 0)

    def ints(self) -> dict[str, int]:
        height, width = self.sensor.shape
        told = {
            "SensorHeight": Sensor.height,
            "SensorWidth": Sensor.width,
            "AOIHeight": height,
            "AOIWidth": width,
            "AOIStride": self.row_bytes,
            "ImageSizeBytes": self.image_bytes,
            "TimestampClockFrequency": CLOCK_HZ,
            "DeviceCount": self.cameras,
            **self.region,
        }
        return {**told, "Baseline": 100} if self.has_baseline else told

    def failed(self, handle: int, name: str) -> int:
        assert handle in (1, 77), handle
        if not self.sensor.present and handle == 77:
            return CONNECTION
        return self.sensor.failing.get(name, 0)

    def AT_IsImplemented(self, handle: int, feature: str, answer: Any) -> int:
        known = {*self.ints(), *self.words, *self.bools, "ExposureTime", "FrameRate"}
        answer[0] = feature in known
        return self.failed(handle, "AT_IsImplemented")

    def AT_IsWritable(self, handle: int, feature: str, answer: Any) -> int:
        answer[0] = not self.sensor.running
        return self.failed(handle, "AT_IsWritable")

    def AT_GetInt(self, handle: int, feature: str, value: Any) -> int:
        if feature not in self.ints():
            return NOTIMPLEMENTED
        value[0] = self.ints()[feature]
        return self.failed(handle, "AT_GetInt")

    def AT_GetIntMax(self, handle: int, feature: str, value: Any) -> int:
        return NOTIMPLEMENTED

    def AT_SetInt(self, handle: int, feature: str, value: int) -> int:
        if self.sensor.running:
            return NOTWRITABLE
        binning = self.sensor.binning
        top, left, height, width = self.sensor.roi
        if feature == "AOIWidth":
            width = value * binning
        elif feature == "AOIHeight":
            height = value * binning
        elif feature == "AOILeft":
            left = value - 1
        elif feature == "AOITop":
            top = value - 1
        else:
            return NOTIMPLEMENTED
        if top + height > Sensor.height or left + width > Sensor.width or min(top, left) < 0:
            return OUTOFRANGE
        self.sensor.roi = (top, left, height, width)
        self.region.update(AOILeft=left + 1, AOITop=top + 1)
        return self.failed(handle, "AT_SetInt")

    def AT_GetFloat(self, handle: int, feature: str, value: Any) -> int:
        told = {"ExposureTime": self.sensor.exposure_s, "FrameRate": 1 / self.sensor.exposure_s}
        value[0] = told[feature]
        return self.failed(handle, "AT_GetFloat")

    def AT_GetFloatMin(self, handle: int, feature: str, value: Any) -> int:
        value[0] = {"ExposureTime": 1e-5}[feature]
        return 0

    def AT_GetFloatMax(self, handle: int, feature: str, value: Any) -> int:
        value[0] = {"ExposureTime": 30.0, "FrameRate": 1 / self.sensor.exposure_s}[feature]
        return 0

    def AT_SetFloat(self, handle: int, feature: str, value: float) -> int:
        if feature == "ExposureTime":
            # In rows of 10 µs.
            self.sensor.exposure_s = round(value * 1e5) / 1e5
        return self.failed(handle, "AT_SetFloat")

    def AT_SetBool(self, handle: int, feature: str, value: int) -> int:
        if feature not in self.bools:
            return NOTIMPLEMENTED
        self.bools[feature] = value
        return 0

    def AT_GetBool(self, handle: int, feature: str, value: Any) -> int:
        if failed := self.failed(handle, "AT_GetBool"):
            return failed
        if feature not in self.bools:
            return NOTIMPLEMENTED
        value[0] = self.bools[feature]
        return 0

    def AT_SetEnumString(self, handle: int, feature: str, word: str) -> int:
        if feature not in self.words:
            return NOTIMPLEMENTED
        if word not in self.words[feature]:
            return NOTAVAILABLE
        self.chosen[feature] = self.words[feature].index(word)
        if feature == "AOIBinning":
            binning = int(word[0])
            top, left, height, width = self.sensor.roi
            self.sensor.roi = (top, left, height // binning * binning, width // binning * binning)
            self.sensor.binning = binning
        return self.failed(handle, "AT_SetEnumString")

    def AT_GetEnumIndex(self, handle: int, feature: str, value: Any) -> int:
        value[0] = self.chosen[feature]
        return self.failed(handle, "AT_GetEnumIndex")

    def AT_GetEnumCount(self, handle: int, feature: str, value: Any) -> int:
        if feature not in self.words:
            return NOTIMPLEMENTED
        value[0] = len(self.words[feature])
        return 0

    def AT_GetEnumStringByIndex(
        self, handle: int, feature: str, index: int, text: int, length: int
    ) -> int:
        return self.write(self.words[feature][index], text, length)

    def AT_GetString(self, handle: int, feature: str, text: int, length: int) -> int:
        return self.write(
            {"CameraModel": "ZYLA-4.2P", "SerialNumber": "VSC-1"}[feature], text, length
        )

    @staticmethod
    def write(word: str, text: int, length: int) -> int:
        assert len(word) < length
        raw = ctypes.create_unicode_buffer(word)
        ctypes.memmove(text, raw, ctypes.sizeof(raw))
        return 0

    # ---------------------------------------------------------------------------------- the frames

    def AT_Command(self, handle: int, feature: str) -> int:
        if failed := self.failed(handle, feature):
            return failed
        if feature == "AcquisitionStart":
            self.seen = 0
            self.overflowed = False
            self.sensor.start()
        else:
            self.sensor.stop()
        return 0

    def AT_QueueBuffer(self, handle: int, address: int, size: int) -> int:
        assert address % 8 == 0
        assert size == self.image_bytes
        self.advance()
        self.queue.append((address, size))
        return self.failed(handle, "AT_QueueBuffer")

    def AT_Flush(self, handle: int) -> int:
        self.queue.clear()
        self.filled.clear()
        return self.failed(handle, "AT_Flush")

    def advance(self) -> None:
        """Fill what was queued with what has been exposed since."""
        exposures = self.sensor.exposures()
        # The library stops there.
        for exposure in range(self.seen, exposures) if not self.overflowed else ():
            if exposure in self.sensor.lost:
                continue
            if not self.queue:
                self.overflowed = True
                break
            address, size = self.queue.pop(0)
            self.expose(exposure, address)
            self.filled.append((address, size))
        self.seen = exposures

    def expose(self, exposure: int, address: int) -> None:
        picture = self.sensor.picture(exposure)
        height, width = picture.shape
        rows = np.full((height, self.row_bytes), 0xEE, np.uint8)
        rows[:, : 2 * width] = picture.view(np.uint8).reshape(height, -1)
        sent = rows.tobytes()
        if self.has_metadata:
            ticks = CLOCK_FROM + round(exposure * self.sensor.exposure_s * CLOCK_HZ)
            # As the SDK3 manual lays it out: data, number, length of both.
            sent += struct.pack("<II", 0, len(sent) + 4) + struct.pack("<QII", ticks, 1, 12)
        ctypes.memmove(address, sent, len(sent))

    def AT_WaitBuffer(self, handle: int, address: Any, size: Any, timeout_ms: int) -> int:
        self.advance()
        while not self.filled:
            if failed := self.failed(handle, "AT_WaitBuffer"):
                return failed
            if self.overflowed:
                return OVERFLOW
            if not self.sensor.await_more(self.seen, timeout_ms / 1e3):
                return TIMEDOUT if self.sensor.present else CONNECTION
            self.advance()
        if failed := self.failed(handle, "AT_WaitBuffer"):
            return failed
        where, length = self.filled.pop(0)
        address[0], size[0] = where, length - self.short_by
        return 0
