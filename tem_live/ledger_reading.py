"""What the ledgers on disk say: the areas that there are, what each has taken, the table of it.

What is written, and how: `tem_live.ledger`.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import platformdirs

from tem_live.errors import InputError, RecordingError

UNNAMED = "unnamed"
"""Folder of the sessions that named no area."""

_PREFIX = "area-"
_TAIL_BYTES = 1 << 16
COLUMNS = (
    "area",
    "session",
    "profile",
    "event",
    "time",
    "frame",
    "e_per_A2",
    "total_e_per_A2",
    "source",
    "dose_rate_e_per_A2_s",
    "exposure_s",
    "x_nm",
    "y_nm",
)
"""Columns of the exported table."""


@dataclass(frozen=True)
class AreaSummary:
    """What one specimen area has taken.

    Attributes
    ----------
    area : str or None
        Its name; None for the sessions without one, which are not added up for any budget.
    sessions, frames : int
        How many of each.
    fluence_e_per_A2 : float
        Sum of all that was booked, in e-/A^2.
    last : str or None
        Local time of the last booking, ISO 8601.
    open_since : str or None
        Local time of the last booking of a session that did not say that the beam went off: it
        was killed, or goes on. What came in after it is not in the sum.
    """

    area: str | None
    sessions: int
    frames: int
    fluence_e_per_A2: float
    last: str | None
    open_since: str | None


def ledger_folder() -> Path:
    """Where ledgers are, in the user's data folder."""
    return Path(platformdirs.user_data_dir("tem_live", appauthor=False)) / "ledger"


def area_folder(area: str | None, folder: Path | None = None) -> Path:
    """Folder of one area's ledgers. Raises `InputError` for a name that cannot be one."""
    base = folder or ledger_folder()
    if area is None:
        return base / UNNAMED
    check_area(area)
    return base / (_PREFIX + area)


def ledger_files(area: str | None, folder: Path | None = None) -> list[Path]:
    """Files of an area's ledgers, oldest first."""
    return _files(area, folder)


def check_area(area: str) -> str:
    """The name of an area as it was given. Raises `InputError` where it cannot be a folder's."""
    if re.fullmatch(r"\w([\w.+-]{0,62}\w)?", area) is None:
        raise InputError(
            f"{area!r} cannot name a specimen area; use up to 64 letters, digits, '-', '_', '+' "
            "or '.', such as grid3-square5"
        )
    return area


def areas(folder: Path | None = None) -> list[str]:
    """Names of the areas that have a ledger, sorted."""
    base = folder or ledger_folder()
    return sorted(path.name.removeprefix(_PREFIX) for path in base.glob(f"{_PREFIX}*"))


def summarise(area: str | None, folder: Path | None = None) -> AreaSummary:
    """What an area has taken so far.

    Raises
    ------
    InputError
        The name cannot be an area's.
    RecordingError
        A ledger cannot be read.
    """
    sessions, frames, fluence = 0, 0, 0.0
    last: float | None = None
    still_open: float | None = None
    for path in _files(area, folder):
        session = _Session()
        for entry in _tail(path):
            session.take(entry)
        sessions += 1
        frames += _count_frames(path)
        fluence += session.total
        if session.time_s is not None and session.time_s >= (last or 0.0):
            last = session.time_s
            still_open = session.time_s if session.on else None
    return AreaSummary(area, sessions, frames, fluence, _iso(last), _iso(still_open))


def entries(area: str | None, folder: Path | None = None) -> Iterator[dict[str, Any]]:
    """All that was written for an area, oldest first, by the keys of `COLUMNS`."""
    for path in _files(area, folder):
        profile = None
        for entry in _read(path):
            if "ledger" in entry:
                profile = entry.get("profile")
                continue
            kinds = ("frame", "rest", "beam", "exposure", "place")
            place = entry.get("place") or {}
            event = next((kind for kind in kinds if kind in entry), "unknown")
            yield {
                "area": area,
                "session": path.stem,
                "profile": profile,
                "event": f"beam {entry['beam']}" if event == "beam" else event,
                "time": _iso(entry.get("time_s"), "milliseconds"),
                "frame": entry.get("frame"),
                "e_per_A2": entry.get("e_per_A2"),
                "total_e_per_A2": entry.get("total_e_per_A2"),
                "source": entry.get("source"),
                "dose_rate_e_per_A2_s": entry.get("dose_rate_e_per_A2_s"),
                "exposure_s": entry.get("exposure_s"),
                "x_nm": place.get("x_nm"),
                "y_nm": place.get("y_nm"),
            }


def export_csv(out: Path, area: str | None, folder: Path | None = None) -> int:
    """Write an area's ledger as a table; returns the number of its rows.

    Raises
    ------
    InputError
        There is something at ``out``, or there is no such area.
    RecordingError
        The table cannot be written, or a ledger not be read.
    """
    if not _files(area, folder):
        raise InputError(_no_such_area(area, folder))
    try:
        with out.open("x", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            rows = 0
            for entry in entries(area, folder):
                writer.writerow(entry)
                rows += 1
    except FileExistsError:
        raise InputError(f"{out} exists; choose another name") from None
    except OSError as error:
        raise RecordingError(f"{out} cannot be written: {error.strerror or error}") from None
    return rows


def _no_such_area(area: str | None, folder: Path | None) -> str:
    if area is None:
        return "no session without an area's name has booked anything"
    known = areas(folder)
    named = f"there are {', '.join(known)}" if known else "none has a ledger yet (set dose.area)"
    return f"no ledger of area '{area}'; {named}"


class _Session:
    """What the entries of one file add up to."""

    def __init__(self) -> None:
        self.total = 0.0
        self.time_s: float | None = None
        self.on: bool | None = None

    def take(self, entry: dict[str, Any]) -> None:
        total, when = entry.get("total_e_per_A2"), entry.get("time_s")
        if isinstance(total, int | float):
            self.total = max(self.total, float(total))
        if isinstance(when, int | float):
            self.time_s = float(when)
        if self.on is None and "frame" in entry and entry.get("source") == "incident":
            # The line that says so is further back than was read.
            self.on = True
        if "beam" in entry:
            self.on = entry["beam"] == "on"


def _files(area: str | None, folder: Path | None) -> list[Path]:
    return sorted(area_folder(area, folder).glob("*.jsonl"))


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last whole entries of a file: the totals stand in each."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(0, size - _TAIL_BYTES)
            file.seek(begin)
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from None
    lines = data.split(b"\n")
    return _parsed(lines[1:] if begin else lines)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return _parsed(path.read_bytes().split(b"\n"))
    except OSError as error:
        raise _unreadable(path, error) from None


def _count_frames(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(line.startswith(b'{"frame":') and line.endswith(b"}\n") for line in file)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> RecordingError:
    return RecordingError(f"the dose ledger {path} cannot be read: {error.strerror or error}")


def _parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                found.append(entry)
    return found


def _iso(time_s: float | None, spec: str = "seconds") -> str | None:
    return None if time_s is None else datetime.fromtimestamp(time_s).isoformat(timespec=spec)
