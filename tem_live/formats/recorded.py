"""Recordings of this program: their raw frames, segments of one shape strung together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tem_live.errors import InputError
from tem_live.formats.metadata import as_number
from tem_live.formats.source import Source, joined
from tem_live.recording import read_recording


def read(path: Path) -> Source:
    """Open the raw frames of a recording's first shape and type."""
    recording = read_recording(path)
    whole = [part for part in recording.segments if part.frames]
    if not whole:
        raise InputError(f"{path} is a recording without frames; record it again")
    first = whole[0]
    parts = [
        part
        for part in whole
        if part.raw.shape[1:] == first.raw.shape[1:] and part.raw.dtype == first.raw.dtype
    ]
    sources = [
        Source(
            shape=(len(part.frames), int(part.raw.shape[1]), int(part.raw.shape[2])),
            dtype=np.dtype(part.raw.dtype),
            read=lambda index, data=part.raw: np.asarray(data[index]),  # type: ignore[misc]
            names=[f"{path.name}[{line.get('frame_id', '?')}]" for line in part.frames],
        )
        for part in parts
    ]
    strung = joined(path, sources)
    strung.pixel_size_nm = first.pixel_size_nm
    strung.frame_interval_s = first.frame_interval_s
    strung.counts_per_electron = as_number(first.frames[0].get("counts_per_electron")) or as_number(
        recording.attributes.get("counts_per_electron")
    )
    strung.offset_counts = as_number(recording.attributes.get("offset_counts")) or 0.0
    strung.metadata = {"format": "tem_live recording", "attributes": recording.attributes}
    strung.skipped = [
        f"{path.name}: {len(part.frames)} frames of {part.raw.shape[1:]} px, {part.raw.dtype}"
        for part in whole
        if part not in parts
    ]
    return strung
