"""A fake of DCAM's functions, after dcamapi4.h and dcamprop.h."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tem_live.drivers import dcam_api as driver
from tests.drivers.instruments.sdk import Library, Sensor

SUCCESS = 1
NOCAMERA, NOCONNECTION, EXCLUDED = 0x80000206, 0x80000F07, 0x80000110
TIMEOUT, LOSTFRAME = 0x80000106, 0x80000301
INVALIDPROPERTYID, OUTOFRANGE, NOVALUETEXT = 0x80000825, 0x80000822, 0x8000082D
NOPROPERTY = 0x80000828

EXPOSURE, BINNING, TRIGGER = 0x001F0110, 0x00401110, 0x00100110
HPOS, HSIZE, VPOS, VSIZE, SUBARRAY = 0x00402110, 0x00402120, 0x00402130, 0x00402140, 0x00402150
WIDTH, HEIGHT, PIXELTYPE = 0x00420210, 0x00420220, 0x00420270
BITS, STAMPS, INTERVAL, ALIVE, SPEED = 0x00420130, 0x00410A20, 0x00403820, 0x00FF0010, 0x00400110
NAMES = {EXPOSURE: "EXPOSURE TIME", BINNING: "BINNING", SPEED: "READOUT SPEED"}
PADDING = 16


def code(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


class Dcam:
    """One camera behind a library that may be broken."""

    def __init__(self) -> None:
        self.sensor = Sensor()
        self.cameras = 1
        self.stamps = 4
        self.first_stamp = 7
        self.wrong_size = False
        self.pixel_type = 2
        self.values: dict[int, float] = {SUBARRAY: 1, TRIGGER: 2, SPEED: 2, BITS: 12}
        self.region = {HPOS: 0, HSIZE: Sensor.width, VPOS: 0, VSIZE: Sensor.height}
        self.open_handles: list[str] = []
        self.buffers: list[ctypes.Array[Any]] = []
        self.library = Library(self, driver.PROTOTYPES)

    def failed(self, name: str) -> int:
        """The code that a function was told to answer; 0 where it works."""
        if not self.sensor.present:
            return NOCONNECTION
        return self.sensor.failing.get(name, 0)

    # ------------------------------------------------------------------------ opening and closing

    def dcamapi_init(self, init: Any) -> int:
        if init[0].size != 32:
            raise ValueError(init[0].size)
        if not self.cameras:
            return code(NOCAMERA)
        self.open_handles.append("api")
        init[0].iDeviceCount = self.cameras
        return SUCCESS

    def dcamapi_uninit(self) -> int:
        self.open_handles.remove("api")
        return SUCCESS

    def dcamdev_open(self, opened: Any) -> int:
        if self.sensor.in_use:
            return code(EXCLUDED)
        self.open_handles.append("camera")
        opened[0].hdcam = 0xCA << 40
        return SUCCESS

    def dcamdev_close(self, camera: int) -> int:
        self.open_handles.remove("camera")
        return SUCCESS

    def dcamwait_open(self, opened: Any) -> int:
        assert opened[0].hdcam == 0xCA << 40
        self.open_handles.append("wait")
        opened[0].hwait = 0x3A << 40
        return SUCCESS

    def dcamwait_close(self, wait: int) -> int:
        self.open_handles.remove("wait")
        return SUCCESS

    def dcamdev_getstring(self, camera: int, asked: Any) -> int:
        text = {0x04000104: b"C15550-20UP", 0x04000102: b"S/N: 000123"}[asked[0].iString]
        assert len(text) < asked[0].textbytes
        ctypes.memmove(asked[0].text, text + b"\0", len(text) + 1)
        return SUCCESS

    # ------------------------------------------------------------------------------ the properties

    def value(self, name: int) -> float | None:
        sensor = self.sensor
        told: dict[int, float] = {
            EXPOSURE: sensor.exposure_s,
            BINNING: sensor.binning,
            INTERVAL: sensor.exposure_s,
            WIDTH: sensor.shape[1],
            HEIGHT: sensor.shape[0],
            PIXELTYPE: self.pixel_type,
            STAMPS: self.stamps,
            ALIVE: 2 if sensor.present else 1,
            **self.region,
            **self.values,
        }
        return told.get(name)

    def dcamprop_getvalue(self, camera: int, name: int, value: Any) -> int:
        if failed := self.failed("dcamprop_getvalue"):
            return code(failed)
        told = self.value(name)
        if told is None:
            return code(INVALIDPROPERTYID)
        value[0] = told
        return SUCCESS

    def dcamprop_setvalue(self, camera: int, name: int, value: float) -> int:
        if failed := self.failed("dcamprop_setvalue"):
            return code(failed)
        if self.value(name) is None:
            return code(INVALIDPROPERTYID)
        if name == EXPOSURE:
            if not 1e-5 <= value <= 10:
                return code(OUTOFRANGE)
            # The camera rounds to a microsecond.
            self.sensor.exposure_s = round(value, 6)
        elif name == BINNING:
            self.sensor.binning = int(value)
        elif name in self.region:
            self.region[name] = int(value)
        else:
            self.values[name] = value
        whole = (0, 0, Sensor.height, Sensor.width)
        region = tuple(self.region[key] for key in (VPOS, HPOS, VSIZE, HSIZE))
        self.sensor.roi = region if self.values[SUBARRAY] == 2 else whole  # type: ignore[assignment]
        return SUCCESS

    def dcamprop_getattr(self, camera: int, attribute: Any) -> int:
        if failed := self.failed("dcamprop_getattr"):
            return code(failed)
        limits = {
            EXPOSURE: (1e-5, 10.0, 1e-6),
            HPOS: (0, Sensor.width - 4, 4),
            HSIZE: (4, Sensor.width, 4),
            VPOS: (0, Sensor.height - 4, 4),
            VSIZE: (4, Sensor.height, 4),
        }
        about = attribute[0]
        if about.iProp not in limits:
            return code(INVALIDPROPERTYID)
        about.valuemin, about.valuemax, about.valuestep = limits[about.iProp]
        return SUCCESS

    def dcamprop_getnextid(self, camera: int, number: Any, option: int) -> int:
        following = [name for name in sorted(NAMES) if name > number[0]]
        if option or not following:
            return code(NOPROPERTY)
        number[0] = following[0]
        return SUCCESS

    def dcamprop_getname(self, camera: int, name: int, text: Any, size: int) -> int:
        ctypes.memmove(text, NAMES[name].encode() + b"\0", len(NAMES[name]) + 1)
        return SUCCESS

    def dcamprop_getvaluetext(self, camera: int, asked: Any) -> int:
        known = asked[0].iProp == BINNING and asked[0].value in (1, 2, 4)
        return SUCCESS if known else code(NOVALUETEXT)

    # ---------------------------------------------------------------------------------- the frames

    def dcambuf_alloc(self, camera: int, count: int) -> int:
        if failed := self.failed("dcambuf_alloc"):
            return code(failed)
        height, width = self.sensor.shape
        size = height * (2 * width + PADDING)
        self.buffers = [(ctypes.c_ubyte * size)() for _ in range(count)]
        self.open_handles.append("buffers")
        return SUCCESS

    def dcambuf_release(self, camera: int, kind: int) -> int:
        self.open_handles.remove("buffers")
        return SUCCESS

    def dcamcap_start(self, camera: int, mode: int) -> int:
        if failed := self.failed("dcamcap_start"):
            return code(failed)
        assert mode == -1
        self.sensor.start()
        return SUCCESS

    def dcamcap_stop(self, camera: int) -> int:
        self.sensor.stop()
        return SUCCESS

    def dcamcap_transferinfo(self, camera: int, info: Any) -> int:
        if failed := self.failed("dcamcap_transferinfo"):
            return code(failed)
        info[0].nFrameCount = len(self.sensor.arrived())
        info[0].nNewestFrameIndex = (info[0].nFrameCount - 1) % max(1, len(self.buffers))
        return SUCCESS

    def dcamwait_start(self, wait: int, asked: Any) -> int:
        assert wait == 0x3A << 40
        if failed := self.failed("dcamwait_start"):
            return code(failed)
        if not self.sensor.await_more(self.sensor.exposures(), asked[0].timeout / 1e3):
            return code(TIMEOUT if self.sensor.present else NOCONNECTION)
        asked[0].eventhappened = 2
        return SUCCESS

    def dcambuf_lockframe(self, camera: int, frame: Any) -> int:
        if failed := self.failed("dcambuf_lockframe"):
            return code(failed)
        about, count = frame[0], len(self.buffers)
        arrived = self.sensor.arrived()
        index = max(n for n in range(len(arrived)) if n % count == about.iFrame)
        picture = self.sensor.picture(arrived[index])
        height, width = picture.shape
        about.rowbytes = width * picture.itemsize + PADDING
        memory = np.frombuffer(memoryview(self.buffers[about.iFrame]), np.uint8)
        memory.fill(0xEE)
        memory.reshape(height, -1)[:, : 2 * width] = picture.view(np.uint8).reshape(height, -1)
        about.buf = ctypes.addressof(self.buffers[about.iFrame])
        about.height, about.width = height + self.wrong_size, width
        about.type = self.pixel_type
        about.framestamp = self.first_stamp + arrived[index] if self.stamps != 1 else -1
        about.timestamp.sec, about.timestamp.microsec = 1000 + index, 250_000
        return SUCCESS
