"""The panels of the column on the right."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QWidget

from tem_live.gui.models import quantities as q
from tem_live.gui.models.view_state import COLOURS
from tem_live.gui.theme import GRID, PALETTE
from tem_live.gui.views.widgets import (
    AreaField,
    ChoiceBox,
    ElidedLabel,
    Panel,
    QuantityBox,
    evenly,
    icon,
    push,
    set_flag,
    toggle,
    tool,
    value_label,
)
from tem_live.profiles import RESTORE_BINNINGS


class BeamPanel(Panel):
    """Beam & dose: blanker, dose rate, dose of the frame, fluence and budget."""

    blank_toggled = Signal(bool)
    """The user wants the beam blanked (True) or on the specimen (False)."""
    dose_rate_edited = Signal(float)
    """Wanted dose rate in e⁻/px/s."""
    area_edited = Signal(str)
    """Wanted name of the specimen area; empty for none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Beam & dose", parent)
        # One row more than fits with more air at 800 pixels.
        self.grid.setVerticalSpacing(5)
        self.chip = QLabel("no session")
        self.chip.setObjectName("beamChip")
        self.chip.setMinimumHeight(24)
        self.chip.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.button = push("Unblank", "flash-outline", "Blank or unblank the beam (Ctrl+B)")
        self._blanked = True
        self.add_wide(self.chip, self.button)
        self.dose_rate = QuantityBox(
            lambda value: f"{q.number(value)} {q.RATE_PX}",
            lambda text, _: q.parse_number(text, q.RATE_PX),
        )
        self._rate_label = self.add_row("Dose rate", self.dose_rate)
        self.rate_area = value_label()
        self.rate_area.setToolTip("The same dose rate per area of the specimen")
        self._area_label = self.add_row("", self.rate_area)
        self.frame_dose = value_label(name="hero")
        self.frame_dose.setToolTip("Measured mean of this frame, calibrated")
        self.add_row("This frame", self.frame_dose)
        self.frame_fluence = value_label()
        self.add_row("", self.frame_fluence)
        self.area = AreaField()
        self.area.setToolTip(
            "Name of the specimen area: what was booked on it in earlier sessions counts on"
        )
        self.left = QLabel("")
        self.left.setObjectName("value")
        self.left.setToolTip("What is left of this area's budget")
        row = QWidget()
        box = QHBoxLayout(row)
        box.setContentsMargins(0, 0, 0, 0)
        box.setSpacing(GRID)
        box.addWidget(self.area, 1)
        box.addWidget(self.left)
        self.left.hide()
        self.add_row("Area", row)
        self.area.edited.connect(self.area_edited)
        self.total = value_label()
        self.total.setToolTip("Booked on this area; without a name, since this session began")
        self.add_row("Accumulated", self.total)
        self.budget = QProgressBar()
        self.budget.setRange(0, 1000)
        self.budget.setTextVisible(False)
        self.grid.addWidget(self.budget, self.grid.rowCount(), 0, 1, 2)
        self.budget.hide()
        self.button.clicked.connect(lambda: self.blank_toggled.emit(not self._blanked))
        self.dose_rate.edited.connect(self.dose_rate_edited)

    def show_no_session(self) -> None:
        """There is no instrument whose beam this could tell of."""
        self.setEnabled(False)
        self.chip.setText("NO SESSION")
        set_flag(self.chip, "beam", "none")
        self.show_dose_rate(None, None)
        self.show_dose(None, None)
        self.show_total(None, None)

    def show_session(self, can_set_dose_rate: bool) -> None:
        """Offer what this instrument can do."""
        self.setEnabled(True)
        self.dose_rate.setReadOnly(not can_set_dose_rate)
        self.dose_rate.setToolTip(
            "Incident dose rate; shown is what the column took"
            if can_set_dose_rate
            else "Incident dose rate; nothing here steers it"
        )

    def show_beam(self, blanked: bool | None, pending: bool) -> None:
        """Show the blanker's state; None stands for no blanker."""
        self._blanked = bool(blanked)
        self.button.setEnabled(blanked is not None and not pending)
        if pending:
            text, flag = "WAITING …", "pending"
        elif blanked is None:
            text, flag = "NO BLANKER", "none"
        elif blanked:
            text, flag = "BLANKED", "blanked"
        else:
            text, flag = "BEAM ON", "on"
        self.chip.setText(text)
        set_flag(self.chip, "beam", flag)
        self.button.setText(" Unblank" if blanked else " Blank")

    def show_dose_rate(self, e_per_px_s: float | None, e_per_A2_s: float | None) -> None:
        """Show the rate that the column took; None hides it where nothing steers it."""
        for widget in (self.dose_rate, self._rate_label, self.rate_area, self._area_label):
            widget.setVisible(e_per_px_s is not None)
        if e_per_px_s is not None:
            self.dose_rate.show_value(e_per_px_s)
        self.rate_area.setText(q.quantity(e_per_A2_s, q.RATE_A2))

    def show_rate_pending(self, pending: bool) -> None:
        """Mark that the column has not answered yet."""
        self.dose_rate.set_pending(pending)

    def show_dose(self, dose_e_per_px: float | None, fluence_e_per_A2: float | None) -> None:
        """Show what the shown frame cost."""
        self.frame_dose.setText(q.quantity(dose_e_per_px, q.DOSE_PX))
        self.frame_fluence.setText(q.quantity(fluence_e_per_A2, q.DOSE_A2))

    def show_area(self, area: str | None, pending: bool) -> None:
        """Show the area that is booked on."""
        self.area.show_name(area or "")
        set_flag(self.area, "pending", pending)

    def show_total(
        self,
        fluence_e_per_A2: float | None,
        budget_e_per_A2: float | None,
        left_e_per_A2: float | None = None,
    ) -> None:
        """Show the fluence of the area so far, how much of the budget it is, and what is left."""
        self.left.setVisible(left_e_per_A2 is not None)
        self.left.setText("" if left_e_per_A2 is None else f"{q.number(left_e_per_A2)} left")
        total = q.quantity(fluence_e_per_A2, q.DOSE_A2)
        self.budget.setVisible(budget_e_per_A2 is not None)
        alert = False
        if budget_e_per_A2:
            part = min(1.0, (fluence_e_per_A2 or 0.0) / budget_e_per_A2)
            self.budget.setValue(round(1000 * part))
            alert = part > 0.8
            self.budget.setToolTip(f"{100 * part:.0f} % of the budget is spent")
            total = f"{q.number(fluence_e_per_A2)} of {q.quantity(budget_e_per_A2, q.DOSE_A2)}"
        for widget in (self.budget, self.total, self.left):
            set_flag(widget, "alert", alert)
        self.total.setText(total)


