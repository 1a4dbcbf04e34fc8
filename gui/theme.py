"""One dark look for the whole program: palette, type, grid and style sheet.

Colour carries meaning and nothing else does: the accent marks what is on, amber what waits or
needs care, red only a beam on the specimen, the emergency button and a recording.
"""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtGui import QColor, QFont, QFontDatabase, QPalette
from PySide6.QtWidgets import QApplication

GRID = 8
"""Distances are multiples of it, in pixels."""
COLUMN_WIDTH = 304
"""Width of the column of panels in pixels."""


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of the theme."""

    ground: str = "#101216"
    image: str = "#08090b"
    panel: str = "#171a20"
    field: str = "#20242c"
    field_hover: str = "#2a303a"
    line: str = "#2b313b"
    line_strong: str = "#3c4450"
    text: str = "#e8ebf0"
    muted: str = "#98a1b0"
    faint: str = "#5f6876"
    accent: str = "#58b6c9"
    accent_dark: str = "#1d3d46"
    amber: str = "#e3a84a"
    amber_dark: str = "#3a2e1a"
    red: str = "#f0575b"
    red_strong: str = "#c9353b"
    red_dark: str = "#3c1d20"


PALETTE = Palette()

_TEXT_FAMILIES = ("Inter", "Segoe UI", "SF Pro Text", "Noto Sans", "Open Sans", "DejaVu Sans")


def text_font(pixel_size: int = 12) -> QFont:
    """The program's font: the first of our families that this computer has, tabular figures."""
    known = set(QFontDatabase.families())
    font = QFont(next((name for name in _TEXT_FAMILIES if name in known), QFont().family()))
    font.setPixelSize(pixel_size)
    # Digits of one width: numbers that change must not make their neighbours dance.
    font.setFeature(QFont.Tag("tnum"), 1)
    return font


def apply(app: QApplication) -> None:
    """Give an application the theme, unless it has it."""
    sheet = style_sheet(PALETTE)
    if app.styleSheet() == sheet:
        return
    app.setStyle("Fusion")
    app.setFont(text_font())
    app.setPalette(_qt_palette(PALETTE))
    app.setStyleSheet(sheet)


def _qt_palette(colours: Palette) -> QPalette:
    role = QPalette.ColorRole
    palette = QPalette()
    for key, value in (
        (role.Window, colours.ground),
        (role.WindowText, colours.text),
        (role.Base, colours.field),
        (role.AlternateBase, colours.panel),
        (role.Text, colours.text),
        (role.PlaceholderText, colours.faint),
        (role.Button, colours.field),
        (role.ButtonText, colours.text),
        (role.ToolTipBase, colours.field),
        (role.ToolTipText, colours.text),
        (role.Highlight, colours.accent_dark),
        (role.HighlightedText, colours.text),
    ):
        palette.setColor(key, QColor(value))
    for key in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, key, QColor(colours.faint))
    return palette


