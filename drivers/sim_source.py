"""What the simulated camera and the simulated scan share: a beam, and frames on the wall clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy.typing as npt

from tem_live.drivers.checks import check_buffer
from tem_live.drivers.protocols import CameraState, FrameMeta
from tem_live.drivers.sim_microscope import SimMicroscope
from tem_live.drivers.sim_run import SimRun, SimSeries
from tem_live.errors import NotConnectedError


class SimSource(ABC):
    """A simulated source of frames that waits for nobody.

    Parameters
    ----------
    microscope : SimMicroscope
        Its beam.
    buffer_frames : int
        Frames that are kept for whoever fetches them late.
    name : str
        What it is, for messages: ``"camera"``.
    """

    _state: CameraState

    def __init__(self, microscope: SimMicroscope, buffer_frames: int, name: str) -> None:
        self.microscope = microscope
        """The beam; the column of the same microscope steers it."""
        self._series = SimSeries(microscope, buffer_frames, name)
        self._name = name
        self._open = False

    @property
    def true_fluence_e_per_A2(self) -> float:
        """See `HasTrueFluence`."""
        return self.microscope.true_fluence_e_per_A2

    def open(self) -> None:
        """See `Camera.open`; lays out the specimen the first time."""
        self._lay_out()
        self._open = True
        self.microscope.power_on()

    def close(self) -> None:
        """See `Camera.close`; the specimen and what it has taken stay."""
        self.stop()
        self._open = False

    def start(self, frames: int | None = None) -> None:
        """See `Camera.start`."""
        self._must_be_open()
        self._series.start(frames, self._state.frame_interval_s)

    def stop(self) -> None:
        """See `Camera.stop`."""
        self._series.stop()

    def read_into(self, buffer: npt.NDArray[Any], timeout_s: float) -> FrameMeta:
        """See `Camera.read_into`."""
        self._must_be_open()
        run, state = self._series.running(), self._state
        check_buffer(buffer, state.frame_shape, state.dtype)
        sequence = self._series.await_frame(run, timeout_s)
        return self._expose(buffer, run, state, sequence)

    @abstractmethod
    def _lay_out(self) -> None:
        """Make specimen and detector, unless that was done."""

    @abstractmethod
    def _expose(
        self, buffer: npt.NDArray[Any], run: SimRun, state: CameraState, sequence: int
    ) -> FrameMeta:
        """Compute a frame."""

    def _must_be_open(self) -> None:
        if not self._open:
            raise NotConnectedError(f"the simulated {self._name} is closed; open it first")

    def _never_opened(self) -> NotConnectedError:
        return NotConnectedError(f"the simulated {self._name} was never opened; call open() first")
