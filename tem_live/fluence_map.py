"""The fluence map: what each place of the specimen has taken, in e-/A^2, on a grid in nm.

The map is a function of the dose ledger and of nothing else: `LedgerMap` reads an area's files,
again and again from where it stopped, and adds every booking to the cells that were lit. Nothing
is kept beside the ledger, so a program that is killed loses no more of the map than of the ledger,
and there is nothing to clear by accident. It is read when somebody looks, on the looker's thread;
frames never wait for it.

Coordinates are those of the specimen in nm, x to the right and y down as in the image, with the
stage at (0, 0) and no drift in the middle of the sensor (see `tem_live.whereabouts`).
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError, RecordingError
from tem_live.ledger import ledger_files

CELLS_PER_FIELD = 64
"""Cells along the shorter side of the smallest field, at least; the cell is a power of 2 nm."""

TILE = 64
"""Cells along the side of a tile, the unit in which the grid grows."""

MOST_TILES = 256
"""Tiles in memory (8 MiB). What needs more is kept in cells of twice the size."""

RECENT = 512
"""Bookings that a place which is found out later can still be given to."""

_CHUNK_BYTES = 1 << 20

Grid = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """What of the specimen is in view and lit.

    Attributes
    ----------
    x_nm, y_nm : float
        Middle of the field of view in specimen coordinates.
    width_nm, height_nm : float
        Size of the field of view.
    beam : (x_nm, y_nm, radius_nm) or None
        The lit disc; None where the illuminated area is unknown, and the field is taken for it.
    """

    x_nm: float
    y_nm: float
    width_nm: float
    height_nm: float
    beam: tuple[float, float, float] | None = None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge of the field of view in nm."""
        return self.field_box()

    def field_box(self, scale: float = 1.0) -> tuple[float, float, float, float]:
        """The same of a field that is larger or smaller about its middle, as for other optics."""
        half_w, half_h = scale * self.width_nm / 2, scale * self.height_nm / 2
        return self.x_nm - half_w, self.y_nm - half_h, self.x_nm + half_w, self.y_nm + half_h

    @property
    def lit_box(self) -> tuple[float, float, float, float]:
        """The same of what is lit."""
        if self.beam is None:
            return self.box
        x, y, radius = self.beam
        return x - radius, y - radius, x + radius, y + radius

    def beam_reaches_field(self, scale: float = 1.0) -> bool:
        """Whether the lit disc reaches into the field of view; False where it is unknown.

        ``scale`` makes the field larger or smaller about its middle, as for other optics.
        """
        if self.beam is None:
            return False
        x, y, radius = self.beam
        beside = max(abs(x - self.x_nm) - scale * self.width_nm / 2, 0.0)
        below = max(abs(y - self.y_nm) - scale * self.height_nm / 2, 0.0)
        return math.hypot(beside, below) < radius

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, to a thousandth of a nm."""
        beam = None if self.beam is None else [round(value, 3) for value in self.beam]
        return {
            "x_nm": round(self.x_nm, 3),
            "y_nm": round(self.y_nm, 3),
            "width_nm": round(self.width_nm, 3),
            "height_nm": round(self.height_nm, 3),
            "beam": beam,
        }

    @classmethod
    def of(cls, found: Any) -> Place | None:
        """From `as_dict`; None for what is none."""
        try:
            beam = found["beam"]
            place = cls(
                float(found["x_nm"]),
                float(found["y_nm"]),
                float(found["width_nm"]),
                float(found["height_nm"]),
                None if beam is None else (float(beam[0]), float(beam[1]), float(beam[2])),
            )
        except (TypeError, KeyError, IndexError, ValueError):
            return None
        sizes = place.width_nm, place.height_nm, *((beam[2],) if beam else ())
        known = all(math.isfinite(value) for value in (*place.box, *place.lit_box))
        return place if known and all(size > 0 for size in sizes) else None


def cell_for(place: Place) -> float:
    """Side of a cell in nm that is fine enough for a field: a power of 2."""
    side = min(place.width_nm, place.height_nm) / CELLS_PER_FIELD
    return 2.0 ** math.floor(math.log2(side))


class FluenceMap:
    """Fluence on a grid that grows in tiles. Not thread-safe.

    Parameters
    ----------
    cell_nm : float
        Side of a cell in nm.

    Attributes
    ----------
    cell_nm : float
        As given, or a larger one where the map would not fit into `MOST_TILES`.
    """

    def __init__(self, cell_nm: float) -> None:
        self.cell_nm = cell_nm
        # By (row, column) of the tile; cell (0, 0) begins at the origin.
        self._tiles: dict[tuple[int, int], Grid] = {}

    @property
    def tiles(self) -> int:
        """Tiles in memory."""
        return len(self._tiles)

    def add(self, place: Place, fluence_e_per_A2: float) -> None:
        """Add a fluence in e-/A^2 to what is lit; a cell at its edge gets its part of it."""
        while self._missing(place) + len(self._tiles) > MOST_TILES:
            self._coarsen()
        left, top, right, bottom = (edge / self.cell_nm for edge in place.lit_box)
        first_row, last_row = math.floor(top), math.ceil(bottom)
        first, last = math.floor(left), math.ceil(right)
        rows = np.arange(first_row, last_row)
        columns = np.arange(first, last)
        if place.beam is None:
            # Of a rectangle the covered part of a cell is exact.
            covered = np.outer(_overlap(rows, top, bottom), _overlap(columns, left, right))
        else:
            x, y, radius = (value / self.cell_nm for value in place.beam)
            distance = np.hypot(rows[:, None] + 0.5 - y, columns[None, :] + 0.5 - x)
            covered = np.clip(radius - distance + 0.5, 0.0, 1.0)
        covered *= fluence_e_per_A2
        for row in range(first_row // TILE, (last_row - 1) // TILE + 1):
            for column in range(first // TILE, (last - 1) // TILE + 1):
                y0, y1 = max(row * TILE, first_row), min((row + 1) * TILE, last_row)
                x0, x1 = max(column * TILE, first), min((column + 1) * TILE, last)
                part = covered[y0 - first_row : y1 - first_row, x0 - first : x1 - first]
                tile = self._tiles.get((row, column))
                if tile is None:
                    tile = self._tiles[row, column] = np.zeros((TILE, TILE))
                tile[
                    y0 - row * TILE : y1 - row * TILE, x0 - column * TILE : x1 - column * TILE
                ] += part

    def bounds(self) -> tuple[float, float, float, float] | None:
        """Left, top, right and bottom edge in nm of the cells that took anything, or None."""
        edges = []
        for (row, column), tile in self._tiles.items():
            rows, columns = np.nonzero(tile > 0)
            if rows.size:
                edges.append(
                    (
                        column * TILE + int(columns.min()),
                        row * TILE + int(rows.min()),
                        column * TILE + int(columns.max()) + 1,
                        row * TILE + int(rows.max()) + 1,
                    )
                )
        if not edges:
            return None
        lefts, tops, rights, bottoms = zip(*edges, strict=True)
        cell = self.cell_nm
        return min(lefts) * cell, min(tops) * cell, max(rights) * cell, max(bottoms) * cell

    def window(
        self, box: tuple[float, float, float, float]
    ) -> tuple[Grid, tuple[float, float, float, float]]:
        """The cells that a box in nm touches.

        Returns
        -------
        (values, box)
            (H, W) float64 in e-/A^2, and the edges of those cells in nm: left, top, right, bottom.
        """
        cell = self.cell_nm
        first, first_row = math.floor(box[0] / cell), math.floor(box[1] / cell)
        last = max(math.ceil(box[2] / cell), first + 1)
        last_row = max(math.ceil(box[3] / cell), first_row + 1)
        values = np.zeros((last_row - first_row, last - first))
        for (row, column), tile in self._tiles.items():
            y0, y1 = max(row * TILE, first_row), min((row + 1) * TILE, last_row)
            x0, x1 = max(column * TILE, first), min((column + 1) * TILE, last)
            if y0 < y1 and x0 < x1:
                values[y0 - first_row : y1 - first_row, x0 - first : x1 - first] = tile[
                    y0 - row * TILE : y1 - row * TILE, x0 - column * TILE : x1 - column * TILE
                ]
        # Taking a booking back from a place leaves rounding errors of 1e-16.
        np.maximum(values, 0.0, out=values)
        return values, (first * cell, first_row * cell, last * cell, last_row * cell)

    def highest(self, box: tuple[float, float, float, float] | None = None) -> float:
        """Highest fluence in e-/A^2 of a cell that a box in nm touches; by default of all."""
        highest = 0.0
        for (row, column), tile in self._tiles.items():
            part = tile
            if box is not None:
                left, top, right, bottom = (edge / self.cell_nm for edge in box)
                y, x = row * TILE, column * TILE
                rows = slice(max(math.floor(top) - y, 0), max(math.ceil(bottom) - y, 0))
                columns = slice(max(math.floor(left) - x, 0), max(math.ceil(right) - x, 0))
                part = tile[rows, columns]
            highest = max(highest, float(part.max(initial=0.0)))
        return highest

    def whole(self, most_cells: int) -> tuple[Grid, tuple[float, float, float, float]] | None:
        """All of it as one array, in larger cells where a side had more than ``most_cells``.

        Returns
        -------
        (values, box) or None
            As `window`; means over the larger cells. None where nothing was booked.
        """
        box = self.bounds()
        return None if box is None else self.part(box, most_cells)

    def part(
        self, box: tuple[float, float, float, float], most_cells: int
    ) -> tuple[Grid, tuple[float, float, float, float]]:
        """As `window`, in larger cells where a side of the box had more than ``most_cells``."""
        found = self
        while max(box[2] - box[0], box[3] - box[1]) / found.cell_nm > most_cells:
            if found is self:
                found = FluenceMap(self.cell_nm)
                found._tiles = self._tiles
            found._coarsen()
        return found.window(box)

    def _missing(self, place: Place) -> int:
        """Tiles that would have to be made for a place, not more than one over the most."""
        side = self.cell_nm * TILE
        left, top, right, bottom = (edge / side for edge in place.lit_box)
        rows = range(math.floor(top), math.ceil(bottom))
        columns = range(math.floor(left), math.ceil(right))
        if len(rows) * len(columns) > 2 * MOST_TILES:
            return MOST_TILES + 1
        return sum((row, column) not in self._tiles for row in rows for column in columns)

    def _coarsen(self) -> None:
        """Cells of twice the side, with the means of the four that each is made of."""
        merged: dict[tuple[int, int], Grid] = {}
        half = TILE // 2
        for (row, column), tile in self._tiles.items():
            means = tile.reshape(half, 2, half, 2).mean(axis=(1, 3))
            y, x = (row % 2) * half, (column % 2) * half
            into = merged.setdefault((row // 2, column // 2), np.zeros((TILE, TILE)))
            into[y : y + half, x : x + half] = means
        self._tiles = merged
        self.cell_nm *= 2


class LedgerMap:
    """The map of one area, read from its ledger. Not thread-safe.

    Parameters
    ----------
    area : str or None
        Name of the area.
    folder : Path, optional
        Where ledgers are; by default the user's data folder.
    only : Path, optional
        The one file to read: sessions without an area have nothing to do with one another.

    Attributes
    ----------
    unplaced_e_per_A2 : float
        What was booked while nobody knew where, and is in no cell.
    """

    def __init__(
        self, area: str | None, folder: Path | None = None, only: Path | None = None
    ) -> None:
        self.area = area
        self._folder = folder
        self._only = only
        self.unplaced_e_per_A2 = 0.0
        self._finest: float | None = None
        self._map: FluenceMap | None = None
        self._readers: dict[Path, _Reader] = {}

    def reads(self, area: str | None, only: Path | None) -> bool:
        """Whether it is that of an area, or of the one file of a session without one."""
        return self.area == area and (area is not None or self._only == only)

    @property
    def map(self) -> FluenceMap | None:
        """The map as of the last `update`; None until anything was booked at a known place."""
        for reader in self._readers.values():
            self._draw(reader)
        return self._map

    def update(self, most_bytes: int | None = None) -> bool:
        """Read what was written since the last time.

        Parameters
        ----------
        most_bytes : int, optional
            About how much to read at most, so that a look costs no more than it may.

        Returns
        -------
        bool
            Whether all was read.

        Raises
        ------
        RecordingError
            A ledger cannot be read.
        """
        left = most_bytes
        paths = [self._only] if self._only is not None else ledger_files(self.area, self._folder)
        for path in paths:
            reader = self._readers.setdefault(path, _Reader(path))
            for entry in reader.read(left):
                if not self._take(reader, entry):
                    # A finer field than all before: from the beginning, in finer cells.
                    self._readers.clear()
                    self._map = None
                    self.unplaced_e_per_A2 = 0.0
                    return self.update(most_bytes)
            if left is not None:
                left = max(left - reader.last_bytes, 0)
            if not reader.done:
                return False
        return True

    def _take(self, reader: _Reader, entry: dict[str, Any]) -> bool:
        if "place" in entry:
            place = Place.of(entry["place"])
            if place is not None:
                wanted = cell_for(place)
                if self._finest is None or wanted < self._finest:
                    self._finest = wanted
                    if self._map is not None:
                        return False
            self._draw(reader)
            reader.move(place, entry.get("since"))
        fluence = entry.get("e_per_A2")
        if isinstance(fluence, int | float) and math.isfinite(fluence) and fluence > 0:
            reader.book(entry.get("frame"), float(fluence))
        return True

    def _draw(self, reader: _Reader) -> None:
        for place, fluence in reader.drawn():
            if place is None:
                self.unplaced_e_per_A2 += fluence
                continue
            if self._map is None:
                self._map = FluenceMap(self._finest or cell_for(place))
            self._map.add(place, fluence)


class _Reader:
    """One file: how far it was read, and where what was booked last belongs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""
        self._place: Place | None = None
        # Not drawn yet: bookings at one place are drawn at once.
        self._waiting: list[tuple[Place | None, float]] = []
        self._recent: deque[tuple[int, float, Place | None]] = deque(maxlen=RECENT)
        self.done = False
        self.last_bytes = 0

    def read(self, most_bytes: int | None) -> Iterator[dict[str, Any]]:
        """Entries that were written since the last time; a line that is not whole yet is left."""
        self.last_bytes = 0
        self.done = False
        while most_bytes is None or self.last_bytes < most_bytes:
            try:
                with self._path.open("rb") as file:
                    file.seek(self._at)
                    data = file.read(_CHUNK_BYTES)
            except OSError as error:
                raise RecordingError(
                    f"the dose ledger {self._path} cannot be read: {error.strerror or error}"
                ) from None
            self._at += len(data)
            self.last_bytes += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry
            if len(data) < _CHUNK_BYTES:
                self.done = True
                return

    def book(self, frame: Any, fluence: float) -> None:
        """What was booked is at the present place."""
        if self._waiting and self._waiting[-1][0] is self._place:
            self._waiting[-1] = self._place, self._waiting[-1][1] + fluence
        else:
            self._waiting.append((self._place, fluence))
        if isinstance(frame, int):
            self._recent.append((frame, fluence, self._place))

    def move(self, place: Place | None, since: Any) -> None:
        """From here on the place is another one; from a frame on that was booked already."""
        self._place = place
        if not isinstance(since, int):
            self._recent.clear()
            return
        for index, (frame, fluence, was) in enumerate(self._recent):
            if frame >= since:
                self._waiting += [(was, -fluence), (place, fluence)]
                self._recent[index] = frame, fluence, place

    def drawn(self) -> list[tuple[Place | None, float]]:
        """What is to be drawn, once."""
        waiting, self._waiting = self._waiting, []
        sums: dict[Place | None, float] = {}
        for place, fluence in waiting:
            sums[place] = sums.get(place, 0.0) + fluence
        return [(place, fluence) for place, fluence in sums.items() if fluence]


