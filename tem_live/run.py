"""Headless acquisition, and its figures: what ``tem-live run`` does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tem_live.account import Cost
from tem_live.errors import InputError
from tem_live.paths import numbered
from tem_live.profiles import Profile
from tem_live.session import Frame, FrameInfo, RunStats, Session
from tem_live.watch import WatchState, damage_as_dict, fidelity_as_dict

SCORED_FRAMES = 8
"""Frames of a run with known truth that are scored; the best Gaussian of one takes a while."""


@dataclass
class _Sampler:
    """Keeps copies of a few restored frames, spread over the run, to score them after it."""

    wanted_every: int
    frames: list[Frame]
    next_id: int = 0

    def wants(self, info: FrameInfo, restored: bool) -> bool:
        return restored and info.frame_id >= self.next_id and len(self.frames) < SCORED_FRAMES

    def receive(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.next_id = frame.meta.frame_id + self.wanted_every


def run(
    profile: Profile,
    frames: int | None = None,
    seconds: float | None = None,
    out: Path | None = None,
    progress: Callable[[RunStats], None] | None = None,
    fidelity: bool = False,
    target_resolution_nm: float | None = None,
    mode: str | None = None,
    on_cost: Callable[[Cost], None] | None = None,
) -> dict[str, Any]:
    """Acquire without a window.

    Parameters
    ----------
    profile : Profile
        The instrument, its budget included.
    frames, seconds : optional
        Length of the run; one of them at least.
    out : Path, optional
        Where to record; nothing is recorded without it. An existing folder gets a new recording
        inside.
    progress : callable of RunStats, optional
        Called about twice a second.
    fidelity : bool
        Judge the restored frames, and follow damage, while they come; see `tem_live.watch`.
    target_resolution_nm : float, optional
        Hold the dose as low as restored frames resolve this; see `Session.minimise`. It implies
        ``fidelity``.
    mode : str, optional
        Set of optics of the profile to take them with; see `Session.use_mode`.
    on_cost : callable of Cost, optional
        Told what the run is going to cost, before the beam comes on.

    Returns
    -------
    dict
        The figures, by the keys of the command line's JSON.

    Raises
    ------
    InputError
        The length is missing or not positive, or there is already something at ``out``.
    TemLiveError
        The profile, a device or the restorer is missing or broken when the run begins. What goes
        wrong later is the ``stop_reason`` of the result.
    """
    if frames is None and seconds is None:
        raise InputError("say how long to run: --frames N or --seconds S")
    if frames is not None and frames < 1:
        raise InputError(f"--frames {frames}: a run takes 1 frame or more")
    if seconds is not None and not 0 < seconds < math.inf:
        raise InputError(f"--seconds {seconds:g}: give a positive number of seconds")
    sampler = _Sampler(max(1, (frames or 200) // SCORED_FRAMES), [])
    with Session(profile) as session:
        if mode is not None:
            session.use_mode(mode)
        recording = session.record(_target(out, profile)) if out is not None else None
        end = session.subscribe(sampler.receive, sampler.wants)
        loop = None if target_resolution_nm is None else session.minimise(target_resolution_nm)
        watch = loop.watch if loop else session.watch() if fidelity else None
        cost = session.cost(frames=_frames_of(session, frames, seconds))
        if on_cost is not None:
            on_cost(cost)
        try:
            session.start(frames, seconds)
            while not session.wait(0.5):
                if progress is not None:
                    progress(session.stats())
        except KeyboardInterrupt:
            session.stop("user")
        finally:
            end()
        lasted = None if loop is None else asdict(loop.state)
        if watch is not None:
            watch.close()
        seen = WatchState() if watch is None else watch.state
        return {
            **_figures(session, sampler.frames, recording),
            "cost_e_per_A2": cost.e_per_A2,
            "fidelity": fidelity_as_dict(seen.fidelity),
            "damage": damage_as_dict(seen.damage),
            "minimise": lasted,
        }


def _frames_of(session: Session, frames: int | None, seconds: float | None) -> int:
    """How many frames a run takes at most, as the camera is set."""
    at_most = [] if frames is None else [frames]
    if seconds is not None:
        interval_s = session.state.frame_interval_s or session.state.exposure_s
        at_most.append(max(1, math.ceil(seconds / interval_s)))
    return min(at_most)


def _target(out: Path, profile: Profile) -> Path:
    try:
        if out.suffix != ".zarr" and (out.is_dir() or not out.exists()):
            return numbered(out, profile.name, ".zarr")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None
    return out


def _figures(session: Session, sampled: list[Frame], recording: Path | None) -> dict[str, Any]:
    stats, state = session.stats(), session.state
    return {
        "profile": session.profile.name,
        "frames": stats.frames,
        "fps": round(stats.fps, 3),
        "restored": stats.restored,
        "restore_fps": round(stats.restore_fps, 3),
        "latency_ms_p50": _rounded(stats.latency_ms_p50),
        "latency_ms_p99": _rounded(stats.latency_ms_p99),
        "dropped_raw": stats.dropped_raw,
        "restore_skipped": stats.restore_skipped,
        "display_skipped": stats.display_skipped,
        "exposure_s": state.exposure_s,
        "binning": state.binning,
        "frame_shape": list(state.frame_shape),
        "pixel_size_nm": state.pixel_size_nm,
        "counts_per_electron": state.counts_per_electron,
        "dose_rate_e_per_px_s": state.dose_rate_e_per_px_s,
        "dose_e_per_px": stats.dose_e_per_px,
        "fluence_e_per_A2": stats.fluence_e_per_A2,
        "dose_source": stats.dose_source,
        "mode": state.mode,
        "area": state.area,
        "area_fluence_e_per_A2": stats.area_fluence_e_per_A2,
        "budget_e_per_A2": stats.budget_e_per_A2,
        "left_e_per_A2": stats.left_e_per_A2,
        "coincidence_loss": stats.coincidence_loss,
        "warnings": [text for level, text in session.messages if level != "info"],
        "blanked": state.blanked,
        "stop_reason": stats.stop_reason,
        "model": state.model,
        "precision": state.precision,
        "restore_binning": state.restore_binning,
        "device": state.device,
        "recording": None if recording is None else str(recording),
        "recorded": stats.recorded if recording is not None else 0,
        **_scores(session, sampled),
        "messages": [text for level, text in session.messages if level != "info"],
    }


def _scores(session: Session, sampled: list[Frame]) -> dict[str, Any]:
    keys = ("psnr_raw_db", "psnr_restored_db", "psnr_gaussian_db")
    columns: dict[str, list[float]] = {key: [] for key in keys}
    for frame in sampled:
        truth = session.truth(frame.meta)
        if truth is None or frame.restored is None:
            break
        from tem_live.models.blurs import best_gaussian
        from tem_live.models.scores import psnr_db

        blurred, _ = best_gaussian(truth, frame.electrons)
        for key, image in zip(keys, (frame.electrons, frame.restored, blurred), strict=True):
            columns[key].append(psnr_db(truth, image))
    means = {key: statistics.fmean(column) if column else None for key, column in columns.items()}
    return {
        **{key: _rounded(value) for key, value in means.items()},
        "scored_frames": len(columns[keys[0]]),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
