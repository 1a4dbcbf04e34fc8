"""The fluence map: read on a worker a few times a second while it is shown, not with the frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tem_live.gui.controllers.hub import SessionHub, one_line
from tem_live.gui.models import quantities as q
from tem_live.gui.models.fluence_map import MapPictures, Picture, here_text, map_pictures
from tem_live.gui.models.view_state import Range, ViewState
from tem_live.gui.views.dose import DoseCard
from tem_live.gui.views.image_pane import ImagePane
from tem_live.gui.workers import Runner

if TYPE_CHECKING:
    from tem_live.session import Session
    from tem_live.state import FrameInfo, SessionState

    _Answer = tuple[MapPictures | None, float | None, tuple[int, int]]

MOST_BYTES = 1 << 18
"""Of the ledger that are read for one look."""
MOST_COLOUR = 205
REST = 4.0
"""Times as long as the last look took until the next: the worker prepares the frames too."""


class MapController:
    """Overlay of the raw pane, overview and the fluence of the field in the dose card.

    Parameters
    ----------
    pane : ImagePane
        The raw pane.
    card : DoseCard
        The dose card.
    hub : SessionHub
        The session.
    state : ViewState
        Whether map and card are shown.
    runner : Runner
        Worker that reads and paints.
    colour_table : callable
        Colour map by name, (256, 3) uint8.
    seen : callable
        Gives what is visible, and of which frame; see `DisplayController.seen`.
    now : callable
        ``time.monotonic``.
    """

    def __init__(
        self,
        pane: ImagePane,
        card: DoseCard,
        hub: SessionHub,
        state: ViewState,
        runner: Runner,
        colour_table: Callable[[str], Picture | None],
        seen: Callable[[], tuple[Range, FrameInfo] | None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pane = pane
        self._card = card
        self._hub = hub
        self._state = state
        self._runner = runner
        table = colour_table("inferno")
        if table is None:
            table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        # Up to orange: what is nearly white would hide the frame.
        self._table: Picture = table[np.linspace(0, MOST_COLOUR, 256).astype(int)]
        self._seen = seen
        self._now = now
        self._due_s = 0.0
        self._broken: str | None = None
        hub.opened.connect(self._on_opened)
        hub.gone.connect(self._forget)
        state.events.fluence_map.connect(self._on_switched)
        self._on_switched(state.fluence_map)

    def tick(self) -> None:
        """Read on and paint; to be called a few times a second."""
        session, state = self._hub.session, self._state
        if session is None or self._runner.busy("map"):
            return
        if not (state.fluence_map or state.dose) or self._now() < self._due_s:
            return
        table = self._table

        def work() -> _Answer:
            began_s = self._now()
            try:
                return look()
            finally:
                ended_s = self._now()
                self._due_s = ended_s + REST * (ended_s - began_s)

        def look() -> _Answer:
            shape, place = session.state.frame_shape, session.place
            if place is None:
                return None, None, shape
            read = session.fluence_map(MOST_BYTES)
            return map_pictures(read, place, table), session.budget_e_per_A2, shape

        def show(answer: _Answer) -> None:
            if session is self._hub.session:
                self._broken = None
                self._show(*answer)

        def failed(error: Exception) -> None:
            # Told once, and not four times a second.
            text = one_line(error)
            if session is self._hub.session and text != self._broken:
                self._broken = text
                self._hub.message.emit("warning", text)

        self._runner.submit("map", work, show, failed)

    def _show(
        self,
        pictures: MapPictures | None,
        budget_e_per_A2: float | None,
        shape: tuple[int, int],
    ) -> None:
        self._card.show_here(*here_text(pictures, budget_e_per_A2))
        if not self._state.fluence_map:
            return
        if pictures is None or pictures.overlay is None or not self._shows_the_field():
            self._pane.show_map(None, shape, self._table, "")
            self._card.overview.show_nothing()
            return
        self._pane.show_map(
            pictures.overlay,
            shape,
            self._table,
            q.quantity(pictures.highest_e_per_A2, q.DOSE_A2),
        )
        self._card.overview.show_map(pictures.overview, pictures.overview_nm, pictures.field_nm)

    def _shows_the_field(self) -> bool:
        """Whether the shown frame is of the field that the camera has by now."""
        seen, state = self._seen(), self._hub.state
        if seen is None or state is None or seen[1].roi is None:
            return True
        frame = seen[1]
        return (frame.roi, frame.pixel_size_nm) == (state.roi, state.pixel_size_nm)

    def _on_switched(self, on: bool) -> None:
        self._card.show_overview(on)
        if not on:
            self._pane.show_map(None, (1, 1), self._table, "")

    def _on_opened(self, session: Session, state: SessionState) -> None:
        self._forget()

    def _forget(self) -> None:
        self._broken = None
        self._pane.show_map(None, (1, 1), self._table, "")
        self._card.overview.show_nothing()
        self._card.show_here(q.NOTHING, False)
