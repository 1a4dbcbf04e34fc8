"""The account of a session's dose: booked as it comes, costed before it is taken, and limited.

`DoseAccount` joins the clock of the beam, the ledger on disk and the budget. Booked is the incident
fluence where somebody knows the dose rate at the specimen, else what the camera detected. A thread
of its own watches the budget: the beam goes off when it is spent, with or without frames, and
whether or not the camera answers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tem_live.beam_clock import BeamClock
from tem_live.dose import DoseMeter
from tem_live.fluence_map import Place
from tem_live.ledger import DoseSource, Ledger

MARGIN_S = 0.005
"""How much earlier than needed the beam is taken off: an operating system wakes a thread late."""

_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What an exposure would cost the specimen.

    Attributes
    ----------
    e_per_A2 : float or None
        Fluence in e-/A^2, the time included that the beam is on before and after the frames; None
        where neither a dose rate is known nor a frame was measured yet.
    left_e_per_A2 : float or None
        What is left of the budget in e-/A^2; None without a budget.
    source : {"incident", "detected"}
        Whether it is what comes in, or (less) what the camera is going to see of it.
    """

    e_per_A2: float | None
    left_e_per_A2: float | None
    source: DoseSource

    @property
    def fits(self) -> bool:
        """Whether it stays within the budget, as far as is known."""
        if self.left_e_per_A2 is None:
            return True
        return self.left_e_per_A2 > 0 and (self.e_per_A2 or 0.0) <= self.left_e_per_A2


