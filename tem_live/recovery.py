"""A recording that was cut short, made whole again as far as its frames were written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tem_live.errors import InputError, reason
from tem_live.file_lock import is_locked
from tem_live.image_chunks import chunk_files, is_whole, write_whole
from tem_live.ome_image import array_of
from tem_live.recording_folder import (
    lines_path,
    open_root,
    read_lines,
    segment_numbers,
    segment_path,
)

if TYPE_CHECKING:
    import zarr


@dataclass(frozen=True)
class RecoveryReport:
    """What `recover` found.

    Attributes
    ----------
    path : Path
        The recording.
    frames : int
        Whole raw frames that it holds.
    restored : int
        How many of them have their restored plane.
    complete : bool
        Whether it was closed properly and nothing of it is missing.
    lost : tuple of str
        What is lost, one line each; empty if nothing is.
    """

    path: Path
    frames: int
    restored: int
    complete: bool
    lost: tuple[str, ...] = ()


def recover(path: str | Path) -> RecoveryReport:
    """Make a recording that was cut short whole again, as far as its frames were written.

    Every chunk is read and its checksum compared. The arrays are cut to the last whole frame, torn
    tails and half-written files are removed. A damaged frame amid whole ones keeps its place: its
    pixels become the fill value, and its line in ``frames.jsonl`` gets ``"lost": true``. A
    recording that is in order is left as it is. Safe to repeat.

    Parameters
    ----------
    path : str or Path
        The recording's folder.

    Raises
    ------
    InputError
        There is no recording at ``path``, it cannot be changed, or it is still being written.
    """
    place = Path(path)
    root = open_root(place, "r")
    for number in segment_numbers(root):
        if is_locked(lines_path(root, number)):
            raise InputError(f"{place} is still being written; stop that recording first")
    found = [_inspect(root, number) for number in segment_numbers(root)]
    lost = [text for one in found for text in one.lost]
    closed = root.attrs.get("complete") is True
    report = RecoveryReport(
        place,
        sum(len(one.whole) for one in found),
        sum(len(one.restored) for one in found),
        closed and not lost,
        tuple(lost),
    )
    if report.complete:
        return report
    try:
        _mend(place, found, report)
    except OSError as error:
        raise InputError(
            f"{place} cannot be mended ({reason(error)}); make it writable, or copy it first"
        ) from None
    return report


@dataclass
class _Found:
    """One segment as it is on disk: indices of what is whole, and what goes."""

    number: int
    length: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    whole: set[int] = field(default_factory=set)
    restored: set[int] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    debris: list[Path] = field(default_factory=list)


def _inspect(root: zarr.Group, number: int) -> _Found:
    found = _Found(number)
    raw = array_of(root, segment_path(number, "raw"))
    lines, torn = read_lines(lines_path(root, number))
    if raw is None:
        if lines:
            found.lost.append(f"{len(lines)} frames of segment {number}, whose zarr.json is gone")
        return found
    if torn:
        found.lost.append(f"metadata of the frame of segment {number} that was being written")
    known = {line["index"]: line for line in lines if not line.get("lost")}
    chunks, found.debris = chunk_files(root, segment_path(number, "raw"), raw)
    broken = [index for index, file in chunks.items() if not is_whole(raw, file)]
    found.whole = {index for index in chunks if index in known} - set(broken)
    found.length = 1 + max(found.whole, default=-1)
    found.lines = [
        known.get(index, {"index": index}) | ({} if good else {"lost": True})
        for index in range(found.length)
        for good in [index in found.whole]
    ]
    found.debris += [chunks[index] for index in chunks if index not in found.whole]
    missing = len(known) - len(found.whole)
    if missing:
        found.lost.append(f"{missing} raw frames of segment {number} that were not wholly written")
    without = len([index for index in chunks if index not in known and index not in broken])
    if without:
        found.lost.append(f"{without} raw frames of segment {number} without metadata")

    restored = array_of(root, segment_path(number, "restored"))
    if restored is not None:
        chunks, debris = chunk_files(root, segment_path(number, "restored"), restored)
        found.debris += debris
        for index, file in chunks.items():
            if index in found.whole and is_whole(restored, file):
                found.restored.add(index)
            else:
                found.debris.append(file)
        bad = len([index for index in chunks if index in found.whole]) - len(found.restored)
        if bad:
            found.lost.append(f"{bad} restored frames of segment {number}, damaged")
    return found


def _mend(place: Path, found: list[_Found], report: RecoveryReport) -> None:
    for file in (file for one in found for file in one.debris):
        file.unlink(missing_ok=True)
    root = open_root(place, "r+")
    for one in found:
        for name in ("restored", "raw"):
            data = array_of(root, segment_path(one.number, name))
            if data is not None and data.shape[0] != one.length:
                data.resize((one.length, *data.shape[1:]))
        if data is not None:
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in one.lines)
            write_whole(lines_path(root, one.number), text.encode())
    root.attrs.update(
        {
            "complete": False,
            "frames": report.frames,
            "recovered": datetime.now(UTC).isoformat(timespec="seconds"),
            "lost": list(report.lost),
        }
    )