def style_sheet(c: Palette) -> str:
    """The style sheet."""
    return f"""
    QMainWindow, QDialog {{ background: {c.ground}; }}
    QWidget {{ color: {c.text}; }}
    QToolTip {{ background: {c.field}; color: {c.text}; border: 1px solid {c.line_strong};
        padding: 4px; }}

    QFrame#topBar {{ background: {c.panel}; border-bottom: 1px solid {c.line}; }}
    QFrame#statusStrip {{ background: {c.panel}; border-top: 1px solid {c.line}; }}
    QFrame#panel {{ background: {c.panel}; border: 1px solid {c.line}; border-radius: 6px; }}
    QFrame#paneFrame {{ background: {c.panel}; border: 1px solid {c.line}; border-radius: 6px; }}
    QWidget#column, QScrollArea#column {{ background: {c.ground}; border: none; }}
    QSplitter::handle {{ background: transparent; }}

    QLabel {{ background: transparent; }}
    QLabel#wordmark {{ font-size: 15px; font-weight: 600; }}
    QLabel#panelTitle {{ color: {c.muted}; font-size: 11px; font-weight: 600; }}
    QLabel#paneTitle {{ font-size: 13px; font-weight: 600; }}
    QLabel#paneDetail {{ color: {c.muted}; }}
    QLabel#frameId {{ font-size: 13px; font-weight: 600; color: {c.text};
        background: {c.field}; border-radius: 4px; padding: 3px 12px; }}
    QLabel#name {{ color: {c.muted}; }}
    QLabel#value {{ color: {c.text}; }}
    QLabel#hero {{ color: {c.text}; font-size: 17px; font-weight: 600; }}
    QLabel#faint {{ color: {c.faint}; }}
    QLabel#value[alert="true"] {{ color: {c.amber}; }}

    QLabel#beamChip {{ border-radius: 4px; padding: 0 12px; font-weight: 600;
        background: {c.field}; color: {c.muted}; border: 1px solid {c.line_strong}; }}
    QLabel#beamChip[beam="on"] {{ background: {c.red_dark}; color: {c.red};
        border-color: {c.red_strong}; }}
    QLabel#beamChip[beam="blanked"] {{ background: {c.accent_dark}; color: {c.accent};
        border-color: {c.accent}; }}
    QLabel#beamChip[beam="pending"] {{ background: {c.amber_dark}; color: {c.amber};
        border-color: {c.amber}; }}

    QPushButton {{ background: {c.field}; border: 1px solid {c.line_strong}; border-radius: 4px;
        padding: 0 8px; min-height: 22px; color: {c.text}; }}
    QPushButton:hover {{ background: {c.field_hover}; }}
    QPushButton:pressed {{ background: {c.line}; }}
    QPushButton:focus {{ border-color: {c.accent}; }}
    QPushButton:disabled {{ color: {c.faint}; border-color: {c.line}; background: {c.panel}; }}
    QPushButton:checked {{ background: {c.accent_dark}; border-color: {c.accent};
        color: {c.text}; }}
    QPushButton[flat="true"] {{ background: transparent; border: none; color: {c.muted}; }}
    QPushButton[flat="true"]:hover {{ color: {c.text}; }}
    QPushButton#emergency {{ background: {c.red_strong}; border: 1px solid {c.red};
        color: white; font-size: 13px; font-weight: 700; min-height: 32px; border-radius: 6px; }}
    QPushButton#emergency:hover {{ background: {c.red}; }}
    QPushButton#emergency:pressed {{ background: {c.red_dark}; }}
    QPushButton#primary {{ background: {c.accent_dark}; border-color: {c.accent};
        font-weight: 600; }}
    QPushButton#primary:hover {{ background: {c.line_strong}; }}
    QPushButton#primary:disabled {{ background: {c.panel}; border-color: {c.line}; }}
    QPushButton#record[recording="true"] {{ border-color: {c.red_strong};
        background: {c.red_dark}; }}
    QPushButton#record[recording="true"][blink="true"] {{ background: {c.red_strong};
        color: white; }}

    QAbstractSpinBox, QComboBox, QLineEdit {{ background: {c.field};
        border: 1px solid {c.line_strong}; border-radius: 4px; padding: 0 8px; min-height: 22px;
        selection-background-color: {c.accent_dark}; }}
    QAbstractSpinBox::up-button, QAbstractSpinBox::down-button {{ width: 0; border: none; }}
    QAbstractSpinBox QLineEdit {{ border: none; padding: 0; min-height: 0;
        background: transparent; }}
    QAbstractSpinBox:focus, QComboBox:focus, QLineEdit:focus {{ border-color: {c.accent}; }}
    QAbstractSpinBox:disabled, QComboBox:disabled {{ color: {c.faint}; border-color: {c.line};
        background: {c.panel}; }}
    *[pending="true"] {{ border-color: {c.amber}; color: {c.amber}; }}
    QComboBox::drop-down {{ border: none; width: 24px; }}
    QComboBox QAbstractItemView {{ background: {c.field}; border: 1px solid {c.line_strong};
        selection-background-color: {c.accent_dark}; outline: none; padding: 4px; }}

    QTableWidget {{ background: transparent; border: none; }}
    QTableWidget::item {{ padding: 0 4px; }}
    QHeaderView {{ background: transparent; }}
    QHeaderView::section {{ background: transparent; color: {c.muted}; border: none;
        border-bottom: 1px solid {c.line}; padding: 2px 4px; font-size: 11px; }}

    QProgressBar {{ background: {c.field}; border: none; border-radius: 3px; max-height: 6px;
        min-height: 6px; }}
    QProgressBar::chunk {{ background: {c.accent}; border-radius: 3px; }}
    QProgressBar[alert="true"]::chunk {{ background: {c.amber}; }}

    QFrame#messageBar {{ background: {c.field}; border: 1px solid {c.line_strong};
        border-radius: 6px; }}
    QFrame#messageBar[level="warning"] {{ background: {c.amber_dark}; border-color: {c.amber}; }}
    QFrame#messageBar[level="error"] {{ background: {c.red_dark}; border-color: {c.red_strong}; }}
    QFrame#banner {{ background: {c.red_strong}; border: none; border-radius: 6px; }}
    QFrame#banner QLabel {{ color: white; }}
    QFrame#banner QLabel#bannerTitle {{ font-size: 15px; font-weight: 700; }}

    QFrame#helpCard {{ background: {c.panel}; border: 1px solid {c.line_strong};
        border-radius: 8px; }}
    QLabel#helpTitle {{ font-size: 15px; font-weight: 600; }}
    QLabel#key {{ background: {c.field}; border: 1px solid {c.line_strong}; border-radius: 4px;
        padding: 2px 8px; font-weight: 600; }}

    QToolButton {{ border: none; border-radius: 4px; padding: 2px; }}
    QToolButton:hover {{ background: {c.field_hover}; }}

    QScrollBar:vertical {{ background: transparent; width: 8px; margin: 0; }}
    QScrollBar::handle:vertical {{ background: {c.line_strong}; border-radius: 4px;
        min-height: 24px; }}
    QScrollBar::add-line, QScrollBar::sub-line {{ height: 0; width: 0; }}
    QScrollBar::add-page, QScrollBar::sub-page {{ background: transparent; }}
    """
