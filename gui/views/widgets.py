"""Small widgets that the panels are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import qtawesome
from PySide6.QtCore import QPointF, QSize, Qt, Signal
from PySide6.QtGui import (
    QColor,
    QIcon,
    QPainter,
    QPaintEvent,
    QPen,
    QResizeEvent,
    QValidator,
    QWheelEvent,
)
from PySide6.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QToolTip,
    QVBoxLayout,
    QWidget,
)
from typing_extensions import override

from tem_live.gui.models.quantities import next_step
from tem_live.gui.theme import GRID, PALETTE

CONTROL_HEIGHT = 24


def icon(name: str, colour: str = PALETTE.text, active: str | None = None) -> QIcon:
    """Icon of Material Design Icons in a colour of the theme."""
    made: QIcon = qtawesome.icon(
        f"mdi6.{name}",
        color=colour,
        color_disabled=PALETTE.faint,
        color_active=active or colour,
        color_on=PALETTE.accent,
    )
    return made


def set_flag(widget: QWidget, name: str, value: str | bool) -> None:
    """Set a property that the style sheet looks at, and have it looked at again."""
    if widget.property(name) == value:
        return
    widget.setProperty(name, value)
    widget.style().unpolish(widget)
    widget.style().polish(widget)


class Panel(QFrame):
    """Titled group of rows in the column on the right."""

    def __init__(self, title: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("panel")
        box = QVBoxLayout(self)
        box.setContentsMargins(12, GRID, 12, GRID)
        box.setSpacing(4)
        self.head = QHBoxLayout()
        self.head.setSpacing(GRID)
        label = QLabel(title)
        label.setObjectName("panelTitle")
        self.head.addWidget(label)
        self.head.addStretch()
        box.addLayout(self.head)
        self.grid = QGridLayout()
        self.grid.setHorizontalSpacing(GRID)
        self.grid.setVerticalSpacing(6)
        self.grid.setColumnMinimumWidth(0, 84)
        self.grid.setColumnStretch(1, 1)
        box.addLayout(self.grid)

    def add_row(self, name: str, widget: QWidget) -> QLabel:
        """Add a named row; returns the name's label."""
        row = self.grid.rowCount()
        label = QLabel(name)
        label.setObjectName("name")
        self.grid.addWidget(label, row, 0)
        self.grid.addWidget(widget, row, 1)
        return label

    def add_wide(self, *widgets: QWidget) -> None:
        """Add a row of widgets of one width over the whole panel."""
        self.grid.addLayout(evenly(*widgets), self.grid.rowCount(), 0, 1, 2)


def evenly(*widgets: QWidget) -> QHBoxLayout:
    """Row of widgets of one width."""
    row = QHBoxLayout()
    row.setSpacing(GRID)
    row.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        row.addWidget(widget, 1)
    return row


def value_label(text: str = "–", name: str = "value") -> QLabel:
    """Right-aligned label for a number with its unit."""
    label = QLabel(text)
    label.setObjectName(name)
    label.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
    return label


def toggle(text: str, icon_name: str, tip: str) -> QPushButton:
    """Button that stays down while its option is on."""
    button = QPushButton(icon(icon_name, PALETTE.muted), f" {text}")
    button.setCheckable(True)
    button.setToolTip(tip)
    button.setIconSize(QSize(16, 16))
    return button


def push(text: str, icon_name: str, tip: str, colour: str = PALETTE.muted) -> QPushButton:
    """Button with an icon."""
    button = QPushButton(icon(icon_name, colour), f" {text}")
    button.setToolTip(tip)
    button.setIconSize(QSize(16, 16))
    return button


def tool(icon_name: str, tip: str, text: str = "") -> QToolButton:
    """Small button without frame, with an icon or a short text."""
    button = QToolButton()
    button.setText(text)
    if icon_name:
        button.setIcon(icon(icon_name, PALETTE.muted))
    button.setIconSize(QSize(16, 16))
    button.setAutoRaise(True)
    button.setFixedSize(36 if text else 20, 22)
    button.setToolTip(tip)
    return button


