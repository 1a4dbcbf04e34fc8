"""What frames the window: top bar, status strip, messages, the banner and the help overlay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QColor, QMouseEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from typing_extensions import override

from tem_live.gui.theme import COLUMN_WIDTH, GRID, PALETTE
from tem_live.gui.views.widgets import ChoiceBox, ElidedLabel, icon, push, set_flag


class TopBar(QFrame):
    """Profile, run, and the emergency button."""

    profile_chosen = Signal(str)
    run_toggled = Signal()
    mode_chosen = Signal(str)
    """Name of the wanted set of optics."""
    emergency = Signal()
    help_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("topBar")
        row = QHBoxLayout(self)
        row.setContentsMargins(2 * GRID, GRID, GRID, GRID)
        row.setSpacing(GRID)
        mark = QLabel()
        mark.setPixmap(icon("microscope", PALETTE.accent).pixmap(QSize(22, 22)))
        row.addWidget(mark)
        name = QLabel("tem_live")
        name.setObjectName("wordmark")
        row.addWidget(name)
        row.addSpacing(GRID)
        self.profile = ChoiceBox()
        self.profile.setFixedWidth(168)
        self.profile.setToolTip("Instrument profile; another one closes this session")
        row.addWidget(self.profile)
        self.run = push("Start", "play", "Unblank and take frames, or stop (F5)", PALETTE.text)
        self.run.setObjectName("primary")
        self.run.setFixedWidth(88)
        row.addWidget(self.run)
        row.addSpacing(GRID)
        self._modes = QHBoxLayout()
        self._modes.setSpacing(2)
        self.modes: dict[str, QPushButton] = {}
        row.addLayout(self._modes)
        row.addSpacing(GRID)
        self.device = ElidedLabel("")
        self.device.setObjectName("paneDetail")
        row.addWidget(self.device, 1)
        self.help = QToolButton()
        self.help.setIcon(icon("help-circle-outline", PALETTE.muted))
        self.help.setIconSize(QSize(20, 20))
        self.help.setAutoRaise(True)
        self.help.setToolTip("Keys (F1)")
        row.addWidget(self.help)
        self.stop_beam = QPushButton(icon("alert-octagon", "#ffffff"), " BLANK BEAM   Esc · F12")
        self.stop_beam.setObjectName("emergency")
        self.stop_beam.setIconSize(QSize(20, 20))
        self.stop_beam.setFixedWidth(COLUMN_WIDTH)
        self.stop_beam.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.stop_beam.setToolTip("Takes the beam off the specimen at once")
        row.addWidget(self.stop_beam)
        self.profile.chosen.connect(self.profile_chosen.emit)
        self.run.clicked.connect(lambda: self.run_toggled.emit())
        # On press: nothing is waited for, not even the finger.
        self.stop_beam.pressed.connect(lambda: self.emergency.emit())
        self.help.clicked.connect(lambda: self.help_requested.emit())

    def show_profiles(self, names: Sequence[str]) -> None:
        """Offer profiles."""
        self.profile.set_entries([(name, name, "") for name in names])

    def show_profile(self, profile: str, text: str) -> None:
        """Show the open profile (name or path) as ``text``."""
        self.profile.show_choice(profile, text)

    def show_modes(self, names: Sequence[str]) -> None:
        """Offer sets of optics; none, no buttons."""
        for button in self.modes.values():
            self._modes.removeWidget(button)
            button.deleteLater()
        self.modes = {}
        for name in names:
            button = QPushButton(name.capitalize())
            button.setCheckable(True)
            button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            button.setToolTip(f"Optics of {name}; the beam is blanked while they change")
            button.clicked.connect(partial(self._choose_mode, name))
            self._modes.addWidget(button)
            self.modes[name] = button

    def show_mode(self, mode: str | None, pending: str | None) -> None:
        """Show the set of optics in use; ``pending`` is the one that is being changed to."""
        for name, button in self.modes.items():
            button.setChecked(name == mode and pending is None)
            button.setEnabled(pending is None)
            set_flag(button, "pending", name == pending)

    def _choose_mode(self, name: str, _checked: bool = False) -> None:
        self.mode_chosen.emit(name)

    def show_device(self, text: str) -> None:
        """Show the camera's name."""
        self.device.set_full(text)

    def show_run(self, running: bool, possible: bool) -> None:
        """Show whether frames are taken, and whether that can be changed."""
        self.run.setText(" Stop" if running else " Start")
        self.run.setIcon(icon("stop" if running else "play"))
        self.run.setEnabled(possible)