_DARK_TIP = "Take a dark reference (beam blanked)"
_GAIN_TIP = "Take a gain reference (even beam)"
_RECORDS_TIP = "Stop the recording first: the frames of a reference do not belong in it"


class CameraPanel(Panel):
    """Exposure, binning, read-out region, references."""

    exposure_edited = Signal(float)
    """Wanted exposure in seconds."""
    binning_chosen = Signal(int)
    """Wanted binning."""
    roi_from_view = Signal()
    """Read out what is visible only."""
    roi_full = Signal()
    """Read out the whole sensor."""
    reference_requested = Signal(str)
    """Kind of reference to take, ``dark`` or ``gain``."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Camera", parent)
        self.exposure = QuantityBox(
            q.seconds, lambda text, shown: q.parse_seconds(text, q.unit_of_seconds(shown))
        )
        self.exposure.setToolTip("Exposure of a frame, such as 200 ms or 1.5 s")
        self._exposure_label = self.add_row("Exposure", self.exposure)
        self.binning = ChoiceBox()
        self.binning.setToolTip("Side of the square of sensor pixels that are summed")
        self._binning_label = self.add_row("Binning", self.binning)
        self.from_view = push("ROI = view", "crop", "Read out only what is visible now")
        self.full = push("Full sensor", "fullscreen", "Read out the whole sensor")
        self.add_wide(self.from_view, self.full)
        self.dark = push("Dark ref…", "weather-night", _DARK_TIP)
        self.gain = push("Gain ref…", "white-balance-sunny", _GAIN_TIP)
        self._reference_running = self._recording = False
        self.add_wide(self.dark, self.gain)
        self.exposure.edited.connect(self.exposure_edited)
        self.binning.chosen.connect(self.binning_chosen.emit)
        self.from_view.clicked.connect(lambda: self.roi_from_view.emit())
        self.full.clicked.connect(lambda: self.roi_full.emit())
        self.dark.clicked.connect(lambda: self.reference_requested.emit("dark"))
        self.gain.clicked.connect(lambda: self.reference_requested.emit("gain"))

    def show_capabilities(
        self,
        has_exposure: bool,
        exposure_range_s: tuple[float, float],
        binnings: Sequence[int],
        has_roi: bool,
    ) -> None:
        """Offer what the camera can do, hide the rest."""
        self.setEnabled(True)
        self.exposure.setEnabled(has_exposure)
        low, high = exposure_range_s
        self.exposure.blockSignals(True)
        self.exposure.setRange(low, high)
        self.exposure.blockSignals(False)
        self.exposure.setToolTip(f"Exposure of a frame, {q.seconds(low)} to {q.seconds(high)}")
        self.binning.set_entries([(f"{n} × {n}", n, "") for n in binnings])
        for widget in (self.binning, self._binning_label):
            widget.setVisible(len(binnings) > 1)
        self.from_view.setVisible(has_roi)
        self.full.setVisible(has_roi)

    def show_no_session(self) -> None:
        """There is no camera to set."""
        self.setEnabled(False)

    def show_exposure(self, exposure_s: float) -> None:
        """Show the exposure that the camera took."""
        self.exposure.show_value(exposure_s)

    def show_exposure_pending(self, pending: bool) -> None:
        """Mark that the camera has not answered yet."""
        self.exposure.set_pending(pending)

    def show_binning(self, binning: int) -> None:
        """Show the binning that the camera took."""
        self.binning.show_choice(binning)

    def show_binning_pending(self, pending: bool) -> None:
        """Mark that the camera has not answered yet."""
        self.binning.set_pending(pending)

    def show_roi_pending(self, pending: bool) -> None:
        """Mark that the camera has not answered yet."""
        self.from_view.setEnabled(not pending)
        self.full.setEnabled(not pending)

    def show_reference_running(self, running: bool) -> None:
        """No second reference while one is taken."""
        self._reference_running = running
        self._show_references()

    def show_recording(self, recording: bool) -> None:
        """No reference while a recording would take its frames in."""
        self._recording = recording
        self._show_references()

    def _show_references(self) -> None:
        for button, tip in ((self.dark, _DARK_TIP), (self.gain, _GAIN_TIP)):
            button.setEnabled(not (self._reference_running or self._recording))
            button.setToolTip(_RECORDS_TIP if self._recording else tip)


class RestorerPanel(Panel):
    """Model of the restorer, and looking at raw for a moment."""

    model_chosen = Signal(str)
    """Name of the wanted model."""
    binning_chosen = Signal(int)
    """What frames are to be binned by before they are restored."""
    hold_changed = Signal(bool)
    """The button that shows raw in the restored pane is held or was released."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Restorer", parent)
        self.device = QLabel("")
        self.device.setObjectName("faint")
        self.head.addWidget(self.device)
        self.model = ChoiceBox()
        self.binning = ChoiceBox()
        self.binning.setToolTip(
            "Frames may be binned before they are restored: many times as fast, less fine.\n"
            "Raw frames stay as they are"
        )
        self.binning.set_entries(
            [("full" if n == 1 else f"bin {n}", n, "") for n in RESTORE_BINNINGS]
        )
        # Two in the width of one: the column of the panels is not to grow.
        for box in (self.model, self.binning):
            box.setMinimumContentsLength(2)
        both = QWidget()
        row = evenly(self.model, self.binning)
        row.setStretch(0, 3)
        row.setStretch(1, 2)
        both.setLayout(row)
        self.add_row("Model", both)
        self.hold = push(
            "Hold to see raw  (R)",
            "eye-outline",
            "While held, the restored pane shows the raw frame",
        )
        self.add_wide(self.hold)
        self.model.chosen.connect(self.model_chosen.emit)
        self.binning.chosen.connect(self.binning_chosen.emit)
        self.hold.pressed.connect(lambda: self.hold_changed.emit(True))
        self.hold.released.connect(lambda: self.hold_changed.emit(False))

    def show_models(self, models: Sequence[tuple[str, str]]) -> None:
        """Offer models as (name, what it is)."""
        self.model.set_entries([(name, name, tip) for name, tip in models])

    def show_model(self, name: str, device: str) -> None:
        """Show the model that runs and where."""
        self.model.show_choice(name)
        self.device.setText(f"on {device}")

    def show_binning(self, binning: int) -> None:
        """Show what frames are binned by before they are restored."""
        self.binning.show_choice(binning)

    def show_model_pending(self, pending: bool) -> None:
        """Mark that the model is being loaded."""
        self.model.set_pending(pending)

    def show_binning_pending(self, pending: bool) -> None:
        """Mark that another binning was asked for."""
        self.binning.set_pending(pending)


