"""Arrays in NumPy's own files, npy and npz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.formats.metadata import as_number, length_nm
from tem_live.formats.own import gain_of, read_sidecar
from tem_live.formats.source import Source


def read_npy(path: Path) -> Source:
    """Open an array of frames, or a single one; it stays in the file."""
    source = _of_array(path, np.load(path, mmap_mode="r", allow_pickle=False))
    own = read_sidecar(path)
    source.pixel_size_nm = length_nm(own.get("pixel_size_nm"), "nm")
    source.frame_interval_s = as_number(own.get("frame_interval_s"))
    source.counts_per_electron = gain_of(own)
    source.metadata |= {"tem_live": own} if own else {}
    return source


def read_npz(path: Path) -> Source:
    """Open the largest array of an archive."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    images = {name: data for name, data in arrays.items() if data.ndim >= 2}
    if not images:
        raise InputError(f"{path} holds no array of two or more dimensions")
    name = max(images, key=lambda each: images[each].size)
    source = _of_array(path, images[name])
    source.skipped = [f"{path.name}: its array '{other}'" for other in images if other != name]
    size = arrays.get("pixel_size_nm")
    source.pixel_size_nm = length_nm(size, "nm") if size is not None and size.ndim == 0 else None
    return source


def _of_array(path: Path, data: npt.NDArray[Any]) -> Source:
    if data.ndim < 2:
        raise InputError(f"{path} holds no array of two or more dimensions")
    height, width = data.shape[-2:]
    frames = data.reshape(-1, height, width)
    return Source(
        (len(frames), height, width), data.dtype, frames.__getitem__, metadata={"format": "NumPy"}
    )


def write_npy(
    path: Path,
    frames: Iterator[npt.NDArray[np.float32]],
    shape: tuple[int, int, int],
    own: dict[str, Any],
) -> None:
    """Write float32 frames as an array; our note has no place in it."""
    # Not a memory map: on a full disk its pages could only be refused with a signal.
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for frame in frames:
            file.write(frame.data)
