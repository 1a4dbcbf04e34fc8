"""Cameras of Thermo Fisher (FEI) microscopes through temscript: one image for each request.

The camera counts nothing: each image was asked for, so none is lost, and the number is that of the
request. The next exposure begins when the last image was fetched. An exposure cannot be stopped;
what is asked after a stop waits until it has ended. Where the microscope is: `temscript_link`.

**Untested on hardware.** Tested against temscript 2.1.0's own server and simulated microscope.
What temscript's source and manual leave open: whether binned pixels are summed, the shortest and
longest exposure of a camera, and where on the sensor its half and quarter images lie, so that only
the whole sensor is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from tem_live.drivers.device_camera import DeviceCamera, Fetched
from tem_live.drivers.protocols import CameraCapabilities, CameraSettings, CameraState, Roi
from tem_live.drivers.snapshots import DTYPE, Snapshots, copy_image
from tem_live.drivers.temscript_link import FAMILY as FAMILY
from tem_live.drivers.temscript_link import TemscriptLink, TemscriptOptions
from tem_live.errors import NotConnectedError, RefusedError

_EXPOSURE_RANGE_S = (1e-4, 1000.0)
"""The scripting interface tells no limits; what the microscope does not take it refuses."""


class ThermoOptions(TemscriptOptions):
    """Fields of the profile's ``[camera]`` table, besides those of `TemscriptOptions`.

    Attributes
    ----------
    camera : str or None
        Name of the camera, as the microscope's software calls it; None for its first one.
    """

    camera: str | None = None


class ThermoCamera(DeviceCamera):
    """See the module's text.

    Parameters
    ----------
    options : ThermoOptions
        Which microscope and which camera.
    """

    Options: ClassVar[type[BaseModel]] = ThermoOptions

    def __init__(self, options: ThermoOptions) -> None:
        super().__init__(_Temscript(options), "the Thermo Fisher camera")


class _Temscript:
    def __init__(self, options: ThermoOptions) -> None:
        self._options = options
        self._link = TemscriptLink(options, _EXPOSURE_RANGE_S[1])
        self._camera = ""
        self._sensor = (0, 0)
        self._shape = (0, 0)
        self._exposure_s = 0.0
        self._snapshots = Snapshots(
            lambda: self._link.submit(lambda microscope: _acquire(microscope, self._camera))
        )

    def open(self) -> CameraCapabilities:
        self._link.open()
        cameras = self._link.ask(lambda microscope: microscope.get_cameras())
        self._camera = self._options.camera or next(iter(cameras), "")
        if self._camera not in cameras:
            known = ", ".join(cameras) or "no camera at all"
            raise NotConnectedError(
                f"the microscope has no camera '{self._camera}'; it has: {known}; set camera.camera"
            )
        about = cameras[self._camera]
        # There, where an answer that is not understood is told as one.
        self._sensor = self._link.ask(lambda _: (int(about["height"]), int(about["width"])))
        binnings = self._link.ask(lambda _: {int(binning) for binning in about["binnings"]})
        family = self._link.ask(lambda microscope: microscope.get_family())
        return CameraCapabilities(
            name=f"{family} {self._camera}",
            sensor_shape=self._sensor,
            dtype=DTYPE,
            exposure_range_s=_EXPOSURE_RANGE_S,
            binnings=tuple(sorted({1, *binnings})),
        )

    def close(self) -> None:
        self.stop()
        self._link.close()

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        # Setting the binning changes the exposure on some microscopes; temscript sets it last.
        wanted = {
            "image_size": "FULL",
            "binning": settings.binning,
            "exposure(s)": settings.exposure_s,
        }
        # An exposure that was not waited for may still be going on.
        longest_s = self._exposure_s
        self._link.ask(lambda m: m.set_camera_param(self._camera, wanted), longest_s)
        size, binning, exposure_s = self._link.ask(
            lambda m: _settings(m.get_camera_param(self._camera))
        )
        if size != "FULL" or binning != settings.binning:
            raise RefusedError(
                f"the microscope took image size {size} and binning {binning} where FULL and "
                f"{settings.binning} were asked for"
            )
        self._exposure_s = exposure_s
        if not (math.isfinite(self._exposure_s) and self._exposure_s > 0):
            raise RefusedError(f"the microscope took an exposure of {self._exposure_s:g} s")
        self._link.wait_for(self._exposure_s)
        height, width = self._sensor
        self._shape = height // settings.binning, width // settings.binning
        return CameraState(
            exposure_s=self._exposure_s,
            binning=settings.binning,
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
        copy_image(image, buffer, "the microscope")
        return Fetched(raw={"camera": self._camera, "dtype": str(image.dtype)})

    def is_there(self) -> bool:
        # The connection is busy with the exposure: it cannot be asked, only waited for.
        return not self._snapshots.is_overdue(self._exposure_s + self._options.reply_timeout_s)


def _settings(taken: Mapping[str, Any]) -> tuple[str, int, float]:
    """Image size, binning and exposure in seconds."""
    return str(taken["image_size"]), int(taken["binning"]), float(taken["exposure(s)"])


def _acquire(microscope: Any, camera: str) -> npt.NDArray[Any]:
    images = microscope.acquire(camera)
    if camera not in images:
        # temscript says nothing when the camera cannot be used for the acquisition.
        raise ValueError(f"no image of {camera}; is it inserted, and free of other programs?")
    return np.asarray(images[camera])
