"""The module ``DigitalMicrograph`` as Gatan's Python has it, as far as it is used here.

Its shape is that of published scripts; no DigitalMicrograph was there to compare it with.
"""

from __future__ import annotations

import re
import time

import numpy as np
import numpy.typing as npt

from tests.drivers.servers.gatan import picture


class Image:
    def __init__(self, pixels: npt.NDArray[np.generic]) -> None:
        self._pixels = pixels

    def GetNumArray(self) -> npt.NDArray[np.generic]:
        return self._pixels


class Camera:
    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.images = 0
        self.prepared = False

    def GetInserted(self) -> bool:
        return True

    def PrepareForAcquire(self) -> None:
        self.prepared = True

    def AcquireImage(
        self,
        exposure_s: float,
        bin_x: int,
        bin_y: int,
        processing: int,
        top: int,
        left: int,
        bottom: int,
        right: int,
    ) -> Image:
        if not self.prepared:
            raise RuntimeError("the camera was not prepared")
        if bottom > self.shape[0] or right > self.shape[1] or processing not in (1, 2, 3):
            raise RuntimeError("the area is outside of the camera")
        time.sleep(exposure_s)
        pixels = picture(self.images, ((bottom - top) // bin_y, (right - left) // bin_x))
        self.images += 1
        # What is gain normalised has fractions in DigitalMicrograph.
        return Image(pixels.astype(np.float32))


class Tags:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def SetTagAsDouble(self, name: str, value: float) -> None:
        self.values[name] = value

    def GetTagAsDouble(self, name: str) -> tuple[bool, float]:
        return name in self.values, self.values.get(name, 0.0)


class DigitalMicrograph:
    """The module; an object, so that each test has one of its own."""

    def __init__(self, shape: tuple[int, int] = (16, 24)) -> None:
        self.camera = Camera(shape)
        self.tags = Tags()

    def GetActiveCamera(self) -> Camera:
        return self.camera

    def GetPersistentTagGroup(self) -> Tags:
        return self.tags

    def ExecuteScriptString(self, text: str) -> None:
        last = re.search(r'TagAsDouble\(GetPersistentTagGroup\(\), "(.*)", (.*)\)\s*\Z', text)
        if last is None:
            raise RuntimeError("nothing to give back")
        height, width = self.camera.shape
        found = re.search(r"FullCCD\(camera, \d, (\S+), (\d+), \d+\)", text)
        values = {"65536 * height + width": 65536.0 * height + width, "version": 350.0}
        if found is not None:
            if int(found[2]) not in (1, 2, 4, 8):
                raise RuntimeError("binning is not supported")
            values |= {"CM_GetExposure(parameters)": float(found[1]), "across": float(found[2])}
        self.tags.SetTagAsDouble(last[1], values[last[2]])
