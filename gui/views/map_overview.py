"""All of the fluence map, small, with the outline of the field of view."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QColor, QImage, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QWidget
from typing_extensions import override

from tem_live.gui.models.scale_bar import scale_bar
from tem_live.gui.theme import PALETTE, text_font

MARGIN = 8.0
Rect = tuple[float, float, float, float]


class MapOverview(QWidget):
    """See the module's text."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setMinimumSize(136, 96)
        self.setToolTip("Fluence map of this area; the frame marks the field of view (M)")
        self._picture: npt.NDArray[np.uint8] | None = None
        self._map_nm: Rect = (0.0, 0.0, 1.0, 1.0)
        self._field_nm: Rect = (0.0, 0.0, 1.0, 1.0)

    def show_map(self, picture: npt.NDArray[np.uint8] | None, map_nm: Rect, field_nm: Rect) -> None:
        """Show a picture (H, W, 4) at its place, and the field of view, all in nm."""
        self._picture, self._map_nm, self._field_nm = picture, map_nm, field_nm
        self.update()

    def show_nothing(self) -> None:
        """There is no map."""
        self._picture = None
        self.update()

    @override
    def sizeHint(self) -> QSize:
        return QSize(152, 152)

    @override
    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor(PALETTE.line)))
        painter.setBrush(QColor(PALETTE.image))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), 4, 4)
        if self._picture is None:
            painter.setPen(QColor(PALETTE.faint))
            painter.setFont(text_font(11))
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, "nothing booked yet")
            return
        all_nm = QRectF(*self._map_nm).united(QRectF(*self._field_nm))
        room = QRectF(self.rect()).adjusted(MARGIN, MARGIN, -MARGIN, -MARGIN)
        scale = min(room.width() / all_nm.width(), room.height() / all_nm.height())

        def on_screen(rect_nm: Rect) -> QRectF:
            x, y, width, height = rect_nm
            middle, centre = all_nm.center(), room.center()
            return QRectF(
                centre.x() + (x - middle.x()) * scale,
                centre.y() + (y - middle.y()) * scale,
                width * scale,
                height * scale,
            )

        height, width = self._picture.shape[:2]
        pixels = np.ascontiguousarray(self._picture)
        image = QImage(pixels.data, width, height, 4 * width, QImage.Format.Format_RGBA8888)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        painter.drawImage(on_screen(self._map_nm), image)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        # White within black: seen on every colour.
        for colour, px in (("black", 3.5), ("white", 1.5)):
            painter.setPen(QPen(QColor(colour), px))
            painter.drawRect(on_screen(self._field_nm))
        self._draw_bar(painter, scale)

    def _draw_bar(self, painter: QPainter, px_per_nm: float) -> None:
        bar = scale_bar(1.0, px_per_nm, 40.0)
        if bar is None:
            return
        painter.setFont(text_font(10))
        x, y = MARGIN + 2, self.height() - MARGIN - 4
        painter.setPen(QPen(QColor("white"), 2))
        painter.drawLine(int(x), int(y), int(x + bar.width_px), int(y))
        painter.setPen(QColor(PALETTE.text))
        painter.drawText(int(x), int(y) - 4, bar.text)
