"""From a frame to what the screen shows of it: 8-bit planes, histograms, spectra, profiles.

All of it is computed in one call, for the raw and the restored plane of one frame, and handed over
as one object. So the two panes cannot show different frames. It runs on a worker thread.

The planes stay where they live. Of a large frame only what is on the screen, at the screen's
resolution, some values for the levels, the middle for the spectrum and the surroundings of the
profile's line come to the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from tem_live.device_frame import DeviceFrame, DevicePlane
from tem_live.gui.models.levels import (
    Histogram,
    follow,
    histogram,
    ordered,
    robust_levels,
    sample,
    sample_step,
)
from tem_live.gui.models.view_state import Line, Range, clip_line, default_line
from tem_live.state import FrameInfo

Plane = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SPECTRUM_SIZE = 512
PROFILE_WIDTH_PX = 5
MARGIN = 0.25
"""What is drawn beyond the visible part on each side, as a share of it: moved a little, the picture
has no empty edge until the next one comes."""


@dataclass(frozen=True, slots=True)
class PaneLevels:
    """Levels shown so far in e⁻/px; with ``auto`` they move to what the percentiles ask for."""

    auto: bool
    low: float
    high: float
    low_percent: float
    high_percent: float


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """What is wanted of a frame.

    Attributes
    ----------
    generation : int
        Number of the request; an answer to an outdated one is dropped.
    raw, restored : PaneLevels
        Levels of the panes.
    shared : bool
        Both panes use the levels of the restored one (of the raw one if there is no other).
    spectrum : bool
        Whether the power spectra are wanted.
    profile : bool
        Whether the line profile is wanted.
    line : Line or None
        Its ends in image pixels; None for a line across the middle.
    shrink : int
        Side of the square of pixels that one pixel of the shown image is the mean of. What is
        smaller than a pixel of the screen need not be sent there; a mean, unlike leaving pixels
        out, makes no false fringes of a lattice.
    visible : Range or None
        The part of the frame that is on the screen, in its pixels; None for all of it.
    visible_of : (height, width) or None
        Shape of the frames that `visible` was chosen on; one of another shape is drawn as a whole.
    """

    generation: int
    raw: PaneLevels
    restored: PaneLevels
    shared: bool = False
    spectrum: bool = False
    profile: bool = False
    line: Line | None = None
    shrink: int = 1
    visible: Range | None = None
    visible_of: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """A rectangle of whole pixels of a frame."""

    top: int
    left: int
    height: int
    width: int

    def holds(self, other: Extent) -> bool:
        """Whether all of another lies within."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.left + self.width >= other.left + other.width
            and self.top + self.height >= other.top + other.height
        )


@dataclass(frozen=True, slots=True)
class RenderedPlane:
    """One pane.

    Attributes
    ----------
    plane : DevicePlane
        The plane in e⁻/px.
    image : ndarray (h, w) uint8
        What is drawn of it between the levels, shrunk as requested.
    extent : Extent
        What part of the plane `image` shows.
    levels : (low, high)
        Levels that ``image`` was made with, in e⁻/px.
    histogram : Histogram
        Distribution of the values.
    spectrum : ndarray (h, w) uint8 or None
        Log power spectrum, zero frequency in the middle.
    profile : ndarray (n,) float32 or None
        Values along the line in e⁻/px.
    """

    plane: DevicePlane
    image: Bytes
    extent: Extent
    levels: tuple[float, float]
    histogram: Histogram
    spectrum: Bytes | None
    profile: Plane | None


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """Raw and restored plane of one frame, ready to be shown.

    Attributes
    ----------
    generation : int
        Of the request.
    meta : FrameInfo
        Of the one frame that both planes belong to.
    raw : RenderedPlane
        Left pane.
    restored : RenderedPlane or None
        Right pane; None where the frame was not restored.
    is_mean : bool
        Whether the left pane is the mean of the last frames rather than this one.
    nyquist_per_nm : float or None
        Frequency at the edge of the spectra in 1/nm; None without pixel size.
    profile_nm : ndarray (n,) or None
        Distance along the line in nm, in px if there is no pixel size.
    line : Line or None
        The line's ends in image pixels, within the frame.
    """

    generation: int
    meta: FrameInfo
    raw: RenderedPlane
    restored: RenderedPlane | None
    is_mean: bool
    nyquist_per_nm: float | None
    profile_nm: Plane | None
    line: Line | None


