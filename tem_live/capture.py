"""Take short and long exposures of the same places, to train a restorer on one's own instrument.

    plan = Plan(short_s=0.02, long_s=1.0, pairs=20)
    with open_session("my-microscope", {"restorer.model": "none"}) as session:
        print(plan.dose_text(session.state))
        capture_pairs(session, plan, "pairs")

The folder then holds ``short/0001.tif``, ``long/0001.tif`` and so on, in e-/px, and ``pairs.json``,
which `tem_live.models.pairs` reads. The beam is blanked between exposures (each is a run of its
own, and a run that ends blanks the beam); however the capture ends, it is blanked, and the pairs
taken so far are whole.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tem_live.dose import per_A2
from tem_live.errors import InputError, RefusedError, TemLiveError

if TYPE_CHECKING:
    from tem_live.session import Session
    from tem_live.state import SessionState

__all__ = ["Captured", "Plan", "capture_pairs", "register_and_mean"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """What to take.

    Attributes
    ----------
    short_s, long_s : float
        Exposures in seconds.
    pairs : int
        How many.
    summed : bool
        Take the long exposure as many short ones, registered before they are averaged: for
        specimens that drift meanwhile. Read noise is then counted once for each of them.
    """

    short_s: float
    long_s: float
    pairs: int
    summed: bool = False

    def __post_init__(self) -> None:
        for name in ("short_s", "long_s"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise InputError(f"{name} {value}: give seconds above 0")
        if self.long_s < 2.0 * self.short_s:
            raise InputError(
                f"a long exposure of {self.long_s:g} s is not much of a reference for one of "
                f"{self.short_s:g} s; make it at least twice as long"
            )
        if self.pairs < 1:
            raise InputError(f"{self.pairs} pairs: take at least 1")

    @property
    def frames_summed(self) -> int:
        """Short frames that make a long exposure; 1 where it is taken at once."""
        return max(2, round(self.long_s / self.short_s)) if self.summed else 1

    @property
    def exposure_s(self) -> float:
        """Time under the beam, all pairs together."""
        long = self.frames_summed * self.short_s if self.summed else self.long_s
        return self.pairs * (self.short_s + long)

    def fluence_e_per_A2(self, state: SessionState) -> float | None:
        """What the specimen will take in e-/Å²; None where the dose rate is not known."""
        rate, size = state.dose_rate_e_per_px_s, state.pixel_size_nm
        if rate is None or not size:
            return None
        return self.exposure_s * per_A2(rate, size)

    def dose_text(self, state: SessionState) -> str:
        """What is to be told before the beam goes on."""
        text = (
            f"{self.pairs} pairs of {self.short_s:g} s and {self.long_s:g} s: "
            f"{self.exposure_s:.4g} s under the beam"
        )
        fluence = self.fluence_e_per_A2(state)
        if fluence is None:
            return f"{text}; the dose is unknown, for the dose rate is"
        return f"{text}, {fluence:.4g} e-/Å² if it stays at one place"


@dataclass(frozen=True)
class Captured:
    """What was taken.

    Attributes
    ----------
    folder : Path
        Where the pairs are.
    pairs : int
        Whole pairs.
    short_e_per_px, long_e_per_px : float
        Mean dose of a frame of each.
    fluence_e_per_A2 : float or None
        Booked by the session since it began, so these pairs and what came before.
    blanked : bool or None
        State of the beam at the end.
    drift_px : float
        Largest shift that was undone within a long exposure.
    """

    folder: Path
    pairs: int
    short_e_per_px: float
    long_e_per_px: float
    fluence_e_per_A2: float | None
    blanked: bool | None
    drift_px: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able copy."""
        return {**asdict(self), "folder": str(self.folder)}


