"""Cameras and shutters through Micro-Manager's core, in this process (pymmcore).

Any camera that Micro-Manager has a device adapter for comes through here: either from a
configuration file that Micro-Manager itself wrote, or as one device of one adapter, which is how
its DemoCamera is used without hardware. Images of a sequence are fetched from the core's circular
buffer, in order. API: https://micro-manager.org/apidoc/MMCore/latest/ (class CMMCore).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.checks import check_buffer, check_settings
from tem_live.drivers.families import Family, Fields
from tem_live.drivers.protocols import (
    CameraCapabilities,
    CameraSettings,
    CameraState,
    EndOfFrames,
    FrameMeta,
)
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    OverflowedError,
    RefusedError,
)

_WITHOUT_END = 2**31 - 1
"""Length of a free run. Only finite sequences report that the circular buffer overflowed."""
_POLL_S = 0.001
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
}


def _has_adapters(fields: Fields) -> bool:
    """Whether the core finds device adapters of its own version, and one of them loads."""
    import pymmcore

    core = pymmcore.CMMCore()
    core.setDeviceAdapterSearchPaths([_adapters(fields.get("micromanager_path"))])
    return bool(core.getAvailableDevices(str(fields.get("adapter", "DemoCamera"))))


FAMILY = Family(
    "micro-manager",
    packages=("pymmcore",),
    install='pip install "tem-live[mm]"',
    reach=_has_adapters,
    start='pip install "tem-live[mm]"  # or Micro-Manager itself, and camera.micromanager_path',
    tested_against="Micro-Manager's DemoCamera in process; no camera hardware",
    profile="mm-demo",
)


class MMOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for Micro-Manager.

    Attributes
    ----------
    config_file : str or None
        Configuration that Micro-Manager wrote (``MMConfig_*.cfg``); its camera is used. None
        loads ``device`` of ``adapter`` instead.
    micromanager_path : str or None
        Folder with the device adapters, where Micro-Manager is installed; None takes those of the
        package ``mm-test-adapters``.
    adapter, device : str
        Adapter library and device, ``DemoCamera`` and ``DCam`` for the demonstration camera.
    shutter : str or None
        Device of the same adapter to load as the shutter; None for none.
    properties : dict
        Camera properties to set when it is opened, by Micro-Manager's names.
    buffer_MB : int
        Circular buffer of the core in megabytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config_file: str | None = None
    micromanager_path: str | None = None
    adapter: str = "DemoCamera"
    device: str = "DCam"
    shutter: str | None = None
    properties: dict[str, str | int | float] = Field(default_factory=dict)
    buffer_MB: int = Field(default=256, ge=16, le=65536)


class MMCamera:
    """See the module's text.

    Parameters
    ----------
    options : MMOptions
        Which device.
    """

    Options: ClassVar[type[BaseModel]] = MMOptions

    def __init__(self, options: MMOptions) -> None:
        self._options = options
        self._core: Any = None
        self._label = ""
        self._dtype: np.dtype[Any] = np.dtype(np.uint16)
        self._shape = (0, 0)
        self._sensor = (0, 0)
        self._exposure_s = 0.0
        self._end: int | None = None
        self._taken = 0
        self._running = False
        self._halt = threading.Event()
        # The core hands images out by their address in its buffer: nobody may end the sequence
        # or unload the camera while one is being copied.
        self._buffer_lock = threading.Lock()

    # ------------------------------------------------------------------------------- as a camera

    @property
    def core(self) -> Any:
        """The open ``CMMCore``; the shutter is reached through it."""
        if self._core is None:
            raise NotConnectedError("the Micro-Manager camera is closed; open it first")
        return self._core

    @property
    def capabilities(self) -> CameraCapabilities:
        """See `Camera`."""
        core = self.core
        low, high = 1e-6, 3600.0
        if core.hasProperty(self._label, "Exposure") and core.hasPropertyLimits(
            self._label, "Exposure"
        ):
            low = max(low, core.getPropertyLowerLimit(self._label, "Exposure") / 1e3)
            high = core.getPropertyUpperLimit(self._label, "Exposure") / 1e3
        return CameraCapabilities(
            name=f"{core.getDeviceLibrary(self._label)} {core.getDeviceName(self._label)}",
            sensor_shape=self._sensor,
            dtype=self._dtype,
            exposure_range_s=(low, high),
            binnings=self._binnings(),
            has_roi=True,
        )

    def open(self) -> None:
        """See `Camera`."""
        if self._core is not None:
            return
        try:
            import pymmcore
        except ImportError:
            raise NotConnectedError(
                'Micro-Manager needs pymmcore: pip install "tem-live[mm]"'
            ) from None
        options = self._options
        core = pymmcore.CMMCore()
        try:
            core.setDeviceAdapterSearchPaths([_adapters(options.micromanager_path)])
            core.setCircularBufferMemoryFootprint(options.buffer_MB)
            if options.config_file is not None:
                core.loadSystemConfiguration(options.config_file)
            else:
                self._load(core)
            self._label = core.getCameraDevice()
            if not self._label:
                raise NotConnectedError(
                    f"{options.config_file} names no camera; choose one in Micro-Manager's "
                    "hardware configuration"
                )
            core.setAutoShutter(False)
            for name, value in options.properties.items():
                self._set_property(core, name, value)
            if core.getNumberOfComponents() != 1:
                raise NotConnectedError("a colour camera is no use here; set a grey PixelType")
            core.clearROI()
        except (RuntimeError, OSError) as error:
            core.reset()
            raise NotConnectedError(
                f"Micro-Manager cannot open the camera: {_said(error)}; "
                "check the device and camera.micromanager_path"
            ) from None
        except (NotConnectedError, RefusedError):
            core.reset()
            raise
        self._core = core
        self._halt.clear()
        binning = self._binning()
        self._sensor = (core.getImageHeight() * binning, core.getImageWidth() * binning)
        self._dtype = _DTYPES[core.getBytesPerPixel()]

    def close(self) -> None:
        """See `Camera`."""
        self._halt.set()
        core, self._core = self._core, None
        self._running = False
        if core is not None:
            with self._buffer_lock:
                with contextlib.suppress(RuntimeError):
                    core.stopSequenceAcquisition()
                with contextlib.suppress(RuntimeError):
                    core.reset()

    def configure(self, settings: CameraSettings) -> CameraState:
        """See `Camera`."""
        core = self.core
        # The core itself takes a negative exposure without a word.
        roi = check_settings(settings, self.capabilities)
        with _refusing("the settings"):
            before = self._binning(), core.getROI(self._label), core.getExposure()
            try:
                if before[0] != settings.binning:
                    core.setProperty(self._label, "Binning", self._binning_word(settings.binning))
                core.clearROI()
                if roi != (0, 0, *self._sensor):
                    top, left, height, width = (n // settings.binning for n in roi)
                    core.setROI(left, top, width, height)
                core.setExposure(1e3 * settings.exposure_s)
            except RuntimeError:
                self._put_back(*before)
                raise
        return self._read_back()

    def start(self, frames: int | None = None) -> None:
        """See `Camera`."""
        core = self.core
        self._end = frames
        self._taken = 0
        self._halt.clear()
        with _refusing("the start"):
            core.startSequenceAcquisition(_WITHOUT_END if frames is None else frames, 0, True)
        self._running = True

    def stop(self) -> None:
        """See `Camera`."""
        self._halt.set()
        if self._running and self._core is not None:
            self._running = False
            with self._buffer_lock, contextlib.suppress(RuntimeError):
                self._core.stopSequenceAcquisition()

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera`."""
        core = self.core
        if not self._running:
            raise DisconnectedError("the Micro-Manager camera is stopped; start it first")
        check_buffer(buffer, self._shape, self._dtype)
        if self._taken == self._end:
            raise EndOfFrames
        image, tags = self._await_image(core, time.monotonic() + timeout_s, timeout_s)
        if image.shape != buffer.shape:
            raise DisconnectedError(
                f"Micro-Manager sent {image.shape[0]}x{image.shape[1]} pixels where "
                f"{buffer.shape[0]}x{buffer.shape[1]} were set; was it changed by another program?"
            )
        np.copyto(buffer, image)
        sequence = int(tags.get("ImageNumber", self._taken))
        self._taken += 1
        elapsed = tags.get("ElapsedTime-ms")
        return FrameMeta(
            sequence=sequence,
            host_time_s=time.time(),
            exposure_s=self._exposure_s,
            device_time_s=None if elapsed is None else float(elapsed) / 1e3,
            raw=tags,
        )

    # --------------------------------------------------------------------------------- internals

    def _put_back(self, binning: int, roi: Sequence[int], exposure_ms: float) -> None:
        """Leave the camera as it was, as far as it lets itself be set."""
        core = self.core
        with contextlib.suppress(RuntimeError):
            if self._binning() != binning:
                core.setProperty(self._label, "Binning", self._binning_word(binning))
        with contextlib.suppress(RuntimeError):
            core.clearROI()
            if list(core.getROI(self._label)) != list(roi):
                core.setROI(*roi)
        with contextlib.suppress(RuntimeError):
            core.setExposure(exposure_ms)

    def _load(self, core: Any) -> None:
        options = self._options
        core.loadDevice("Camera", options.adapter, options.device)
        core.initializeDevice("Camera")
        core.setCameraDevice("Camera")
        if options.shutter is not None:
            core.loadDevice("Shutter", options.adapter, options.shutter)
            core.initializeDevice("Shutter")
            core.setShutterDevice("Shutter")

    def _set_property(self, core: Any, name: str, value: str | float) -> None:
        try:
            core.setProperty(self._label, name, str(value))
        except RuntimeError as error:
            known = ", ".join(core.getDevicePropertyNames(self._label))
            raise RefusedError(
                f"camera property '{name}' = {value!r} is refused: {_said(error)}; "
                f"the camera has: {known}"
            ) from None

    def _await_image(
        self, core: Any, deadline: float, timeout_s: float
    ) -> tuple[npt.NDArray[Any], dict[str, str]]:
        while True:
            if self._halt.is_set():
                raise DisconnectedError("the Micro-Manager camera was stopped")
            # Stopping takes until the end of the exposure, and nobody waits for it here.
            if not self._buffer_lock.acquire(timeout=_POLL_S):
                continue
            try:
                if core.getRemainingImageCount() > 0:
                    return _pop(core)
                overflowed = core.isBufferOverflowed()
                # In this order the last image cannot slip between the two questions.
                ended = not core.isSequenceRunning() and core.getRemainingImageCount() == 0
            except (RuntimeError, IndexError) as error:
                raise DisconnectedError(f"Micro-Manager's camera failed: {_said(error)}") from None
            finally:
                self._buffer_lock.release()
            if overflowed:
                raise OverflowedError(
                    f"Micro-Manager's buffer of {self._options.buffer_MB} MB overflowed and the "
                    "camera stopped; raise camera.buffer_MB or the exposure"
                )
            if ended:
                raise DisconnectedError("Micro-Manager's camera ended the sequence by itself")
            if time.monotonic() >= deadline:
                raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")
            self._halt.wait(_POLL_S)

    def _read_back(self) -> CameraState:
        core = self.core
        binning = self._binning()
        left, top, width, height = core.getROI(self._label)
        exposure_s = core.getExposure() / 1e3
        pixel_um = core.getPixelSizeUm()
        self._shape = (core.getImageHeight(), core.getImageWidth())
        self._dtype = _DTYPES[core.getBytesPerPixel()]
        self._exposure_s = exposure_s
        return CameraState(
            exposure_s=exposure_s,
            binning=binning,
            roi=(top * binning, left * binning, height * binning, width * binning),
            frame_shape=self._shape,
            dtype=self._dtype,
            frame_interval_s=exposure_s,
            pixel_size_nm=1e3 * pixel_um if pixel_um > 0 else None,
            saturation_counts=float(2 ** core.getImageBitDepth() - 1),
        )

    def _binnings(self) -> tuple[int, ...]:
        core = self.core
        if not core.hasProperty(self._label, "Binning"):
            return (1,)
        return tuple(sorted({_side(word) for word in self._binning_words()})) or (1,)

    def _binning_words(self) -> list[str]:
        return [str(word) for word in self.core.getAllowedPropertyValues(self._label, "Binning")]

    def _binning_word(self, binning: int) -> str:
        """How the adapter writes it: some say "2x2"."""
        return next((w for w in self._binning_words() if _side(w) == binning), str(binning))

    def _binning(self) -> int:
        core = self._core
        if core is None or not core.hasProperty(self._label, "Binning"):
            return 1
        return _side(str(core.getProperty(self._label, "Binning")))


