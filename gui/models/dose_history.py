"""What the dose card shows: figures as text, the fluence against time, and when the beam was on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tem_live.gui.models import quantities as q

if TYPE_CHECKING:
    from tem_live.account import Cost
    from tem_live.state import LoopState, RunStats, SessionState
    from tem_live.watch import WatchState

MOST_POINTS = 600
MOST_EXPOSURES = 200
ALERT_LOSS = 0.05
"""Part of the electrons that are not counted from which on it is marked."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """A time with the beam on the specimen.

    Attributes
    ----------
    began_s : float
        ``time.time()`` when it was first seen on.
    lasted_s : float
        Until it was last seen on.
    fluence_e_per_A2 : float
        What was booked meanwhile.
    total_e_per_A2 : float
        What the area had taken at its end.
    """

    began_s: float
    lasted_s: float
    fluence_e_per_A2: float
    total_e_per_A2: float


class DoseHistory:
    """Fluence of the area against time, in bounded memory, and the exposures.

    For the eye: it looks a few times a second. The books are kept by `tem_live.ledger`.
    """

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.fluences_e_per_A2: list[float] = []
        self.exposures: list[Exposure] = []
        self._began: tuple[float, float] | None = None
        self._area: str | None = None

    def take(self, now_s: float, fluence_e_per_A2: float, on: bool, area: str | None) -> None:
        """Note the fluence of the area so far, and whether the beam is on."""
        if area != self._area:
            # What another one has taken is no difference to what this one had.
            self._area, self._began = area, None
        times, fluences = self.times_s, self.fluences_e_per_A2
        if len(times) > 1 and fluences[-2] == fluences[-1] == fluence_e_per_A2:
            # A level stretch needs its two ends only.
            times[-1] = now_s
        else:
            times.append(now_s)
            fluences.append(fluence_e_per_A2)
        if len(times) > MOST_POINTS:
            # The older half with every other point; both ends stay.
            half = MOST_POINTS // 2
            del times[1:half:2], fluences[1:half:2]
        self._follow(now_s, fluence_e_per_A2, on)

    def _follow(self, now_s: float, fluence: float, on: bool) -> None:
        if self._began is None:
            if on:
                self._began = now_s, fluence
                self.exposures.append(Exposure(now_s, 0.0, 0.0, fluence))
                del self.exposures[:-MOST_EXPOSURES]
            return
        began, before = self._began
        self.exposures[-1] = replace(
            self.exposures[-1],
            lasted_s=now_s - began,
            fluence_e_per_A2=fluence - before,
            total_e_per_A2=fluence,
        )
        if not on:
            self._began = None


@dataclass(frozen=True, slots=True)
class DoseFigures:
    """Figures of the dose card as text, and the fluences that are drawn as lines.

    Attributes
    ----------
    next_frame, left, lasts, source, restored, specimen, loop, coincidence : str
        Values of the rows of that name.
    left_alert, restored_alert, coincidence_alert : bool
        Whether a value is one to worry about.
    budget_e_per_A2, critical_e_per_A2 : float or None
        Lines over the curve.
    """

    next_frame: str
    left: str
    lasts: str
    source: str
    restored: str
    specimen: str
    loop: str
    coincidence: str
    left_alert: bool
    restored_alert: bool
    coincidence_alert: bool
    budget_e_per_A2: float | None
    critical_e_per_A2: float | None


def dose_figures(
    stats: RunStats,
    cost: Cost | None,
    state: SessionState,
    watch: WatchState | None,
    loop: LoopState | None = None,
) -> DoseFigures:
    """Put what is known of the dose into words."""
    budget, left = stats.budget_e_per_A2, stats.left_e_per_A2
    rate = q.dose_per_area(state.dose_rate_e_per_px_s, state.pixel_size_nm)
    fidelity = None if watch is None else watch.fidelity
    damage = None if watch is None else watch.damage
    restored = "not watched" if watch is None else "no pair of frames yet"
    if fidelity is not None:
        restored = fidelity.verdict
        if fidelity.frc_nm is not None:
            restored += f" · true to {q.number(fidelity.frc_nm)} nm"
        if fidelity.equivalent_dose_e_per_px is not None:
            restored += f" · as {q.quantity(fidelity.equivalent_dose_e_per_px, q.DOSE_PX)}"
    specimen = "not watched" if watch is None else "no fading seen yet"
    critical = None
    if damage is not None and damage.known and damage.interval_e_per_A2 is not None:
        critical = damage.critical_fluence_e_per_A2
        low, high = damage.interval_e_per_A2
        unit = q.DOSE_A2
        specimen = f"1/e at {q.number(critical)} ({q.number(low)}–{q.number(high)}) {unit}"
    following = None if cost is None else cost.e_per_A2
    if state.running and state.blanked is False and rate is not None:
        # The beam is on: nothing is added for letting it through.
        following = rate * state.frame_interval_s
    return DoseFigures(
        next_frame=q.quantity(following, q.DOSE_A2),
        left="no budget" if budget is None else q.quantity(left, q.DOSE_A2),
        lasts=lasts(left, rate),
        source={"incident": "incident", "detected": "detected: less than what comes in"}[
            stats.dose_source
        ],
        restored=restored,
        specimen=specimen,
        loop="off" if loop is None else loop.text,
        coincidence=coincidence(stats.coincidence_loss),
        left_alert=budget is not None and left is not None and left < 0.2 * budget,
        restored_alert=fidelity is not None and fidelity.verdict != "good",
        coincidence_alert=(stats.coincidence_loss or 0.0) > ALERT_LOSS,
        budget_e_per_A2=budget,
        critical_e_per_A2=critical,
    )


def coincidence(loss: float | None) -> str:
    """What a counting camera loses, in words."""
    if loss is None:
        return q.NOTHING
    return "under 0.1 % not counted" if loss < 0.001 else f"{100 * loss:.1f} % not counted"


def lasts(left_e_per_A2: float | None, rate_e_per_A2_s: float | None) -> str:
    """How long the rest of a budget lasts with the beam on."""
    if left_e_per_A2 is None or not rate_e_per_A2_s:
        return q.NOTHING
    left_s = max(left_e_per_A2, 0.0) / rate_e_per_A2_s
    return f"{q.number(left_s)} s" if left_s < 60 else q.clock(left_s)
