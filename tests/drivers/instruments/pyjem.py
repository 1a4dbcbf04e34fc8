"""A fake of PyJEM's modules, after its docstrings; a test says how it fails."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH = 48, 64


class PyJem:
    """The modules ``detector`` and ``TEM3`` in one, after PyJEM's docstrings."""

    def __init__(self) -> None:
        self.attached = ["TVCAM_U", "ADF1"]
        self.settings: dict[str, Any] = {
            "ExposureTimeValue": 100_000,
            "OutputImageInformation": {"ImageSize": {"Width": WIDTH, "Height": HEIGHT}},
            "ImagingArea": {"X": 0, "Y": 0, "Width": 999, "Height": 999},
        }
        self.frame_s: float | None = None
        self.sent: npt.NDArray[Any] = np.arange(HEIGHT * WIDTH, dtype="<u2") + 40_000
        self.failing: Exception | None = None
        self.ended = threading.Event()
        self.blanked = 0
        self.obeys = True
        self.spot = 3
        self.steps = [8_000, 10_000, 12_000, 15_000, 20_000, 25_000]
        self.step = 2
        self.unit = "X"

    def answered(self) -> None:
        if self.failing is not None:
            raise self.failing

    # detector
    def get_attached_detector(self) -> list[str]:
        self.answered()
        return self.attached

    def Detector(self, name: str) -> PyJem:
        assert name in self.attached
        return self

    def get_detectorsetting(self) -> dict[str, Any]:
        self.answered()
        return dict(self.settings)

    def set_exposuretime_value(self, value: float) -> dict[str, float]:
        self.settings["ExposureTimeValue"] = value
        return {"ExposureTimeValue": value}

    def snapshot_rawdata(self) -> bytes:
        exposure_s = self.settings["ExposureTimeValue"] / 1e6
        self.ended.wait(exposure_s if self.frame_s is None else self.frame_s)
        self.answered()
        return self.sent.tobytes()

    # TEM3
    def Def3(self) -> PyJem:
        return self

    def EOS3(self) -> PyJem:
        return self

    def SetBeamBlank(self, value: int) -> None:
        self.answered()
        assert type(value) is int
        if self.obeys:
            self.blanked = value

    def GetBeamBlank(self) -> int:
        self.answered()
        return self.blanked

    def SelectSpotSize(self, size: int) -> None:
        assert 0 <= size <= 7
        self.spot = size

    def GetSpotSize(self) -> int:
        return self.spot

    def GetMagValue(self) -> list[Any]:
        value = self.steps[self.step]
        return [str(value), self.unit, f"X{value}"]

    def UpSelector(self) -> None:
        self.step = min(self.step + 1, len(self.steps) - 1)

    def DownSelector(self) -> None:
        self.step = max(self.step - 1, 0)
