"""The folder of a recording: what is where in it.

A recording is a Zarr 3 group, ``NAME.zarr``::

    NAME.zarr/            attributes: profile, program, model, started, complete
        raw/              OME-NGFF 0.5 image, array "0": (t, y, x), the camera's counts
        restored/         the same for restored frames, float32 in e-/px, NaN where there is none
        raw/0/frames.jsonl   one line of JSON a frame: its index along t and its metadata
        segment_1/raw …   frames of another shape, type, pixel size or interval (a changed binning)

A chunk is a frame. Its line in ``frames.jsonl`` follows, and its restored plane only after that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tem_live.errors import InputError
from tem_live.image_chunks import folder_of
from tem_live.ome_image import ARRAY

if TYPE_CHECKING:
    import zarr

FORMAT = "tem_live recording 1"
"""Value of the root attribute ``format``, by which a recording is known."""

LINES = "frames.jsonl"
"""Name of the file with a line of JSON a frame, in the folder of the raw frames' array."""


def open_root(path: Path, mode: Literal["r", "r+"]) -> zarr.Group:
    """Open the group of a recording. Raises `InputError` where there is none."""
    import zarr

    if not path.exists():
        raise InputError(f"{path} does not exist; give the folder of a recording (*.zarr)")
    try:
        root = zarr.open_group(path, mode=mode, zarr_format=3)
        known = root.attrs.get("format") == FORMAT
    except Exception:
        # zarr raises whatever its parsing of a foreign or damaged zarr.json meets.
        known = False
    if not known:
        raise InputError(
            f"{path} is no recording of tem_live (its zarr.json is missing, foreign or damaged); "
            "give the folder that was recorded to"
        )
    return root


def segment_path(number: int, name: str) -> str:
    """Path of a segment's image, ``raw`` or ``restored``, in its recording."""
    return name if number == 0 else f"segment_{number}/{name}"


def segment_numbers(root: zarr.Group) -> Iterator[int]:
    """Numbers of the segments, in the order of time."""
    number = 0
    folder = folder_of(root)
    while (folder / segment_path(number, "raw")).is_dir():
        yield number
        number += 1


def lines_path(root: zarr.Group, number: int) -> Path:
    """Where the lines of a segment's frames are."""
    return folder_of(root) / segment_path(number, "raw") / ARRAY / LINES


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Lines that are whole, and whether something else was among them."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], False
    except OSError:
        return [], True
    found = []
    torn = bool(content) and not content.endswith(b"\n")
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            entry = {**value, "index": int(value["index"])}
        except (ValueError, KeyError, TypeError):
            torn = True
            continue
        found.append(entry)
    return found, torn