class DisplayPanel(Panel):
    """How the frames are looked at."""

    auto_toggled = Signal(bool)
    shared_toggled = Signal(bool)
    spectrum_toggled = Signal(bool)
    profile_toggled = Signal(bool)
    dose_toggled = Signal(bool)
    map_toggled = Signal(bool)
    mean_toggled = Signal(bool)
    fit_requested = Signal()
    actual_requested = Signal()
    colours_chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Display", parent)
        self.auto = toggle("Auto levels", "brightness-auto", "Levels follow the frames (A)")
        self.shared = toggle("Shared", "link-variant", "One set of levels for both panes (S)")
        self.spectrum = toggle("FFT", "blur", "Power spectra of both panes (T)")
        self.profile = toggle("Profile", "chart-bell-curve", "Values along a line (L)")
        self.dose = toggle("Dose", "chart-line", "Fluence, cost and exposures (D)")
        self.map = toggle("Map", "map-outline", "Fluence map over the raw frame (M)")
        self.mean = toggle("Mean", "layers-outline", "Left pane: mean of the last frames (N)")
        self.fit = tool("fit-to-page-outline", "Show the whole frame (F)")
        self.actual = tool("", "One frame pixel on one screen pixel (1)", "1:1")
        self.head.addWidget(self.actual)
        self.head.addWidget(self.fit)
        self.add_wide(self.auto, self.shared)
        self.add_wide(self.spectrum, self.profile, self.dose)
        self.colours = ChoiceBox()
        self.colours.setToolTip("Colour map of both panes")
        self.add_wide(self.map, self.mean, self.colours)
        self.colours.set_entries([(name, name, "") for name in COLOURS])
        self.auto.clicked.connect(self.auto_toggled)
        self.shared.clicked.connect(self.shared_toggled)
        self.spectrum.clicked.connect(self.spectrum_toggled)
        self.profile.clicked.connect(self.profile_toggled)
        self.dose.clicked.connect(self.dose_toggled)
        self.map.clicked.connect(self.map_toggled)
        self.mean.clicked.connect(self.mean_toggled)
        self.fit.clicked.connect(lambda: self.fit_requested.emit())
        self.actual.clicked.connect(lambda: self.actual_requested.emit())
        self.colours.chosen.connect(self.colours_chosen.emit)

    def show_switches(
        self,
        *,
        auto: bool,
        shared: bool,
        spectrum: bool,
        profile: bool,
        dose: bool,
        fluence_map: bool,
        mean: bool,
    ) -> None:
        """Show which options are on."""
        self.auto.setChecked(auto)
        self.shared.setChecked(shared)
        self.spectrum.setChecked(spectrum)
        self.profile.setChecked(profile)
        self.dose.setChecked(dose)
        self.map.setChecked(fluence_map)
        self.mean.setChecked(mean)

    def show_colours(self, name: str) -> None:
        """Show the colour map's name."""
        self.colours.show_choice(name)


