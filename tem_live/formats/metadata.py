"""What files say of their frames, in the terms of this program.

Lengths in nm and times in s where they make sense, and the rest as JSON of a decent length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tem_live.plain_json import plain


def length_nm(value: Any, unit: Any) -> float | None:
    """Length in nm, or None for what is no sensible size of a pixel at the specimen."""
    number = as_number(value)
    if number is None or unit is None:
        return None
    # Berkeley's EMD writes "[n_m]"; "μ" and "µ" are two characters; Å is one letter or two.
    word = (
        str(unit).strip().strip("[]").replace("_", "").replace("\u03bc", "u").replace("\u00b5", "u")
    )
    word = word.replace("\u212b", "å").replace("A\u030a", "å").strip().casefold()
    size = number * _LENGTHS.get(word, math.nan)
    return size if 1e-5 < size < 1e6 else None


# Lengths in nm. Lengths of cm and mm are those of detectors, and angles and 1/nm are no lengths.
_LENGTHS = {
    "m": 1e9,
    "meter": 1e9,
    "um": 1e3,
    "micron": 1e3,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "å": 0.1,
    "a": 0.1,
    "ang": 0.1,
    "angstrom": 0.1,
    "angstroms": 0.1,
    "pm": 1e-3,
    "picometer": 1e-3,
}


def as_number(value: Any) -> float | None:
    """A finite number, or None for whatever else a file holds."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def axes_calibration(axes: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """Pixel size in nm and frame interval in s of a RosettaSciIO signal."""
    y, x = (length_nm(axis.get("scale"), axis.get("units")) for axis in axes[-2:])
    # One number cannot stand for pixels that are not square.
    size = x if x is not None and y is not None and math.isclose(x, y, rel_tol=0.05) else None
    interval = None
    if len(axes) == 3 and axes[0].get("units") == "s":
        interval = as_number(axes[0].get("scale"))
    return size, interval if interval and interval > 0 else None


def tidy(value: Any, depth: int = 0) -> Any:
    """Metadata as JSON, without the images and tables that libraries leave in it."""
    if depth > 12:
        return None
    if isinstance(value, Mapping):
        return {str(key): tidy(item, depth + 1) for key, item in value.items()}
    if isinstance(value, bytes):
        return decoded(value) if len(value) <= 256 else f"({len(value)} bytes)"
    if isinstance(value, np.ndarray) or hasattr(value, "compute"):
        return (
            plain(value)
            if isinstance(value, np.ndarray) and value.size <= 64
            else (f"(array of {'x'.join(str(side) for side in value.shape)})")
        )
    if isinstance(value, list | tuple):
        if len(value) > 256:
            return f"({len(value)} values)"
        return [tidy(item, depth + 1) for item in value]
    done = plain(value)
    return done if not isinstance(done, str) or len(done) <= _LONGEST else done[:_LONGEST] + "…"


# Of a library's metadata, texts and lists longer than this are left out: whole images hide there.
_LONGEST = 4096


def decoded(value: bytes) -> str:
    """Text of a field of fixed length."""
    return value.rstrip(b"\0").decode("utf-8", "replace")