def _overlap(cells: npt.NDArray[Any], low: float, high: float) -> Grid:
    """Part of each cell (of side 1, beginning at the given numbers) between two edges."""
    part: Grid = np.clip(np.minimum(cells + 1, high) - np.maximum(cells, low), 0.0, 1.0)
    return part


# ------------------------------------------------------------------------------------------ files


def export_map(out: Path, area: str | None, folder: Path | None = None) -> dict[str, Any]:
    """Write an area's map as a picture or an array, with its scale.

    Parameters
    ----------
    out : Path
        ``.tif``: float32 in e-/A^2, the scale as resolution (pixels per cm) and in the
        description. ``.npy``: float32 in e-/A^2, the scale in a ``.json`` beside it. ``.png``:
        16 bit grey, the scale and the value of one grey in its text fields.
    area : str or None
        The area; None for the last session without one.
    folder : Path, optional
        Where ledgers are.

    Returns
    -------
    dict
        The scale as it was written: ``cell_nm``, ``left_nm``, ``top_nm``, ``unit``,
        ``highest_e_per_A2``, ``unplaced_e_per_A2``, ``area``, ``shape``.

    Raises
    ------
    InputError
        There is something at ``out``, no such format, no such area, or nothing in its map.
    RecordingError
        The file cannot be written, or a ledger not be read.
    """
    from tem_live.map_files import WRITERS

    write = WRITERS.get(out.suffix.lower())
    if write is None:
        raise InputError(f"{out}: a map is written as {', '.join(WRITERS)}; choose one of them")
    if out.exists():
        raise InputError(f"{out} exists; choose another name")
    files = ledger_files(area, folder)
    if not files:
        raise InputError(
            f"there is no ledger of area '{area}'; 'tem-live ledger show' lists them"
            if area is not None
            else "no session without an area's name has booked anything; name the area"
        )
    read = LedgerMap(area, folder, None if area is not None else files[-1])
    read.update()
    found = None if read.map is None else read.map.whole(4096)
    if found is None:
        raise InputError(
            "nothing in this ledger was booked at a known place, so there is no map; the pixel size"
            " must be known for one (camera.pixel_size_nm)"
        )
    values, (left, top, right, _) = found
    scale: dict[str, Any] = {
        "area": area,
        "unit": "e-/A^2",
        "cell_nm": (right - left) / values.shape[1],
        "left_nm": left,
        "top_nm": top,
        "axes": "x to the right, y down, in nm of the specimen",
        "shape": list(values.shape),
        "highest_e_per_A2": float(values.max()),
        "unplaced_e_per_A2": read.unplaced_e_per_A2,
    }
    try:
        write(out, values.astype(np.float32), scale)
    except OSError as error:
        raise RecordingError(f"{out} cannot be written: {error.strerror or error}") from None
    return scale
