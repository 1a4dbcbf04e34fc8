"""What a magnification means at the specimen: size of a pixel and illuminated area, as calibrated.

A microscope shows nominal magnifications, off by several percent, that know nothing of the camera.
The profile's ``[[magnifications]]`` say what was measured; they go before what devices tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tem_live.drivers.protocols import BeamArea, ColumnParts, Magnification
from tem_live.profiles import MagnificationProfile

SAME = 0.01
"""Magnifications that differ by less than this part are the same step of the microscope."""


class MagnificationTable:
    """The calibrated magnifications of a profile.

    Parameters
    ----------
    entries : sequence of MagnificationProfile
        In any order.
    """

    def __init__(self, entries: Sequence[MagnificationProfile]) -> None:
        self._entries = tuple(entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def pixel_size_nm(self, magnification: float) -> float | None:
        """Size of an unbinned pixel at the specimen in nm; None where none is calibrated.

        Between calibrated magnifications that of the nearest one (by ratio) is scaled.
        """
        known = [
            (abs(math.log(magnification / entry.magnification)), entry.magnification, size_nm)
            for entry in self._entries
            if (size_nm := entry.pixel_size_nm) is not None
        ]
        if not known:
            return None
        distance, at, size_nm = min(known)
        return size_nm if distance < SAME else size_nm * at / magnification

    def beam_area_nm2(self, magnification: float) -> float | None:
        """Illuminated area at the specimen in nm²; None but at a magnification it was measured at.

        The lenses of the illumination follow no law that would tell it in between.
        """
        for entry in self._entries:
            if abs(math.log(magnification / entry.magnification)) < SAME:
                return entry.beam_area_nm2
        return None

    def applied_to(self, parts: ColumnParts) -> ColumnParts:
        """A column whose illuminated area is that of the table, where that has one."""
        if parts.magnification is None or not any(e.beam_area_nm2 for e in self._entries):
            return parts
        return replace(parts, beam_area=_Calibrated(self, parts.magnification, parts.beam_area))


class _Calibrated:
    """`BeamArea` by the table, else as the column has it."""

    def __init__(
        self, table: MagnificationTable, magnification: Magnification, told: BeamArea | None
    ) -> None:
        self._table = table
        self._magnification = magnification
        self._told = told

    @property
    def beam_area_nm2(self) -> float | None:
        """Illuminated area at the specimen in nm²."""
        found = self._table.beam_area_nm2(self._magnification.magnification)
        if found is None and self._told is not None:
            return self._told.beam_area_nm2
        return found