class PaneHeader(QWidget):
    """Above the two panes: what they show, and between them the one frame id of both."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        grid = QGridLayout(self)
        grid.setContentsMargins(4, 0, 4, 0)
        grid.setHorizontalSpacing(GRID)
        self.left = QLabel("Raw")
        self.left.setObjectName("paneTitle")
        self.left_detail = QLabel("")
        self.left_detail.setObjectName("paneDetail")
        self.frame = QLabel("no frame")
        self.frame.setObjectName("frameId")
        self.frame.setMinimumWidth(136)
        self.frame.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.frame.setToolTip("Both panes show this frame")
        self.right = QLabel("Restored")
        self.right.setObjectName("paneTitle")
        self.right_detail = QLabel("")
        self.right_detail.setObjectName("paneDetail")
        left, right = QHBoxLayout(), QHBoxLayout()
        for box in (left, right):
            box.setSpacing(GRID)
        left.addWidget(self.left)
        left.addWidget(self.left_detail)
        left.addStretch()
        right.addStretch()
        right.addWidget(self.right)
        right.addWidget(self.right_detail)
        grid.addLayout(left, 0, 0)
        grid.addWidget(self.frame, 0, 1)
        grid.addLayout(right, 0, 2)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(2, 1)

    def show_left(self, title: str, detail: str) -> None:
        """What the left pane shows."""
        self.left.setText(title)
        self.left_detail.setText(detail)
        self.left_detail.setVisible(bool(detail))

    def show_right(self, title: str, detail: str) -> None:
        """What the right pane shows."""
        self.right.setText(title)
        self.right_detail.setText(detail)
        self.right_detail.setVisible(bool(detail))

    def show_frame(self, text: str) -> None:
        """Id of the frame that both panes show."""
        self.frame.setText(text)


class StatusStrip(QFrame):
    """Speed and losses, at the lower edge."""

    _CELLS = (
        ("fps", "Frames"),
        ("restored", "Restored"),
        ("latency", "Latency"),
        ("dropped", "Dropped raw"),
        ("restore_skipped", "Restore skipped"),
        ("display_skipped", "Display skipped"),
        ("drift", "Drift"),
    )

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("statusStrip")
        self.setFixedHeight(32)
        row = QHBoxLayout(self)
        row.setContentsMargins(2 * GRID, 0, 2 * GRID, 0)
        row.setSpacing(6)
        self.values: dict[str, QLabel] = {}
        for key, title in self._CELLS:
            name = QLabel(title)
            name.setObjectName("name")
            value = QLabel("–")
            value.setObjectName("value")
            self.values[key] = value
            row.addWidget(name)
            row.addWidget(value)
            row.addSpacing(14)
        row.addStretch()
        self.note = ElidedLabel()
        self.note.setObjectName("faint")
        self.note.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        row.addWidget(self.note, 1)

    def show_value(self, key: str, text: str, alert: bool = False) -> None:
        """Show one figure; ``alert`` marks a loss."""
        self.values[key].setText(text)
        set_flag(self.values[key], "alert", alert)

    def show_note(self, text: str) -> None:
        """What is going on, at the right end."""
        self.note.set_full(text)


class MessageBar(QFrame):
    """One line from the program, until it is dismissed."""

    dismissed = Signal()

    _ICONS: ClassVar[Mapping[str, str]] = {
        "info": "information-outline",
        "warning": "alert-outline",
        "error": "alert-circle",
    }
    _COLOURS: ClassVar[Mapping[str, str]] = {
        "info": PALETTE.accent,
        "warning": PALETTE.amber,
        "error": PALETTE.red,
    }

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("messageBar")
        row = QHBoxLayout(self)
        row.setContentsMargins(12, 6, 6, 6)
        row.setSpacing(GRID)
        self._sign = QLabel()
        row.addWidget(self._sign)
        self.text = ElidedLabel()
        self.text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        row.addWidget(self.text, 1)
        self.more = QLabel("")
        self.more.setObjectName("faint")
        row.addWidget(self.more)
        self.close_button = QToolButton()
        self.close_button.setIcon(icon("close", PALETTE.muted))
        self.close_button.setAutoRaise(True)
        self.close_button.setToolTip("Dismiss")
        self.close_button.clicked.connect(lambda: self.dismissed.emit())
        row.addWidget(self.close_button)
        self.hide()

    def show_message(self, level: str, text: str, waiting: int) -> None:
        """Show a message, and how many more wait behind it."""
        self._sign.setPixmap(
            icon(
                self._ICONS.get(level, "information-outline"),
                self._COLOURS.get(level, PALETTE.accent),
            ).pixmap(QSize(18, 18))
        )
        set_flag(self, "level", level)
        self.text.set_full(text)
        self.more.setText(f"+{waiting} more" if waiting else "")
        self.show()

    def show_nothing(self) -> None:
        """Go away."""
        self.hide()


class Banner(QFrame):
    """What must not be overlooked: the run is lost, and what became of the beam."""

    retry = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("banner")
        row = QHBoxLayout(self)
        row.setContentsMargins(16, 10, 12, 10)
        row.setSpacing(12)
        sign = QLabel()
        sign.setPixmap(icon("lan-disconnect", "#ffffff").pixmap(QSize(24, 24)))
        row.addWidget(sign)
        texts = QVBoxLayout()
        texts.setSpacing(2)
        self.title = QLabel()
        self.title.setObjectName("bannerTitle")
        self.detail = ElidedLabel()
        texts.addWidget(self.title)
        texts.addWidget(self.detail)
        row.addLayout(texts, 1)
        self.button = QPushButton("Try again")
        self.button.clicked.connect(lambda: self.retry.emit())
        row.addWidget(self.button)
        self.hide()

    def show_banner(self, title: str, detail: str, can_retry: bool) -> None:
        """Appear."""
        self.title.setText(title)
        self.detail.set_full(detail)
        self.button.setVisible(can_retry)
        self.show()

    def show_nothing(self) -> None:
        """Go away."""
        self.hide()


class HelpOverlay(QWidget):
    """The keys, over everything, until a click or a key."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        outer = QVBoxLayout(self)
        card = QFrame()
        card.setObjectName("helpCard")
        outer.addStretch()
        outer.addWidget(card, 0, Qt.AlignmentFlag.AlignHCenter)
        outer.addStretch()
        box = QVBoxLayout(card)
        box.setContentsMargins(32, 24, 32, 24)
        box.setSpacing(16)
        title = QLabel("Keys and mouse")
        title.setObjectName("helpTitle")
        box.addWidget(title)
        self._grid = QGridLayout()
        self._grid.setHorizontalSpacing(16)
        self._grid.setVerticalSpacing(GRID)
        box.addLayout(self._grid)
        self.hide()

    def set_keys(self, keys: Sequence[tuple[str, str]]) -> None:
        """Fill in (key, what it does), in two columns."""
        half = -(-len(keys) // 2)
        for i, (key, text) in enumerate(keys):
            row, column = i % half, 2 * (i // half)
            name = QLabel(key)
            name.setObjectName("key")
            name.setAlignment(Qt.AlignmentFlag.AlignCenter)
            name.setMinimumWidth(104)
            self._grid.addWidget(name, row, column)
            self._grid.addWidget(QLabel(text), row, column + 1)
        self._grid.setColumnMinimumWidth(1, 248)

    @override
    def paintEvent(self, event: QPaintEvent) -> None:
        shade = QColor(PALETTE.image)
        shade.setAlpha(200)
        QPainter(self).fillRect(self.rect(), shade)

    @override
    def mousePressEvent(self, event: QMouseEvent) -> None:
        self.hide()
