"""Files that a fluence map is written to, with its scale."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
Scale = Mapping[str, Any]

_NM_PER_CM = 1e7
_NM_PER_M = 1e9


def write_tiff(path: Path, values: Plane, scale: Scale) -> None:
    """Float32; resolution in cells per cm of the specimen, all of the scale in the description."""
    import tifffile

    per_cm = _NM_PER_CM / scale["cell_nm"]
    tifffile.imwrite(
        path,
        values,
        description=json.dumps(dict(scale)),
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def write_npy(path: Path, values: Plane, scale: Scale) -> None:
    """Float32; the scale in a ``.json`` beside it, for the format has no room for one."""
    np.save(path, values)
    path.with_suffix(".json").write_text(json.dumps(dict(scale), indent=2) + "\n", encoding="utf-8")


def write_png(path: Path, values: Plane, scale: Scale) -> None:
    """16 bit grey from 0 to the highest; the scale and the value of one grey in text fields.

    Portable Network Graphics, 3rd edition (W3C, 2025): sections 11.2 (IHDR, IDAT), 11.3.3 (tEXt)
    and 11.3.4 (pHYs).
    """
    highest = float(values.max()) or 1.0
    greys = np.rint(values / highest * 65535).astype(">u2")
    height, width = greys.shape
    rows = b"".join(b"\0" + row.tobytes() for row in greys)
    fields = {**scale, "e_per_A2_per_grey": highest / 65535}
    # Where a cell is too small for whole pixels per metre the text fields alone hold the scale.
    per_m = min(round(_NM_PER_M / scale["cell_nm"]), 2**31 - 1)
    chunks = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)),
        _chunk(b"pHYs", struct.pack(">IIB", per_m, per_m, 1)),
        *(
            _chunk(b"tEXt", key.encode("latin-1") + b"\0" + json.dumps(value).encode("latin-1"))
            for key, value in fields.items()
        ),
        _chunk(b"IDAT", zlib.compress(rows)),
        _chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


WRITERS: dict[str, Callable[[Path, Plane, Scale], None]] = {
    ".tif": write_tiff,
    ".tiff": write_tiff,
    ".npy": write_npy,
    ".png": write_png,
}
"""How a file of each ending is written."""
