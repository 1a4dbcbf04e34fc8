"""Judging live frames: how far the restored ones can be believed, how the specimen fades.

An `Analyst` listens to a session. Whenever it is free it takes the next two restored frames of
equal conditions, and judges them on a thread of its own that stands back behind all others and
rests three times as long as it worked: it takes a quarter of one core at most, misses most frames,
and delays none. Fidelity is judged by `tem_live.fidelity` on such pairs, damage by
`tem_live.damage` on their unrestored electrons. Whoever wants to know holds a `Watch`; all of them
share the one analyst, which ends with the last.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from psygnal import Signal

from tem_live.damage import DamageEstimate, DamageMeter
from tem_live.errors import InputError
from tem_live.fidelity import Fidelity, FidelityMeter, PairFigures
from tem_live.state import Frame, FrameInfo
from tem_live.threads import stand_back

__all__ = [
    "Analyst",
    "Pair",
    "PairPicker",
    "Watch",
    "WatchState",
    "damage_as_dict",
    "fidelity_as_dict",
]

SHARE = 0.25
"""Share of one core that an analyst takes at most."""

FARTHEST = 4
"""Frames by which the second of a pair may follow the first; a slow restorer skips some."""

_STANDS_STILL_PX = 0.25
# Beyond this the beam changed between the two frames, whatever the column says.
_SAME_MEAN = 0.1
# A judgement is begun anew when the dose of the frames has changed by this factor.
_SAME_DOSE = 1.2

Subscribe = Callable[
    [Callable[[Frame], None], Callable[[FrameInfo, bool], bool]], Callable[[], None]
]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two frames of the same conditions, the second soon after the first."""

    first: Frame
    second: Frame

    @property
    def shift_px(self) -> tuple[float, float]:
        """How far the specimen moved from first to second, (dy, dx); 0 for less than is sure."""
        before, after = self.first.meta.drift_px, self.second.meta.drift_px
        if before is None or after is None:
            return 0.0, 0.0
        shift = after[0] - before[0], after[1] - before[1]
        return shift if math.hypot(*shift) > _STANDS_STILL_PX else (0.0, 0.0)


class PairPicker:
    """Chooses the two frames of a pair as they pass; knows no threads.

    A frame that was under way when exposure, dose rate or blanker changed has some of both: the
    first one after a change is left out.
    """

    def __init__(self) -> None:
        self._conditions: tuple[Any, ...] | None = None
        self._newest = -1
        self._first_good = 0
        self._first: Frame | None = None

    def wants(self, info: FrameInfo, restored: bool) -> bool:
        """Whether to take this frame. To be asked for every frame, in about their order."""
        conditions = _conditions(info)
        if info.frame_id > self._newest:
            if self._conditions is not None and conditions != self._conditions:
                self._first_good = info.frame_id + 1
                self._first = None
            self._newest, self._conditions = info.frame_id, conditions
        return (
            restored
            and info.blanked is not True
            and info.frame_id >= self._first_good
            and conditions == self._conditions
        )

    def take(self, frame: Frame) -> Pair | None:
        """Take a frame that was wanted; the pair, once there is one."""
        first, self._first = self._first, frame
        if first is None:
            return None
        gap = frame.meta.frame_id - first.meta.frame_id
        if not 0 < gap <= FARTHEST or not _alike(first, frame):
            return None
        self._first = None
        return Pair(first, frame)

    def forget(self) -> None:
        """Do not use the frame that waits for its second."""
        self._first = None

    def begin_anew(self) -> None:
        """Use none of the frames that have passed by now."""
        self._first = None
        self._first_good = max(self._first_good, self._newest + 1)


@dataclass(frozen=True)
class WatchState:
    """What is known by now.

    Attributes
    ----------
    fidelity : Fidelity or None
        Of the restored frames at the present dose; None before the first pair.
    damage : DamageEstimate or None
        None before the first frame whose fluence is known.
    pairs : int
        Pairs that were judged, at whatever dose.
    note : str
        Why there is nothing to judge, or "".
    """

    fidelity: Fidelity | None = None
    damage: DamageEstimate | None = None
    pairs: int = 0
    note: str = ""


