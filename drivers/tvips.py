"""TVIPS cameras through the program EMMENU (version 4 or 5) and its COM interface, on Windows.

One image for each request: EMMENU takes it into its own image manager, from where it is read and
deleted again. The camera counts nothing; each image was asked for. Names, units and the order of
calls are those that instamatic (camera_emmenu.py) and Leginon (its class EmMenuF416) use with
``EMMENU4.EMMENUApplication.1``; no manual of TVIPS was at hand.

**Untested on hardware.** Tested against a fake of EMMENU's objects. Known from those programs only:
exposures are milliseconds, offsets are unbinned and sizes binned pixels, and the image comes with
its columns first. Not known: which binnings and exposures a camera takes, so that EMMENU's own
answer decides.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.drivers.device_camera import DeviceCamera, Fetched
from tem_live.drivers.families import Family, Vendor
from tem_live.drivers.protocols import CameraCapabilities, CameraSettings, CameraState, Roi
from tem_live.drivers.snapshots import DTYPE, Image, Snapshots, copy_image
from tem_live.drivers.worker import Worker
from tem_live.errors import DeviceError, DisconnectedError, NotConnectedError, RefusedError

Answer = TypeVar("Answer")

PROGRAM = "EMMENU4.EMMENUApplication.1"
_EXPOSURE_RANGE_S = (1e-3, 1000.0)
_BINNINGS = (1, 2, 4)
_FLAT_MODES = {"none": 0, "dark": 1, "gain": 3}
_FOLDER_KIND = 2
"""Both further arguments of CreateNewSubDirectory, as instamatic passes them."""
_GONE = {0x80010108, 0x800706BA, 0x800706BE, 0x80010012}
"""winerror.h: RPC_E_DISCONNECTED, the server is unavailable, the call failed, RPC_E_SERVER_DIED."""

FAMILY = Family(
    "tvips",
    # Elsewhere there is no EMMENU either, and nothing to install.
    packages=("comtypes",) if sys.platform == "win32" else (),
    install='pip install "tem-live[tvips]"',
    vendor=Vendor(
        name=f"EMMENU ({PROGRAM})",
        is_there=lambda: _is_registered(),
        install="install TVIPS EMMENU 4 or 5 on this computer (Windows)",
    ),
    # Asking COM for EMMENU would start it.
    start="start EMMENU, then try: tem-live run --profile tvips --frames 1",
    tested_against="a fake of EMMENU's objects; no camera hardware",
)


class TvipsOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table for TVIPS.

    Attributes
    ----------
    camera : int
        Which of EMMENU's cameras, from 1.
    viewport : int
        Which of EMMENU's viewports takes the images, from 1.
    configuration : str or None
        EMMENU's camera configuration to use; **its exposure, binning, region and correction are
        changed**, so make one of its own. None takes the viewport's.
    folder : str
        Folder of EMMENU's image manager that the images go to until they are deleted.
    correction : {"none", "dark", "gain"}
        What EMMENU does to the image. Calibration is the program's own: leave it off.
    reply_timeout_s : float
        How long EMMENU may take to answer, in seconds; to an exposure, past its end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    camera: int = Field(default=1, ge=1)
    viewport: int = Field(default=1, ge=1)
    configuration: str | None = None
    folder: str = Field(default="tem_live", min_length=1)
    correction: Literal["none", "dark", "gain"] = "none"
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)


class TvipsCamera(DeviceCamera):
    """See the module's text.

    Parameters
    ----------
    options : TvipsOptions
        Which camera of EMMENU.
    connect : callable or None
        Gives EMMENU's application object, called on the thread that uses it; None asks COM.
    """

    Options: ClassVar[type[BaseModel]] = TvipsOptions

    def __init__(self, options: TvipsOptions, connect: Callable[[], Any] | None = None) -> None:
        super().__init__(_Emmenu(options, connect), "the TVIPS camera")


class _Emmenu:
    def __init__(self, options: TvipsOptions, connect: Callable[[], Any] | None) -> None:
        self._options = options
        self._connect = connect
        self._worker: Worker[Any] | None = None
        self._exposure_s = 0.0
        self._folder: int | None = None
        self._folder_before: int | None = None
        self._snapshots = Snapshots(self._submit)

    # ------------------------------------------------------------------------ opening and closing

    def open(self) -> CameraCapabilities:
        if self._connect is None and sys.platform != "win32":
            raise NotConnectedError("EMMENU runs on Windows; run this on the camera's computer")
        if self._connect is None and find_spec("comtypes") is None:
            raise NotConnectedError(f"EMMENU needs comtypes: {FAMILY.install}")
        self._worker = Worker("emmenu", self._connect or _connect)
        name, height, width = self._ask(self._prepare)
        return CameraCapabilities(
            name=f"TVIPS {name}",
            sensor_shape=(height, width),
            dtype=DTYPE,
            exposure_range_s=_EXPOSURE_RANGE_S,
            binnings=_BINNINGS,
            has_roi=True,
        )

    def close(self) -> None:
        self.stop()
        worker, self._worker = self._worker, None
        if worker is not None:
            # After an exposure that still goes on, and nobody waits for it.
            worker.submit(self._leave)
            worker.close()

    def _prepare(self, emmenu: Any) -> tuple[str, int, int]:
        options = self._options
        viewport = self._viewport(emmenu)
        if options.configuration is not None:
            viewport.Configuration = options.configuration
        self._configuration(emmenu)
        manager = emmenu.ImageManager
        if not manager.DirectoryExist(manager.TopDirectory, options.folder):
            # EMMENU 5.0.9 and 5.0.10 cannot make one (instamatic).
            if not str(emmenu.EMMENUVersion).startswith("4."):
                raise NotConnectedError(
                    f"EMMENU's image manager has no folder '{options.folder}'; make it there, or "
                    "set camera.folder to one that it has"
                )
            top = manager.TopDirectory
            manager.CreateNewSubDirectory(top, options.folder, _FOLDER_KIND, _FOLDER_KIND)
        self._folder_before = viewport.DirectoryHandle
        self._folder = manager.DirectoryHandleFromName(options.folder)
        viewport.DirectoryHandle = self._folder
        camera = emmenu.TEMCameras.Item(options.camera)
        return str(camera.Name), int(camera.RealSizeY), int(camera.RealSizeX)

    def _leave(self, emmenu: Any) -> None:
        if self._folder_before is not None:
            self._viewport(emmenu).DirectoryHandle = self._folder_before

    # -------------------------------------------------------------------------------- the settings

    def configure(self, settings: CameraSettings, roi: Roi) -> CameraState:
        # An exposure that was given up may still be going on.
        return self._ask(lambda emmenu: self._set(emmenu, settings, roi), self._exposure_s)

    def _set(self, emmenu: Any, settings: CameraSettings, roi: Roi) -> CameraState:
        viewport = self._viewport(emmenu)
        binning = settings.binning
        top, left, height, width = roi
        wanted = {
            "BinningX": binning,
            "BinningY": binning,
            "DimensionX": width // binning,
            "DimensionY": height // binning,
            "CCDOffsetX": left,
            "CCDOffsetY": top,
            "FlatMode": _FLAT_MODES[self._options.correction],
            "SeriesNumberOfImages": 1,
        }
        configuration = self._configuration(emmenu)
        for name, value in wanted.items():
            setattr(configuration, name, value)
        emmenu.CameraConfigurations.Update()
        viewport.ExposureTime = round(1e3 * settings.exposure_s)
        configuration = self._configuration(emmenu)
        taken = {name: int(getattr(configuration, name)) for name in wanted}
        if taken != wanted:
            other = [f"{n} = {taken[n]} for {v}" for n, v in wanted.items() if taken[n] != v]
            raise RefusedError(f"EMMENU took {', '.join(other)}; choose what the camera can do")
        self._exposure_s = float(viewport.ExposureTime) / 1e3
        return CameraState(
            exposure_s=self._exposure_s,
            binning=binning,
            roi=roi,
            frame_shape=(height // binning, width // binning),
            dtype=DTYPE,
            frame_interval_s=self._exposure_s,
        )

    def _viewport(self, emmenu: Any) -> Any:
        number = self._options.viewport
        if number > int(emmenu.Viewports.Count):
            raise NotConnectedError(f"EMMENU has no viewport {number}; open one in it")
        return emmenu.Viewports.Item(number)

    def _configuration(self, emmenu: Any) -> Any:
        name = self._viewport(emmenu).Configuration
        known = emmenu.CameraConfigurations
        for index in range(1, int(known.Count) + 1):
            if known.Item(index).Name == name:
                return known.Item(index)
        raise NotConnectedError(
            f"EMMENU has no camera configuration '{name}'; make it in EMMENU's configuration "
            "manager, or set camera.configuration"
        )

    # ---------------------------------------------------------------------------------- the frames

    def start(self, frames: int | None) -> None:
        self._snapshots.start(frames)

    def stop(self) -> None:
        self._snapshots.stop()

    def fetch(self, buffer: npt.NDArray[Any], wait_s: float) -> Fetched | None:
        try:
            image = self._snapshots.next(wait_s)
        except Exception as error:
            raise _told(error) from None
        if image is None:
            return None
        copy_image(image, buffer, "EMMENU")
        return Fetched()

    def is_there(self) -> bool:
        # The connection is busy with the exposure: it cannot be asked, only waited for.
        return not self._snapshots.is_overdue(self._exposure_s + self._options.reply_timeout_s)

    def _submit(self) -> Future[Image]:
        assert self._worker is not None
        return self._worker.submit(self._acquire)

    def _acquire(self, emmenu: Any) -> Image:
        viewport = self._viewport(emmenu)
        viewport.AcquireAndDisplayImage()
        image = emmenu.ImageManager.Image(self._folder, viewport.IndexInDirectory)
        with _as_arrays():
            # Columns first: Leginon turns it in the same way.
            pixels = np.array(image.GetDataConvertedAsLong()).T
        with contextlib.suppress(Exception):
            # EMMENU sometimes loses track of its images; they only fill its memory.
            emmenu.EMImages.DeleteImage(image)
        return pixels.astype(np.int32, casting="same_kind", copy=False)

    def _ask(self, question: Callable[[Any], Answer], longest_s: float = 0.0) -> Answer:
        assert self._worker is not None
        try:
            return self._worker.call(question, self._options.reply_timeout_s + longest_s)
        except Exception as error:
            raise _told(error) from None


def _connect() -> Any:
    import comtypes
    import comtypes.client

    # The thread may have been told already, by the import.
    try:
        comtypes.CoInitializeEx(comtypes.COINIT_MULTITHREADED)
    except OSError:
        comtypes.CoInitialize()
    return comtypes.client.CreateObject(PROGRAM, comtypes.CLSCTX_ALL)


def _as_arrays() -> contextlib.AbstractContextManager[Any]:
    """Have comtypes hand arrays out as such, and not as tuples of tuples."""
    if "comtypes" not in sys.modules:
        return contextlib.nullcontext()
    from comtypes.safearray import safearray_as_ndarray

    context: contextlib.AbstractContextManager[Any] = safearray_as_ndarray
    return context


def _is_registered() -> bool:
    if sys.platform != "win32":
        return False
    import winreg

    with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_CLASSES_ROOT, PROGRAM):
        return True
    return False


def _told(error: BaseException) -> DeviceError:
    """What an error of EMMENU means, in one line."""
    if isinstance(error, DeviceError):
        return error
    if isinstance(error, TimeoutError):
        return DisconnectedError("EMMENU does not answer; is it exposing, or a dialog open in it?")
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        return NotConnectedError(f"EMMENU needs Windows and comtypes ({said})")
    if isinstance(error, AttributeError | TypeError | ValueError):
        return RefusedError(f"this EMMENU works otherwise than is known here: {said}")
    code = getattr(error, "hresult", None)
    # COM codes are signed.
    if code is not None and code & 0xFFFFFFFF not in _GONE:
        return RefusedError(f"EMMENU refuses: {said}")
    return DisconnectedError(f"EMMENU is gone ({said}); start it on this computer and reconnect")