def render(
    frame: DeviceFrame, request: RenderRequest, mean: DevicePlane | None = None
) -> RenderedPair:
    """Prepare a frame for the screen.

    Parameters
    ----------
    frame : DeviceFrame
        The frame; both panes come from it.
    request : RenderRequest
        What is wanted.
    mean : DevicePlane or None
        Mean of the last frames for the left pane; its shape is the frame's, else it is not used.
    """
    shape = frame.electrons.shape
    is_mean = mean is not None and mean.shape == shape
    left = mean if is_mean and mean is not None else frame.electrons
    left_drawn = _drawn(left, request)
    right_drawn = None if frame.restored is None else _drawn(frame.restored, request)
    left_levels = _levels(left_drawn.sample, request.raw)
    right_levels = None if right_drawn is None else _levels(right_drawn.sample, request.restored)
    if request.shared:
        left_levels = right_levels = right_levels or left_levels
    pixel = frame.meta.pixel_size_nm
    distance = None
    line = None
    if request.profile:
        line = clip_line(request.line or default_line(shape), shape)
        count = _samples(line)
        span = float(np.hypot(line[1][0] - line[0][0], line[1][1] - line[0][1]))
        distance = np.linspace(0.0, span * (pixel or 1.0), count, dtype=np.float32)
    return RenderedPair(
        generation=request.generation,
        meta=frame.meta,
        raw=_rendered(left_drawn, left_levels, request.spectrum, line),
        restored=(
            None
            if right_drawn is None or right_levels is None
            else _rendered(right_drawn, right_levels, request.spectrum, line)
        ),
        is_mean=is_mean,
        nyquist_per_nm=None if pixel is None else 0.5 / pixel,
        profile_nm=distance,
        line=line,
    )


def fitting(shrink: int, shape: tuple[int, int]) -> int:
    """Side of the squares of pixels that a frame is drawn in: none is larger than the frame."""
    return max(1, min(shrink, *shape))


