"""The dose card: asks the session a few times a second while it is shown, and books nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tem_live.gui.controllers.hub import SessionHub, one_line
from tem_live.gui.models.dose_history import DoseHistory, dose_figures
from tem_live.gui.models.view_state import ViewState
from tem_live.gui.views.dose import DoseCard
from tem_live.gui.workers import Runner

if TYPE_CHECKING:
    from tem_live.account import Cost
    from tem_live.session import Session
    from tem_live.state import RunStats, SessionState
    from tem_live.watch import Watch, WatchState


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
        self._history = DoseHistory()
        self._began_s = now()
        view.watch_toggled.connect(self.set_watch)
        view.budget_edited.connect(self.set_budget)
        view.critical_requested.connect(self.take_critical)
        hub.opened.connect(self._on_opened)
        hub.gone.connect(self._on_gone)
        self._on_gone()

    def tick(self) -> None:
        """Ask for the figures; to be called a few times a second. The history goes on unseen."""
        session = self._hub.session
        if session is None or self._runner.busy("dose"):
            return
        watch = self._watch

        def work() -> tuple[RunStats, Cost, SessionState, WatchState | None]:
            seen = None if watch is None else watch.state
            return session.stats(), session.cost(), session.state, seen

        def show(answer: tuple[RunStats, Cost, SessionState, WatchState | None]) -> None:
            if session is self._hub.session:
                self._show(*answer)

        def failed(error: Exception) -> None:
            if session is self._hub.session:
                self._hub.message.emit("error", one_line(error))

        self._runner.submit("dose", work, show, failed)

    def set_watch(self, on: bool) -> None:
        """Begin or end judging frames."""
        before, self._watch = self._watch, None

        def change(session: Session) -> Any:
            if before is not None:
                before.close()
            return session.watch() if on else None

        def done(watch: Watch | None) -> None:
            self._watch = watch
            self._view.show_watch(watch is not None, True)

        self._view.show_watch(on, False)
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
        self, stats: RunStats, cost: Cost, state: SessionState, watch: WatchState | None
    ) -> None:
        now = self._now()
        fluence = stats.area_fluence_e_per_A2
        if fluence is None:
            fluence = stats.fluence_e_per_A2 or 0.0
        history = self._history
        on = state.blanked is False or (state.blanked is None and state.running)
        history.take(now, fluence, on)
        if not self._state.dose:
            return
        self._view.show_figures(dose_figures(stats, cost, state, watch))
        times_s = [time_s - self._began_s for time_s in history.times_s]
        self._view.show_curve(times_s, history.fluences_e_per_A2)
        self._view.show_exposures(history.exposures)

    def _on_opened(self, session: Session, state: SessionState) -> None:
        self._watch = None
        self._history = DoseHistory()
        self._began_s = self._now()
        self._view.show_watch(False, True)

    def _on_gone(self) -> None:
        self._watch = None
        self._view.show_watch(False, False)
