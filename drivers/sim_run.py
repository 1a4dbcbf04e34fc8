"""The series of a simulated camera, on the wall clock: what is not fetched in time is lost.

What a frame shows is computed only when it is fetched. The specimen's clock counts the frames that
were fetched and not the seconds, so that the same calls show the same motion.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tem_live.drivers.protocols import EndOfFrames
from tem_live.drivers.sim_microscope import SimMicroscope
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    OverflowedError,
    RefusedError,
)


@dataclass
class SimRun:
    """One series, from `start` to `stop`.

    Attributes
    ----------
    number : int
        Which series since the camera was made.
    began_s : float
        By the microscope's clock, in seconds.
    specimen_began_s : float
        The specimen's time at the beginning, in seconds.
    interval_s : float
        From frame to frame, in seconds.
    end : int or None
        How many frames it has.
    next : int
        Number of the frame that is fetched next.
    stopped : threading.Event
        Set when it is stopped.
    """

    number: int
    began_s: float
    specimen_began_s: float
    interval_s: float
    end: int | None
    next: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def begin_s(self, sequence: int) -> float:
        """When a frame of it begins, by the microscope's clock, in seconds."""
        return self.began_s + sequence * self.interval_s

    def specimen_time_s(self, sequence: int) -> float:
        """The specimen's time when a frame of it begins, in seconds."""
        return self.specimen_began_s + sequence * self.interval_s

    def await_frame(
        self,
        clock: Callable[[], float],
        buffer_frames: int,
        timeout_s: float,
        device: str,
    ) -> int:
        """Wait until the next frame has been exposed, and take it out of the buffer.

        Parameters
        ----------
        clock : callable
            The microscope's, in seconds.
        buffer_frames : int
            How many are kept.
        timeout_s : float
            How long to wait at most, in seconds.
        device : str
            What messages call it, ``"camera"`` or ``"scan"``.

        Returns
        -------
        int
            Its number.

        Raises
        ------
        EndOfFrames, DeviceTimeoutError, DisconnectedError, OverflowedError
            As `Camera.read_into` does.
        """
        if self.end is not None and self.next >= self.end:
            raise EndOfFrames
        due_s = self.began_s + (self.next + 1) * self.interval_s
        if self.stopped.wait(max(0.0, min(due_s - clock(), timeout_s))):
            raise DisconnectedError(f"the {device} was stopped while a frame was awaited")
        now = clock()
        if now < due_s:
            raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")
        exposed = int((now - self.began_s) / self.interval_s)
        if self.end is not None:
            exposed = min(exposed, self.end)
        lost = exposed - self.next - buffer_frames
        if lost > 0:
            self.next += lost
            raise OverflowedError(
                f"the {device}'s buffer of {buffer_frames} frames overflowed: {lost} frame(s) were "
                "lost; read faster or expose longer"
            )
        self.next += 1
        return self.next - 1


class SimSeries:
    """One `SimRun` after another; thread-safe.

    Parameters
    ----------
    microscope : SimMicroscope
        Whose clock they run by.
    buffer_frames : int
        Frames that are kept for a slow reader.
    device : str
        What messages call it, ``"camera"`` or ``"scan"``.
    """

    def __init__(self, microscope: SimMicroscope, buffer_frames: int, device: str) -> None:
        self._microscope = microscope
        self._buffer_frames = buffer_frames
        self._device = device
        self._lock = threading.Lock()
        self._run: SimRun | None = None
        self._runs = 0
        self._specimen_time_s = 0.0

    def must_stand(self) -> None:
        """Raise `RefusedError` while one is running: nothing can be configured then."""
        if self._run is not None:
            device = self._device
            raise RefusedError(f"the {device} is running; stop it before it is configured")

    def start(self, frames: int | None, interval_s: float) -> None:
        """Begin a series; one that was running ends. Raises `RefusedError` for fewer than 1."""
        if frames is not None and frames < 1:
            raise RefusedError(f"a series of {frames} frames is none; ask for at least 1")
        self.stop()
        with self._lock:
            now = self._microscope.clock()
            self._run = SimRun(self._runs, now, self._specimen_time_s, interval_s, frames)
            self._runs += 1

    def stop(self) -> None:
        """End the series, and a wait for its next frame; idempotent."""
        with self._lock:
            run, self._run = self._run, None
            if run is not None:
                self._specimen_time_s = run.specimen_time_s(run.next)
                run.stopped.set()

    def running(self) -> SimRun:
        """The series that is running. Raises `DisconnectedError` where there is none."""
        run = self._run
        if run is None:
            device = self._device
            raise DisconnectedError(f"the {device} is stopped; start it before reading a frame")
        return run

    def await_frame(self, run: SimRun, timeout_s: float) -> int:
        """See `SimRun.await_frame`."""
        clock = self._microscope.clock
        return run.await_frame(clock, self._buffer_frames, timeout_s, self._device)
