"""The lowest dose whose restored frames meet a target, found and kept while frames come.

Each pair of live frames tells, by comparing the restored half with the *raw* other half
(`tem_live.fidelity`), how far the restored frames are over or under the target. That surplus is
turned into the dose that would just do, and the dose is set to it and a margin for what is not
sure. As the specimen fades the same detail needs more dose (contrast falls as exp(-N / Nc), so a
dose that grows as exp(2N / Nc)); the loop follows. A dose that is fixed must be what the last frame
needs from the first frame on.

What is wanted of a frame is a target of `tem_live.minimise_targets`. `DoseController` decides and
knows neither threads nor devices; `DoseMinimiser` feeds it from a session's `Watch` and sets the
dose rate, or the exposure where no column steers that.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from psygnal import Signal
from scipy import special

from tem_live.errors import InputError, RefusedError, TemLiveError
from tem_live.fidelity import PairFigures
from tem_live.minimise_targets import Target
from tem_live.state import LoopState
from tem_live.watch import Pair, Watch

if TYPE_CHECKING:
    from tem_live.session import Session

__all__ = [
    "Decision",
    "DoseController",
    "DoseMinimiser",
    "Knob",
]

Phase = Literal["measuring", "lowering", "raising", "holding", "out of reach", "stopped"]

PROBE = 16.0
"""The loop begins at this part of the dose that it finds, and climbs."""

# Scatter of ln(dose needed) from pair to pair that is expected, and pairs' worth of that belief.
_USUAL_SCATTER = 0.5
_BELIEF = 3.0
# How dose and quality go together is known less the farther away: of the logarithm of the step.
_DISTRUST = 0.25
# Readings at a dose farther away than this factor tell nothing about the present one.
_NEAR = 1.6
# Beyond this factor the margin for what is not sure waits for more pairs: too much dose is spent.
_MOST_MARGIN = 2.0


# --------------------------------------------------------------------------------------- deciding


@dataclass(frozen=True)
class Decision:
    """What to do now, and why.

    Attributes
    ----------
    dose_e_per_px : float
        Dose of a frame from now on; the present one for no change.
    phase : str
        ``measuring``, ``lowering``, ``raising``, ``holding`` or ``out of reach``.
    needed_e_per_px : float or None
        Dose that just meets the target; None before the first pair.
    confidence : float or None
        Probability that a frame of the present dose meets the target.
    """

    dose_e_per_px: float
    phase: Phase
    needed_e_per_px: float | None
    confidence: float | None


class DoseController:
    """Decides the dose of the frames to come from what pairs of frames told.

    The needed dose is estimated from the last pairs at about the present dose, its error by
    leaving out one pair after the other (jackknife; Efron & Stein, Ann. Stat. 9 (1981) 586) with a
    prior for the first few. Their scatter is also that of single frames: the dose is set where a
    frame meets the target with the stated confidence, by both. It is left alone while that is
    within the hysteresis of the present one.

    Parameters
    ----------
    target : Target
        What is wanted.
    lowest_e_per_px, highest_e_per_px : float
        Bounds of the dose of a frame.
    confidence : float
        Share of frames that are to meet the target, 0.5 to under 1.
    hysteresis : float
        Factor, over 1, by which the dose must be too high to be changed; half of it (as a
        logarithm) where it is too low.
    window : int
        Pairs that count. The specimen fades meanwhile, and more of them tell little more: the
        scatter of single frames is larger than the error of their mean.
    """

    def __init__(
        self,
        target: Target,
        lowest_e_per_px: float,
        highest_e_per_px: float,
        confidence: float = 0.9,
        hysteresis: float = 1.15,
        window: int = 6,
    ) -> None:
        if not 0 < lowest_e_per_px <= highest_e_per_px < math.inf:
            raise InputError(
                f"the dose cannot be kept between {lowest_e_per_px:g} and {highest_e_per_px:g} "
                "e-/px; give two positive figures in order"
            )
        if not 0.5 <= confidence < 1:
            raise InputError(f"a confidence of {confidence:g} is none; give 0.5 to under 1")
        if not hysteresis > 1 or window < 1:
            raise InputError("the hysteresis is a factor over 1, the window 1 pair or more")
        self.target = target
        self.lowest_e_per_px = lowest_e_per_px
        self.highest_e_per_px = highest_e_per_px
        self.confidence = confidence
        self._z = float(special.ndtri(confidence))
        self._band = math.log(hysteresis)
        self._readings: deque[tuple[float, Any]] = deque(maxlen=window)

    def first(self, dose_e_per_px: float) -> float:
        """Dose to begin with at this present one, in e-/px.

        The climb from below costs less than one look from above.
        """
        return max(dose_e_per_px / PROBE, self.lowest_e_per_px)

    def observe(self, dose_e_per_px: float, reading: Any) -> None:
        """Take in what a pair told (`Target.read`), and the dose of a frame at which it was."""
        self._readings.append((math.log(dose_e_per_px), reading))

    def decide(self, dose_e_per_px: float, affordable_e_per_px: float = math.inf) -> Decision:
        """What to do at this dose.

        Parameters
        ----------
        dose_e_per_px : float
            Present dose of a frame.
        affordable_e_per_px : float
            Dose of a frame that the budget still allows: the dose is never raised over it.
        """
        present = math.log(dose_e_per_px)
        near = [(d, r) for d, r in self._readings if abs(d - present) < math.log(_NEAR)]
        if not near:
            return Decision(dose_e_per_px, "measuring", None, None)
        surplus, of_mean, scatter = self._estimate([r for _, r in near])
        needed = sum(d for d, _ in near) / len(near) - surplus
        unknown = math.hypot(of_mean, _DISTRUST * (needed - present))
        error = math.hypot(unknown, scatter)
        sure = float(special.ndtr((present - needed) / error))
        margin = self._z * error
        lowered = needed + margin
        raised = needed + min(margin, math.log(_MOST_MARGIN))
        found = math.exp(needed)
        if lowered < present - self._band:
            dose = max(math.exp(lowered), self.lowest_e_per_px)
            if dose < dose_e_per_px:
                return Decision(dose, "lowering", found, sure)
        elif raised > present + 0.5 * self._band:
            dose = min(math.exp(raised), self.highest_e_per_px, affordable_e_per_px)
            if dose > dose_e_per_px:
                return Decision(dose, "raising", found, sure)
            # The dose that is needed, not what a single frame shows: those scatter for ever.
            if needed - present > self._z * unknown:
                return Decision(dose_e_per_px, "out of reach", found, sure)
        return Decision(dose_e_per_px, "holding", found, sure)

    def _estimate(self, readings: list[Any]) -> tuple[float, float, float]:
        """Surplus, its standard error, and its scatter from frame to frame."""
        surplus = self.target.surplus(readings)
        count = len(readings)
        squares = 0.0
        if count > 1:
            left_out = [self.target.surplus(readings[:i] + readings[i + 1 :]) for i in range(count)]
            mean = sum(left_out) / count
            # (n - 1) / n sum (s_i - mean)² is the variance of the whole; n times it, of one pair.
            squares = (count - 1) * sum((value - mean) ** 2 for value in left_out) * (count - 1)
        variance = (_BELIEF * _USUAL_SCATTER**2 + squares) / (_BELIEF + count - 1)
        return surplus, math.sqrt(variance / count), math.sqrt(variance)


# ------------------------------------------------------------------------------------------ acting

Knob = Literal["dose_rate", "exposure_s"]

SHORTEST_S = 0.02
"""Exposure under which the loop does not go by itself: frames come faster than they are used."""

_AS_SET = 0.02


class DoseMinimiser:
    """Holds the dose of a session's frames as low as the target allows.

    `tem_live.session.Session.minimise` makes one, running. It never unblanks, never goes over
    its bounds, and never raises the dose over what the budget leaves. It ends, and leaves the dose
    as it is, when `stop` is called, when somebody else changes exposure or dose rate, or when a
    device refuses.

    Parameters
    ----------
    session : Session
        Whose frames and settings.
    watch : Watch
        Judges the frames.
    target : Target
        What is wanted.
    knob : {"dose_rate", "exposure_s"}
        What to set. A shorter exposure lowers the dose of a frame, not that of a second.
    lowest, highest : float or None
        Bounds in e-/px/s or s. By default the present setting is the highest, a hundredth of it
        the lowest (of an exposure: `SHORTEST_S`, or what the camera can).
    confidence : float
        See `DoseController`.
    tell : callable of (level, text)
        Told when it ends by itself, and when the target is out of reach.
    on_stopped : callable
        Called when it has ended.

    Attributes
    ----------
    changed : Signal of LoopState
        Emitted from a worker thread.
    """

    changed = Signal(LoopState)

    def __init__(
        self,
        session: Session,
        watch: Watch,
        target: Target,
        knob: Knob,
        lowest: float | None = None,
        highest: float | None = None,
        confidence: float = 0.9,
        tell: Callable[[str, str], None] = lambda level, text: None,
        on_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        self._session = session
        self._target = target
        self._knob = knob
        self._tell = tell
        self._on_stopped = on_stopped
        self._pairs = 0
        self._told_out_of_reach = False
        present = self._setting()
        highest = present if highest is None else highest
        lowest = _lowest(session, knob, present) if lowest is None else lowest
        # The controller's dose is that of the knob: proportional to that of a frame.
        self._controller = DoseController(target, min(lowest, highest), highest, confidence)
        self._lock = threading.Lock()
        # Held while a pair is reacted to: what `stop` has ended sets nothing any more.
        self._reacting = threading.RLock()
        self._state = LoopState(True, "measuring", target.text, text="waits for frames")
        self._expected = present
        self._watch = watch
        self._set(min(self._controller.first(highest), present))
        watch.judged.connect(self._on_pair)
        watch.failed.connect(self._on_failed)

    @property
    def watch(self) -> Watch:
        """What judges the frames for it; closed with it."""
        return self._watch

    @property
    def state(self) -> LoopState:
        """What it is doing."""
        return self._state

    def stop(self) -> None:
        """Leave the dose as it is from now on; a change under way is waited for. Idempotent."""
        text = "off: the dose stays as it is"
        with self._reacting:
            ended = self._end(text)
        if ended:
            # Not with the lock held: the watch's thread may wait for it, and is waited for here.
            self._wind_up(text, "")

    # -- on the watch's thread

    def _on_pair(self, pair: Pair, figures: PairFigures) -> None:
        with self._reacting:
            if not self._state.active:
                return
            try:
                self._react(pair, figures)
            except InputError as error:
                # This pair does not serve; the next one may.
                self._show("measuring", None, figures, str(error))
            except TemLiveError as error:
                self._stop(f"off, because a device failed: {error}", "error")

    def _on_failed(self, why: str) -> None:
        with self._reacting:
            self._stop(f"off: {why}", "error")

    def _react(self, pair: Pair, figures: PairFigures) -> None:
        present = self._setting()
        if abs(present / self._expected - 1) > _AS_SET or self._changed_beside(pair):
            self._stop("off: exposure or dose rate were changed by hand", "info")
            return
        self._controller.observe(self._setting_of(pair), self._target.read(pair, figures))
        self._pairs += 1
        decision = self._controller.decide(present, self._affordable(present))
        if decision.dose_e_per_px != present:
            self._set(decision.dose_e_per_px)
        self._show(decision.phase, decision, figures)
        if decision.phase == "out of reach" and not self._told_out_of_reach:
            self._told_out_of_reach = True
            self._tell(
                "warning",
                f"{self._target.text}: out of reach at the highest dose allowed; stop, or raise "
                "the bound",
            )

    def _changed_beside(self, pair: Pair) -> bool:
        """Whether the setting that is not ours has changed since the pair was taken."""
        state, info = self._session.state, pair.second.meta
        if info.binning != state.binning:
            return True
        other: tuple[float | None, float | None]
        if self._knob == "dose_rate":
            other = info.exposure_s, state.exposure_s
        else:
            other = info.dose_rate_e_per_px_s, state.dose_rate_e_per_px_s
        before, now = other
        return bool(before and now and abs(now / before - 1) > _AS_SET)

    def _setting(self) -> float:
        state = self._session.state
        if self._knob == "exposure_s":
            return state.exposure_s
        return state.dose_rate_e_per_px_s or 0.0

    def _setting_of(self, pair: Pair) -> float:
        info = pair.first.meta
        if self._knob == "exposure_s":
            return info.exposure_s
        return info.dose_rate_e_per_px_s or self._expected

    def _set(self, value: float) -> None:
        self._session.apply(**{self._knob: value})
        taken = self._setting()
        if not taken > 0:
            raise RefusedError(f"{value:.3g} was asked for and nothing came of it; set it by hand")
        self._expected = taken

    def _affordable(self, present: float) -> float:
        """Setting at which one more frame stays within the budget; infinite without one."""
        cost = self._session.cost()
        if cost.left_e_per_A2 is None or not cost.e_per_A2:
            return math.inf
        return present * cost.left_e_per_A2 / cost.e_per_A2

    def _show(
        self, phase: Phase, decision: Decision | None, figures: PairFigures, why: str = ""
    ) -> None:
        state = self._session.state
        rate = state.dose_rate_e_per_px_s
        dose = figures.dose_e_per_px if rate is None else rate * state.exposure_s
        needed = confidence = None
        if decision is not None and decision.needed_e_per_px is not None:
            needed = dose * decision.needed_e_per_px / self._expected
            confidence = decision.confidence
        to = "to " if phase in ("lowering", "raising") else ""
        text = f"{phase} {to}{dose:.2g} e-/px a frame for {self._target.text}"
        if needed is not None:
            text += f"; needed {needed:.2g} e-/px"
        if confidence is not None and not to:
            text += f", met by {confidence:.0%} of the frames"
        if why:
            text = f"{phase}: {why}"
        self._become(
            LoopState(True, phase, self._target.text, dose, needed, confidence, self._pairs, text)
        )

    def _stop(self, text: str, level: str) -> None:
        if self._end(text):
            self._wind_up(text, level)

    def _end(self, text: str) -> bool:
        """Be off from now on; False where it is already."""
        with self._lock:
            if not self._state.active:
                return False
            self._state = replace(
                self._state, active=False, phase="stopped", pairs=self._pairs, text=text
            )
            return True

    def _wind_up(self, text: str, level: str) -> None:
        self._watch.judged.disconnect(self._on_pair, missing_ok=True)
        self._watch.failed.disconnect(self._on_failed, missing_ok=True)
        if level:
            self._tell(level, f"the dose loop is {text}")
        self.changed.emit(self._state)
        self._on_stopped()

    def _become(self, state: LoopState) -> None:
        with self._lock:
            if not self._state.active:
                return
            self._state = state
        self.changed.emit(state)


def _lowest(session: Session, knob: Knob, present: float) -> float:
    if knob == "dose_rate":
        return present / 100
    possible = session.capabilities.exposure_range_s[0]
    return min(max(possible, SHORTEST_S), present)
