"""Movies from files: any format of electron microscopy as frames, and restored frames as a file.

`open_movie` reads what RosettaSciIO, tifffile, mrcfile, zarr, h5py and NumPy read, and hides how
they differ: frames are (H, W), read when they are asked for, with a pixel size in nm if the file
states a length at the specimen. Whatever those libraries raise becomes an `InputError`.

The formats themselves are in `tem_live.formats`, one module each.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError, reason
from tem_live.formats import mrc, numpy_files, own, tiff, zarr_folders
from tem_live.formats.opening import open_source
from tem_live.formats.source import Source, joined
from tem_live.formats.zarr_folders import is_zarr


class Movie:
    """Frames of one shape and type. Made by `open_movie`; used from one thread at a time.

    Attributes
    ----------
    shape : tuple of int
        (frames, height, width).
    dtype : numpy dtype
        Type of the frames, in this computer's byte order.
    pixel_size_nm : float or None
        Size of a pixel at the specimen in nm; None where the file states none (or one in 1/nm).
    names : tuple of str
        A name for every frame: its file, and its number there if the file holds several.
    metadata : dict
        What the file says besides, JSON-able.
    counts_per_electron : float or None
        Gain, where the file states it.
    offset_counts : float
        Pedestal in counts; 0 where the file states none.
    frame_interval_s : float or None
        Time from a frame to the next in seconds, where the file states it.
    skipped : tuple of str
        What was passed over and why, one line each.
    """

    def __init__(self, source: Source, skipped: Sequence[str] = ()) -> None:
        self._source: Source | None = source
        self.shape = source.shape
        self.dtype = source.dtype.newbyteorder("=")
        self.pixel_size_nm = source.pixel_size_nm
        self.names = tuple(source.names)
        self.metadata = source.metadata
        self.counts_per_electron = source.counts_per_electron
        self.offset_counts = source.offset_counts
        self.frame_interval_s = source.frame_interval_s
        self.skipped = (*source.skipped, *skipped)

    def __len__(self) -> int:
        return self.shape[0]

    def frame(self, index: int) -> npt.NDArray[Any]:
        """Read one frame.

        Parameters
        ----------
        index : int
            From 0 to ``len(self) - 1``.

        Returns
        -------
        ndarray
            (H, W), C-contiguous, of `dtype`; the caller's own.

        Raises
        ------
        InputError
            The file is damaged at that frame, or it is gone, or the movie is closed.
        IndexError
            There is no such frame.
        """
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"frame {index} of a movie of {self.shape[0]}")
        if self._source is None:
            raise InputError("the movie is closed; open it again")
        try:
            data = self._source.read(index)
        except InputError:
            raise
        except Exception as error:
            # Each library has errors of its own for a damaged file.
            raise InputError(
                f"{self.names[index]} cannot be read ({reason(error)}); the file is damaged"
            ) from None
        if data.shape != self.shape[1:]:
            raise InputError(
                f"{self.names[index]} has {data.shape} pixels and not {self.shape[1:]}; "
                "the file is damaged"
            )
        return np.array(data, dtype=self.dtype, order="C")

    def close(self) -> None:
        """Close the files; idempotent."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def __enter__(self) -> Movie:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_movie(path: str | Path) -> Movie:
    """Open a file or a folder of files as a movie.

    Parameters
    ----------
    path : str or Path
        A file (dm3, dm4, ser, emd, mrc, tif, mib, blo, hspy, h5, npy, npz …), a Zarr or OME-Zarr
        folder, a recording of this program (its raw frames; ``NAME.zarr/restored`` for the others),
        or a folder whose files are strung together in natural order. Of a folder's files those
        of the first one's frame shape and type are taken; `Movie.skipped` names the others.

    Returns
    -------
    Movie
        Navigation axes of scanned data are flattened into frames.

    Raises
    ------
    InputError
        There is nothing at ``path``, or no library reads it, or it holds no real-valued images.
    """
    place = Path(path)
    try:
        if not place.exists():
            raise InputError(f"{place} does not exist; check the path")
        if place.is_dir() and not is_zarr(place):
            return _open_folder(place)
        return Movie(open_source(place))
    except OSError as error:
        raise InputError(f"{place} cannot be read ({reason(error)})") from None


