"""The whole: keys, messages, status, profiles, settings, start and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Qt, QTimer, Signal
from PySide6.QtGui import QGuiApplication

from tem_live.errors import OverflowedError, RawFrameLostError, RecordingError, RefusedError
from tem_live.gui.controllers.display import DisplayController, Table
from tem_live.gui.controllers.dose import DoseController
from tem_live.gui.controllers.fluence_map import MapController
from tem_live.gui.controllers.hub import SessionHub, one_line
from tem_live.gui.controllers.keys import GlobalKeys, Key
from tem_live.gui.controllers.messages import MessageController
from tem_live.gui.controllers.panels import (
    BeamController,
    CameraController,
    ModeController,
    RecordController,
    RestorerController,
)
from tem_live.gui.models import quantities as q
from tem_live.gui.models.settings import GuiSettings, SettingsStore
from tem_live.gui.models.view_state import ViewState
from tem_live.gui.views.main_window import MainWindow
from tem_live.gui.workers import Runner

if TYPE_CHECKING:
    from tem_live.session import Session
    from tem_live.state import FrameInfo, RunStats, SessionState

DISPLAY_MS = 33
STATS_MS = 250
BLINK_MS = 500
CLOSE_LIMIT_MS = 20_000


class Cockpit(QObject):
    """Puts views, controllers and workers together.

    Parameters
    ----------
    window : MainWindow
        The views.
    hub : SessionHub
        The session.
    display_runner, catalogue_runner : Runner
        Workers for frames and for slow lists.
    store : SettingsStore
        Remembered settings.
    list_models : callable
        Names and titles of the restorers; slow at the first call.
    list_profiles : callable
        Names of the profiles.
    colour_table : callable
        See `DisplayController`.
    at_once : callable, optional
        Decides from an open session whether frames are taken at once; never by default.
    """

    finished = Signal()
    """The session is closed and the window may go."""
    beam_in_doubt = Signal(str)
    """At the end: the beam may be still on, and what to do about it."""

    def __init__(
        self,
        window: MainWindow,
        hub: SessionHub,
        display_runner: Runner,
        catalogue_runner: Runner,
        store: SettingsStore,
        list_models: Callable[[], Sequence[tuple[str, str]]],
        list_profiles: Callable[[], Sequence[str]],
        colour_table: Callable[[str], Table | None],
        at_once: Callable[[Session, SessionState], bool] | None = None,
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._window = window
        self._hub = hub
        self._store = store
        self._settings, broken = store.load()
        self._profile = ""
        self._overrides: Sequence[str] = ()
        self._at_once = at_once or (lambda session, state: False)
        self._autostart = self._at_once
        self._on_ready: Callable[[Session], None] | None = None
        self._attended = True
        settings = self._settings
        self.view = ViewState(
            shared_levels=settings.shared_levels,
            spectrum=settings.spectrum,
            profile=settings.profile,
            dose=settings.dose,
            fluence_map=settings.fluence_map,
            colours=settings.colours,
        )
        self.messages = MessageController(window.messages, self)
        self.display = DisplayController(
            window.raw,
            window.restored,
            window.header,
            window.deck,
            window.display,
            self.view,
            hub,
            display_runner,
            colour_table,
            self,
        )
        self.display.set_auto(settings.auto_levels)
        self.beam = BeamController(window.beam, hub)
        self.modes = ModeController(window.top, hub)
        self.dose = DoseController(window.dose, hub, self.view, display_runner)
        self.map = MapController(
            window.raw, window.dose, hub, self.view, display_runner, colour_table, self.display.seen
        )
        self.camera = CameraController(
            window.camera, hub, self.display.seen, window.ask_reference, settings
        )
        self.restorer = RestorerController(window.restorer, hub)
        self.record = RecordController(window.record, hub, settings, window.ask_folder)
        self.keys = GlobalKeys(self)

        hub.message.connect(self.messages.add)
        hub.opened.connect(self._on_opened)
        hub.opening_changed.connect(self._on_opening)
        hub.gone.connect(self._on_gone)
        hub.state_changed.connect(self._on_state)
        hub.stopped.connect(self._on_stopped)
        hub.pending_changed.connect(self._on_pending)
        hub.finished.connect(self._on_closed)
        window.top.run_toggled.connect(self.toggle_run)
        window.top.emergency.connect(hub.blank_now)
        window.top.help_requested.connect(window.toggle_help)
        window.top.profile_chosen.connect(self.choose_profile)
        window.banner.retry.connect(self._retry)
        window.close_requested.connect(self.close)
        window.beam_warning_read.connect(self._on_finished)
        window.folder_chosen.connect(self.record.set_folder)
        window.reference_confirmed.connect(self.camera.take_reference)
        window.restorer.hold_changed.connect(self.display.hold_raw)
        self.keys.emergency.connect(hub.blank_now)
        self.keys.hold_changed.connect(self.display.hold_raw)
        self.display.shown.connect(self._on_shown)
        self.display.stats_changed.connect(self._on_stats)

        app = QGuiApplication.instance()
        if app is not None:
            app.installEventFilter(self.keys)
        for key in self._keys():
            window.add_key(key.key, key.action)
        window.help.set_keys(
            [
                ("Esc  F12", "Blank the beam at once"),
                ("R (hold)", "Show raw in the restored pane"),
                *((key.key, key.text) for key in self._keys()),
                ("Wheel", "Zoom both images"),
                ("Drag", "Move both images"),
                ("Double click", "Fit; on a histogram: automatic levels"),
            ]
        )
        window.resize(settings.width, settings.height)
        if settings.maximised:
            window.setWindowState(Qt.WindowState.WindowMaximized)
        self._timers: list[QTimer] = []
        for period_ms, action in (
            (DISPLAY_MS, self.display.tick),
            (STATS_MS, self.display.poll_stats),
            (STATS_MS, self.dose.tick),
            (STATS_MS, self.map.tick),
            (BLINK_MS, self.record.blink),
        ):
            timer = QTimer(self)
            timer.timeout.connect(action)
            timer.start(period_ms)
            self._timers.append(timer)
        if broken is not None:
            self.messages.add("warning", broken)
        window.top.show_profiles(list_profiles())
        window.top.show_run(False, False)
        catalogue_runner.submit(
            "models",
            list_models,
            self.restorer.show_models,
            lambda error: self.messages.add("warning", one_line(error)),
        )

    def _keys(self) -> list[Key]:
        toggle = self.display.toggle
        return [
            Key("F1", "Show these keys", self._window.toggle_help),
            Key("F5", "Start or stop taking frames", self.toggle_run),
            Key("Ctrl+B", "Blank or unblank the beam", self.toggle_beam),
            Key("Ctrl+R", "Record, or stop recording", self.record.toggle),
            Key("A", "Automatic levels", lambda: toggle("auto")),
            Key("S", "One set of levels for both panes", lambda: toggle("shared_levels")),
            Key("T", "Power spectra", lambda: toggle("spectrum")),
            Key("L", "Line profile", lambda: toggle("profile")),
            Key("D", "Dose", lambda: toggle("dose")),
            Key("M", "Fluence map over the raw frame", lambda: toggle("fluence_map")),
            Key("N", "Rolling mean in the left pane", lambda: toggle("rolling_mean")),
            Key("F", "Fit the frame into the panes", self.display.fit),
            Key("1", "One frame pixel on one screen pixel", self.display.one_to_one),
            Key("F11", "Full screen", self._window.toggle_full_screen),
            Key("Ctrl+Q", "Blank the beam and quit", self.close),
        ]

    # ---------------------------------------------------------------------------------- the session

    def open(
        self,
        profile: str,
        overrides: Sequence[str] = (),
        autostart: Callable[[Session, SessionState], bool] | None = None,
        on_ready: Callable[[Session], None] | None = None,
    ) -> None:
        """Open a profile.

        Parameters
        ----------
        profile : str
            Name or path.
        overrides : sequence of "key=value"
            Fields to set over the profile's.
        autostart : callable, optional
            Decides from the open session whether frames are taken at once, for this instrument and
            no other; by default as the cockpit was told.
        on_ready : callable of Session, optional
            Begins a recording; done on the settings' worker before the start, which does not
            follow if it fails.
        """
        self._profile, self._overrides = profile, overrides
        self._autostart = autostart or self._at_once
        self._on_ready = on_ready
        self._window.banner.show_nothing()
        self._window.top.show_profile(profile, Path(profile).stem)
        self._hub.open(profile, overrides)

    def choose_profile(self, profile: str) -> None:
        """Open another profile; the overrides of the start belong to the first one."""
        if profile != self._profile or self._hub.session is None:
            self.open(profile)

    def toggle_run(self) -> None:
        """Start or stop taking frames."""
        state = self._hub.state
        if self._hub.is_pending("run"):
            return
        if state is not None and state.running:
            self._hub.change("run", lambda session: session.stop())
        else:
            self.start()

    def start(self) -> None:
        """Unblank and take frames."""
        self._window.banner.show_nothing()
        self._hub.change("run", lambda session: session.start(), unblanks=True)

    def toggle_beam(self) -> None:
        """Blank or unblank."""
        state = self._hub.state
        if state is not None and state.blanked is not None:
            # While it is not known which it will be: off.
            self.beam.set_blanked(self._hub.is_pending("blanked") or not state.blanked)

    def close(self, attended: bool = True) -> None:
        """Blank the beam, close everything, then the window; `finished` tells when.

        Parameters
        ----------
        attended : bool
            Somebody is there: where the beam may be still on the window waits until that was read.
        """
        self._attended = attended
        self._window.status.show_note("blanking the beam and closing …")
        self._window.setEnabled(False)
        self._hub.shutdown()
        # A device that never answers must not keep the window open for ever.
        QTimer.singleShot(CLOSE_LIMIT_MS, self, self._on_overdue)

    def _retry(self) -> None:
        if self._hub.session is None:
            # As it was asked for: with its recording, and not at once where that was not wanted.
            self.open(self._profile, self._overrides, self._autostart, self._on_ready)
        else:
            self.start()

    def _on_opened(self, session: Session, state: SessionState) -> None:
        self._window.top.show_device(session.capabilities.name)
        self._window.setWindowTitle(f"{session.profile.title or session.profile.name} – tem_live")
        begin, self._on_ready = self._on_ready, None
        at_once = self._autostart(session, state)
        self._autostart = self._at_once
        if begin is not None:
            # What was to be recorded from the start does not begin unrecorded.
            self.record.begin(begin, lambda _: self.start() if at_once else None)
        elif at_once:
            self.start()

    def _on_opening(self, opening: bool) -> None:
        self._window.status.show_note("opening the instrument …" if opening else "")
        self._show_run()
        if not opening and self._hub.session is None:
            self._window.banner.show_banner(
                "The instrument could not be opened", "see the message below", True
            )

    def _on_gone(self) -> None:
        self._window.top.show_device("")
        self._show_run()

    def _on_state(self, state: SessionState) -> None:
        self._show_run()

    def _on_pending(self, key: str, pending: bool) -> None:
        if key == "run":
            self._show_run()
        if key == "reference":
            self._window.status.show_note("taking a reference …" if pending else "")

    def _show_run(self) -> None:
        state = self._hub.state
        possible = state is not None and not self._hub.is_pending("run")
        self._window.top.show_run(state is not None and state.running, possible)

    def _on_stopped(self, reason: str) -> None:
        if not reason.startswith("error"):
            return
        session = self._hub.session
        # The session's own: the hub hears of the run's end before it hears of the beam.
        state = self._hub.state if session is None else session.state
        beam = {True: "beam blanked", False: "BEAM STILL ON", None: "no blanker: close the valves"}
        blanked = state.blanked if state is not None else None
        text = reason.removeprefix("error: ")
        match session and session.run_error:
            case RecordingError():
                what = "Recording failed"
            case RawFrameLostError() | OverflowedError():
                what = "Raw frames lost"
            case RefusedError():
                what = "Run stopped"
            case _:
                what = "Camera lost"
        # The session has told it as a message too; once is enough.
        self.messages.withdraw("error", text)
        self._window.banner.show_banner(f"{what} – {beam[blanked]}", text, True)

    # ------------------------------------------------------------------------------------- showing

    def _on_shown(self, meta: FrameInfo, restored: bool) -> None:
        self.beam.show_frame(meta)
        status = self._window.status
        drift = meta.drift_px
        if drift is None:
            status.show_value("drift", q.NOTHING)
        else:
            length = (drift[0] ** 2 + drift[1] ** 2) ** 0.5
            if meta.pixel_size_nm is None:
                status.show_value("drift", f"{length:.1f} px")
            else:
                status.show_value("drift", f"{length * meta.pixel_size_nm:.2f} nm")

    def _on_stats(self, stats: RunStats) -> None:
        self.beam.show_stats(stats)
        self.record.show_stats(stats)
        status = self._window.status
        status.show_value("fps", f"{stats.fps:.1f} /s")
        status.show_value("restored", f"{stats.restore_fps:.1f} /s")
        status.show_value("latency", q.quantity(stats.latency_ms_p50, "ms"))
        status.show_value("dropped", q.count(stats.dropped_raw), stats.dropped_raw > 0)
        status.show_value("restore_skipped", q.count(stats.restore_skipped))
        status.show_value("display_skipped", q.count(stats.display_skipped))

    # -------------------------------------------------------------------------------------- ending

    def _on_closed(self) -> None:
        if self._hub.beam_left_on:
            self._warn("THE BEAM COULD NOT BE BLANKED: close the column valves by hand")
        else:
            self._on_finished()

    def _on_overdue(self) -> None:
        state = self._hub.state
        if state is not None and state.blanked is None:
            self._on_finished()
        else:
            self._warn(
                f"the instrument has not answered for {CLOSE_LIMIT_MS // 1000} s: see on the "
                "column whether the beam is blanked"
            )

    def _warn(self, text: str) -> None:
        if not self._timers:
            return
        self.beam_in_doubt.emit(text)
        if self._attended:
            self._window.setEnabled(True)
            self._window.warn_of_beam(text)
        else:
            self._on_finished()

    def _on_finished(self) -> None:
        if not self._timers:
            return
        for timer in self._timers:
            timer.stop()
        self._timers = []
        self.messages.stop()
        app = QGuiApplication.instance()
        if app is not None:
            app.removeEventFilter(self.keys)
        self._remember()
        self._window.finish()
        self.finished.emit()

    def _remember(self) -> None:
        settings, view = self._settings, self.view
        settings.maximised = self._window.isMaximized()
        if not settings.maximised and not self._window.isFullScreen():
            settings.width, settings.height = _size(settings, self._window)
        settings.auto_levels = self.display.raw_levels.auto and self.display.restored_levels.auto
        settings.shared_levels = view.shared_levels
        settings.spectrum = view.spectrum
        settings.profile = view.profile
        settings.dose = view.dose
        settings.fluence_map = view.fluence_map
        settings.colours = view.colours
        self._store.save(settings)


def _size(settings: GuiSettings, window: MainWindow) -> tuple[int, int]:
    # Within what the model accepts, so that an odd screen never makes the settings invalid.
    return min(max(window.width(), 640), 16384), min(max(window.height(), 480), 16384)
