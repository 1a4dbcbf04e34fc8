"""Cameras and STEM detectors of JEOL microscopes through PyJEM: one image for each request.

The detector counts nothing: each image was asked for, so none is lost, and the number is that of
the request. An exposure cannot be stopped; what is asked after a stop waits until it has ended.
Calls of PyJEM's module ``detector``: ``get_attached_detector``, ``Detector.get_detectorsetting``,
``set_exposuretime_value`` (its docstring: µs) and ``snapshot_rawdata``; the size of an image is
``OutputImageInformation.ImageSize``, or ``ImagingArea`` where that is missing.

**Untested on hardware.** Tested against a fake module of PyJEM's shape. Not found and left out:
what binning a ``BinningIndex`` means, and in what pixels ``set_imaging_area`` counts; both stay as
TEM Center has them. Programs of others take 16-bit pixels now for signed and now for unsigned,
and exposures of cameras for ms: `JeolOptions.pixel_type`, `JeolOptions.exposure_unit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from tem_live.drivers.device_camera import DeviceCamera, Fetched
from tem_live.drivers.protocols import CameraCapabilities, CameraSettings, CameraState, Roi
from tem_live.drivers.pyjem_link import FAMILY as FAMILY
from tem_live.drivers.pyjem_link import Connect, PyJemLink, PyJemOptions
from tem_live.drivers.snapshots import DTYPE, Image, Snapshots, copy_image
from tem_live.errors import DisconnectedError, NotConnectedError, RefusedError

_EXPOSURE_RANGE_S = (1e-6, 1000.0)
_UNITS_S = {"us": 1e-6, "ms": 1e-3}


class JeolOptions(PyJemOptions):
    """Fields of the profile's ``[camera]`` table, besides those of `PyJemOptions`.

    Attributes
    ----------
    detector : str or None
        Its name in TEM Center; None for the first that is attached.
    kind : {"camera", "scan"}
        Whether the exposure that PyJEM sets is that of the frame, or of a pixel of a scan.
    exposure_unit : {"us", "ms"}
        Unit of PyJEM's ``ExposureTimeValue``.
    pixel_type : str
        What pixels of two bytes are, as numpy calls it; those of one byte are unsigned.
    """

    detector: str | None = None
    kind: Literal["camera", "scan"] = "camera"
    exposure_unit: Literal["us", "ms"] = "us"
    pixel_type: Literal["<u2", "<i2", ">u2", ">i2"] = "<u2"


class JeolCamera(DeviceCamera):
    """See the module's text.

    Parameters
    ----------
    options : JeolOptions
        Which detector.
    connect : callable or None
        Gives the module ``detector``; None imports PyJEM's.
    """

    Options: ClassVar[type[BaseModel]] = JeolOptions

    def __init__(self, options: JeolOptions, connect: Connect | None = None) -> None:
        super().__init__(_Detector(options, connect), "the JEOL detector")


class _Detector:
    def __init__(self, options: JeolOptions, connect: Connect | None) -> None:
        self._options = options
        self._link = PyJemLink(options, "detector", connect)
        self._detector: Any = None
        self._exposure_s = 0.0
        self._shape = (0, 0)
        self._snapshots = Snapshots(lambda: self._link.submit(lambda _: self._acquire()))

    def open(self) -> CameraCapabilities:
        self._link.open()
        name = self._link.ask(self._choose)
        self._shape = self._link.ask(lambda _: _size(self._detector.get_detectorsetting()))
        return CameraCapabilities(
            name=f"JEOL {name}",
            sensor_shape=self._shape,
            dtype=DTYPE,
            exposure_range_s=_EXPOSURE_RANGE_S,
        )

    def close(self) -> None:
        self.stop()
        self._link.close()

    def _choose(self, module: Any) -> str:
        attached = list(module.get_attached_detector())
        name = self._options.detector or (attached[0] if attached else "")
        if name not in attached:
            known = ", ".join(map(str, attached)) or "no detector at all"
            raise NotConnectedError(
                f"TEM Center has no detector '{name}'; it has: {known}; set camera.detector"
            )
        self._detector = module.Detector(name)
        return str(name)

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        unit_s = _UNITS_S[self._options.exposure_unit]
        # An exposure that was given up may still be going on.
        longest_s = self._exposure_s
        size = self._link.ask(lambda _: _size(self._detector.get_detectorsetting()), longest_s)
        if size != self._shape:
            raise RefusedError(
                f"TEM Center now has images of {size} pixels where there were "
                f"{self._shape}; connect again"
            )
        pixels = math.prod(self._shape) if self._options.kind == "scan" else 1
        wanted = settings.exposure_s / pixels / unit_s
        # Whole numbers as such: that is what its examples give.
        value = round(wanted) if math.isclose(wanted, round(wanted)) else wanted
        self._link.ask(lambda _: self._detector.set_exposuretime_value(value))
        taken = self._link.ask(
            lambda _: float(self._detector.get_detectorsetting()["ExposureTimeValue"])
        )
        self._exposure_s = taken * unit_s * pixels
        if not (math.isfinite(self._exposure_s) and self._exposure_s > 0):
            raise RefusedError(f"the detector took an exposure of {self._exposure_s:g} s")
        return CameraState(
            exposure_s=self._exposure_s,
            binning=1,
            roi=roi,
            frame_shape=self._shape,
            dtype=DTYPE,
            frame_interval_s=self._exposure_s,
        )

    def start(self, frames: int | None) -> None:
        self._snapshots.start(frames)

    def stop(self) -> None:
        self._snapshots.stop()

    def fetch(self, buffer: npt.NDArray[Any], wait_s: float) -> Fetched | None:
        try:
            image = self._snapshots.next(wait_s)
        except Exception as error:
            raise self._link.told(error) from None
        if image is None:
            return None
        copy_image(image, buffer, "PyJEM")
        return Fetched(raw={"dtype": str(image.dtype)})

    def is_there(self) -> bool:
        # The connection is busy with the exposure: it cannot be asked, only waited for.
        return not self._snapshots.is_overdue(self._exposure_s + self._options.reply_timeout_s)

    def _acquire(self) -> Image:
        sent = self._detector.snapshot_rawdata()
        height, width = self._shape
        types = {1: np.dtype(np.uint8), 2: np.dtype(self._options.pixel_type)}
        for size, dtype in types.items():
            if len(sent) == size * height * width:
                return np.frombuffer(sent, dtype).reshape(height, width)
        raise DisconnectedError(
            f"PyJEM sent {len(sent)} bytes where {height}x{width} pixels of 1 or 2 bytes were set; "
            "was it changed by another program?"
        )


def _size(settings: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of an image in pixels."""
    sent = settings.get("OutputImageInformation", {}).get("ImageSize")
    area = sent or settings["ImagingArea"]
    return int(area["Height"]), int(area["Width"])
