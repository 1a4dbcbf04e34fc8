"""The threads that a frame passes: taken, processed, written.

`Acquisition` owns the camera: it fills a slot of the ring, books the dose and hands the raw frame
to the `Writer` before anything else, then to the `Processor`, which calibrates, restores and
analyses it and publishes it to the display and to subscribers. Queues between them are unbounded
in code and bounded by the ring: whoever is slow holds slots. What gives way is decided in one
place each: restoring is skipped while frames wait (`Processor`), the display takes the newest and
counts the rest, and only when no slot is left can a raw frame not be taken, which ends the run
with the beam blanked unless the profile says to count it (`Acquisition`).
"""

from __future__ import annotations

from tem_live.pipeline.acquiring import Acquisition
from tem_live.pipeline.processing import MOST_WORKERS, LiveRestorer, Processor, take_all
from tem_live.pipeline.stream import Stream, Taken
from tem_live.pipeline.writing import Sink, Writer

__all__ = [
    "MOST_WORKERS",
    "Acquisition",
    "LiveRestorer",
    "Processor",
    "Sink",
    "Stream",
    "Taken",
    "Writer",
    "take_all",
]