class QuantityBox(QDoubleSpinBox):
    """Field for a quantity with its unit; steps go 1, 2, 5, 10 ….

    Parameters
    ----------
    to_text : callable
        Value to text with unit.
    from_text : callable
        Text to value; raises ValueError for what is no such quantity.
    """

    edited = Signal(float)
    """The user wants this value; emitted once per change."""

    def __init__(
        self,
        to_text: Callable[[float], str],
        from_text: Callable[[str, str], float],
        parent: QWidget | None = None,
    ) -> None:
        self._to_text = to_text
        self._from_text = from_text
        self._shown = 0.0
        super().__init__(parent)
        self.setDecimals(9)
        self.setRange(0.0, 1e12)
        self.setKeyboardTracking(False)
        # Not by the wheel: it turns a page, and must not get into a field on its way.
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.lineEdit().setTextMargins(0, 0, 8, 0)
        self.setFixedHeight(CONTROL_HEIGHT)
        self.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.valueChanged.connect(self._emit_if_new)
        self.editingFinished.connect(self._leave)

    def show_value(self, value: float) -> None:
        """Show what a device took; not reported as an edit."""
        self._shown = value
        # While the user types, the text is theirs.
        if self.lineEdit().isModified() and self.hasFocus():
            return
        self.blockSignals(True)
        self.setValue(value)
        self.blockSignals(False)

    def set_pending(self, pending: bool) -> None:
        """Mark that the device has not answered yet."""
        set_flag(self, "pending", pending)

    @override
    def textFromValue(self, val: float) -> str:
        return self._to_text(val)

    @override
    def valueFromText(self, text: str) -> float:
        try:
            return self._from_text(text, self._to_text(self.value()))
        except ValueError:
            return self.value()

    @override
    def validate(self, input: str, pos: int) -> tuple[QValidator.State, str, int]:
        try:
            self._from_text(input, self._to_text(self.value()))
        except ValueError:
            return QValidator.State.Intermediate, input, pos
        return QValidator.State.Acceptable, input, pos

    @override
    def fixup(self, input: str) -> str:
        shown = self._to_text(self.value())
        try:
            self._from_text(input, shown)
        except ValueError as error:
            # The old value comes back; why, is said where it happens.
            QToolTip.showText(self.mapToGlobal(self.rect().bottomLeft()), str(error), self)
        return shown

    @override
    def stepBy(self, steps: int) -> None:
        self.setValue(next_step(self.value(), steps))

    @override
    def wheelEvent(self, event: QWheelEvent) -> None:
        # A value steps for whoever is in its field, and for nobody who passes over it.
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()

    @override
    def minimumSizeHint(self) -> QSize:
        # Qt's own hint has room for a value of 1e12 with nine decimals.
        return QSize(96, super().minimumSizeHint().height())

    @override
    def sizeHint(self) -> QSize:
        return QSize(128, super().sizeHint().height())

    def _emit_if_new(self, value: float) -> None:
        if value != self._shown:
            self._shown = value
            self.edited.emit(value)

    def _leave(self) -> None:
        self.lineEdit().setModified(False)
        self.blockSignals(True)
        self.setValue(self._shown)
        self.blockSignals(False)
        # Letter keys are shortcuts again as soon as a value was entered.
        self.clearFocus()


class ChoiceBox(QComboBox):
    """List to choose from; reports the user's choice only."""

    chosen = Signal(object)
    """Data of the entry that the user chose."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(6)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.activated.connect(self._report)

    def set_entries(self, entries: Sequence[tuple[str, object, str]]) -> None:
        """Fill the list with (text, data, tip); the shown entry stays if it is still there."""
        current = self.currentData()
        self.blockSignals(True)
        self.clear()
        for text, data, tip in entries:
            self.addItem(text, data)
            self.setItemData(self.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        if self.findData(current) >= 0:
            self.show_choice(current)
        self.blockSignals(False)

    def show_choice(self, data: object, text: str = "") -> None:
        """Show an entry; one that is not in the list is added, as ``text``."""
        index = self.findData(data)
        if index < 0:
            self.addItem(text or str(data), data)
            index = self.count() - 1
        self.setCurrentIndex(index)

    def set_pending(self, pending: bool) -> None:
        """Mark that the choice has not taken effect yet."""
        set_flag(self, "pending", pending)

    @override
    def wheelEvent(self, event: QWheelEvent) -> None:
        # A turn of the wheel would choose, be it another instrument amid a recording.
        event.ignore()

    @override
    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        # A style sheet takes Qt's arrow away and can only put a picture file in its place.
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor(PALETTE.muted if self.isEnabled() else PALETTE.faint), 1.5))
        x, y = self.width() - 15.0, self.height() / 2 - 1.5
        painter.drawPolyline([QPointF(x - 4, y), QPointF(x, y + 4), QPointF(x + 4, y)])

    def _report(self, index: int) -> None:
        self.chosen.emit(self.itemData(index))
        self.clearFocus()


class AreaField(QLineEdit):
    """Field for a name; reports a new one when the user has entered it."""

    edited = Signal(str)
    """The name that the user wants."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._shown = ""
        self.setPlaceholderText("no name")
        self.setMaxLength(64)
        self.setFixedHeight(CONTROL_HEIGHT)
        self.setMinimumWidth(64)
        self.editingFinished.connect(self._leave)

    def show_name(self, name: str) -> None:
        """Show the name in use; not reported as an edit."""
        self._shown = name
        # While the user types, the text is theirs.
        if not (self.isModified() and self.hasFocus()):
            self.setText(name)
            self.setCursorPosition(0)

    def _leave(self) -> None:
        wanted = self.text().strip()
        before, self._shown = self._shown, wanted
        self.setModified(False)
        # Letter keys are shortcuts again as soon as a name was entered. It ends here once more.
        self.clearFocus()
        if wanted != before:
            self.edited.emit(wanted)


class ElidedLabel(QLabel):
    """Label of one line that is shortened in the middle rather than cut off."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._full = ""
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.set_full(text)

    def set_full(self, text: str) -> None:
        """Text to show as far as it fits; all of it is in the tool tip."""
        self._full = text
        self.setToolTip(text)
        self._shorten()

    @override
    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._shorten()

    def _shorten(self) -> None:
        self.setText(
            self.fontMetrics().elidedText(
                self._full, Qt.TextElideMode.ElideMiddle, max(0, self.width() - 2)
            )
        )