class Watch:
    """What one listener knows. `tem_live.session.Session.watch` makes it; a context manager.

    Attributes
    ----------
    changed : Signal of WatchState
        Emitted from the analyst's thread after each judgement.
    judged : Signal of (Pair, PairFigures)
        Each pair with what it told by itself, from the same thread.
    failed : Signal of str
        Emitted from there once, with one line, where nothing is going to be judged any more.
    """

    changed = Signal(WatchState)
    judged = Signal(object, object)
    failed = Signal(str)

    def __init__(self, analyst: Analyst, state: WatchState) -> None:
        self._analyst = analyst
        self._state = state
        self._news = threading.Condition()

    @property
    def state(self) -> WatchState:
        """What is known by now, or was when it was closed."""
        return self._state

    @property
    def live(self) -> bool:
        """Whether it still hears, until `close`."""
        return self._analyst.hears(self)

    def wait_for(self, condition: Callable[[WatchState], bool], timeout_s: float) -> bool:
        """Wait until the state fulfils a condition; False if ``timeout_s`` passed first."""
        with self._news:
            return self._news.wait_for(lambda: condition(self._state), timeout_s)

    def close(self) -> None:
        """Hear no more; what is known stays. Idempotent."""
        self._analyst.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hear(self, state: WatchState, pair: Pair | None, figures: PairFigures | None) -> None:
        with self._news:
            self._state = state
        if figures is not None:
            self.judged.emit(pair, figures)
        self.changed.emit(state)
        # Whoever waits finds what was done about it done.
        with self._news:
            self._news.notify_all()


