"""The fluence map of an area, drawn from its dose ledger.

The map is a function of the ledger and of nothing else: `LedgerMap` reads an area's files, again
and again from where it stopped, and adds every booking to the cells that were lit. Nothing is kept
beside the ledger, so a program that is killed loses no more of the map than of the ledger, and
there is nothing to clear by accident. It is read when somebody looks, on the looker's thread;
frames never wait for it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tem_live.errors import InputError, RecordingError
from tem_live.fluence_map import FluenceMap, Place, cell_for
from tem_live.ledger_reading import ledger_files

__all__ = ["LedgerMap", "export_map"]

RECENT = 512
"""Bookings that a place which is found out later can still be given to."""

_CHUNK_BYTES = 1 << 20


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
