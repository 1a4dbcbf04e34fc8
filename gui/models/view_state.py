"""How the frames are looked at: evented, without Qt, and what of it is remembered."""

from __future__ import annotations

from typing import Literal

from psygnal import EventedModel

Point = tuple[float, float]
Line = tuple[Point, Point]
Range = tuple[float, float, float, float]
"""Visible part of an image: x0, x1, y0, y1 in image pixels."""
Colours = Literal["grey", "viridis", "inferno", "cividis"]
COLOURS: tuple[Colours, ...] = ("grey", "viridis", "inferno", "cividis")


class ViewState(EventedModel):
    """Switches of the display.

    Attributes
    ----------
    shared_levels : bool
        One set of levels for both panes, so that equal greys mean equal e⁻/px.
    spectrum : bool
        Whether the power spectra are shown.
    profile : bool
        Whether the line profile is shown.
    dose : bool
        Whether the dose card is shown.
    fluence_map : bool
        Whether the fluence map is laid over the raw pane.
    rolling_mean : bool
        Whether the raw pane shows the mean of the last frames.
    hold_raw : bool
        Whether the restored pane shows the raw frame, while a key or button is held.
    colours : str
        Name of the colour map.
    line : ((x, y), (x, y)) or None
        Ends of the profile's line in image pixels; None before it was first shown.
    """

    shared_levels: bool = False
    spectrum: bool = False
    profile: bool = False
    dose: bool = False
    fluence_map: bool = False
    rolling_mean: bool = False
    hold_raw: bool = False
    colours: Colours = "grey"
    line: Line | None = None


def default_line(shape: tuple[int, int]) -> Line:
    """Line across the middle of a frame of ``shape`` (height, width)."""
    height, width = shape
    return (0.2 * width, 0.5 * height), (0.8 * width, 0.5 * height)


def clip_line(line: Line, shape: tuple[int, int]) -> Line:
    """The line with its ends inside the frame."""
    height, width = shape

    def inside(point: Point) -> Point:
        return min(max(point[0], 0.0), float(width)), min(max(point[1], 0.0), float(height))

    return inside(line[0]), inside(line[1])
