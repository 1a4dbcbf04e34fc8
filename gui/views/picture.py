"""An image in a view box, drawn in the format of the screen.

`pyqtgraph.ImageItem` keeps grey values, which Qt turns into the screen's format, pixel by pixel on
the thread of the window, whenever anything over the image is drawn again. Turned once, they are
drawn in a quarter of the time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyqtgraph as pg
from PySide6.QtCore import QRectF
from PySide6.QtGui import QImage, QPainter
from PySide6.QtWidgets import QStyleOptionGraphicsItem, QWidget
from typing_extensions import override

__all__ = ["Picture"]


class Picture(pg.GraphicsObject):  # type: ignore[misc]
    """Grey values with or without a colour table, over a rectangle of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._values: npt.NDArray[np.uint8] | None = None
        self._table: list[int] | None = None
        self._shown = QImage()
        self._rect = QRectF()

    def show_values(self, values: npt.NDArray[np.uint8], rect: QRectF) -> None:
        """Show grey values (H, W) over a rectangle in the coordinates of the view."""
        self._values = np.ascontiguousarray(values)
        if rect != self._rect:
            self.prepareGeometryChange()
            self._rect = rect
        self._draw()

    def set_table(self, table: npt.NDArray[np.uint8] | None) -> None:
        """Colour of each grey value, (256, 3), or None for grey."""
        if table is None:
            self._table = None
        else:
            red, green, blue = np.asarray(table, dtype=np.uint32).T
            self._table = (0xFF000000 | red << 16 | green << 8 | blue).tolist()
        self._draw()

    def clear(self) -> None:
        """Show nothing."""
        self._values, self._shown = None, QImage()
        self.update()

    def _draw(self) -> None:
        if self._values is None:
            return
        height, width = self._values.shape
        grey, indexed = QImage.Format.Format_Grayscale8, QImage.Format.Format_Indexed8
        kind = grey if self._table is None else indexed
        image = QImage(self._values.data, width, height, width, kind)
        if self._table is not None:
            image.setColorTable(self._table)
        self._shown = image.convertToFormat(QImage.Format.Format_RGB32)
        self.update()

    @override
    def boundingRect(self) -> QRectF:
        return self._rect

    @override
    def paint(
        self,
        painter: QPainter,
        option: QStyleOptionGraphicsItem,
        widget: QWidget | None = None,
    ) -> None:
        if not self._shown.isNull():
            painter.drawImage(self._rect, self._shown)
