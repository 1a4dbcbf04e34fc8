"""What the tests of both simulators need: one whose time is in our hands, and bounds of chance."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.drivers.protocols import CameraSettings, FrameMeta

Stack = npt.NDArray[np.float64]


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = time.perf_counter() + 1.0

    def __call__(self) -> float:
        return self.now


class SimBench:
    """An open simulated camera whose time is in our hands.

    Parameters
    ----------
    camera : SimCamera or SimStem
        Not open yet.
    exposure_s : float
        Of its frames, unless another is asked for.
    """

    def __init__(self, camera: Any, exposure_s: float) -> None:
        self.camera = camera
        self.options = camera.options
        self.beam = camera.microscope
        self.clock = Clock()
        self.beam.clock = self.clock
        self._exposure_s = exposure_s
        self.camera.open()

    def frames(
        self,
        count: int,
        settings: CameraSettings | None = None,
        amid: Callable[[int], None] = lambda number: None,
    ) -> tuple[Stack, list[FrameMeta]]:
        """Frames in electrons less the pedestal; ``amid`` is called 3/10 into every exposure."""
        state = self.camera.configure(settings or CameraSettings(self._exposure_s))
        stack = np.empty((count, *state.frame_shape), state.dtype)
        metas = []
        self.camera.start(count)
        began = self.clock.now
        for number, buffer in enumerate(stack):
            begin = began + number * state.frame_interval_s
            self.clock.now = begin + 0.3 * state.exposure_s
            amid(number)
            self.clock.now = begin + state.frame_interval_s + 1e-6
            metas.append(self.camera.read_into(buffer, 1.0))
        self.camera.stop()
        return (stack - self.options.pedestal_counts) / self.options.gain_counts_per_electron, metas


def assert_mean(values: npt.NDArray[Any], expected: float, sigmas: float = 5.0) -> None:
    error = values.std() / np.sqrt(values.size) + 1e-9
    assert abs(values.mean() - expected) < sigmas * error


def assert_variance(values: npt.NDArray[Any], expected: float) -> None:
    assert_mean((values - values.mean()) ** 2, expected)
