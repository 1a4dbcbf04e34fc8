"""What this program leaves in the files that it writes, and by which it knows them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tem_live.paths import written_whole
from tem_live.plain_json import plain

_PROGRAM = "tem_live"


def note(
    pixel_size_nm: float | None, frame_interval_s: float | None, besides: Mapping[str, Any]
) -> dict[str, Any]:
    """What is left in a file, JSON-able; what came ``besides`` goes before what we know."""
    return {
        "program": _PROGRAM,
        "pixel_size_nm": pixel_size_nm,
        "frame_interval_s": frame_interval_s,
        **plain(dict(besides)),
    }


def recognised(text: str | None) -> dict[str, Any]:
    """Such a note from the JSON that a file holds; empty if it is another program's, or none."""
    try:
        value = json.loads(text or "")
    except ValueError:
        return {}
    return value if isinstance(value, dict) and value.get("program") == _PROGRAM else {}


def gain_of(own: Mapping[str, Any]) -> float | None:
    """Counts per electron of frames with such a note: it tells the unit of their pixels."""
    return 1.0 if own.get("unit") == "e-/px" else None


def write_sidecar(path: Path, own: dict[str, Any]) -> None:
    """Leave the note beside a file that has no place for it."""
    with written_whole(_sidecar(path)) as part:
        part.write_text(json.dumps(own, indent=1), encoding="utf-8")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The note beside a file; empty if there is none of ours."""
    try:
        text = _sidecar(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    return recognised(text)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
