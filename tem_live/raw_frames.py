"""Raw frames in counts for a calibration, with the beam on or off; it ends blanked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.beam import Beam
from tem_live.errors import DeviceError
from tem_live.pipeline import Acquisition, Taken

SKIPPED = 2
"""The first frames may have begun before the beam was where it should be."""


def mean_counts(
    acquisition: Acquisition,
    beam: Beam,
    frames: int,
    shape: tuple[int, int],
    blanked: bool,
    since: int,
) -> npt.NDArray[np.float64]:
    """Mean of so many raw frames (H, W) in counts; as `each_raw`."""
    total = np.zeros(shape, np.float64)
    each_raw(acquisition, beam, frames, blanked, since, total.__iadd__)
    return total / frames


def each_raw(
    acquisition: Acquisition,
    beam: Beam,
    frames: int,
    blanked: bool,
    since: int,
    use: Callable[[npt.NDArray[Any]], object],
) -> None:
    """Hand so many raw frames to ``use``, on the camera's thread; the beam ends blanked.

    Parameters
    ----------
    acquisition : Acquisition
        No run may be on.
    beam : Beam
        What lights them.
    frames : int
        How many. `SKIPPED` more are taken before them and left out.
    blanked : bool
        With the beam blanked (without a blanker, it is to be blanked by hand before).
    since : int
        `Beam.emergencies` when they were asked for.
    use : callable of ndarray (H, W)
        Gets each in counts, in memory that the next one may take.

    Raises
    ------
    RefusedError
        The detector does not allow the beam, or it was blanked by hand meanwhile.
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
    acquisition.prepare()
    try:
        if blanked:
            beam.blank_quietly()
            acquisition.start(frames + SKIPPED, None).result()
        else:
            beam.check_detector()
            beam.await_supervisor()
            acquisition.start(frames + SKIPPED, None, lambda: beam.let_on(since)).result()
        acquisition.wait()
    except BaseException:
        beam.blank_for_good()
        acquisition.give_up("user")
        raise
    finally:
        acquisition.taps.remove(tap)
        beam.blank_quietly()
    if seen < SKIPPED + frames:
        reason = (acquisition.stop_reason or "").removeprefix("error: ")
        raise DeviceError(f"only {max(seen - SKIPPED, 0)} of {frames} frames came: {reason}")
