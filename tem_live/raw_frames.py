"""Raw frames in counts for a calibration, with the beam on or off; it ends blanked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from tem_live.errors import DeviceError
from tem_live.pipeline import Acquisition, Taken

SKIPPED = 2
"""The first frames may have begun before the beam was where it should be."""


def each_raw(
    acquisition: Acquisition,
    frames: int,
    use: Callable[[npt.NDArray[Any]], object],
    prepare: Callable[[], None],
    unblank: Callable[[], None] | None,
    blank: Callable[[], None],
) -> None:
    """Hand so many raw frames to ``use``, on the camera's thread; the beam ends blanked.

    Parameters
    ----------
    acquisition : Acquisition
        No run may be on.
    frames : int
        How many. `SKIPPED` more are taken before them and left out.
    use : callable of ndarray (H, W)
        Gets each in counts, in memory that the next one may take.
    prepare : callable
        Called before the run: the beam is blanked, or made sure that it may come on.
    unblank : callable or None
        Lets the beam through, just before the camera starts; None leaves it as it is.
    blank : callable
        Takes the beam off; must not raise. Called at the end, however that comes.

    Raises
    ------
    DeviceError
        The run ended before all had come.
    """
    seen = 0

    def tap(taken: Taken) -> None:
        nonlocal seen
        seen += 1
        if SKIPPED < seen <= SKIPPED + frames:
            use(taken.slot.host)

    acquisition.taps.append(tap)
    try:
        prepare()
        acquisition.start(frames + SKIPPED, None, unblank).result()
        acquisition.wait()
    finally:
        acquisition.taps.remove(tap)
        blank()
    if seen < SKIPPED + frames:
        reason = (acquisition.stop_reason or "").removeprefix("error: ")
        raise DeviceError(f"only {max(seen - SKIPPED, 0)} of {frames} frames came: {reason}")
