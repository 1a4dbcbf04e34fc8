"""One image with zoom and pan, its scale bar, the line of the profile and its histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QObject, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QColor, QFont, QImage, QPainter, QPaintEvent
from PySide6.QtWidgets import QFrame, QVBoxLayout, QWidget
from typing_extensions import override

from tem_live.gui.models.levels import Histogram
from tem_live.gui.models.render import Extent
from tem_live.gui.models.scale_bar import ScaleBar
from tem_live.gui.models.view_state import Line, Range
from tem_live.gui.theme import PALETTE, text_font
from tem_live.gui.views.histogram import HistogramView
from tem_live.gui.views.picture import Picture


class _Overlay(QWidget):
    """What is drawn over an image in screen pixels."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.bar: ScaleBar | None = None
        self.bar_note = ""
        self.readout = ""
        self.notice = ""
        self.badge = ""
        self.map_highest = ""
        self.map_colours: QImage | None = None

    @override
    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if self.notice:
            painter.setPen(QColor(PALETTE.muted))
            painter.setFont(text_font(13))
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, self.notice)
        if self.bar is not None:
            self._draw_bar(painter, self.bar)
        elif self.bar_note:
            self._box(painter, self.bar_note, 12, self.height() - 12 - 24, PALETTE.amber)
        if self.map_highest and self.map_colours is not None:
            self._draw_colours(painter, self.map_colours, self.map_highest)
        if self.readout:
            self._box(painter, self.readout, 12, 12, PALETTE.text)
        if self.badge:
            width = self._width(painter, self.badge)
            self._box(painter, self.badge, self.width() - 12 - width, 12, PALETTE.amber)

    def _draw_bar(self, painter: QPainter, bar: ScaleBar) -> None:
        font = text_font(13)
        font.setWeight(QFont.Weight.DemiBold)
        painter.setFont(font)
        text_width = painter.fontMetrics().horizontalAdvance(bar.text)
        width = max(bar.width_px, text_width) + 24
        box = QRectF(12, self.height() - 12 - 40, width, 40)
        back = QColor(PALETTE.ground)
        back.setAlpha(190)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(back)
        painter.drawRoundedRect(box, 4, 4)
        painter.setBrush(QColor("white"))
        painter.drawRect(
            QRectF(box.center().x() - bar.width_px / 2, box.bottom() - 11, bar.width_px, 4)
        )
        painter.setPen(QColor("white"))
        painter.drawText(box.adjusted(0, 4, 0, -14), Qt.AlignmentFlag.AlignCenter, bar.text)

    def _draw_colours(self, painter: QPainter, colours: QImage, highest: str) -> None:
        width, height = 144.0, 40.0
        box = QRectF(self.width() - 12 - width, self.height() - 12 - height, width, height)
        back = QColor(PALETTE.ground)
        back.setAlpha(190)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(back)
        painter.drawRoundedRect(box, 4, 4)
        painter.drawImage(QRectF(box.left() + 12, box.bottom() - 13, width - 24, 6), colours)
        painter.setPen(QColor("white"))
        painter.setFont(text_font(11))
        text = box.adjusted(12, 4, -12, -14)
        middle = Qt.AlignmentFlag.AlignVCenter
        painter.drawText(text, Qt.AlignmentFlag.AlignLeft | middle, "0")
        painter.drawText(text, Qt.AlignmentFlag.AlignRight | middle, highest)

    def _width(self, painter: QPainter, text: str) -> float:
        painter.setFont(text_font(12))
        return painter.fontMetrics().horizontalAdvance(text) + 16.0

    def _box(self, painter: QPainter, text: str, x: float, y: float, colour: str) -> None:
        box = QRectF(x, y, self._width(painter, text), 24)
        back = QColor(PALETTE.ground)
        back.setAlpha(190)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(back)
        painter.drawRoundedRect(box, 4, 4)
        painter.setPen(QColor(colour))
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, text)


