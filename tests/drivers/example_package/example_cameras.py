"""A camera and a blanker in a package of their own; what docs/plugins.md walks through.

`_Device` stands for the vendor's library: a detector that counts electrons, frame on frame.
"""

from __future__ import annotations

import threading
import time
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.families import Family
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    EndOfFrames,
    FrameMeta,
)
from tem_live.errors import DeviceTimeoutError, DisconnectedError, NotConnectedError, RefusedError

FAMILY = Family(
    "example",
    reach=lambda fields: fields.get("address", "nowhere") != "nowhere",
    start="set camera.address in a profile 'example'",
    tested_against="nothing but itself",
)
SENSOR = (48, 64)
DTYPE = np.dtype(np.uint16)


class _Device:
    def __init__(self) -> None:
        self.blanked = True
        self._random = np.random.default_rng(1)
        self._began = self._exposure_s = 0.0

    def run(self, exposure_s: float) -> None:
        self._exposure_s = exposure_s
        self._began = time.monotonic()

    def fetch(self, number: int, buffer: npt.NDArray[Any]) -> bool:
        """Write frame ``number`` if its exposure has ended."""
        if time.monotonic() < self._began + (number + 1) * self._exposure_s:
            return False
        buffer[...] = self._random.poisson(0.0 if self.blanked else 5.0, buffer.shape)
        return True


class ExampleOptions(BaseModel):
    """Fields of ``[camera]``: an unknown one is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = "nowhere"


class ExampleCamera:
    """What `tem_live.drivers.protocols.Camera` asks for; it inherits nothing."""

    Options: ClassVar[type[BaseModel]] = ExampleOptions

    def __init__(self, options: ExampleOptions) -> None:
        self._options = options  # touches no hardware
        self.device: _Device | None = None
        self._state: CameraState | None = None
        self._end: int | None = None
        self._next = 0
        self._running = threading.Event()

    @property
    def capabilities(self) -> CameraCapabilities:
        if self.device is None:
            raise NotConnectedError("the example camera is closed; open it first")
        return CameraCapabilities("Example", SENSOR, DTYPE, (0.001, 10.0))

    def open(self) -> None:
        if self._options.address == "nowhere":
            raise NotConnectedError("no camera at 'nowhere'; set camera.address")
        self.device = self.device or _Device()

    def close(self) -> None:
        self.stop()
        self.device = None

    def configure(self, settings: CameraSettings) -> CameraState:
        roi = check_settings(settings, self.capabilities)  # raises RefusedError
        exposure_s = settings.exposure_s  # here: what the device says that it took
        self._state = CameraState(exposure_s, 1, roi, SENSOR, DTYPE, exposure_s, None, 1.0)
        return self._state

    def start(self, frames: int | None = None) -> None:
        _ = self.capabilities
        assert self.device is not None
        if self._state is None:
            raise RefusedError("configure the camera before the start")
        self._end, self._next = frames, 0
        self.device.run(self._state.exposure_s)
        self._running.set()

    def stop(self) -> None:
        self._running.clear()

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        _ = self.capabilities
        if not self._running.is_set() or self._state is None:
            raise DisconnectedError("the camera is stopped; start it first")
        check_buffer(buffer, self._state.frame_shape, DTYPE)
        if self._next == self._end:
            raise EndOfFrames
        deadline = time.monotonic() + timeout_s
        while (device := self.device) is not None and self._running.is_set():
            if device.fetch(self._next, buffer):
                self._next += 1
                return FrameMeta(self._next - 1, time.time(), self._state.exposure_s)
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")
            time.sleep(0.001)  # short, so that stop and close end the wait
        raise DisconnectedError("the camera was stopped; start it again")


class ExampleColumnOptions(BaseModel):
    """Fields of ``[column]``: none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ExampleColumn:
    """A beam blanker: `tem_live.drivers.protocols.Column` and `Blanker`."""

    Options: ClassVar[type[BaseModel]] = ExampleColumnOptions
    simulated = True  # or a second process would blank the beam if this one is killed

    def __init__(self, options: ExampleColumnOptions, camera: object) -> None:
        if not isinstance(camera, ExampleCamera):
            raise RefusedError('column.driver = "example" works with the example camera alone')
        self._camera = camera

    def open(self) -> None:
        """Nothing of its own: the camera has the connection."""

    def close(self) -> None:
        """See `open`."""

    @property
    def blanked(self) -> bool:
        return self._device().blanked

    def set_blanked(self, blanked: bool) -> None:
        self._device().blanked = blanked

    def _device(self) -> _Device:
        if self._camera.device is None:
            raise NotConnectedError("the example camera is closed; open it first")
        return self._camera.device
