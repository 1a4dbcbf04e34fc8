"""Real images to score restorers with: a pair of frames, and references to thin."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError

__all__ = ["load_pair", "load_references"]

_Array = npt.NDArray[np.float32]


def load_pair(folder: Path, counts_per_electron: float = 44.0) -> tuple[_Array, _Array]:
    """Read two successive real frames, ``frame_1.tif`` and ``frame_2.tif``, in e-/px.

    Raises
    ------
    InputError
        They are not there, or no two frames of one place that can be compared.
    """
    first, second = (
        _read_image(folder / f"frame_{i}.tif") / np.float32(counts_per_electron) for i in (1, 2)
    )
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(f"the frames in {folder} must be two images (H, W) of the same size")
    for number, frame in enumerate((first, second), 1):
        if not np.isfinite(frame).all() or not float(frame.mean()) > 0.0:
            raise InputError(f"{folder / f'frame_{number}.tif'} is dark or not finite")
    if np.array_equal(first, second):
        raise InputError(f"the frames in {folder} are the same; give two exposures of one place")
    return first, second


def load_references(folder: Path) -> dict[str, _Array]:
    """Read images to thin (.tif, .mrc, .npy), scaled to mean 1 with nothing below zero."""
    out: dict[str, _Array] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".mrc", ".npy", ".tif", ".tiff"):
            continue
        image = _read_image(path)
        if image.ndim != 2:
            continue
        image = image - min(float(image.min()), 0.0)
        mean = float(image.mean())
        if not 0.0 < mean < math.inf:
            raise InputError(f"{path} is empty or not finite; take it out of the folder")
        out[path.stem] = np.asarray(image / mean, dtype=np.float32)
    if not out:
        raise InputError(f"no 2-D .mrc, .tif or .npy image in {folder}")
    return out


def _read_image(path: Path) -> _Array:
    """Read a .mrc, .npy or TIFF file as float32."""
    try:
        if path.suffix == ".mrc":
            import mrcfile

            with mrcfile.open(path, permissive=True) as file:
                return np.array(file.data, dtype=np.float32)
        if path.suffix == ".npy":
            return np.asarray(np.load(path), dtype=np.float32)
        import tifffile

        return np.asarray(tifffile.imread(path), dtype=np.float32)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"cannot read an image from {path}; is it there and whole?") from error