def drawn_extent(
    shape: tuple[int, int], factor: int, visible: Range | None, margin: float = MARGIN
) -> Extent:
    """What is drawn of a frame: the visible part and a margin, in whole squares of ``factor`` px.

    An edge of the frame that makes no whole square is left out. See `fitting` for the squares.
    """
    factor = fitting(factor, shape)
    rows, columns = (size // factor for size in shape)
    top, left, bottom, right = 0, 0, rows, columns
    if visible is not None:
        x0, x1, y0, y1 = visible
        more_x, more_y = margin * (x1 - x0), margin * (y1 - y0)
        left = min(max(0, math.floor((x0 - more_x) / factor)), columns - 1)
        top = min(max(0, math.floor((y0 - more_y) / factor)), rows - 1)
        right = min(columns, max(left + 1, math.ceil((x1 + more_x) / factor)))
        bottom = min(rows, max(top + 1, math.ceil((y1 + more_y) / factor)))
    return Extent(top * factor, left * factor, (bottom - top) * factor, (right - left) * factor)


def to_bytes(plane: npt.NDArray[Any], low: float, high: float) -> Bytes:
    """Grey values 0 to 255 between two levels; what is not a number is black."""
    low, high = ordered(low, high)
    scaled = np.multiply(plane, np.float32(255.0 / (high - low)), dtype=np.float32)
    scaled -= np.float32(low * 255.0 / (high - low))
    np.clip(scaled, 0.0, 255.0, out=scaled)
    np.nan_to_num(scaled, copy=False)
    grey: Bytes = scaled.astype(np.uint8)
    return grey


def power_spectrum(plane: DevicePlane, size: int = SPECTRUM_SIZE) -> Bytes:
    """Log power spectrum of the middle of a plane as grey values, zero frequency in the middle.

    The middle ``size`` × ``size`` pixels are taken at full resolution, so that the edge of the
    spectrum stays the camera's Nyquist frequency, under a Hann window against the edges' cross.
    """
    height, width = plane.shape
    side = min(size, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = plane.part(slice(top, top + side), slice(left, left + side))
    crop = np.nan_to_num(middle).astype(np.float32)
    window = np.hanning(side + 2)[1:-1].astype(np.float32)
    crop = (crop - crop.mean()) * window[:, None] * window[None, :]
    power = np.abs(fft.fft2(crop)) ** 2
    power = np.log10(fft.fftshift(power) + 1e-12 * float(power.max()) + 1e-30)
    low, high = np.percentile(power, (20.0, 99.95))
    return to_bytes(power, float(low), float(high))


def line_profile(plane: DevicePlane, line: Line) -> Plane:
    """Values along a line in e⁻/px, the mean over a few pixels across it."""
    (x0, y0), (x1, y1) = line = clip_line(line, plane.shape)
    count = _samples(line)
    span = float(np.hypot(x1 - x0, y1 - y0)) or 1.0
    normal_x, normal_y = -(y1 - y0) / span, (x1 - x0) / span
    along = np.linspace(0.0, 1.0, count)
    across = np.arange(PROFILE_WIDTH_PX) - (PROFILE_WIDTH_PX - 1) / 2
    # The centre of pixel (0, 0) is at (0.5, 0.5) on the screen and at (0, 0) in the array.
    x = x0 + (x1 - x0) * along[None, :] + normal_x * across[:, None] - 0.5
    y = y0 + (y1 - y0) * along[None, :] + normal_y * across[:, None] - 0.5
    # Only the line's surroundings: the interpolation would otherwise convert all of a 4k plane.
    top, left = max(0, int(y.min()) - 2), max(0, int(x.min()) - 2)
    part = plane.part(slice(top, int(y.max()) + 3), slice(left, int(x.max()) + 3))
    values = ndimage.map_coordinates(part, (y - top, x - left), order=1, mode="nearest")
    mean: Plane = values.mean(axis=0).astype(np.float32)
    return mean


def _samples(line: Line) -> int:
    return max(2, int(np.ceil(np.hypot(line[1][0] - line[0][0], line[1][1] - line[0][1]))) + 1)


def _levels(values: Plane, levels: PaneLevels) -> tuple[float, float]:
    if levels.auto:
        wanted = robust_levels(values, levels.low_percent, levels.high_percent)
        return follow((levels.low, levels.high), wanted)
    return levels.low, levels.high


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What of a plane has come to the host."""

    plane: DevicePlane
    small: Plane
    extent: Extent
    sample: Plane


def _drawn(plane: DevicePlane, request: RenderRequest) -> _Drawn:
    factor = fitting(request.shrink, plane.shape)
    visible = request.visible if request.visible_of == plane.shape else None
    whole = drawn_extent(plane.shape, factor, None)
    extent = drawn_extent(plane.shape, factor, visible)
    rows = slice(extent.top, extent.top + extent.height)
    columns = slice(extent.left, extent.left + extent.width)
    small = plane.part(rows, columns, factor)
    some = small
    if extent != whole:
        # The levels are those of the whole frame, wherever one looks.
        some = plane.part(factor=factor, step=sample_step(whole.height * whole.width // factor**2))
    return _Drawn(plane, small, extent, sample(some))


def _rendered(
    drawn: _Drawn, levels: tuple[float, float], spectrum: bool, line: Line | None
) -> RenderedPlane:
    return RenderedPlane(
        plane=drawn.plane,
        image=to_bytes(drawn.small, *levels),
        extent=drawn.extent,
        levels=levels,
        histogram=histogram(drawn.sample),
        spectrum=power_spectrum(drawn.plane) if spectrum else None,
        profile=None if line is None else line_profile(drawn.plane, line),
    )
