"""Histogram with two handles for the levels.

Drawn without a plotting library, since it is redrawn at every frame.
"""

from __future__ import annotations

import numpy as np
from pyqtgraph.functions import arrayToQPolygonF
from PySide6.QtCore import QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import (
    QColor,
    QLinearGradient,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
)
from PySide6.QtWidgets import QSizePolicy, QWidget
from typing_extensions import override

from tem_live.gui.models.levels import Histogram
from tem_live.gui.models.quantities import DOSE_PX, span
from tem_live.gui.theme import PALETTE

_SIDE = 12
_FOOT = 20
_REACH = 10


_NONE = Histogram(0.0, 1.0, np.zeros(0, np.float32))


class HistogramView(QWidget):
    """Distribution of a pane's values and the levels it is shown with."""

    levels_dragged = Signal(float, float)
    """New levels (low, high) in e⁻/px while a handle or the range between them is dragged."""
    auto_requested = Signal()
    """Double click: levels shall follow the frames again."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._histogram = _NONE
        self._low, self._high = 0.0, 1.0
        self._auto = True
        self._grabbed = ""
        self._grab_x = 0.0
        self._grab_levels = (0.0, 1.0)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMouseTracking(True)
        self.setToolTip("Levels: drag the handles or the range; double click for automatic levels")

    def show_levels(self, histogram: Histogram, low: float, high: float, auto: bool) -> None:
        """Show a distribution and the levels in e⁻/px."""
        self._histogram = histogram
        self._low, self._high, self._auto = low, high, auto
        self.update()

    def show_nothing(self) -> None:
        """There is no frame."""
        self._histogram = _NONE
        self.update()

    @override
    def sizeHint(self) -> QSize:
        return QSize(200, 72)

    @override
    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        floor = self.height() - _FOOT
        low, high = self._x(self._low), self._x(self._high)
        accent = QColor(PALETTE.accent if self._auto else PALETTE.amber)
        painter.setPen(QPen(QColor(PALETTE.line), 1))
        painter.drawLine(QPointF(_SIDE, floor), QPointF(self.width() - _SIDE, floor))

        if not self._histogram.counts.size:
            return

        shade = QColor(accent)
        shade.setAlpha(22)
        painter.fillRect(QRectF(low, 6, max(0.0, high - low), floor - 6), shade)

        counts = self._histogram.counts
        step = (self.width() - 2 * _SIDE) / max(1, counts.size)
        across = _SIDE + step * np.concatenate(([0.0], np.arange(counts.size) + 0.5, [counts.size]))
        up = floor - (floor - 10) * np.concatenate(([0.0], np.sqrt(counts), [0.0]))
        # Point by point it would take longer than all else that the window draws.
        shape = arrayToQPolygonF(across, up)
        fill = QLinearGradient(0, 6, 0, floor)
        top = QColor(PALETTE.muted)
        top.setAlpha(150)
        foot = QColor(PALETTE.muted)
        foot.setAlpha(40)
        fill.setColorAt(0, top)
        fill.setColorAt(1, foot)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        painter.drawPolygon(shape)

        for x in (low, high):
            painter.setPen(QPen(accent, 1.5))
            painter.drawLine(QPointF(x, 6), QPointF(x, floor))
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(accent)
            painter.drawRoundedRect(QRectF(x - 3, floor - 5, 6, 10), 2, 2)
        self._draw_texts(painter, low, high, floor)

    def _draw_texts(self, painter: QPainter, low: float, high: float, floor: int) -> None:
        metrics = painter.fontMetrics()
        low_text, high_text = span(self._low, self._high)
        high_text = f"{high_text} {DOSE_PX}"
        low_width = metrics.horizontalAdvance(low_text)
        high_width = metrics.horizontalAdvance(high_text)
        right = self.width() - _SIDE
        high_x = min(max(high - high_width / 2, _SIDE), right - high_width)
        low_x = min(max(low - low_width / 2, _SIDE), high_x - low_width - 8)
        if low_x < _SIDE:
            low_x = _SIDE
            high_x = max(high_x, low_x + low_width + 8)
        painter.setPen(QColor(PALETTE.muted))
        base = floor + _FOOT - 4
        painter.drawText(QPointF(low_x, base), low_text)
        painter.drawText(QPointF(high_x, base), high_text)

    @override
    def mousePressEvent(self, event: QMouseEvent) -> None:
        x = event.position().x()
        low, high = self._x(self._low), self._x(self._high)
        if min(abs(x - low), abs(x - high)) <= _REACH:
            self._grabbed = "low" if abs(x - low) < abs(x - high) else "high"
        elif low < x < high:
            self._grabbed = "both"
        self._grab_x, self._grab_levels = x, (self._low, self._high)

    @override
    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        x = event.position().x()
        if not self._grabbed:
            near = min(abs(x - self._x(self._low)), abs(x - self._x(self._high))) <= _REACH
            self.setCursor(Qt.CursorShape.SizeHorCursor if near else Qt.CursorShape.ArrowCursor)
            return
        width = max(1, self.width() - 2 * _SIDE)
        move = (x - self._grab_x) / width * (self._histogram.stop - self._histogram.start)
        low, high = self._grab_levels
        if self._grabbed in ("low", "both"):
            low += move
        if self._grabbed in ("high", "both"):
            high += move
        self.levels_dragged.emit(low, high)

    @override
    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._grabbed = ""

    @override
    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        self._grabbed = ""
        self.auto_requested.emit()

    def _x(self, value: float) -> float:
        span = self._histogram.stop - self._histogram.start or 1.0
        place = (value - self._histogram.start) / span
        return _SIDE + min(max(place, 0.0), 1.0) * (self.width() - 2 * _SIDE)