class DoseAccount:
    """See the module's text. Thread-safe.

    Parameters
    ----------
    ledger : Ledger
        Where it is booked; closed with the account.
    budget_e_per_A2 : float or None
        Fluence of the area at which the beam is taken off; None for no limit.
    warn_fraction : float
        Part of the budget at which the user is warned.
    on_warning : callable of str
        Told once when that is reached.
    on_spent : callable
        Takes the beam off. Called before the budget is overspent, from a thread of its own; again
        for each time that the beam comes on with nothing left.
    latency_s : float
        How long the beam may stay on after it was blanked.
    clock : BeamClock, optional
        Of the beam.
    """

    def __init__(
        self,
        ledger: Ledger,
        budget_e_per_A2: float | None,
        warn_fraction: float,
        on_warning: Callable[[str], None],
        on_spent: Callable[[], None],
        latency_s: float = 0.0,
        clock: BeamClock | None = None,
    ) -> None:
        self.clock = clock or BeamClock()
        self.latency_s = latency_s
        self._ledger = ledger
        self._budget = budget_e_per_A2
        self._warn_fraction = warn_fraction
        self._on_warning = on_warning
        self._on_spent = on_spent
        self._detected = DoseMeter()
        # Session totals when this ledger began, and up to the last frame that was booked.
        self._base = 0.0
        self._until = 0.0
        self._warned = False
        self._in_flight = 0
        self._last_detected = 0.0
        self._detected_per_s: float | None = None
        self._closing = False
        self._elsewhere = 0.0
        self._place: Place | None = None
        # Held while a frame is written down, which can wait for the disk; nobody who looks at the
        # budget or blanks takes it. Before `_changed`, where both are held; `_changed` is never
        # held while anything waits, and before the ledger's own.
        self._booking = threading.Lock()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="tem-live budget", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------------------------- reading

    @property
    def source(self) -> DoseSource:
        """What is booked now."""
        return "detected" if self.clock.rate_e_per_A2_s is None else "incident"

    @property
    def area(self) -> str | None:
        """Name of the specimen area."""
        return self._ledger.area

    @property
    def open_since(self) -> str | None:
        """See `tem_live.ledger_reading.AreaSummary.open_since`, of the sessions before this one."""
        return self._ledger.open_since

    @property
    def fluence_e_per_A2(self) -> float | None:
        """Fluence of the session until now in e-/A^2; None as long as nothing can be said."""
        incident, detected = self.clock.fluence_e_per_A2, self._detected.fluence_e_per_A2
        if incident is None:
            return detected
        return incident + (detected or 0.0)

    @property
    def area_fluence_e_per_A2(self) -> float | None:
        """Fluence of the area until now, earlier sessions included, in e-/A^2."""
        with self._changed:
            fluence, before = self.fluence_e_per_A2, self._ledger.before_e_per_A2
            if fluence is None and not before:
                return None
            return before + (fluence or 0.0) - self._base

    @property
    def budget_e_per_A2(self) -> float | None:
        """Limit of the area's fluence in e-/A^2; None for no limit."""
        return self._budget

    @budget_e_per_A2.setter
    def budget_e_per_A2(self, value: float | None) -> None:
        self._budget = value
        self._warned = False
        self.recheck()

    @property
    def elsewhere_e_per_A2(self) -> float:
        """What places in view have taken that is booked on other areas; it counts for the budget.

        0 again with the next area.
        """
        return self._elsewhere

    @elsewhere_e_per_A2.setter
    def elsewhere_e_per_A2(self, value: float) -> None:
        self._elsewhere = value
        self.recheck()

    @property
    def spent_e_per_A2(self) -> float:
        """What counts for the budget, in e-/A^2."""
        return (self.area_fluence_e_per_A2 or 0.0) + self._elsewhere

    @property
    def left_e_per_A2(self) -> float | None:
        """What is left of the budget in e-/A^2, 0 at least; None without one."""
        if self._budget is None:
            return None
        return max(self._budget - self.spent_e_per_A2, 0.0)

    def cost(self, beam_on_s: float, frames_s: float) -> Cost:
        """What an exposure would cost.

        Parameters
        ----------
        beam_on_s : float
            Time that the beam will be on, in seconds.
        frames_s : float
            The part of it that frames are exposed: where only that is known, it is what counts.
        """
        rate = self.clock.rate_e_per_A2_s
        if rate is not None:
            return Cost(rate * beam_on_s, self.left_e_per_A2, "incident")
        seen = self._detected_per_s
        return Cost(None if seen is None else seen * frames_s, self.left_e_per_A2, "detected")

    def lasts_until(self, time_s: float, unblanking: bool = False) -> bool:
        """Whether the budget allows the beam to be on until a time of the clock, and go off then.

        Where only detected dose is known: whether one frame more fits. A beam that is off costs
        nothing, unless it is about to be unblanked.
        """
        budget = self._budget
        if budget is None:
            return True
        spent = self.spent_e_per_A2
        rate = self.clock.rate_e_per_A2_s
        if rate is None:
            return spent + (self._in_flight + 1) * self._last_detected <= budget and spent < budget
        if not (self.clock.on or unblanking):
            return True
        ahead_s = max(time_s + self.latency_s + MARGIN_S - self.clock.now(), 0.0)
        # A rounding error in the last digit must not cost the last frame.
        return spent + rate * ahead_s <= budget * (1 + 1e-9)

    # ---------------------------------------------------------------------------------- booking

    def set_rate(self, dose_rate_e_per_A2_s: float | None, since_s: float | None = None) -> None:
        """The incident dose rate from now on; None where nobody knows it.

        ``since_s`` is a time of the clock from which on it may have been so, if it is higher.
        """
        self.clock.set_rate(dose_rate_e_per_A2_s, since_s)
        self.recheck()

    def beam_on(self) -> None:
        """The beam is on from the end of this call; to be said before it is unblanked.

        `recheck` is to follow once it is, so that nothing comes between the two.
        """
        with self._changed:
            if not self.clock.on:
                self._note_beam(True)
                self.clock.turn_on()

    def recheck(self) -> None:
        """Look at the budget again: something has changed."""
        with self._changed:
            self._changed.notify_all()

    def beam_off(self, blanked_at_s: float | None = None) -> None:
        """The blanker answered, now or at a time of the clock; the beam is off after its latency.

        Where it was off already nothing changes.
        """
        at_s = self.clock.now() if blanked_at_s is None else blanked_at_s
        with self._changed:
            was_on = self.clock.on
            self.clock.turn_off(at_s + self.latency_s)
            if was_on:
                self._note_beam(False)
            self._changed.notify_all()

    @property
    def ledger_broken(self) -> bool:
        """Whether what was taken is not on record: see `tem_live.ledger`."""
        return self._ledger.broken

    def run_begins(self, frames: int | None, exposure_s: float, cost: Cost) -> None:
        """Write a run's cost down before it is taken."""
        self._in_flight = 0
        self._ledger.exposure(frames, exposure_s, cost.e_per_A2, cost.left_e_per_A2)

    def frame_ended(self, frame_id: int, ended_s: float) -> tuple[float, float] | None:
        """Book all that came in up to the end of a frame.

        Parameters
        ----------
        frame_id : int
            The frame's id.
        ended_s : float
            Time of the clock at which its exposure ended.

        Returns
        -------
        (frame, total) or None
            Fluence since the frame before, and of the session until then, in e-/A^2; None where
            no rate is known: see `frame_detected`.
        """
        if self.clock.rate_e_per_A2_s is None:
            with self._changed:
                self._in_flight += 1
            return None
        with self._booking:
            with self._changed:
                total = self.clock.fluence_at(ended_s) + (self._detected.fluence_e_per_A2 or 0.0)
                fluence = max(total - self._until, 0.0)
                self._until = max(total, self._until)
            self._ledger.frame(frame_id, total - self._base, "incident")
        return fluence, total

    def frame_detected(
        self, frame_id: int, fluence_e_per_A2: float, exposure_s: float
    ) -> tuple[float, float]:
        """Book what was detected of a frame, where nobody knows what came in.

        Returns
        -------
        (frame, total)
            As of `frame_ended`.
        """
        with self._booking:
            with self._changed:
                self._in_flight = max(self._in_flight - 1, 0)
                self._last_detected = fluence_e_per_A2
                self._detected_per_s = fluence_e_per_A2 / exposure_s if exposure_s > 0 else None
                total = self._detected.book(fluence_e_per_A2)
                total += self.clock.fluence_e_per_A2 or 0.0
                self._until = total
            self._ledger.frame(frame_id, total - self._base, "detected")
        self.recheck()
        return fluence_e_per_A2, total

    def settle(self) -> None:
        """Book what came in after the last frame. To be called when a run has ended."""
        with self._changed:
            total = self.fluence_e_per_A2
            if total is not None:
                self._until = max(total, self._until)
                self._ledger.rest(total - self._base, self.source)

    def set_place(self, place: Place, since: int | None) -> None:
        """Another part of the specimen is lit, from now on or from a frame on; see the ledger."""
        with self._changed:
            if since is None:
                self.settle()
            self._place = place
            self._ledger.place(place, since)

    @property
    def ledger_path(self) -> Path | None:
        """File of this session on this area, once something was booked."""
        return self._ledger.path

    def move_to(self, ledger: Ledger) -> None:
        """Book on another area from now on; the ledger so far is closed."""
        with self._booking, self._changed:
            before, self._ledger = self._ledger, ledger
            if self._place is not None:
                ledger.place(self._place)
            total = self.fluence_e_per_A2 or 0.0
            before.rest(total - self._base, self.source)
            self._base = self._until = total
            self._warned = False
            self._elsewhere = 0.0
            if self.clock.on:
                self._note_beam(True)
            self._changed.notify_all()
        before.close()

    def close(self) -> None:
        """Book the rest, and end thread and ledger; idempotent."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.settle()
        self._ledger.close()

    # --------------------------------------------------------------------------------- internals

    def _note_beam(self, on: bool) -> None:
        """Write it down; with the lock held, so that the ledger has it in the order it was."""
        total = (self.fluence_e_per_A2 or 0.0) - self._base
        self._ledger.beam(on, total, self.source, self.clock.rate_e_per_A2_s)

    def _watch(self) -> None:
        # A beam that could not be taken off is not asked to go off without a pause.
        pause_s = 0.0
        with self._changed:
            while not self._closing:
                wait_s, act = self._due()
                if act is None or pause_s:
                    self._changed.wait(max(min(wait_s, _LONGEST_WAIT_S), pause_s))
                    pause_s = 0.0
                    continue
                self._changed.release()
                try:
                    # Whoever listens to messages may fail; the budget is watched on.
                    with contextlib.suppress(Exception):
                        act()
                finally:
                    self._changed.acquire()
                pause_s = 0.05 if act == self._on_spent else 0.0

    def _due(self) -> tuple[float, Callable[[], None] | None]:
        """Seconds until the next thing is to be done, and what is to be done now."""
        budget = self._budget
        if budget is None:
            return _LONGEST_WAIT_S, None
        spent = self.spent_e_per_A2
        if not self._warned and spent >= self._warn_fraction * budget:
            self._warned = True
            return 0.0, lambda: self._on_warning(
                f"{spent / budget:.0%} of the budget of {budget:g} e-/Å² is spent"
                + (f" on {self.area}" if self.area else "")
            )
        if self.clock.rate_e_per_A2_s is None:
            # Detected dose is known by frames, and those are what stops a run.
            return _LONGEST_WAIT_S, None
        now = self.clock.fluence_e_per_A2 or 0.0
        wait_s = self.clock.seconds_until(now + budget - spent) - self.latency_s - MARGIN_S
        if wait_s <= 0 and self.clock.on:
            return 0.0, self._on_spent
        if not self._warned:
            missing = self._warn_fraction * budget - spent
            wait_s = min(wait_s, self.clock.seconds_until(now + missing))
        return max(wait_s, 0.001), None
