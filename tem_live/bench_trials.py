"""How many frames a second the program restores from the camera on, found by trying."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tem_live.session import Session

__all__ = ["Trial", "end_to_end", "highest_rate"]

TRIAL_S = 4.0
FEWEST_FRAMES = 8
ENOUGH = 0.98
"""Share of the frames that have to be restored, and of the rate that the camera has to hold."""
KEPT_UP = 0.95
"""Share of the rate at which frames are to be restored; else they wait ever longer."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run at one rate showed.

    Attributes
    ----------
    held : bool
        Whether the camera kept the rate and enough frames were restored.
    restored_fps : float
        Restored frames per second, from the first to the last.
    latency_ms_p50, latency_ms_p99 : float or None
        Of the restored frames.
    dropped_raw : int
        Frames lost.
    device : str
        Where it ran.
    """

    held: bool
    restored_fps: float
    latency_ms_p50: float | None
    latency_ms_p99: float | None
    dropped_raw: int
    device: str


def end_to_end(
    session: Session, first_fps: float, record: Path | None = None
) -> tuple[float | None, Trial]:
    """Highest rate of the session's camera at which (nearly) all frames are restored.

    Each frame has the dose that it has now: were the dose rate kept, the frames of a slow restorer
    would have a higher dose, and another contrast.

    Parameters
    ----------
    session : Session
        On a simulated camera, the dose set; its exposure and dose rate are changed.
    first_fps : float
        Where to begin.
    record : Path, optional
        Folder that raw and restored frames are recorded into.

    Returns
    -------
    rate_fps : float or None
        None where even the slowest rate is too fast.
    trial : Trial
        The last one.
    """
    rate = session.dose_rate
    dose_e_per_px = None if rate is None else rate * session.exposure_s
    shortest_s, longest_s = session.capabilities.exposure_range_s

    def at(rate_fps: float, frames: int, folder: Path | None) -> Trial:
        exposure_s = 1.0 / rate_fps
        changes = {"exposure_s": exposure_s}
        if dose_e_per_px is not None and session.can_set_dose_rate:
            changes["dose_rate"] = dose_e_per_px / exposure_s
        session.apply(**changes)
        return _run(session, rate_fps, frames, folder)

    # A small frame without a network takes less than the camera's shortest exposure, a large one
    # with twelve views more than its longest.
    slowest_fps, fastest_fps = 1.0 / longest_s, 1.0 / shortest_s
    first_fps = min(max(first_fps, slowest_fps), fastest_fps)
    # What the first frames need is made for them.
    at(max(0.5 * first_fps, slowest_fps), 4, None)
    return highest_rate(
        lambda rate_fps: at(rate_fps, max(FEWEST_FRAMES, round(TRIAL_S * rate_fps)), record),
        first_fps,
        slowest_fps,
    )


def highest_rate(
    trial: Callable[[float], Trial], first_fps: float, least_fps: float
) -> tuple[float | None, Trial]:
    """Go down from a rate until one is held.

    Parameters
    ----------
    trial : callable of rate_fps
        Tries a rate.
    first_fps, least_fps : float
        Where to begin, and the last one to try.

    Returns
    -------
    See `end_to_end`.
    """
    rate_fps = first_fps
    while True:
        found = trial(rate_fps)
        if found.held:
            return round(rate_fps, 2), found
        if rate_fps <= least_fps:
            return None, found
        # Where it is far beyond what came, not every step between is tried. A queue that has run
        # over restores less than one that has not: half is the longest step.
        slower_fps = min(0.9 * rate_fps, max(1.1 * found.restored_fps, 0.5 * rate_fps))
        rate_fps = max(slower_fps, least_fps)


def _run(session: Session, rate_fps: float, frames: int, folder: Path | None) -> Trial:
    if folder is not None:
        session.record(Path(tempfile.mkdtemp(dir=folder)) / "run.zarr")
    session.start(frames, 2.0 * frames / rate_fps)
    session.wait()
    stats = session.stats()
    kept = stats.frames == frames and stats.fps > ENOUGH * rate_fps
    restored = stats.restored >= ENOUGH * frames and stats.restore_fps > KEPT_UP * rate_fps
    return Trial(
        # Without a restorer there is nothing to wait for.
        held=kept and (session.model == "none" or restored),
        restored_fps=stats.restore_fps,
        latency_ms_p50=stats.latency_ms_p50,
        latency_ms_p99=stats.latency_ms_p99,
        dropped_raw=stats.dropped_raw,
        device=session.state.device,
    )
