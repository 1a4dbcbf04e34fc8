"""The fluence map: what each place of the specimen has taken, in e-/A^2, on a grid in nm.

It grows as places are lit; `tem_live.ledger_map` draws it from the dose ledger.

Coordinates are those of the specimen in nm, x to the right and y down as in the image, with the
stage at (0, 0) and no drift in the middle of the sensor (see `tem_live.whereabouts`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CELLS_PER_FIELD = 64
"""Cells along the shorter side of the smallest field, at least; the cell is a power of 2 nm."""

TILE = 64
"""Cells along the side of a tile, the unit in which the grid grows."""

MOST_TILES = 256
"""Tiles in memory (8 MiB). What needs more is kept in cells of twice the size."""

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


def _overlap(cells: npt.NDArray[Any], low: float, high: float) -> Grid:
    """Part of each cell (of side 1, beginning at the given numbers) between two edges."""
    part: Grid = np.clip(np.minimum(cells + 1, high) - np.maximum(cells, low), 0.0, 1.0)
    return part
