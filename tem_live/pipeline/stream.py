"""A frame on its way through the pipeline, and the stream that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from tem_live.calibration import Calibrator
from tem_live.drivers.protocols import CameraState
from tem_live.frames import FrameRing, Slot
from tem_live.state import FrameInfo


@dataclass(frozen=True)
class Stream:
    """What stays the same from one configuration of the camera to the next."""

    state: CameraState
    ring: FrameRing
    calibrator: Calibrator
    pixel_size_nm: float | None
    counts_per_electron: float | None


@dataclass
class Taken:
    """A frame on its way, holding its slot."""

    stream: Stream
    slot: Slot
    info: FrameInfo
    handed_over: float

    def release(self) -> None:
        """Give this holder's share of the slot back."""
        self.stream.ring.release(self.slot)


def rate_of(count: int, first: float | None, last: float | None) -> float:
    """Events per second between the first and the last of them; 0 where there are not two."""
    if first is None or last is None or count < 2 or last <= first:
        return 0.0
    return (count - 1) / (last - first)