def capture_pairs(
    session: Session,
    plan: Plan,
    folder: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    restore: Callable[[Array], Array] | None = None,
) -> Captured:
    """Take pairs of short and long exposures.

    Parameters
    ----------
    session : Session
        Open, not running; best without a restorer.
    plan : Plan
        What to take.
    folder : str or Path
        A new or empty folder.
    progress : callable of (done, all), optional
        Told after each pair.
    restore : callable, optional
        What frames are registered with where they are summed: (H, W) to (H, W), e-/px; by default
        the default restorer.

    Raises
    ------
    InputError
        There is something in `folder`, or it cannot be made.
    RefusedError
        A run is going on, the camera does not take one of the exposures, or the run was ended, by
        the budget or by hand. Whole pairs are kept.
    DeviceError
        The instrument failed; the beam is blanked and whole pairs are kept.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is not empty; give a new folder")
    try:  # before the specimen takes any dose
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {target}: {error.strerror}") from error
    if session.state.running:
        raise RefusedError("a run is going on; stop it first")
    if plan.summed and restore is None:
        restore = _default_restorer()
    before = session.exposure_s
    means: tuple[list[float], list[float]] = ([], [])
    furthest = 0.0
    try:
        for number in range(1, plan.pairs + 1):
            shorts, short_s = _take(session, plan.short_s, 1)
            if plan.summed:
                parts, part_s = _take(session, plan.short_s, plan.frames_summed)
                assert restore is not None
                mean, shifts = register_and_mean(parts, restore)
                furthest = max(furthest, *(math.hypot(*shift) for shift in shifts))
                # As much as all of them, also where some could not be registered.
                long, long_s = mean * np.float32(len(parts)), part_s * len(parts)
            else:
                longs, long_s = _take(session, plan.long_s, 1)
                long = longs[0]
            if number == 1:
                _describe(target, plan, short_s, long_s, session)
            for name, image, listed in (("short", shorts[0], means[0]), ("long", long, means[1])):
                _write(target / name / f"{number:04d}.tif", image, session)
                listed.append(float(image.mean()))
            if progress is not None:
                progress(number, plan.pairs)
    finally:
        session.stop("pairs")
        # A camera that failed takes none.
        with contextlib.suppress(TemLiveError):
            session.exposure_s = before
    return Captured(
        folder=target,
        pairs=len(means[1]),
        short_e_per_px=float(np.mean(means[0])),
        long_e_per_px=float(np.mean(means[1])),
        fluence_e_per_A2=session.stats().fluence_e_per_A2,
        blanked=session.state.blanked,
        drift_px=furthest,
    )


def _take(session: Session, exposure_s: float, count: int) -> tuple[list[Array], float]:
    """Frames of one run in e-/px, and their exposure; the beam is blanked before and after."""
    if session.exposure_s != exposure_s:
        session.exposure_s = exposure_s
    taken_s = session.exposure_s
    if not math.isclose(taken_s, exposure_s, rel_tol=0.1):
        raise RefusedError(f"the camera exposes for {taken_s:g} s and not {exposure_s:g} s")
    frames = [np.array(frame.electrons, dtype=np.float32) for frame in session.frames(count)]
    if len(frames) < count:
        # A long exposure of fewer frames than its ratio tells would be learnt as the truth.
        raise RefusedError(
            f"the run ended ({session.stats().stop_reason}) after {len(frames)} of {count} frames; "
            "the pairs that are whole are kept"
        )
    return frames, taken_s


def register_and_mean(
    frames: list[Array], restore: Callable[[Array], Array]
) -> tuple[Array, list[tuple[float, float]]]:
    """Average frames of a drifting specimen on the place of the first.

    Parameters
    ----------
    frames : list of ndarray
        float32 (H, W), e-/px.
    restore : callable
        Frames are registered by what it makes of them.

    Returns
    -------
    mean : ndarray
        float32 (H, W), e-/px. Where the specimen has left the field, the mean of the frames that
        still show it.
    shifts : list of (dy, dx)
        Of the frames that were used, in pixels against the first, which is one of them. Frames
        that cannot be registered are left out.
    """
    from tem_live.models.pairs import moved, shift_between

    first = restore(frames[0])
    total = frames[0].astype(np.float64)
    weight = np.ones(first.shape)
    shifts = [(0.0, 0.0)]
    for frame in frames[1:]:
        shift = shift_between(first, restore(frame))
        if shift is None:
            continue
        dy, dx = shift
        height, width = frame.shape
        seen = np.zeros((height, width))
        # Two pixels more than the shift: the phase ramp rings at the seam.
        top, bottom = max(0, math.ceil(-dy)) + 2, max(0, math.ceil(dy)) + 2
        left, right = max(0, math.ceil(-dx)) + 2, max(0, math.ceil(dx)) + 2
        seen[top : height - bottom, left : width - right] = 1.0
        total += seen * moved(frame, -dy, -dx)
        weight += seen
        shifts.append(shift)
    return np.asarray(total / weight, dtype=np.float32), shifts


def _default_restorer() -> Callable[[Array], Array]:
    from tem_live.models import default_restorer, load_restorer

    restorer = load_restorer(default_restorer(), device="auto")
    return lambda frame: np.asarray(restorer.restore(frame), dtype=np.float32)


def _describe(folder: Path, plan: Plan, short_s: float, long_s: float, session: Session) -> None:
    from tem_live import __version__

    state = session.state
    told = {
        "program": f"tem_live {__version__}",
        "profile": session.profile.name,
        "short_s": short_s,
        "long_s": long_s,
        "frames_summed": plan.frames_summed,
        "unit": "e-/px",
        "pixel_size_nm": state.pixel_size_nm,
        "dose_rate_e_per_px_s": state.dose_rate_e_per_px_s,
    }
    (folder / "pairs.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, image: Array, session: Session) -> None:
    from tem_live.files import write_frames

    write_frames(
        path,
        [image],
        (1, image.shape[0], image.shape[1]),
        pixel_size_nm=session.state.pixel_size_nm,
        metadata={"unit": "e-/px"},
    )
