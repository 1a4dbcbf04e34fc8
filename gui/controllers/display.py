"""Frames onto the screen: always a pair of one frame, always the newest, never waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QObject, Signal

from tem_live.gui.controllers.hub import SessionHub, one_line
from tem_live.gui.models import quantities as q
from tem_live.gui.models.levels import LevelsModel
from tem_live.gui.models.render import (
    PaneLevels,
    RenderedPair,
    RenderedPlane,
    RenderRequest,
    drawn_extent,
    render,
)
from tem_live.gui.models.scale_bar import scale_bar
from tem_live.gui.models.view_state import COLOURS, Line, Range, ViewState
from tem_live.gui.views.bars import PaneHeader
from tem_live.gui.views.deck import Deck
from tem_live.gui.views.image_pane import ImagePane
from tem_live.gui.views.panels import DisplayPanel
from tem_live.gui.workers import Runner

if TYPE_CHECKING:
    from tem_live.device_frame import DeviceFrame
    from tem_live.session import Session
    from tem_live.state import FrameInfo, RunStats, SessionState

SPECTRUM_PERIOD_S = 0.1
BAR_WIDTH_PX = 128.0
Table = npt.NDArray[np.uint8]


class DisplayController(QObject):
    """Takes the newest frame, has it prepared on a worker, shows both panes of it at once.

    Parameters
    ----------
    raw, restored : ImagePane
        The panes.
    header : PaneHeader
        Titles and the frame's id.
    deck : Deck
        Spectra and profile.
    panel : DisplayPanel
        Switches.
    view : ViewState
        State of the switches.
    hub : SessionHub
        The session.
    runner : Runner
        Worker that prepares frames.
    colour_table : callable
        Colour map by name, (256, 3) uint8, None for grey.
    """

    shown = Signal(object, bool)
    """A frame was shown: its `FrameInfo`, and whether it was restored."""
    stats_changed = Signal(object)
    """Figures of the run (`RunStats`)."""

    def __init__(
        self,
        raw: ImagePane,
        restored: ImagePane,
        header: PaneHeader,
        deck: Deck,
        panel: DisplayPanel,
        view: ViewState,
        hub: SessionHub,
        runner: Runner,
        colour_table: Callable[[str], Table | None],
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._raw = raw
        self._restored = restored
        self._header = header
        self._deck = deck
        self._panel = panel
        self._view = view
        self._hub = hub
        self._runner = runner
        self._colour_table = colour_table
        self.raw_levels = LevelsModel()
        self.restored_levels = LevelsModel()
        self._frame: DeviceFrame | None = None
        self._pair: RenderedPair | None = None
        self._generation = 0
        self._dirty = False
        self._rendered_shrink = 1
        self._spectrum_due = 0.0
        self._pointer: tuple[float, float] | None = None

        hub.opened.connect(self._on_opened)
        hub.gone.connect(self._on_gone)
        hub.opening_changed.connect(self._on_opening)
        hub.state_changed.connect(self._on_state)
        for pane, other, levels in (
            (raw, restored, self.raw_levels),
            (restored, raw, self.restored_levels),
        ):
            self._wire_pane(pane, other, levels)
        panel.auto_toggled.connect(self.set_auto)
        panel.shared_toggled.connect(self._setter("shared_levels"))
        panel.spectrum_toggled.connect(self._setter("spectrum"))
        panel.profile_toggled.connect(self._setter("profile"))
        panel.dose_toggled.connect(self._setter("dose"))
        panel.map_toggled.connect(self._setter("fluence_map"))
        panel.mean_toggled.connect(self._setter("rolling_mean"))
        panel.colours_chosen.connect(self._set_colours)
        panel.fit_requested.connect(self.fit)
        panel.actual_requested.connect(self.one_to_one)
        view.events.connect(self._on_view_changed)
        self._apply_colours()
        self._show_switches()
        self._show_idle("no instrument")

    # ------------------------------------------------------------------------------ frame by frame

    def tick(self) -> None:
        """Have the newest frame prepared, if there is one and the last one is on the screen.

        Taking it copies it where it lives, so that is the worker's too.
        """
        session = self._hub.session
        if session is None or self._runner.busy("render"):
            return
        again = self._frame if self._dirty or self._looks_elsewhere() else None
        self._dirty = False
        now = time.monotonic()
        view = self._view
        request = RenderRequest(
            generation=self._generation,
            raw=_pane_levels(self.raw_levels),
            restored=_pane_levels(self.restored_levels),
            shared=view.shared_levels,
            spectrum=view.spectrum and now >= self._spectrum_due,
            profile=view.profile,
            line=view.line,
            shrink=self._shrink(),
            visible=self._visible(),
            visible_of=None if self._pair is None else self._pair.raw.plane.shape,
        )
        self._rendered_shrink = request.shrink
        wants_mean = view.rolling_mean

        def work() -> tuple[DeviceFrame, RenderedPair] | None:
            frame = session.newest_on_device() or again
            if frame is None:
                return None
            mean = session.rolling_mean_on_device() if wants_mean else None
            return frame, render(frame, request, mean)

        def show(answer: tuple[DeviceFrame, RenderedPair] | None) -> None:
            if answer is None or answer[1].generation != self._generation:
                return
            self._frame, pair = answer
            if request.spectrum:
                self._spectrum_due = now + SPECTRUM_PERIOD_S
            self.show_pair(pair)

        self._runner.submit("render", work, show, lambda error: self._tell(session, error))

    def poll_stats(self) -> None:
        """Fetch the run's figures; called a few times a second."""
        session = self._hub.session
        if session is None or self._runner.busy("stats"):
            return

        def show(stats: RunStats) -> None:
            if session is self._hub.session:
                self.stats_changed.emit(stats)

        self._runner.submit("stats", session.stats, show, lambda error: self._tell(session, error))

    def show_pair(self, pair: RenderedPair) -> None:
        """Show a prepared frame; one of a session that is gone is dropped."""
        if pair.generation != self._generation:
            return
        before, self._pair = self._pair, pair
        if pair.line is not None and (self._view.line is None or _moved(before, pair)):
            self._view.line = pair.line
        self._follow_levels(pair)
        _show(self._raw, pair.raw)
        self._show_right()
        self._show_histograms(pair)
        meta = pair.meta
        height, width = pair.raw.plane.shape
        size = f"{width} × {height} px · {q.pixel_size(meta.pixel_size_nm)}"
        self._header.show_left("Rolling mean" if pair.is_mean else "Raw", size)
        self._header.show_frame(f"Frame {q.count(meta.frame_id)}")
        self._raw.show_badge("beam blanked" if meta.blanked else "")
        self._show_bars()
        self._show_readout()
        self._show_deck(pair)
        self.shown.emit(meta, pair.restored is not None)

    def _shrink(self) -> int:
        zoom = self._raw.zoom * self._raw.devicePixelRatioF()
        if not 0 < zoom < 0.5:
            return 1
        # Powers of two, so that a little zooming does not change it every time.
        return int(2 ** math.floor(math.log2(1 / zoom)))

    def _visible(self) -> Range:
        """What either pane shows of the frame; the larger pane of the two shows more."""
        one, other = self._raw.visible_range(), self._restored.visible_range()
        return (
            min(one[0], other[0]),
            max(one[1], other[1]),
            min(one[2], other[2]),
            max(one[3], other[3]),
        )

    def _looks_elsewhere(self) -> bool:
        """Whether the panes show what was not drawn, or not so finely."""
        if self._pair is None:
            return False
        if self._shrink() != self._rendered_shrink:
            return True
        drawn = self._pair.raw
        needed = drawn_extent(drawn.plane.shape, self._shrink(), self._visible(), margin=0.0)
        return not drawn.extent.holds(needed)

    def _on_zoom(self, _zoom: float) -> None:
        self._show_bars()

    def _tell(self, session: Session, error: Exception) -> None:
        # A session that was closed meanwhile may fail as it likes.
        if session is self._hub.session:
            self._hub.message.emit("error", one_line(error))

    def _follow_levels(self, pair: RenderedPair) -> None:
        for levels, plane in (
            (self.raw_levels, pair.raw),
            (self.restored_levels, pair.restored),
        ):
            if plane is not None and levels.auto:
                levels.low, levels.high = plane.levels

    def _show_right(self) -> None:
        pair = self._pair
        if pair is None:
            return
        held = self._view.hold_raw
        if held:
            _show(self._restored, pair.raw)
            self._header.show_right("Raw", "held")
        elif pair.restored is not None:
            _show(self._restored, pair.restored)
            self._header.show_right("Restored", _restored_by(pair.meta))
        else:
            self._restored.show_nothing(
                "no restorer chosen" if pair.meta.model == "none" else "this frame was not restored"
            )
            self._header.show_right("Restored", "–")
        badge = "showing raw" if held else "beam blanked" if pair.meta.blanked else ""
        self._restored.show_badge(badge)

    def _right(self, pair: RenderedPair) -> tuple[ImagePane, RenderedPlane | None, LevelsModel]:
        """What the right pane shows now, and the levels that belong to it."""
        if self._view.hold_raw:
            return self._restored, pair.raw, self.raw_levels
        return self._restored, pair.restored, self.restored_levels

    def _show_histograms(self, pair: RenderedPair) -> None:
        for pane, plane, levels in (
            (self._raw, pair.raw, self.raw_levels),
            self._right(pair),
        ):
            if plane is not None:
                low, high = (levels.low, levels.high) if not levels.auto else plane.levels
                pane.show_levels(plane.histogram, low, high, levels.auto)

    def _show_deck(self, pair: RenderedPair) -> None:
        view = self._view
        if view.spectrum and pair.raw.spectrum is not None:
            self._deck.show_spectra(
                pair.raw.spectrum,
                pair.restored.spectrum if pair.restored is not None else None,
                pair.nyquist_per_nm,
                pair.is_mean,
            )
        if view.profile and pair.profile_nm is not None:
            self._deck.show_profile(
                pair.profile_nm,
                pair.raw.profile,
                pair.restored.profile if pair.restored is not None else None,
                "px" if pair.meta.pixel_size_nm is None else "nm",
            )

    def _show_bars(self) -> None:
        if self._pair is None:
            return
        pixel_size = self._pair.meta.pixel_size_nm
        for pane in (self._raw, self._restored):
            bar = scale_bar(pixel_size, pane.zoom, BAR_WIDTH_PX)
            pane.show_scale_bar(bar, "no calibration" if pixel_size is None else "")

    # ----------------------------------------------------------------------------------- the panes

    def _wire_pane(self, pane: ImagePane, other: ImagePane, levels: LevelsModel) -> None:
        def drag(low: float, high: float) -> None:
            both = (self.raw_levels, self.restored_levels)
            for model in both if self._view.shared_levels else (levels,):
                model.set_manual(low, high)
            self._on_levels_changed()

        def automatic() -> None:
            both = (self.raw_levels, self.restored_levels)
            for model in both if self._view.shared_levels else (levels,):
                model.auto = True
            self._on_levels_changed()

        pane.range_moved.connect(other.show_range)
        pane.zoom_changed.connect(self._on_zoom)
        pane.fit_requested.connect(self.fit)
        pane.hovered.connect(self._on_pointer)
        pane.levels_dragged.connect(drag)
        pane.auto_requested.connect(automatic)
        pane.line_moved.connect(self._on_line_moved)

    def seen(self) -> tuple[Range, FrameInfo] | None:
        """Visible part of the shown frame in its pixels, and which frame it is; None for none."""
        return None if self._pair is None else (self._raw.visible_range(), self._pair.meta)

    def fit(self) -> None:
        """Show the whole frame in both panes."""
        self._raw.fit()
        self._restored.fit()

    def one_to_one(self) -> None:
        """One pixel of the frame on one of the screen."""
        self._raw.one_to_one()
        self._restored.show_range(self._raw.visible_range())

    def hold_raw(self, held: bool) -> None:
        """Show the raw frame in the restored pane while ``held``."""
        self._view.hold_raw = held

    def set_auto(self, auto: bool) -> None:
        """Have the levels of both panes follow the frames, or stand still."""
        self.raw_levels.auto = self.restored_levels.auto = auto
        self._on_levels_changed()

    def toggle(self, switch: str) -> None:
        """Turn one of the `ViewState` switches, or ``auto``, by a key."""
        if switch == "auto":
            self.set_auto(not (self.raw_levels.auto and self.restored_levels.auto))
        else:
            setattr(self._view, switch, not getattr(self._view, switch))

    def _on_levels_changed(self) -> None:
        self._dirty = True
        self._show_switches()
        if self._pair is not None:
            self._show_histograms(self._pair)

    def _on_line_moved(self, line: Line) -> None:
        self._view.line = line

    def _on_pointer(self, x: float, y: float) -> None:
        self._pointer = None if math.isnan(x) else (x, y)
        self._show_readout()

    def _show_readout(self) -> None:
        pair = self._pair
        for pane, plane in (
            (self._raw, pair.raw if pair else None),
            (self._restored, self._right(pair)[1] if pair else None),
        ):
            text = ""
            if plane is not None and self._pointer is not None:
                x, y = math.floor(self._pointer[0]), math.floor(self._pointer[1])
                height, width = plane.plane.shape
                if 0 <= x < width and 0 <= y < height:
                    value = q.quantity(plane.plane.at(y, x), q.DOSE_PX)
                    text = f"x {x}  y {y}   {value}"
            pane.show_readout(text)

    # ------------------------------------------------------------------------------------ switches

    def _setter(self, name: str) -> Callable[[bool], None]:
        def set_it(value: bool) -> None:
            setattr(self._view, name, value)

        return set_it

    def _set_colours(self, name: str) -> None:
        for known in COLOURS:
            if known == name:
                self._view.colours = known

    def _on_view_changed(self, _event: Any) -> None:
        self._dirty = True
        self._spectrum_due = 0.0
        self._show_switches()
        self._show_right()
        if self._pair is not None:
            self._show_histograms(self._pair)
        self._show_readout()

    def _show_switches(self) -> None:
        view = self._view
        self._panel.show_switches(
            auto=self.raw_levels.auto and self.restored_levels.auto,
            shared=view.shared_levels,
            spectrum=view.spectrum,
            profile=view.profile,
            dose=view.dose,
            fluence_map=view.fluence_map,
            mean=view.rolling_mean,
        )
        self._deck.show_parts(view.spectrum, view.profile, view.dose)
        line = view.line if view.profile else None
        self._raw.show_line(line)
        self._restored.show_line(line)
        self._apply_colours()

    def _apply_colours(self) -> None:
        self._panel.show_colours(self._view.colours)
        table = self._colour_table(self._view.colours)
        self._raw.set_colours(table)
        self._restored.set_colours(table)

    # ------------------------------------------------------------------------------------- session

    def _on_opened(self, session: Session, state: SessionState) -> None:
        self._forget()
        self._show_idle("ready")

    def _on_gone(self) -> None:
        self._forget()
        self._show_idle("no instrument")

    def _on_opening(self, opening: bool) -> None:
        if opening:
            self._show_idle("opening the instrument …")
        elif self._hub.session is None:
            self._show_idle("no instrument")

    def _on_state(self, state: SessionState) -> None:
        if self._pair is None and not state.running:
            beam = "the beam is blanked – " if state.blanked else ""
            self._show_idle(f"{beam}press Start (F5)")

    def _forget(self) -> None:
        self._generation += 1
        self._frame = None
        self._pair = None
        self._view.line = None

    def _show_idle(self, notice: str) -> None:
        if self._pair is not None:
            return
        for pane in (self._raw, self._restored):
            pane.show_nothing(notice)
            pane.show_scale_bar(None, "")
            pane.show_badge("")
        self._header.show_left("Raw", "")
        self._header.show_right("Restored", "")
        self._header.show_frame("no frame")


def _restored_by(meta: FrameInfo) -> str:
    factor = meta.restore_binning
    return meta.model if factor == 1 else f"{meta.model} · binned {factor} × {factor}"


def _show(pane: ImagePane, rendered: RenderedPlane) -> None:
    pane.show_image(rendered.image, rendered.extent, rendered.plane.shape)


def _moved(before: RenderedPair | None, pair: RenderedPair) -> bool:
    return before is not None and before.raw.plane.shape != pair.raw.plane.shape


def _pane_levels(levels: LevelsModel) -> PaneLevels:
    return PaneLevels(levels.auto, levels.low, levels.high, levels.low_percent, levels.high_percent)
