"""Controllers of the panels: what the user asks goes to the hub, what was read back is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tem_live.gui.controllers.hub import SessionHub
from tem_live.gui.models import quantities as q
from tem_live.gui.models.roi import roi_from_view
from tem_live.gui.models.settings import GuiSettings, recording_name, recordings_folder, shown_path
from tem_live.gui.models.view_state import Range
from tem_live.gui.views.bars import TopBar
from tem_live.gui.views.panels import BeamPanel, CameraPanel, RecordPanel, RestorerPanel

if TYPE_CHECKING:
    from tem_live.session import Session
    from tem_live.state import FrameInfo, RunStats, SessionState


class BeamController:
    """Blanker, dose rate, dose and budget."""

    def __init__(self, view: BeamPanel, hub: SessionHub) -> None:
        self._view = view
        self._hub = hub
        view.blank_toggled.connect(self.set_blanked)
        view.dose_rate_edited.connect(self.set_dose_rate)
        view.area_edited.connect(self.set_area)
        hub.opened.connect(self._on_opened)
        hub.gone.connect(view.show_no_session)
        hub.state_changed.connect(self.show_state)
        hub.pending_changed.connect(self._on_pending)
        view.show_no_session()

    def _on_opened(self, session: Session, state: SessionState) -> None:
        self._view.show_session(session.can_set_dose_rate)

    def set_blanked(self, blanked: bool) -> None:
        """Blank (ahead of everything) or unblank (in its turn)."""
        if blanked:
            self._hub.blank_now()
        else:
            self._hub.change("blanked", lambda session: session.apply(blanked=False), unblanks=True)

    def set_dose_rate(self, e_per_px_s: float) -> None:
        """Ask for a dose rate."""
        self._hub.change("dose_rate", lambda session: session.apply(dose_rate=e_per_px_s))

    def set_area(self, area: str) -> None:
        """Book on another area from now on."""

        def change(session: Session) -> None:
            session.area = area or None

        self._hub.change("area", change)

    def show_state(self, state: SessionState) -> None:
        """Show what was read back; a value that still waits for its device stays as asked."""
        if not self._hub.is_pending("area"):
            self._view.show_area(state.area, False)
        self._view.show_beam(state.blanked, self._hub.is_pending("blanked"))
        if not self._hub.is_pending("dose_rate"):
            rate = state.dose_rate_e_per_px_s
            self._view.show_dose_rate(rate, q.dose_per_area(rate, state.pixel_size_nm))

    def show_frame(self, meta: FrameInfo) -> None:
        """Show what the frame on the screen cost."""
        self._view.show_dose(meta.dose_e_per_px, meta.fluence_e_per_A2)

    def show_stats(self, stats: RunStats) -> None:
        """Show the fluence so far."""
        fluence = stats.area_fluence_e_per_A2
        if fluence is None:
            fluence = stats.fluence_e_per_A2
        self._view.show_total(fluence, stats.budget_e_per_A2, stats.left_e_per_A2)

    def _on_pending(self, key: str, pending: bool) -> None:
        if key == "dose_rate":
            self._view.show_rate_pending(pending)
        elif key == "blanked" and self._hub.state is not None:
            self._view.show_beam(self._hub.state.blanked, pending)


class ModeController:
    """Sets of optics: search, view, focus, record, or whatever the profile names."""

    def __init__(self, view: TopBar, hub: SessionHub) -> None:
        self._view = view
        self._hub = hub
        self._wanted: str | None = None
        view.mode_chosen.connect(self.use_mode)
        hub.opened.connect(self._on_opened)
        hub.gone.connect(self._on_gone)
        hub.state_changed.connect(self.show_state)
        hub.pending_changed.connect(self._on_pending)

    def use_mode(self, name: str) -> None:
        """Change to a set of optics; the session blanks the beam while they change."""
        self._wanted = name
        self._hub.change("mode", lambda session: session.use_mode(name), unblanks=True)

    def show_state(self, state: SessionState) -> None:
        """Show the set that is in use."""
        pending = self._hub.is_pending("mode")
        self._view.show_mode(state.mode, self._wanted if pending else None)

    def _on_opened(self, session: Session, state: SessionState) -> None:
        self._view.show_modes(session.modes)
        self.show_state(state)

    def _on_gone(self) -> None:
        self._wanted = None
        self._view.show_modes(())

    def _on_pending(self, key: str, pending: bool) -> None:
        if key == "mode" and self._hub.state is not None:
            self.show_state(self._hub.state)


class CameraController:
    """Exposure, binning, region, references.

    Parameters
    ----------
    view : CameraPanel
        The panel.
    hub : SessionHub
        The session.
    seen : callable
        Gives what is visible, and of which frame; see `DisplayController.seen`.
    ask_reference : callable
        Asks the user before a reference (kind, note, frames).
    settings : GuiSettings
        Remembers the number of frames.
    """

    def __init__(
        self,
        view: CameraPanel,
        hub: SessionHub,
        seen: Callable[[], tuple[Range, FrameInfo] | None],
        ask_reference: Callable[[str, str, int], None],
        settings: GuiSettings,
    ) -> None:
        self._view = view
        self._hub = hub
        self._seen = seen
        self._ask_reference = ask_reference
        self._settings = settings
        self._sensor = (0, 0)
        view.exposure_edited.connect(self.set_exposure)
        view.binning_chosen.connect(self.set_binning)
        view.roi_from_view.connect(self.set_roi_from_view)
        view.roi_full.connect(self.set_roi_full)
        view.reference_requested.connect(self.ask_for_reference)
        hub.opened.connect(self.show_session)
        hub.gone.connect(view.show_no_session)
        hub.state_changed.connect(self.show_state)
        hub.pending_changed.connect(self._on_pending)
        view.show_no_session()

    def show_session(self, session: Session, state: SessionState) -> None:
        """Offer what this camera can do."""
        known = session.capabilities
        self._sensor = known.sensor_shape
        self._view.show_capabilities(
            known.has_exposure, known.exposure_range_s, known.binnings, known.has_roi
        )

    def show_state(self, state: SessionState) -> None:
        """Show what was read back; what still waits for the camera stays as asked."""
        if not self._hub.is_pending("exposure_s"):
            self._view.show_exposure(state.exposure_s)
        if not self._hub.is_pending("binning"):
            self._view.show_binning(state.binning)
        self._view.show_recording(state.recording is not None)

    def set_exposure(self, exposure_s: float) -> None:
        """Ask for an exposure."""
        self._hub.change("exposure_s", lambda session: session.apply(exposure_s=exposure_s))

    def set_binning(self, binning: int) -> None:
        """Ask for a binning."""
        self._hub.change("binning", lambda session: session.apply(binning=binning))

    def set_roi_from_view(self) -> None:
        """Read out what is visible."""
        seen = self._seen()
        read_from = None if seen is None else seen[1].roi
        if seen is None or read_from is None:
            self._hub.message.emit("warning", "no frame is shown to choose a region in; press F5")
            return
        # Of the frame that is looked at: the camera may have been set anew since.
        visible, frame = seen
        roi = roi_from_view(visible, read_from, frame.binning, self._sensor)
        self._hub.change("roi", lambda session: session.apply(roi=roi))

    def set_roi_full(self) -> None:
        """Read out the whole sensor."""
        self._hub.change("roi", lambda session: session.apply(roi=None))

    def ask_for_reference(self, kind: str) -> None:
        """Have the user confirm that the instrument is ready for a reference."""
        state = self._hub.state
        if state is None:
            return
        if kind == "gain":
            note = (
                "The beam must be on, evenly spread, with no specimen in it. Frames are taken with "
                "the exposure, binning and region that are set now."
            )
        elif state.blanked is None:
            note = (
                "This instrument has no beam blanker: take the beam off the camera by hand first."
            )
        else:
            note = "The beam is blanked for it and comes back afterwards if a run was going on."
        self._ask_reference(kind, note, max(2, self._settings.reference_frames))

    def take_reference(self, kind: str, frames: int) -> None:
        """Take a reference."""
        self._settings.reference_frames = frames

        def take(session: Session) -> Path:
            return session.take_reference("gain" if kind == "gain" else "dark", frames)

        self._hub.change("reference", take, unblanks=True)

    def _on_pending(self, key: str, pending: bool) -> None:
        show: dict[str, Callable[[bool], None]] = {
            "exposure_s": self._view.show_exposure_pending,
            "binning": self._view.show_binning_pending,
            "roi": self._view.show_roi_pending,
            "reference": self._view.show_reference_running,
        }
        if key in show:
            show[key](pending)


class RestorerController:
    """Choice of the model, and of what it is given."""

    def __init__(self, view: RestorerPanel, hub: SessionHub) -> None:
        self._view = view
        self._hub = hub
        view.model_chosen.connect(self.set_model)
        view.binning_chosen.connect(self.set_binning)
        hub.opened.connect(lambda session, state: view.setEnabled(True))
        hub.gone.connect(lambda: view.setEnabled(False))
        hub.state_changed.connect(self.show_state)
        hub.pending_changed.connect(self._on_pending)
        view.setEnabled(False)

    def show_models(self, models: Sequence[tuple[str, str]]) -> None:
        """Offer models as (name, what it is)."""
        self._view.show_models(models)
        # One of the user's own may run that is not among them.
        if self._hub.state is not None:
            self.show_state(self._hub.state)

    def set_model(self, name: str) -> None:
        """Ask for a model."""
        self._hub.change("model", lambda session: session.apply(model=name))

    def set_binning(self, binning: int) -> None:
        """Ask for frames to be binned before they are restored."""
        self._hub.change("restore_binning", lambda session: session.apply(restore_binning=binning))

    def show_state(self, state: SessionState) -> None:
        """Show the model that runs."""
        if not self._hub.is_pending("model"):
            self._view.show_model(state.model, state.device)
        if not self._hub.is_pending("restore_binning"):
            self._view.show_binning(state.restore_binning)

    def _on_pending(self, key: str, pending: bool) -> None:
        if key == "model":
            self._view.show_model_pending(pending)
        elif key == "restore_binning":
            self._view.show_binning_pending(pending)


class RecordController:
    """Recording to a new folder each time.

    Parameters
    ----------
    view : RecordPanel
        The panel.
    hub : SessionHub
        The session.
    settings : GuiSettings
        Remembers the folder.
    ask_folder : callable
        Lets the user choose a folder.
    now : callable
        Local time.
    """

    def __init__(
        self,
        view: RecordPanel,
        hub: SessionHub,
        settings: GuiSettings,
        ask_folder: Callable[[str], None],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._view = view
        self._hub = hub
        self._settings = settings
        self._ask_folder = ask_folder
        self._now = now
        self._since: datetime | None = None
        self._lit = False
        view.record_toggled.connect(self.toggle)
        view.folder_requested.connect(self._on_folder_requested)
        hub.state_changed.connect(self.show_state)
        hub.pending_changed.connect(self._on_pending)
        hub.gone.connect(self._on_gone)
        self._show_folder()

    def toggle(self) -> None:
        """Begin a recording under a new name, or close the one that runs."""
        state = self._hub.state
        if self._hub.is_pending("record"):
            return
        if state is not None and state.recording is not None:
            self._hub.change("record", lambda session: session.stop_recording(), self._on_closed)
            return
        folder = recordings_folder(self._settings.record_folder)

        def begin(session: Session) -> Path:
            folder.mkdir(parents=True, exist_ok=True)
            return session.record(folder / recording_name(session.profile.name, self._now()))

        self.begin(begin)

    def begin(
        self, begin: Callable[[Session], Any], done: Callable[[Any], None] | None = None
    ) -> None:
        """Begin a recording by ``begin``, then do ``done``."""
        self._hub.change("record", begin, done)

    def set_folder(self, folder: str) -> None:
        """Folder for the recordings to come."""
        self._settings.record_folder = folder
        # A recording that is on stays where it is, and is what is shown.
        if self._since is None:
            self._show_folder()

    def show_state(self, state: SessionState) -> None:
        """Show whether and where frames are recorded."""
        recording = state.recording is not None
        if recording and self._since is None:
            self._since = self._now()
            self._view.show_progress("0 frames")
        elif not recording and self._since is not None:
            self._since = None
            self._view.show_progress("not recording")
        self._view.show_recording(recording, self._hub.is_pending("record"))
        if state.recording is not None:
            self._view.show_target(shown_path(state.recording))
        else:
            self._show_folder()

    def show_stats(self, stats: RunStats) -> None:
        """Show how much was recorded so far."""
        if self._since is not None:
            elapsed = (self._now() - self._since).total_seconds()
            self._view.show_progress(f"{q.count(stats.recorded)} frames · {q.clock(elapsed)}")

    def blink(self) -> None:
        """Light or darken the button; called twice a second."""
        self._lit = not self._lit and self._since is not None
        self._view.show_blink(self._lit)

    def _on_closed(self, path: Path | None) -> None:
        if path is not None:
            self._hub.message.emit("info", f"recording closed: {shown_path(path)}")

    def _on_folder_requested(self) -> None:
        self._ask_folder(str(recordings_folder(self._settings.record_folder)))

    def _on_pending(self, key: str, pending: bool) -> None:
        if key == "record":
            self._view.show_recording(self._since is not None, pending)

    def _on_gone(self) -> None:
        self._since = None
        self._view.show_progress("not recording")
        self._view.show_recording(False, False)
        self._show_folder()

    def _show_folder(self) -> None:
        self._view.show_target(shown_path(recordings_folder(self._settings.record_folder)))
