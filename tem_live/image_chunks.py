"""The chunks of an image as files: written by us, and found whole or not.

A chunk is a frame. It is written beside its place and renamed into it, so that a chunk file is
whole or absent. zarr-python takes twice as long, see ADR 2; what it reads is the same.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import RecordingError
from tem_live.ome_image import ARRAY, create_image

if TYPE_CHECKING:
    import zarr

# The arrays grow by this many frames at a time: their metadata is rewritten once in a while, and
# what a crash leaves too long is cut by `recover`.
_BLOCK = 256
_PART = ".part"
_BLOSC: dict[str, Any] = {"cname": "lz4", "clevel": 1, "shuffle": 2}  # 2: bitshuffle


class ImageWriter:
    """Makes an image and writes its chunks, frame by frame.

    Parameters
    ----------
    root, name, dtype, pixel_size_nm, frame_interval_s
        See `tem_live.ome_image.create_image`.
    frame_shape : tuple of int
        (height, width).

    Attributes
    ----------
    folder : Path
        That of the array.
    """

    def __init__(
        self,
        root: zarr.Group,
        name: str,
        frame_shape: tuple[int, int],
        dtype: np.dtype[Any],
        pixel_size_nm: float | None,
        frame_interval_s: float | None,
    ) -> None:
        from numcodecs import Blosc  # type: ignore[import-untyped]

        shape = (_BLOCK, *frame_shape)
        self._array = create_image(root, name, shape, dtype, pixel_size_nm, frame_interval_s)
        self._dtype = dtype
        self.folder = folder_of(root) / name / ARRAY
        chunks = self.folder / self._array.metadata.encode_chunk_key((0, 0, 0)).split("/")[0]
        chunks.mkdir(exist_ok=True)
        self._blosc = Blosc(**_BLOSC)

    @property
    def is_there(self) -> bool:
        """Whether what tells zarr of the array still stands."""
        return (self.folder / "zarr.json").exists()

    def write(self, index: int, frame: npt.NDArray[Any]) -> None:
        """Write the frame of an index; the array grows where it is too short."""
        height, width = self._array.shape[1:]
        if frame.shape != (height, width):
            raise RecordingError(
                f"a frame of {frame.shape} px came where ({height}, {width}) was announced; "
                "call start before frames of another shape"
            )
        if index >= self._array.shape[0]:
            self.resize(self._array.shape[0] + max(_BLOCK, self._array.shape[0] // 4))
        data = self._blosc.encode(np.ascontiguousarray(frame, dtype=self._dtype))
        key = self._array.metadata.encode_chunk_key((index, 0, 0))
        # As text: a Path interns each part of its name, which Python 3.12 never lets go of.
        target = f"{self.folder}/{key}"
        inner = target.rpartition("/")[0]
        for folder in (inner.rpartition("/")[0], inner):
            # Without its parents: a recording that was removed does not come back in parts.
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)  # noqa: PTH102
        write_whole(target, data, _checksum(data))

    def resize(self, frames: int) -> None:
        """Have the array say that it is of so many frames."""
        if self._array.shape[0] != frames:
            self._array.resize((frames, *self._array.shape[1:]))


def write_whole(target: str | os.PathLike[str], *parts: bytes) -> None:
    """Write a file so that it is there as a whole or not at all.

    Raises
    ------
    OSError
        The disk is full or broken; nothing is left at ``target``.
    """
    part = os.fspath(target) + _PART
    try:
        with open(part, "wb", buffering=0) as file:  # noqa: PTH123
            for data in parts:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
        os.replace(part, target)  # noqa: PTH105
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)  # noqa: PTH108
        raise


def chunk_files(
    root: zarr.Group, name: str, data: zarr.Array[Any]
) -> tuple[dict[int, Path], list[Path]]:
    """Chunk files of an image by frame index, and half-written files."""
    folder = folder_of(root) / name / ARRAY
    chunks: dict[int, Path] = {}
    for entry in (folder / "c").glob("*"):
        if entry.name.isdecimal():
            index = int(entry.name)
            file = folder / data.metadata.encode_chunk_key((index, 0, 0))
            if file.is_file():
                chunks[index] = file
    return chunks, list(folder.rglob(f"*{_PART}"))


def is_whole(data: zarr.Array[Any], file: Path) -> bool:
    """Whether a chunk file holds a frame, and its checksum is that of what it holds."""
    from numcodecs import Blosc

    try:
        content = file.read_bytes()
        if len(content) < 20 or _checksum(content[:-4]) != content[-4:]:
            return False
        frame = Blosc().decode(content[:-4])
    except (OSError, RuntimeError, ValueError):
        return False
    return len(frame) == math.prod(data.shape[1:]) * data.dtype.itemsize


def _checksum(data: bytes) -> bytes:
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(4, "little")


def folder_of(root: zarr.Group) -> Path:
    """Where a group is on disk."""
    store: Any = root.store_path.store  # a LocalStore: all groups here are opened by path
    return Path(store.root)
