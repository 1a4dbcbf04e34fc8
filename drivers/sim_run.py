"""One series of a simulated camera, on the wall clock: what is not fetched in time is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tem_live.drivers.protocols import EndOfFrames
from tem_live.errors import DeviceTimeoutError, DisconnectedError, OverflowedError


@dataclass
class SimRun:
    """One series, from `start` to `stop`.

    Attributes
    ----------
    number : int
        Which series since the camera was made.
    began_s : float
        By the microscope's clock, in seconds.
    specimen_time_s : float
        The specimen's time at the beginning, in seconds.
    end : int or None
        How many frames it has.
    next : int
        Number of the frame that is fetched next.
    stopped : threading.Event
        Set when it is stopped.
    """

    number: int
    began_s: float
    specimen_time_s: float
    end: int | None
    next: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def await_frame(
        self,
        clock: Callable[[], float],
        interval_s: float,
        buffer_frames: int,
        timeout_s: float,
        device: str,
    ) -> int:
        """Wait until the next frame has been exposed, and take it out of the buffer.

        Parameters
        ----------
        clock : callable
            The microscope's, in seconds.
        interval_s : float
            From frame to frame, in seconds.
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
        due_s = self.began_s + (self.next + 1) * interval_s
        if self.stopped.wait(max(0.0, min(due_s - clock(), timeout_s))):
            raise DisconnectedError(f"the {device} was stopped while a frame was awaited")
        now = clock()
        if now < due_s:
            raise DeviceTimeoutError(f"no frame within {timeout_s:g} s")
        exposed = int((now - self.began_s) / interval_s)
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
