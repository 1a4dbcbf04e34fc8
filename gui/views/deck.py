"""Below the images: power spectra, line profile and dose, each only while it is wanted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyqtgraph as pg
from PySide6.QtCore import QRectF
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from tem_live.gui.models.quantities import DOSE_PX
from tem_live.gui.theme import GRID, PALETTE, text_font
from tem_live.gui.views.widgets import ElidedLabel


def _style_axis(axis: object) -> None:
    axis.setPen(pg.mkPen(PALETTE.line_strong))  # type: ignore[attr-defined]
    axis.setTextPen(pg.mkPen(PALETTE.muted))  # type: ignore[attr-defined]
    axis.setStyle(tickFont=text_font(11), tickLength=-4)  # type: ignore[attr-defined]


class Card(QFrame):
    """Framed plot with a title, in a vertical ``box``."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.setObjectName("paneFrame")
        self.box = box = QVBoxLayout(self)
        box.setContentsMargins(12, GRID, 12, GRID)
        box.setSpacing(4)
        self.head = QHBoxLayout()
        # Shortened rather than that it keeps the other cards from their place.
        self.title = ElidedLabel(title)
        self.title.setObjectName("panelTitle")
        self.head.addWidget(self.title, 1)
        box.addLayout(self.head)
        self.plot = pg.PlotWidget(background=PALETTE.panel)
        self.plot.setFrameShape(QFrame.Shape.NoFrame)
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setMinimumSize(120, 96)
        for side in ("left", "bottom"):
            _style_axis(self.plot.getAxis(side))
        box.addWidget(self.plot, 1)


class SpectrumView(Card):
    """Log power spectrum with its axes in 1/nm."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self._image = pg.ImageItem(axisOrder="row-major")
        self.plot.addItem(self._image)
        self.plot.setAspectLocked(True)
        self.plot.invertY(True)
        self.unit = QLabel("")
        self.unit.setObjectName("faint")
        self.head.addWidget(self.unit)
        self._extent = 0.0

    def show_spectrum(
        self, spectrum: npt.NDArray[np.uint8] | None, nyquist_per_nm: float | None
    ) -> None:
        """Show a spectrum whose edge is at ``nyquist_per_nm`` (in 1/px without pixel size)."""
        self.unit.setText(f"axes in {'1/px' if nyquist_per_nm is None else '1/nm'}")
        if spectrum is None:
            self._image.clear()
            return
        edge = 0.5 if nyquist_per_nm is None else nyquist_per_nm
        self._image.setImage(spectrum, autoLevels=False, levels=None)
        self._image.setRect(QRectF(-edge, -edge, 2 * edge, 2 * edge))
        if edge != self._extent:
            self._extent = edge
            self.plot.setRange(QRectF(-edge, -edge, 2 * edge, 2 * edge), padding=0)


class ProfileView(Card):
    """Values along the line, raw and restored, in e⁻/px against nm."""

    def __init__(self) -> None:
        super().__init__("Line profile")
        for text, colour in (("raw", PALETTE.faint), ("restored", PALETTE.accent)):
            label = QLabel(f"— {text}")
            label.setStyleSheet(f"color: {colour};")
            self.head.addWidget(label)
        self.plot.setMouseEnabled(False, False)
        self.plot.showGrid(x=True, y=True, alpha=0.12)
        self._raw = self.plot.plot(pen=pg.mkPen(PALETTE.faint, width=1))
        self._restored = self.plot.plot(pen=pg.mkPen(PALETTE.accent, width=2))
        style = {"color": PALETTE.muted, "font-size": "11px"}
        self.plot.getAxis("left").setLabel(DOSE_PX, **style)
        self.plot.getAxis("left").enableAutoSIPrefix(False)
        self.plot.getAxis("bottom").enableAutoSIPrefix(False)
        self._style = style
        self._unit = ""

    def show_profile(
        self,
        distance: npt.NDArray[np.float32],
        raw: npt.NDArray[np.float32] | None,
        restored: npt.NDArray[np.float32] | None,
        unit: str,
    ) -> None:
        """Show values in e⁻/px against a distance in ``unit`` (nm or px)."""
        if unit != self._unit:
            self._unit = unit
            self.plot.getAxis("bottom").setLabel(f"distance / {unit}", **self._style)
        none = np.zeros(0, np.float32)
        self._raw.setData(none if raw is None else distance, none if raw is None else raw)
        self._restored.setData(
            none if restored is None else distance, none if restored is None else restored
        )


_LEAST_PX = 176


class Deck(QWidget):
    """Spectra, profile and dose in one row.

    Parameters
    ----------
    dose : QWidget
        The dose card.
    """

    def __init__(self, dose: QWidget, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._dose = dose
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(GRID)
        self.raw_spectrum = SpectrumView("Power spectrum · raw")
        self.restored_spectrum = SpectrumView("Power spectrum · restored")
        self.profile = ProfileView()
        for card in (self.raw_spectrum, self.restored_spectrum, self.profile):
            row.addWidget(card, 1)
        row.addWidget(dose, 3)
        self.show_parts(False, False, False)

    def show_parts(self, spectrum: bool, profile: bool, dose: bool) -> None:
        """Show what is wanted; nothing wanted, no deck."""
        self.raw_spectrum.setVisible(spectrum)
        self.restored_spectrum.setVisible(spectrum)
        self.profile.setVisible(profile)
        self._dose.setVisible(dose)
        # The figures of the dose card cannot be made smaller, as plots can.
        needed = self._dose.minimumSizeHint().height() if dose else 0
        self.setMinimumHeight(max(_LEAST_PX, needed))
        self.setVisible(spectrum or profile or dose)

    def show_spectra(
        self,
        raw: npt.NDArray[np.uint8],
        restored: npt.NDArray[np.uint8] | None,
        nyquist_per_nm: float | None,
        is_mean: bool,
    ) -> None:
        """Show the spectra of both panes; see `SpectrumView.show_spectrum`."""
        self.raw_spectrum.title.set_full(f"Power spectrum · {'mean' if is_mean else 'raw'}")
        self.raw_spectrum.show_spectrum(raw, nyquist_per_nm)
        self.restored_spectrum.show_spectrum(restored, nyquist_per_nm)

    def show_profile(
        self,
        distance: npt.NDArray[np.float32],
        raw: npt.NDArray[np.float32] | None,
        restored: npt.NDArray[np.float32] | None,
        unit: str,
    ) -> None:
        """Show the profile; see `ProfileView.show_profile`."""
        self.profile.show_profile(distance, raw, restored, unit)
