"""A fake of EMMENU's COM objects, after programs that use them; a test says how it fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH = 48, 64
FOLDERS = {"top": 7, "tem_live": 8}


class ComError(Exception):
    """As comtypes raises it: with the code in `hresult`, signed."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.hresult = code - (1 << 32)


class Collection:
    def __init__(self, *items: Any) -> None:
        self.items = items
        self.updates = 0

    @property
    def Count(self) -> int:
        return len(self.items)

    def Item(self, number: int) -> Any:
        return self.items[number - 1]

    def Update(self) -> None:
        self.updates += 1


class Configuration:
    Name = "low dose"
    BinningX = BinningY = 2
    DimensionX, DimensionY = WIDTH, HEIGHT
    CCDOffsetX = CCDOffsetY = 0
    FlatMode = 3
    SeriesNumberOfImages = 5


class Camera:
    Name = "TemCam-XF416"
    RealSizeX, RealSizeY = WIDTH, HEIGHT


class Picture:
    def __init__(self, pixels: npt.NDArray[Any]) -> None:
        self.pixels = pixels

    def GetDataConvertedAsLong(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(int(n) for n in column) for column in self.pixels.T)


class Viewport:
    Configuration = "low dose"
    ExposureTime = 100
    DirectoryHandle = FOLDERS["top"]
    IndexInDirectory = 3

    def __init__(self, emmenu: Emmenu) -> None:
        self.emmenu = emmenu

    def AcquireAndDisplayImage(self) -> None:
        emmenu, at = self.emmenu, self.emmenu.configuration
        emmenu.ended.wait(self.ExposureTime / 1e3)
        if emmenu.failing is not None:
            raise emmenu.failing
        assert at.SeriesNumberOfImages == 1
        rows, columns = np.indices((at.DimensionY, at.DimensionX))
        pixels = 1000 * emmenu.exposures + 10 * rows + columns - 5
        emmenu.stored[self.DirectoryHandle, self.IndexInDirectory] = Picture(emmenu.spoil(pixels))
        emmenu.exposures += 1


class Emmenu:
    """EMMENU's application object."""

    EMMENUVersion = "4.0.7.27"

    def __init__(self) -> None:
        self.configuration = Configuration()
        self.viewport = Viewport(self)
        self.TEMCameras = Collection(Camera())
        self.Viewports = Collection(self.viewport)
        self.CameraConfigurations = Collection(self.configuration)
        self.ImageManager = self.EMImages = self
        self.folders = {"top"}
        self.stored: dict[tuple[int, int], Picture] = {}
        self.exposures = 0
        self.failing: Exception | None = None
        self.spoil: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = lambda pixels: pixels
        self.ended = threading.Event()
        self.threads: set[str] = set()

    def connect(self) -> Emmenu:
        self.threads.add(threading.current_thread().name)
        return self

    # The image manager, and the images.
    TopDirectory = FOLDERS["top"]

    def DirectoryExist(self, top: int, name: str) -> bool:
        return name in self.folders

    def CreateNewSubDirectory(self, top: int, name: str, *kinds: int) -> None:
        assert kinds == (2, 2)
        self.folders.add(name)

    def DirectoryHandleFromName(self, name: str) -> int:
        return FOLDERS[name]

    def Image(self, folder: int, index: int) -> Picture:
        return self.stored[folder, index]

    def DeleteImage(self, image: Picture) -> None:
        self.stored = {key: value for key, value in self.stored.items() if value is not image}