class RecordPanel(Panel):
    """Recording: button, how much so far, where to."""

    record_toggled = Signal()
    folder_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Record", parent)
        self.button = push(
            "Record",
            "record-circle-outline",
            "Record every raw frame from now on (Ctrl+R)",
            PALETTE.red,
        )
        self.button.setObjectName("record")
        self.progress = value_label("not recording", name="faint")
        self.grid.addLayout(evenly(self.button, self.progress), 0, 0, 1, 2)
        self.target = ElidedLabel()
        self.target.setObjectName("faint")
        self.folder = tool("folder-outline", "Choose the folder for recordings")
        row = evenly(self.target)
        row.addWidget(self.folder)
        self.grid.addLayout(row, 1, 0, 1, 2)
        self.button.clicked.connect(lambda: self.record_toggled.emit())
        self.folder.clicked.connect(lambda: self.folder_requested.emit())

    def show_recording(self, recording: bool, pending: bool) -> None:
        """Show whether frames are recorded."""
        set_flag(self.button, "recording", recording)
        self.button.setText(" Stop" if recording else " Record")
        colour = PALETTE.text if recording else PALETTE.red
        self.button.setIcon(icon("stop" if recording else "record-circle-outline", colour))
        self.button.setEnabled(not pending)
        if not recording:
            set_flag(self.button, "blink", False)

    def show_blink(self, lit: bool) -> None:
        """Light or darken the button while recording."""
        set_flag(self.button, "blink", lit)

    def show_progress(self, text: str) -> None:
        """Frames and time recorded so far."""
        self.progress.setText(text)

    def show_target(self, text: str) -> None:
        """Where the recording is, or will be."""
        self.target.set_full(text)
