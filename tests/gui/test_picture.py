"""The picture in a pane: grey or coloured, in its place, and gone when it is cleared."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QRectF
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtWidgets import QStyleOptionGraphicsItem

from tem_live.gui.views.picture import Picture


def painted(picture: Picture) -> QImage:
    image = QImage(8, 8, QImage.Format.Format_RGB32)
    image.fill(QColor(1, 2, 3))
    painter = QPainter(image)
    picture.paint(painter, QStyleOptionGraphicsItem())
    painter.end()
    return image


def colour(image: QImage, x: int, y: int) -> tuple[int, int, int]:
    value = image.pixelColor(x, y)
    return value.red(), value.green(), value.blue()


def test_values_are_grey_over_their_rectangle(qapp):
    picture = Picture()
    # Three wide: lines that are no multiple of four bytes.
    values = np.array([[0, 100, 255], [10, 20, 30]], np.uint8)
    picture.show_values(values, QRectF(0, 0, 6, 4))
    assert picture.boundingRect() == QRectF(0, 0, 6, 4)
    image = painted(picture)
    assert colour(image, 2, 0) == (100, 100, 100)
    assert colour(image, 5, 3) == (30, 30, 30)
    assert colour(image, 7, 7) == (1, 2, 3)


def test_a_table_colours_what_is_shown(qapp):
    picture = Picture()
    picture.show_values(np.array([[0, 255]], np.uint8), QRectF(0, 0, 8, 8))
    table = np.zeros((256, 3), np.uint8)
    table[255] = (200, 150, 100)
    picture.set_table(table)
    assert colour(painted(picture), 6, 4) == (200, 150, 100)
    picture.set_table(None)
    assert colour(painted(picture), 6, 4) == (255, 255, 255)


def test_a_column_of_a_larger_array_is_shown(qapp):
    picture = Picture()
    picture.show_values(np.arange(64, dtype=np.uint8).reshape(8, 8)[:, 2:6], QRectF(0, 0, 4, 8))
    assert colour(painted(picture), 1, 7) == (59, 59, 59)


def test_nothing_is_shown_after_clear(qapp):
    picture = Picture()
    picture.show_values(np.full((4, 4), 90, np.uint8), QRectF(0, 0, 8, 8))
    picture.clear()
    assert colour(painted(picture), 4, 4) == (1, 2, 3)


def test_it_lives_in_a_view_box(qapp):
    box = pg.ViewBox()
    picture = Picture()
    box.addItem(picture, ignoreBounds=True)
    assert picture.scene() is None or picture in picture.scene().items()
