"""Keys of the window, and those that work whatever has the focus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QObject, Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QAbstractSpinBox, QApplication, QLineEdit
from typing_extensions import override

_EMERGENCY = (Qt.Key.Key_Escape, Qt.Key.Key_F12)
_HOLD = Qt.Key.Key_R


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the window.

    Attributes
    ----------
    key : str
        As Qt writes it.
    text : str
        What it does.
    action : callable
        What it calls.
    """

    key: str
    text: str
    action: Callable[[], None]


class GlobalKeys(QObject):
    """Keys that work whatever has the focus: the emergency, and the one that is held for raw.

    An event filter of the application, since a shortcut does not reach open lists and dialogs.
    """

    emergency = Signal()
    hold_changed = Signal(bool)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._fired = False
        self._held = False

    @override
    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Look at every key before anybody else does; none is swallowed."""
        kind = event.type()
        if kind in (QEvent.Type.KeyPress, QEvent.Type.ShortcutOverride) and isinstance(
            event, QKeyEvent
        ):
            if event.key() in _EMERGENCY and not event.isAutoRepeat():
                self._fire()
            elif (
                kind == QEvent.Type.KeyPress
                and event.key() == _HOLD
                and event.modifiers() == Qt.KeyboardModifier.NoModifier
                and not event.isAutoRepeat()
                and not _is_typed_in()
            ):
                self._hold(True)
        elif (
            kind == QEvent.Type.KeyRelease
            and isinstance(event, QKeyEvent)
            and event.key() == _HOLD
            and not event.isAutoRepeat()
        ) or kind == QEvent.Type.ApplicationDeactivate:
            self._hold(False)
        return False

    def _fire(self) -> None:
        # One press passes several objects (the window, the widget, its parents).
        if self._fired:
            return
        self._fired = True
        QTimer.singleShot(0, self._rearm)
        self.emergency.emit()

    def _rearm(self) -> None:
        self._fired = False

    def _hold(self, held: bool) -> None:
        if held != self._held:
            self._held = held
            self.hold_changed.emit(held)


def _is_typed_in() -> bool:
    # Not the object that gets the event: the window itself gets each key before its field does.
    return isinstance(QApplication.focusWidget(), QLineEdit | QAbstractSpinBox)