def _side(word: str) -> int:
    return int(word.split("x")[0])


class MMShutterOptions(BaseModel):
    """The shutter has no fields of its own: it is the one of the camera's configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MMShutter:
    """Micro-Manager's current shutter as the beam blanker.

    Parameters
    ----------
    options : MMShutterOptions
        None yet.
    camera : MMCamera
        Whose core the shutter belongs to.
    """

    Options: ClassVar[type[BaseModel]] = MMShutterOptions

    def __init__(self, options: MMShutterOptions, camera: object) -> None:
        if not isinstance(camera, MMCamera):
            raise RefusedError('column.driver = "mm" works with camera.driver = "mm" alone')
        self._camera = camera

    def open(self) -> None:
        """See `Column`."""
        if not self._camera.core.getShutterDevice():
            raise NotConnectedError(
                "Micro-Manager has no shutter set; name one in its configuration or in "
                "camera.shutter"
            )

    def close(self) -> None:
        """See `Column`."""

    @property
    def blanked(self) -> bool:
        """See `Blanker`."""
        with _refusing("reading the shutter"):
            return not self._camera.core.getShutterOpen()

    def set_blanked(self, blanked: bool) -> None:
        """See `Blanker`."""
        core = self._camera.core
        with _refusing("the shutter"):
            core.setShutterOpen(not blanked)
            if bool(core.getShutterOpen()) == blanked:
                raise RefusedError("the shutter does not follow; check its adapter")


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RefusedError(f"Micro-Manager refuses {what}: {_said(error)}") from None


def _pop(core: Any) -> tuple[npt.NDArray[Any], dict[str, str]]:
    """The oldest image of the circular buffer and what the core says about it."""
    import pymmcore

    metadata = pymmcore.Metadata()
    image = core.popNextImageMD(metadata)
    return image, {key: metadata.GetSingleTag(key).GetValue() for key in metadata.GetKeys()}


def _adapters(path: str | None) -> str:
    if path is not None:
        if not Path(path).is_dir():
            raise NotConnectedError(
                f"camera.micromanager_path = {path!r} is no folder; name where Micro-Manager is"
            )
        return path
    try:
        from mm_test_adapters import device_adapter_path
    except ImportError:
        raise NotConnectedError(
            "no device adapters: set camera.micromanager_path to Micro-Manager's folder, or "
            'pip install "tem-live[mm]" for the demonstration ones'
        ) from None
    return str(device_adapter_path())


def _said(error: BaseException) -> str:
    text = str(error.args[0] if error.args else error)
    return " ".join(text.split()) or type(error).__name__