class ImagePane(QFrame):
    """See the module's text. Image pixels: x to the right, y down, (0, 0) the upper left corner."""

    range_moved = Signal(object)
    """Visible `Range` after the user zoomed or panned."""
    zoom_changed = Signal(float)
    """Screen pixels per image pixel, whenever it changes."""
    hovered = Signal(float, float)
    """Place of the pointer in image pixels; NaN when it has left."""
    line_moved = Signal(object)
    """Ends of the profile's line (`Line`) while the user drags it."""
    levels_dragged = Signal(float, float)
    """As `HistogramView.levels_dragged`."""
    auto_requested = Signal()
    """As `HistogramView.auto_requested`."""
    fit_requested = Signal()
    """Double click on the image."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("paneFrame")
        self.setAccessibleName(name)
        box = QVBoxLayout(self)
        box.setContentsMargins(1, 1, 1, 1)
        box.setSpacing(0)
        self._graphics = pg.GraphicsView(background=PALETTE.image)
        self._graphics.setFrameShape(QFrame.Shape.NoFrame)
        self._graphics.setMinimumSize(160, 120)
        self._box = pg.ViewBox(lockAspect=True, invertY=True, enableMenu=False)
        self._box.setDefaultPadding(0.0)
        self._graphics.setCentralItem(self._box)
        self._image = Picture()
        self._box.addItem(self._image, ignoreBounds=True)
        self._map = pg.ImageItem(axisOrder="row-major")
        self._map.setZValue(5)
        self._map.hide()
        self._box.addItem(self._map, ignoreBounds=True)
        self._line: Any = None
        self._shape: tuple[int, int] | None = None
        self._fits = True
        self._overlay = _Overlay(self._graphics)
        self.histogram = HistogramView()
        box.addWidget(self._graphics, 1)
        box.addWidget(self.histogram)

        self._box.sigRangeChangedManually.connect(self._report_range)
        self._box.sigTransformChanged.connect(self._report_zoom)
        self._box.sigResized.connect(self._on_resized)
        self._graphics.scene().sigMouseMoved.connect(self._report_pointer)
        self._graphics.viewport().installEventFilter(self)
        self.histogram.levels_dragged.connect(self.levels_dragged)
        self.histogram.auto_requested.connect(self.auto_requested)

    # ------------------------------------------------------------------------------- taking values

    def show_image(
        self, image: npt.NDArray[np.uint8], extent: Extent, shape: tuple[int, int]
    ) -> None:
        """Show grey values over their ``extent`` of a frame of ``shape``.

        A frame of another shape than the one before is fitted into the pane.
        """
        rect = QRectF(extent.left, extent.top, extent.width, extent.height)
        self._image.show_values(image, rect)
        self._overlay.notice = ""
        if shape != self._shape:
            self._shape = shape
            self.fit()
        self._overlay.update()

    def show_nothing(self, notice: str) -> None:
        """Take the image away and say why there is none."""
        self._image.clear()
        self._map.hide()
        self._overlay.map_highest = ""
        self.histogram.show_nothing()
        self._overlay.notice = notice
        self._overlay.update()

    def show_map(
        self,
        picture: npt.NDArray[np.uint8] | None,
        shape: tuple[int, int],
        table: npt.NDArray[np.uint8],
        highest: str,
    ) -> None:
        """Lay a picture (H, W, 4) over a frame, or None; its colours end at ``highest``."""
        self._map.setVisible(picture is not None)
        self._overlay.map_highest = highest if picture is not None else ""
        if picture is not None:
            self._map.setImage(picture, autoLevels=False, levels=None)
            self._map.setRect(QRectF(0, 0, shape[1], shape[0]))
            row = np.ascontiguousarray(table)
            # A copy: the memory of the array is not Qt's.
            self._overlay.map_colours = QImage(
                row.data, len(row), 1, 3 * len(row), QImage.Format.Format_RGB888
            ).copy()
        self._overlay.update()

    def set_colours(self, table: npt.NDArray[np.uint8] | None) -> None:
        """Colour of each grey value, (256, 3), or None for grey."""
        self._image.set_table(table)

    def show_scale_bar(self, bar: ScaleBar | None, note: str) -> None:
        """Draw a scale bar, or the note that there is none."""
        self._overlay.bar, self._overlay.bar_note = bar, note
        self._overlay.update()

    def show_readout(self, text: str) -> None:
        """Text in the upper left corner: place and value under the pointer."""
        self._overlay.readout = text
        self._overlay.update()

    def show_badge(self, text: str) -> None:
        """Text in the upper right corner: that something else than usual is shown."""
        self._overlay.badge = text
        self._overlay.update()

    def show_levels(self, histogram: Histogram, low: float, high: float, auto: bool) -> None:
        """Show the distribution of the values and the levels in e⁻/px."""
        self.histogram.show_levels(histogram, low, high, auto)

    def show_range(self, wanted: Range) -> None:
        """Show a part of the image; not reported as the user's move."""
        x0, x1, y0, y1 = wanted
        self._fits = False
        self._box.setRange(xRange=(x0, x1), yRange=(y0, y1), padding=0)

    def fit(self) -> None:
        """Show the whole image, and keep doing so when the pane's size changes."""
        self._fits = True
        if self._shape is not None:
            height, width = self._shape
            self._box.setRange(QRectF(0, 0, width, height), padding=0)

    def one_to_one(self) -> None:
        """One image pixel on one screen pixel, the centre kept."""
        x0, x1, y0, y1 = self.visible_range()
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        half_w, half_h = self._box.width() / 2, self._box.height() / 2
        self.show_range((x - half_w, x + half_w, y - half_h, y + half_h))

    def visible_range(self) -> Range:
        """Visible part of the image in image pixels."""
        (x0, x1), (y0, y1) = self._box.viewRange()
        return float(x0), float(x1), float(y0), float(y1)

    @property
    def zoom(self) -> float:
        """Screen pixels per image pixel."""
        size = self._box.viewPixelSize()[0]
        return 1.0 / float(size) if size else 0.0

    def show_line(self, line: Line | None) -> None:
        """Show the profile's line with handles at its ends, or none."""
        if line is None:
            if self._line is not None:
                self._box.removeItem(self._line)
                self._line = None
            return
        if self._line is None:
            self._line = pg.LineSegmentROI(
                [line[0], line[1]],
                pen=pg.mkPen(PALETTE.accent, width=2),
                hoverPen=pg.mkPen(PALETTE.amber, width=2),
                handlePen=pg.mkPen(PALETTE.accent, width=3),
            )
            self._line.setZValue(10)
            self._box.addItem(self._line)
            self._line.sigRegionChanged.connect(self._report_line)
        elif self._line_ends() != line:
            self._line.blockSignals(True)
            self._line.setPos(0, 0)
            for handle, point in zip(self._line.getHandles(), line, strict=True):
                self._line.movePoint(handle, QPointF(*point), finish=False, coords="parent")
            self._line.blockSignals(False)
            self._line.update()

    # ----------------------------------------------------------------------------------- reporting

    @override
    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        kind = event.type()
        if kind == QEvent.Type.Leave:
            self.hovered.emit(float("nan"), float("nan"))
        elif kind == QEvent.Type.Resize:
            self._overlay.setGeometry(self._graphics.viewport().geometry())
        elif kind == QEvent.Type.MouseButtonDblClick:
            self.fit_requested.emit()
        return super().eventFilter(watched, event)

    def _on_resized(self) -> None:
        if self._fits:
            self.fit()

    def _report_range(self) -> None:
        self._fits = False
        self.range_moved.emit(self.visible_range())

    def _report_zoom(self) -> None:
        self.zoom_changed.emit(self.zoom)

    def _report_pointer(self, place: QPointF) -> None:
        point = self._box.mapSceneToView(place)
        self.hovered.emit(float(point.x()), float(point.y()))

    def _line_ends(self) -> Line:
        ends = [self._line.mapToParent(handle.pos()) for handle in self._line.getHandles()]
        return (ends[0].x(), ends[0].y()), (ends[1].x(), ends[1].y())

    def _report_line(self) -> None:
        self.line_moved.emit(self._line_ends())
