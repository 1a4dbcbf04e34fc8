"""Which message the window shows."""

from __future__ import annotations

from collections import deque

from PySide6.QtCore import QObject, QTimer

from tem_live.gui.views.bars import MessageBar

_INFO_MS = 6000
"""So long a message that needs no answer is shown."""
_LEVELS = ("info", "warning", "error")


class MessageController(QObject):
    """Messages one after the other, the worst and newest in front."""

    def __init__(self, view: MessageBar, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._view = view
        self._waiting: deque[tuple[str, str]] = deque(maxlen=20)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self.dismiss)
        view.dismissed.connect(self.dismiss)

    def add(self, level: str, text: str) -> None:
        """Show a message; the same one again is not stacked."""
        if (level, text) in self._waiting:
            self._waiting.remove((level, text))
        self._waiting.append((level, text))
        self._show()

    def dismiss(self) -> None:
        """Take the shown message away."""
        shown = self._front()
        if shown is not None:
            self._waiting.remove(shown)
        self._show()

    def withdraw(self, level: str, text: str) -> None:
        """Take a certain message away, if it is there."""
        if (level, text) in self._waiting:
            self._waiting.remove((level, text))
            self._show()

    def stop(self) -> None:
        """Nothing goes away by itself any more: the window is about to."""
        self._timer.stop()

    def _front(self) -> tuple[str, str] | None:
        if not self._waiting:
            return None
        worst = max(_LEVELS.index(level) if level in _LEVELS else 0 for level, _ in self._waiting)
        return [item for item in self._waiting if item[0] == _LEVELS[worst]][-1]

    def _show(self) -> None:
        front = self._front()
        self._timer.stop()
        if front is None:
            self._view.show_nothing()
            return
        self._view.show_message(*front, len(self._waiting) - 1)
        if front[0] == "info":
            self._timer.start(_INFO_MS)
