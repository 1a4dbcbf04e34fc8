"""Where on the specimen the instrument looks and shines, for the fluence map.

`Whereabouts` joins what moves the field of view over the specimen: the stage and the image shift as
they are read back, the region and the pixel size of the camera, and the drift that is measured in
the frames; and what moves the beam: its shift. A point of the specimen at s is seen at s + d - i
from the middle of the sensor, where d is the stage's position (by `stage_axes` in the axes of the
image) plus the drift, and i the image shift. The field is therefore around i - d, and a beam that
is shifted by b around b - d, wherever the camera looks.

What stage and image shift do would be measured as drift once more. So drift is not followed from
the frame before a move to the frame after it, nor from one pixel size to another.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tem_live.drivers.protocols import ColumnParts
from tem_live.errors import DeviceError
from tem_live.fluence_map import CELLS_PER_FIELD, Place
from tem_live.state import FrameInfo

PERIOD_S = 1.0
"""How often stage, beam and image shift are asked for while the beam is on, in seconds."""

STILL_NM = 5.0
"""Stage positions that are closer are taken for the same: read-back is not exact."""

STEADY_NM = 0.1
"""The same of image shifts, which are read back as they were set."""

Point = tuple[float, float]
Axes = tuple[Point, Point]


@dataclass(frozen=True, slots=True)
class Field:
    """The field of view as the camera is set.

    Attributes
    ----------
    width_nm, height_nm : float
        Its size at the specimen.
    x_nm, y_nm : float
        Its middle from that of the sensor.
    """

    width_nm: float
    height_nm: float
    x_nm: float = 0.0
    y_nm: float = 0.0


class Whereabouts:
    """See the module's text. Thread-safe.

    Parameters
    ----------
    parts : ColumnParts
        What the column can tell.
    stage_axes : ((a, b), (c, d))
        How far the image of the specimen goes to the right for a step of stage x and y (a, b), and
        down (c, d), each as a part of that step.
    field : callable
        Gives the `Field`, or None as long as the pixel size is unknown.
    next_frame : callable
        Gives the id of the next frame.
    lit : callable
        Whether the beam is, or may be, on the specimen.
    note : callable of (Place, frame id or None)
        Told each new place, and from which frame on it holds; None: from now on.
    warn : callable of str
        Told once when the column does not tell where it is.
    """

    def __init__(
        self,
        parts: ColumnParts,
        stage_axes: Axes,
        field: Callable[[], Field | None],
        next_frame: Callable[[], int],
        lit: Callable[[], bool],
        note: Callable[[Place, int | None], None],
        warn: Callable[[str], None],
    ) -> None:
        self._parts = parts
        self._axes = stage_axes
        self._field = field
        self._next_frame = next_frame
        self._lit = lit
        self._note = note
        self._warn = warn
        self._warned = False
        self._asking = threading.Lock()
        self._lock = threading.Lock()
        self._place: Place | None = None
        self._stage_nm: tuple[float, float] | None = None
        self._shift_nm = (0.0, 0.0)
        self._image_nm: tuple[float, float] | None = None
        self._radius_nm: float | None = None
        self._drift_nm = (0.0, 0.0)
        self._drift_when_asked = (0.0, 0.0)
        self._seen: tuple[int, tuple[float, float], float] | None = None
        self._known_until = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def place(self) -> Place | None:
        """Where it is now, as last found out; None as long as the pixel size is unknown."""
        with self._lock:
            return self._find()

    def place_at(self, image_shift_nm: tuple[float, float]) -> Place | None:
        """As `place`, if the camera looked at another image shift; the beam is where it is."""
        with self._lock:
            return self._find(image_shift_nm)

    def look(self) -> None:
        """Ask the column where it is and note it where it has changed. May wait for the column."""
        with self._asking:
            stage, shift, image, radius = self._ask()
            with self._lock:
                moved = False
                before = self._stage_nm
                if stage is not None and (before is None or math.dist(stage, before) > STILL_NM):
                    self._stage_nm = stage
                    moved = before is not None
                before = self._image_nm
                if image is not None and (before is None or math.dist(image, before) > STEADY_NM):
                    self._image_nm = image
                    moved = moved or before is not None
                if moved:
                    # What was taken for drift since the last look was the way of the field.
                    self._drift_nm = self._drift_when_asked
                    self._known_until = self._next_frame()
                self._drift_when_asked = self._drift_nm
                self._shift_nm = self._shift_nm if shift is None else shift
                self._radius_nm = self._radius_nm if radius is None else radius
                self._tell(None)
        parts = self._parts
        if self._thread is None and (parts.stage or parts.beam_shift or parts.image_shift):
            self._thread = threading.Thread(
                target=self._run, name="tem-live whereabouts", daemon=True
            )
            self._thread.start()

    def follow(self, info: FrameInfo) -> None:
        """Take the drift of a frame; quick, and never waits for a device."""
        drift, size_nm = info.drift_px, info.pixel_size_nm
        if drift is None or not size_nm:
            return
        with self._lock:
            before, self._seen = self._seen, (info.frame_id, drift, size_nm)
            if before is None or before[2] != size_nm or before[0] < self._known_until:
                return
            if drift == (0.0, 0.0):
                # It is measured against this frame from now on.
                return
            x, y = self._drift_nm
            self._drift_nm = (
                x + (drift[1] - before[1][1]) * size_nm,
                y + (drift[0] - before[1][0]) * size_nm,
            )
            # Of the frames between, which were not restored, half were nearer to this one.
            self._tell((before[0] + info.frame_id + 1) // 2)

    def close(self) -> None:
        """End the thread; idempotent."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _ask(self) -> tuple[Point | None, Point | None, Point | None, float | None]:
        stage = shift = image = radius = None
        parts = self._parts
        try:
            if parts.stage is not None:
                x_um, y_um = parts.stage.stage_position_um
                stage = x_um * 1000, y_um * 1000
            if parts.beam_shift is not None:
                shift = parts.beam_shift.beam_shift_nm
            if parts.image_shift is not None:
                image = parts.image_shift.image_shift_nm
            area = None if parts.beam_area is None else parts.beam_area.beam_area_nm2
            if area is not None and area > 0:
                radius = math.sqrt(area / math.pi)
        except DeviceError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"the fluence map stays where it was: {error}")
        return stage, shift, image, radius

    def _find(self, image_shift_nm: Point | None = None) -> Place | None:
        field = self._field()
        if field is None:
            return None
        x, y = self._stage_nm or (0.0, 0.0)
        (a, b), (c, d) = self._axes
        right = a * x + b * y + self._drift_nm[0]
        down = c * x + d * y + self._drift_nm[1]
        beam = None
        if self._radius_nm is not None:
            beam = self._shift_nm[0] - right, self._shift_nm[1] - down, self._radius_nm
        image_x, image_y = image_shift_nm or self._image_nm or (0.0, 0.0)
        return Place(
            field.x_nm + image_x - right,
            field.y_nm + image_y - down,
            field.width_nm,
            field.height_nm,
            beam,
        )

    def _tell(self, since: int | None) -> None:
        place = self._find()
        if place is None or (self._place is not None and _same(place, self._place)):
            return
        self._place = place
        self._note(place, since)

    def _run(self) -> None:
        while not self._closing.wait(PERIOD_S):
            if self._lit():
                # A driver of somebody else's may raise anything; the map is not worth a run.
                with contextlib.suppress(Exception):
                    self.look()


def _same(place: Place, other: Place) -> bool:
    """Whether two places differ by no more than a quarter of a cell."""
    near_nm = min(place.width_nm, place.height_nm) / CELLS_PER_FIELD / 4
    edges = (*place.box, *place.lit_box)
    others = (*other.box, *other.lit_box)
    if (place.beam is None) != (other.beam is None):
        return False
    return all(abs(a - b) <= near_nm for a, b in zip(edges, others, strict=True))
