"""Frames as the display gets them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tem_live.device_frame import DeviceFrame, DevicePlane
from tem_live.frames import NumpyBackend
from tem_live.state import Frame


def plane_of(array: npt.ArrayLike) -> DevicePlane:
    return DevicePlane(np.asarray(array, np.float32), NumpyBackend())


def on_device(frame: Frame) -> DeviceFrame:
    restored = None if frame.restored is None else plane_of(frame.restored)
    return DeviceFrame(plane_of(frame.electrons), restored, frame.meta)
