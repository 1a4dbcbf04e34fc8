"""The dose card: asks the session a few times a second while it is shown, and books nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tem_live.gui.controllers.hub import SessionHub, one_line
from tem_live.gui.models.dose_history import DoseHistory, dose_figures
from tem_live.gui.models.view_state import ViewState
from tem_live.gui.views.dose import DoseCard
from tem_live.gui.workers import Runner

if TYPE_CHECKING:
    from tem_live.account import Cost
    from tem_live.minimise import DoseMinimiser
    from tem_live.session import Session
    from tem_live.state import LoopState, RunStats, SessionState
    from tem_live.watch import Watch, WatchState

    _Answer = tuple[RunStats, Cost, SessionState, WatchState | None, LoopState | None]


class DoseController:
    """Figures, curve and exposures; the watch and the budget.

    Parameters
    ----------
    view : DoseCard
        The card.
    hub : SessionHub
        The session.
    state : ViewState
        Whether the card is shown.
    runner : Runner
        Worker that asks the session.
    now : callable
        ``time.time``.
    """

    def __init__(
        self,
        view: DoseCard,
        hub: SessionHub,
        state: ViewState,
        runner: Runner,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._view = view
        self._hub = hub
        self._state = state
        self._runner = runner
        self._now = now
        self._watch: Watch | None = None
        self._loop: DoseMinimiser | None = None
        self._history = DoseHistory()
        self._began_s = now()
        view.watch_toggled.connect(self.set_watch)
        view.loop_toggled.connect(self.set_loop)
        view.budget_edited.connect(self.set_budget)
        view.critical_requested.connect(self.take_critical)
        hub.opened.connect(self._on_opened)
        hub.gone.connect(self._on_gone)
        hub.change_failed.connect(self._on_failed)
        self._on_gone()

    def tick(self) -> None:
        """Ask for the figures; to be called a few times a second. The history goes on unseen."""
        session = self._hub.session
        if session is None or self._runner.busy("dose"):
            return
        watch, loop = self._watch, self._loop

        def work() -> _Answer:
            seen = None if watch is None else watch.state
            doing = None if loop is None else loop.state
            return session.stats(), session.cost(), session.state, seen, doing

        def show(answer: _Answer) -> None:
            if session is self._hub.session:
                self._show(*answer)

        def failed(error: Exception) -> None:
            if session is self._hub.session:
                self._hub.message.emit("error", one_line(error))

        self._runner.submit("dose", work, show, failed)

    def set_watch(self, on: bool) -> None:
        """Begin or end judging frames."""
        before, self._watch = self._watch, None

        def change(session: Session) -> Watch | None:
            if before is not None:
                before.close()
            return session.watch() if on else None

        def done(watch: Watch | None) -> None:
            self._watch = watch
            self._show_watch(True)

        self._show_watch(False)
        self._hub.change("watch", change, done)

    def set_loop(self, on: bool, resolution_nm: float) -> None:
        """Begin or end holding the dose as low as restored frames of this resolution allow."""
        before, self._loop = self._loop, None
        watch = self._watch
        if before is not None:
            # The loop's own, which ends with it.
            self._watch = None

        def change(session: Session) -> DoseMinimiser | None:
            if before is not None:
                before.stop()
            loop = session.minimise(resolution_nm) if on else None
            # After it: what is known of the specimen by now goes over to the loop's watch. Where it
            # is refused, the watch goes on.
            if watch is not None:
                watch.close()
            return loop

        def done(loop: DoseMinimiser | None) -> None:
            self._loop = loop
            # The loop's own watch tells fidelity and damage meanwhile.
            self._watch = None if loop is None else loop.watch
            self._show_watch(True)

        self._show_watch(False)
        self._hub.change("watch", change, done)

    def set_budget(self, e_per_A2: float) -> None:
        """Set the budget of the area; 0 takes it away."""

        def change(session: Session) -> None:
            session.budget_e_per_A2 = e_per_A2 or None

        self._hub.change("budget", change)

    def take_critical(self) -> None:
        """Make the critical fluence the budget."""
        self._hub.change("budget", lambda session: session.take_critical_fluence_as_budget())

    def _show(
        self,
        stats: RunStats,
        cost: Cost,
        state: SessionState,
        watch: WatchState | None,
        loop: LoopState | None,
    ) -> None:
        now = self._now()
        fluence = stats.area_fluence_e_per_A2
        if fluence is None:
            fluence = stats.fluence_e_per_A2 or 0.0
        history = self._history
        on = state.blanked is False or (state.blanked is None and state.running)
        history.take(now, fluence, on, state.area)
        if loop is not None and not loop.active and self._loop is not None:
            # It has ended by itself, and its watch with it.
            self._loop = self._watch = None
            self._show_watch(True)
        if not self._state.dose:
            return
        figures = dose_figures(stats, cost, state, watch, loop)
        self._view.show_figures(figures)
        self._view.show_budget(figures.budget_e_per_A2, self._hub.is_pending("budget"))
        times_s = [time_s - self._began_s for time_s in history.times_s]
        self._view.show_curve(times_s, history.fluences_e_per_A2)
        self._view.show_exposures(history.exposures)

    def _on_opened(self, session: Session, state: SessionState) -> None:
        self._watch = self._loop = None
        self._history = DoseHistory()
        self._began_s = self._now()
        self._show_watch(True)

    def _on_gone(self) -> None:
        self._watch = self._loop = None
        self._show_watch(False)

    def _on_failed(self, key: str, _error: Exception) -> None:
        if key == "watch":
            self._show_watch(True)

    def _show_watch(self, possible: bool) -> None:
        self._view.show_watch(self._watch is not None, self._loop is not None, possible)