class Analyst:
    """See the module's text.

    Parameters
    ----------
    subscribe : callable
        `Session.subscribe`.
    tell : callable of (level, text)
        Told the critical fluence once it is known, and failures.
    restoring : callable
        Whether a restorer runs; without one only damage is followed.
    fidelity, damage : bool
        What to judge.
    share : float
        Share of one core, over 0 to 1.
    """

    def __init__(
        self,
        subscribe: Subscribe,
        tell: Callable[[str, str], None],
        restoring: Callable[[], bool] = lambda: True,
        fidelity: bool = True,
        damage: bool = True,
        share: float = SHARE,
    ) -> None:
        if not 0 < share <= 1:
            raise InputError(f"a watch takes over 0 to 1 of a core, not {share:g}")
        self._tell = tell
        self._restoring = restoring
        self._fidelity, self._damage = fidelity, damage
        self._share = share
        self._picker = PairPicker()
        self._state = WatchState()
        self._watches: list[Watch] = []
        self._offered = False
        self._free = True
        self._job: tuple[Frame, ...] | None = None
        self._anew = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tem-live watch", daemon=True)
        self._thread.start()
        self._end = subscribe(self._receive, self._wants)

    def watch(self) -> Watch | None:
        """One listener more, who knows what is known; None if it has ended."""
        with self._changed:
            if self._closing:
                return None
            self._watches.append(Watch(self, self._state))
            return self._watches[-1]

    def leave(self, watch: Watch) -> None:
        """One listener less; with the last one subscription and thread end. Idempotent."""
        with self._changed:
            if watch not in self._watches:
                return
            self._watches.remove(watch)
            if self._watches:
                return
            self._close()
        self._end()
        # A reaction to what was judged may be what closes the last watch.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def hears(self, watch: Watch) -> bool:
        """Whether that one still listens."""
        with self._changed:
            return watch in self._watches

    def _close(self) -> None:
        # To be called with the lock. No frame is kept of those that nobody judges.
        self._closing, self._free, self._job = True, False, None
        self._picker.forget()
        self._changed.notify_all()

    def begin_anew(self) -> None:
        """Another part of the specimen is in view: what is known so far is not of it."""
        with self._changed:
            if self._closing:
                return
            self._picker.begin_anew()
            if self._job is not None:
                # It waits still, and nobody else would set it free.
                self._job, self._free = None, True
            self._anew = True
            self._offered = False
            self._changed.notify_all()

    # -- on the threads that hand frames over: quick

    def _wants(self, info: FrameInfo, restored: bool) -> bool:
        with self._changed:
            wanted = self._picker.wants(info, restored)
            if not self._free:
                return False
            return wanted if self._in_pairs() else info.blanked is not True

    def _receive(self, frame: Frame) -> None:
        with self._changed:
            if not self._free:
                return
            job: tuple[Frame, ...] = (frame,)
            if self._in_pairs():
                pair = self._picker.take(frame)
                if pair is None:
                    return
                job = pair.first, pair.second
            self._free = False
            self._job = job
            self._changed.notify_all()

    def _in_pairs(self) -> bool:
        return self._fidelity and self._restoring()

    # -- on its own thread

    def _run(self) -> None:
        # Twice: behind the threads that restore, which stand back themselves.
        stand_back()
        stand_back()
        # Its planes are many times those of a frame, and are gone with this thread.
        judge = _Judge(self._fidelity, self._damage)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._job or self._anew or self._closing)
                job, self._job = self._job, None
                anew, self._anew = self._anew, False
                if job is None and self._closing:
                    return
            began = time.thread_time()
            try:
                if anew:
                    judge.begin_anew()
                    self._publish(judge.state())
                if job is not None:
                    figures = judge.take(job)
                    pair = None if figures is None else Pair(*job)
                    self._publish(judge.state(), pair, figures)
                    pair = None
                job = None
            except Exception as error:
                # The frames go on without being judged.
                with self._changed:
                    self._close()
                    watches = list(self._watches)
                why = f"live analysis failed and is off: {error}"
                self._tell("error", why)
                for watch in watches:
                    watch.failed.emit(why)
                return
            # Of the core's time: where others hold the cores, waiting for one is no work.
            rest_s = (time.thread_time() - began) * (1 / self._share - 1)
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, rest_s):
                    return
                self._picker.forget()
                self._free = True

    def _publish(
        self, state: WatchState, pair: Pair | None = None, figures: PairFigures | None = None
    ) -> None:
        with self._changed:
            # What was judged meanwhile is not of what is in view by now.
            stale = self._anew
            if not stale:
                self._state = state
            watches = list(self._watches)
        if stale:
            return
        self._offer(state.damage)
        for watch in watches:
            watch._hear(state, pair, figures)

    def _offer(self, damage: DamageEstimate | None) -> None:
        if damage is not None and damage.known and not self._offered:
            self._offered = True
            self._tell("info", f"{damage.text}; it can be taken as the budget")