def _open_folder(folder: Path) -> Movie:
    files = sorted(
        (
            entry
            for entry in folder.iterdir()
            if not entry.name.startswith(".") and (entry.is_file() or is_zarr(entry))
        ),
        key=lambda entry: _natural(entry.name),
    )
    if not files:
        raise InputError(f"{folder} holds no files; give a folder of images, or a file")
    parts: list[Source] = []
    skipped: list[str] = []
    for file in files:
        if file.suffix.lower() in _COMPANIONS:
            continue
        try:
            part = open_source(file)
        except InputError as error:
            skipped.append(str(error))
            continue
        if parts and (part.shape[1:], part.dtype) != (parts[0].shape[1:], parts[0].dtype):
            part.close()
            skipped.append(
                f"{file} has frames of {part.shape[1]}x{part.shape[2]} px, {part.dtype}, where "
                f"the first file has {parts[0].shape[1]}x{parts[0].shape[2]} px, {parts[0].dtype}"
            )
            continue
        parts.append(part)
    if not parts:
        first = f": {skipped[0]}" if skipped else ""
        raise InputError(f"{folder} holds no file that can be read{first}")
    return Movie(joined(folder, parts), skipped)


def _natural(name: str) -> list[tuple[int, str]]:
    """Key by which frame_2 comes before frame_10."""
    return [
        (int(part), "") if part.isdecimal() else (0, part)
        for part in re.split(r"(\d+)", name.casefold())
    ]


# Files that lie beside an image and belong to it.
_COMPANIONS = {".hdr", ".txt", ".json", ".jsonl", ".xml", ".md", ".toml", ".log"}


# ----------------------------------------------------------------------------------------- writing


_WRITERS: dict[
    str,
    Callable[[Path, Iterator[npt.NDArray[np.float32]], tuple[int, int, int], dict[str, Any]], None],
] = {
    ".tif": tiff.write,
    ".tiff": tiff.write,
    ".mrc": mrc.write,
    ".npy": numpy_files.write_npy,
    ".zarr": zarr_folders.write,
}

WRITABLE = tuple(_WRITERS)
"""Suffixes of what `write_frames` writes."""


def write_frames(
    path: str | Path,
    frames: Iterable[npt.NDArray[np.float32]],
    shape: tuple[int, int, int],
    *,
    pixel_size_nm: float | None = None,
    frame_interval_s: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write float32 frames as one file: OME-TIFF, MRC, NumPy or OME-Zarr, by the suffix.

    It is written under another name and renamed when it is whole, so that no half file is left.
    MRC and NumPy have no place for metadata: ``NAME.json`` beside them holds it.

    Parameters
    ----------
    path : str or Path
        What to make; its suffix is one of `WRITABLE`. Missing parent folders are made.
    frames : iterable of ndarray
        ``shape[0]`` frames of (H, W) float32; taken one at a time.
    shape : tuple of int
        (frames, height, width).
    pixel_size_nm : float or None
        Size of a pixel at the specimen in nm.
    frame_interval_s : float or None
        Time from a frame to the next in seconds.
    metadata : mapping, optional
        JSON-able; `open_movie` gives it back in `Movie.metadata`.
    overwrite : bool
        Replace what is at ``path``.

    Raises
    ------
    InputError
        The suffix is unknown, something is at ``path``, or it cannot be written there.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in WRITABLE:
        raise InputError(f"{target}: cannot write '{suffix}' files; use {', '.join(WRITABLE)}")
    if not overwrite and target.exists():
        raise InputError(f"{target} exists; give another name, or allow overwriting it")
    note = own.note(pixel_size_nm, frame_interval_s, metadata or {})
    part = target.with_name(f".{target.stem}.part-{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        try:
            _WRITERS[suffix](part, _counted(frames, shape), shape, note)
            if suffix in (".mrc", ".npy"):
                own.write_sidecar(target, note)
            if target.is_dir() or part.is_dir():
                _remove(target)  # a folder cannot be renamed over another
            part.replace(target)
        finally:
            _remove(part)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({reason(error)}); make room, or write elsewhere"
        ) from None


def _counted(
    frames: Iterable[npt.NDArray[np.float32]], shape: tuple[int, int, int]
) -> Iterator[npt.NDArray[np.float32]]:
    number = 0
    for number, frame in enumerate(frames, 1):
        if frame.shape != shape[1:] or number > shape[0]:
            raise InputError(
                f"frame {number} of {frame.shape} px does not belong to a movie of {shape}"
            )
        yield np.ascontiguousarray(frame, dtype="<f4")
    if number != shape[0]:
        raise InputError(f"{number} frames came for a movie of {shape[0]}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
