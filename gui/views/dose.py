"""The dose card: what the next frame costs, what is left, how the specimen and the images fare."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyqtgraph as pg
from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)
from typing_extensions import override

from tem_live.gui.models import quantities as q
from tem_live.gui.models.dose_history import DoseFigures, Exposure
from tem_live.gui.theme import GRID, PALETTE
from tem_live.gui.views.deck import Card
from tem_live.gui.views.map_overview import MapOverview
from tem_live.gui.views.widgets import ElidedLabel, QuantityBox, push, set_flag, toggle

_ROWS = (
    (
        "next_frame",
        "Next frame",
        "Cost of one more frame; from a blanked beam, unblanking included",
    ),
    ("left", "Left", "What is left of the budget"),
    ("lasts", "Lasts", "How long that is with the beam on at this dose rate"),
    ("source", "Booked", "What is counted: what comes in, or only what the camera detects of it"),
    ("restored", "Restored", "Restored frames compared with raw ones that they were not made from"),
    ("specimen", "Specimen", "Fluence at which 1/e of its contrast is left"),
    ("loop", "Loop", "What holds the dose as low as the wanted resolution allows"),
    (
        "coincidence",
        "Coincidence",
        "Electrons that a counting camera misses since they coincide, where they are most; known "
        "with camera.counting_resolution_s",
    ),
)
FIGURES_PX = 362
"""Room for the figures and the margins."""
_HEADS = ("on at", "for", q.DOSE_A2, "total")


class DoseCard(Card):
    """See the module's text."""

    budget_edited = Signal(float)
    """Wanted budget of the area in e⁻/Å²; 0 for none."""
    watch_toggled = Signal(bool)
    """Whether restored frames are judged and the damage is followed."""
    loop_toggled = Signal(bool, float)
    """Whether to hold the dose low, and the period in nm that restored frames must resolve."""
    critical_requested = Signal()
    """Make the critical fluence the budget."""

    def __init__(self) -> None:
        super().__init__("Dose")
        self.setMinimumWidth(FIGURES_PX)
        self.minimise = toggle(
            "Minimise", "arrow-collapse-down", "Lower the dose as far as the resolution allows"
        )
        self.watch = toggle("Watch", "eye-check-outline", "Judge restored frames, follow damage")
        self.critical = push("Budget = 1/e", "target", "Make the critical fluence the budget")
        self.critical.setEnabled(False)
        self.head.addWidget(self.critical)
        self.head.addWidget(self.minimise)
        self.head.addWidget(self.watch)
        self.box.removeWidget(self.plot)
        row = QHBoxLayout()
        row.setSpacing(2 * GRID)
        row.addWidget(self._figures(), 5)
        row.addWidget(self.plot, 5)
        self._map_on = False
        self.overview = MapOverview()
        row.addWidget(self.overview, 3)
        row.addWidget(self._table(), 4)
        self.overview.hide()
        self.box.addLayout(row, 1)
        self._style_plot()
        self._shown: tuple[Exposure, ...] = ()
        self.watch.clicked.connect(self.watch_toggled)
        self.minimise.clicked.connect(
            lambda on: self.loop_toggled.emit(on, self.resolution.value())
        )
        self.critical.clicked.connect(lambda: self.critical_requested.emit())
        self.budget.edited.connect(self.budget_edited)

    def _figures(self) -> QWidget:
        box = QWidget()
        grid = QGridLayout(box)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(GRID)
        grid.setVerticalSpacing(4)
        grid.setColumnMinimumWidth(0, 72)
        grid.setColumnStretch(1, 3)
        grid.setColumnStretch(3, 2)
        self.values: dict[str, ElidedLabel] = {}
        for key, name, tip in _ROWS:
            self.values[key] = self._row(grid, name, tip)
        self.here = self._row(
            grid, "In field", "Highest fluence of a place in the field of view, by the map"
        )
        self.budget = QuantityBox(
            lambda value: q.quantity(value, q.DOSE_A2) if value else "none",
            lambda text, _: (
                0.0 if text.strip() in ("", "none") else q.parse_number(text, q.DOSE_A2)
            ),
        )
        self.budget.setToolTip("Fluence at which the beam is blanked and the run ends; 0 for none")
        self.resolution = QuantityBox(
            lambda value: q.quantity(value, "nm"), lambda text, _: q.parse_number(text, "nm")
        )
        self.resolution.setToolTip("Period that restored frames must resolve, for Minimise")
        self.resolution.show_value(1.0)
        at = grid.rowCount()
        for column, (name, field) in enumerate(
            (("Budget", self.budget), ("Resolve", self.resolution))
        ):
            label = QLabel(name)
            label.setObjectName("name")
            grid.addWidget(label, at, 2 * column)
            grid.addWidget(field, at, 2 * column + 1)
        grid.setRowStretch(at + 1, 1)
        return box

    @staticmethod
    def _row(grid: QGridLayout, name: str, tip: str) -> ElidedLabel:
        label = QLabel(name)
        label.setObjectName("name")
        label.setToolTip(tip)
        value = ElidedLabel()
        value.setObjectName("value")
        value.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        at = grid.rowCount()
        grid.addWidget(label, at, 0)
        grid.addWidget(value, at, 1, 1, 3)
        return value

    def _table(self) -> QTableWidget:
        self.table = QTableWidget(0, len(_HEADS))
        self.table.setHorizontalHeaderLabels(_HEADS)
        self.table.setFrameShape(QFrame.Shape.NoFrame)
        self.table.setShowGrid(False)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(20)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        header.setHighlightSections(False)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.table.setToolTip("When the beam was on; the whole ledger: tem-live ledger show")
        self.table.setMinimumWidth(216)
        return self.table

    def _style_plot(self) -> None:
        self.plot.setMouseEnabled(False, False)
        self.plot.showGrid(x=True, y=True, alpha=0.12)
        style = {"color": PALETTE.muted, "font-size": "11px"}
        for side, text in (("left", q.DOSE_A2), ("bottom", "time / s")):
            self.plot.getAxis(side).setLabel(text, **style)
            self.plot.getAxis(side).enableAutoSIPrefix(False)
        self._curve = self.plot.plot(pen=pg.mkPen(PALETTE.accent, width=2))
        self._lines: dict[str, pg.InfiniteLine] = {}
        for name, colour in (("budget", PALETTE.amber), ("1/e", PALETTE.red)):
            line = pg.InfiniteLine(
                angle=0,
                pen=pg.mkPen(colour, width=1, style=Qt.PenStyle.DashLine),
                label=name,
                labelOpts={"color": colour, "position": 0.02, "anchors": [(0, 0), (0, 0)]},
            )
            line.hide()
            self.plot.addItem(line)
            self._lines[name] = line

    def show_budget(self, e_per_A2: float | None, pending: bool) -> None:
        """Show the budget; one that waits to be taken stays as it was asked for."""
        self.budget.set_pending(pending)
        if not pending:
            self.budget.show_value(e_per_A2 or 0.0)

    def show_figures(self, figures: DoseFigures) -> None:
        """Show the figures and the lines over the curve."""
        for key, label in self.values.items():
            label.set_full(getattr(figures, key))
        set_flag(self.values["left"], "alert", figures.left_alert)
        set_flag(self.values["restored"], "alert", figures.restored_alert)
        set_flag(self.values["coincidence"], "alert", figures.coincidence_alert)
        self.critical.setEnabled(figures.critical_e_per_A2 is not None)
        lines = {"budget": figures.budget_e_per_A2, "1/e": figures.critical_e_per_A2}
        for name, value in lines.items():
            self._lines[name].setVisible(value is not None)
            if value is not None:
                self._lines[name].setValue(value)

    def show_here(self, text: str, alert: bool) -> None:
        """Show what the field of view has taken."""
        self.here.set_full(text)
        set_flag(self.here, "alert", alert)

    def show_overview(self, on: bool) -> None:
        """Show the map, or no longer."""
        self._map_on = on
        self._make_room()

    @override
    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._make_room()

    def _make_room(self) -> None:
        # What fits beside the figures, the map first.
        width = self.width() - FIGURES_PX
        for part, wanted in (
            (self.overview, self._map_on),
            (self.plot, True),
            (self.table, True),
        ):
            if wanted:
                width -= part.minimumWidth() + 2 * GRID
            part.setVisible(wanted and width >= 0)

    def show_curve(self, times_s: Sequence[float], fluences_e_per_A2: Sequence[float]) -> None:
        """Show the fluence of the area against the time since the card began to look."""
        self._curve.setData(list(times_s), list(fluences_e_per_A2))

    def show_exposures(self, exposures: Sequence[Exposure]) -> None:
        """Show when the beam was on, newest first."""
        shown = tuple(reversed(exposures))
        if shown == self._shown:
            return
        self._shown = shown
        self.table.setRowCount(len(shown))
        for row, exposure in enumerate(shown):
            texts = (
                f"{datetime.fromtimestamp(exposure.began_s):%H:%M:%S}",
                q.clock(exposure.lasted_s),
                q.number(exposure.fluence_e_per_A2),
                q.number(exposure.total_e_per_A2),
            )
            for column, text in enumerate(texts):
                item = self.table.item(row, column)
                if item is None:
                    item = QTableWidgetItem()
                    item.setTextAlignment(
                        Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    )
                    self.table.setItem(row, column, item)
                item.setText(text)

    def show_watch(self, watching: bool, minimising: bool, possible: bool) -> None:
        """Show whether frames are watched, and the dose held low."""
        self.watch.setChecked(watching)
        self.watch.setEnabled(possible and not minimising)
        self.minimise.setChecked(minimising)
        self.minimise.setEnabled(possible)