class _Judge:
    """The two meters, begun anew where frames do not belong together."""

    def __init__(self, fidelity: bool, damage: bool) -> None:
        self._with_fidelity, self._with_damage = fidelity, damage
        self._fidelity: FidelityMeter | None = None
        self._damage: DamageMeter | None = None
        self._of: tuple[Any, ...] = ()
        self._damage_of: tuple[Any, ...] = ()
        self._dose_e_per_px = 0.0
        self._pairs = 0
        self._note = ""
        self._fluence_before: float | None = 0.0

    def begin_anew(self) -> None:
        """Another part of the specimen is in view, which nothing is known of yet."""
        self._fidelity = self._damage = None
        self._note = ""
        self._fluence_before = None

    def take(self, frames: tuple[Frame, ...]) -> PairFigures | None:
        """Judge one or two frames; what a pair told by itself."""
        self._note = ""
        last = frames[-1]
        if self._with_damage:
            shape, pixel_nm = last.electrons.shape, last.meta.pixel_size_nm
            if self._damage is None or self._damage_of != (shape, pixel_nm):
                self._damage, self._damage_of = DamageMeter(pixel_nm), (shape, pixel_nm)
            for frame in frames:
                self._follow(self._damage, frame)
        if not self._with_fidelity or len(frames) < 2:
            return None
        with self._noted():
            return self._compare(Pair(*frames))
        return None

    def state(self) -> WatchState:
        """What is known by now."""
        fidelity = damage = None
        if self._fidelity is not None and self._fidelity.last_pair is not None:
            fidelity = self._fidelity.estimate()
        if self._damage is not None:
            damage = self._damage.estimate()
        return WatchState(fidelity, damage, self._pairs, self._note)

    def _follow(self, meter: DamageMeter, frame: Frame) -> None:
        total, own = frame.meta.total_fluence_e_per_A2, frame.meta.fluence_e_per_A2
        if total is None or own is None:
            self._note = "the fluence is unknown, so damage cannot be followed"
            return
        if self._fluence_before is None:
            # The session's total is that of other places, too.
            self._fluence_before = total - own
        fluence = total - own / 2 - self._fluence_before
        with self._noted():
            meter.update(frame.electrons, fluence, frame.meta.drift_px or (0.0, 0.0))

    def _compare(self, pair: Pair) -> PairFigures | None:
        a, b = pair.first, pair.second
        assert a.restored is not None
        assert b.restored is not None
        of = a.electrons.shape, a.meta.model, a.meta.pixel_size_nm
        dose = float(a.electrons.mean(dtype="float64"))
        if (
            self._fidelity is None
            or of != self._of
            or not 1 / _SAME_DOSE < dose / self._dose_e_per_px < _SAME_DOSE
        ):
            self._fidelity = FidelityMeter(a.meta.pixel_size_nm)
            self._of, self._dose_e_per_px = of, max(dose, 1e-9)
        self._fidelity.add(a.electrons, b.electrons, a.restored, b.restored, pair.shift_px)
        self._pairs += 1
        return self._fidelity.last_pair

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            # Too small, blanked, moved out of the field: the next frames may do.
            self._note = str(error)


def _conditions(info: FrameInfo) -> tuple[Any, ...]:
    return (
        info.exposure_s,
        info.binning,
        info.pixel_size_nm,
        info.counts_per_electron,
        info.dose_rate_e_per_px_s,
        info.blanked,
    )


def _alike(first: Frame, second: Frame) -> bool:
    if first.meta.model != second.meta.model or first.electrons.shape != second.electrons.shape:
        return False
    a, b = (frame.meta.dose_e_per_px or 0.0 for frame in (first, second))
    return abs(a - b) <= _SAME_MEAN * max(abs(a), abs(b))


def fidelity_as_dict(fidelity: Fidelity | None) -> dict[str, Any] | None:
    """JSON-able summary, or None."""
    if fidelity is None:
        return None
    return {
        "verdict": fidelity.verdict,
        "reason": fidelity.reason,
        "frc_nm": fidelity.frc_nm,
        "equivalent_dose_e_per_px": fidelity.equivalent_dose_e_per_px,
        "equivalent_dose_at_least_e_per_px": fidelity.equivalent_dose_at_least_e_per_px,
        "dose_e_per_px": fidelity.dose_e_per_px,
        "pairs": fidelity.frames,
    }


def damage_as_dict(damage: DamageEstimate | None) -> dict[str, Any] | None:
    """JSON-able summary, or None; an end of the interval that is not known is None."""
    if damage is None:
        return None
    interval = damage.interval_e_per_A2
    return {
        "critical_fluence_e_per_A2": damage.critical_fluence_e_per_A2,
        "interval_e_per_A2": (
            None if interval is None else [x if math.isfinite(x) else None for x in interval]
        ),
        "known": damage.known,
        "text": damage.text,
        "frames": damage.frames,
    }
