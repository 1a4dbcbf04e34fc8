"""The window: two panes on the left, the column of panels on the right."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QCloseEvent, QKeySequence, QResizeEvent, QShortcut
from PySide6.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QMessageBox,
    QScrollArea,
    QSpinBox,
    QSplitter,
    QVBoxLayout,
    QWidget,
)
from typing_extensions import override

from tem_live.gui.theme import COLUMN_WIDTH, GRID
from tem_live.gui.views.bars import (
    Banner,
    HelpOverlay,
    MessageBar,
    PaneHeader,
    StatusStrip,
    TopBar,
)
from tem_live.gui.views.deck import Deck
from tem_live.gui.views.dose import DoseCard
from tem_live.gui.views.image_pane import ImagePane
from tem_live.gui.views.panels import (
    BeamPanel,
    CameraPanel,
    DisplayPanel,
    RecordPanel,
    RestorerPanel,
)
from tem_live.gui.views.widgets import icon


class MainWindow(QMainWindow):
    """All views, laid out. Closing it only asks to be closed: the beam comes first."""

    close_requested = Signal()
    folder_chosen = Signal(str)
    reference_confirmed = Signal(str, int)
    """Kind and number of frames."""
    beam_warning_read = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("tem_live")
        self.setWindowIcon(icon("microscope"))
        self.setMinimumSize(1024, 640)
        self._may_close = False

        self.top = TopBar()
        self.header = PaneHeader()
        self.raw = ImagePane("raw")
        self.restored = ImagePane("restored")
        self.dose = DoseCard()
        self.deck = Deck(self.dose)
        self.beam = BeamPanel()
        self.camera = CameraPanel()
        self.restorer = RestorerPanel()
        self.display = DisplayPanel()
        self.record = RecordPanel()
        self.status = StatusStrip()
        self.messages = MessageBar()
        self.banner = Banner()

        panes = QWidget()
        row = QHBoxLayout(panes)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(GRID)
        row.addWidget(self.raw, 1)
        row.addWidget(self.restored, 1)
        self.splitter = QSplitter(Qt.Orientation.Vertical)
        self.splitter.setChildrenCollapsible(False)
        self.splitter.setHandleWidth(GRID)
        self.splitter.addWidget(panes)
        self.splitter.addWidget(self.deck)
        self.splitter.setStretchFactor(0, 3)
        self.splitter.setStretchFactor(1, 2)
        self.splitter.setSizes([440, 240])

        left = QWidget()
        left_box = QVBoxLayout(left)
        left_box.setContentsMargins(0, 0, 0, 0)
        left_box.setSpacing(GRID)
        left_box.addWidget(self.banner)
        left_box.addWidget(self.messages)
        left_box.addWidget(self.header)
        left_box.addWidget(self.splitter, 1)

        column = QWidget()
        column.setObjectName("column")
        column_box = QVBoxLayout(column)
        column_box.setContentsMargins(0, 0, 0, 0)
        column_box.setSpacing(GRID)
        for panel in (self.beam, self.camera, self.restorer, self.display, self.record):
            column_box.addWidget(panel)
        column_box.addStretch()
        self.column = QScrollArea()
        self.column.setObjectName("column")
        self.column.setWidget(column)
        self.column.setWidgetResizable(True)
        self.column.setFixedWidth(COLUMN_WIDTH)
        self.column.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

        body = QWidget()
        body_row = QHBoxLayout(body)
        body_row.setContentsMargins(GRID, GRID, GRID, GRID)
        body_row.setSpacing(GRID)
        body_row.addWidget(left, 1)
        body_row.addWidget(self.column)

        central = QWidget()
        box = QVBoxLayout(central)
        box.setContentsMargins(0, 0, 0, 0)
        box.setSpacing(0)
        box.addWidget(self.top)
        box.addWidget(body, 1)
        box.addWidget(self.status)
        self.setCentralWidget(central)
        self._central = central
        # Not a list or a field: letter keys are shortcuts from the first moment on.
        central.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        central.setFocus()
        self.help = HelpOverlay(central)

    def add_key(self, key: str, action: Callable[[], None]) -> None:
        """Call ``action`` when a key is pressed in this window."""
        QShortcut(QKeySequence(key), self, activated=action)  # type: ignore[call-overload]

    def toggle_help(self) -> None:
        """Show or hide the keys."""
        self.help.setGeometry(self._central.rect())
        self.help.raise_()
        self.help.setVisible(not self.help.isVisible())

    def toggle_full_screen(self) -> None:
        """Fill the screen, or no longer."""
        self.setWindowState(self.windowState() ^ Qt.WindowState.WindowFullScreen)

    def ask_folder(self, start: str) -> None:
        """Let the user choose a folder; the answer comes as `folder_chosen`."""
        dialog = QFileDialog(self, "Folder for recordings", start)
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self.folder_chosen.emit)
        dialog.open()

    def ask_reference(self, kind: str, note: str, frames: int) -> None:
        """Ask before a reference is taken; the answer comes as `reference_confirmed`."""
        dialog = QDialog(self)
        dialog.setWindowTitle(f"Take a {kind} reference")
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        form = QFormLayout(dialog)
        form.setContentsMargins(24, 24, 24, 16)
        form.setSpacing(16)
        text = QLabel(note)
        text.setWordWrap(True)
        text.setMinimumWidth(320)
        form.addRow(text)
        number = QSpinBox()
        number.setRange(2, 100_000)
        number.setValue(frames)
        number.setSuffix(" frames")
        form.addRow("Average", number)
        buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel
        )
        form.addRow(buttons)
        buttons.rejected.connect(dialog.reject)
        buttons.accepted.connect(dialog.accept)
        dialog.accepted.connect(lambda: self.reference_confirmed.emit(kind, number.value()))
        dialog.open()

    def warn_of_beam(self, text: str) -> None:
        """Say at the end that the beam may be on; `beam_warning_read` tells when that was read."""
        box = QMessageBox(QMessageBox.Icon.Critical, "The beam may be on", text, parent=self)
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.finished.connect(lambda _: self.beam_warning_read.emit())
        box.open()

    def finish(self) -> None:
        """Close for good."""
        self._may_close = True
        self.close()

    @override
    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.help.setGeometry(self._central.rect())

    @override
    def closeEvent(self, event: QCloseEvent) -> None:
        if self._may_close:
            event.accept()
            return
        event.ignore()
        self.close_requested.emit()
