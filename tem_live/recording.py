"""Recordings: raw and restored frames as OME-Zarr, of which a crash costs the tail at most.

`Recorder` writes one while frames come, `read_recording` opens one. What lies where in its folder
is in `tem_live.recording_folder`; one that was cut short is mended by `tem_live.recovery`.
"""

from __future__ import annotations

import bisect
import errno
import json
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError, RecordingError, reason
from tem_live.file_lock import lock
from tem_live.image_chunks import ImageWriter
from tem_live.ome_image import array_of, image_scale
from tem_live.plain_json import plain
from tem_live.recording_folder import (
    FORMAT,
    LINES,
    lines_path,
    open_root,
    read_lines,
    segment_numbers,
    segment_path,
)

if TYPE_CHECKING:
    import zarr

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


# ---------------------------------------------------------------------------------------- writing


class Recorder:
    """Writes one recording. All methods are called from one thread, and return when it is written.

    Parameters
    ----------
    path : str or Path
        The folder to make, usually ``*.zarr``; missing parents are made too.
    attributes : mapping
        JSON-able root attributes: the profile, the program's version, the model.

    Attributes
    ----------
    path : Path
        Where the recording is.
    frames : int
        Whole raw frames written so far.

    Raises
    ------
    InputError
        There is something at ``path``, or no folder can be made there.
    RecordingError
        The disk is full already.
    """

    def __init__(self, path: str | Path, attributes: Mapping[str, Any]) -> None:
        import zarr

        self.path = Path(path)
        self.frames = 0
        self._segments: list[_Segment] = []
        self._closed = False
        self._failed = False
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise InputError(
                f"{self.path} exists and is not overwritten; record to another path"
            ) from None
        except OSError as error:
            if error.errno in _FULL:
                raise self._error(error) from None
            raise InputError(
                f"{self.path} cannot be made ({reason(error)}); record to another path"
            ) from None
        try:
            self._root = zarr.create_group(
                self.path,
                zarr_format=3,
                attributes={
                    **plain(dict(attributes)),
                    "format": FORMAT,
                    "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "complete": False,
                },
            )
        except OSError as error:
            raise self._error(error) from None

    def start(
        self,
        frame_shape: tuple[int, int],
        dtype: npt.DTypeLike,
        pixel_size_nm: float | None,
        frame_interval_s: float,
    ) -> None:
        """Say what frames come next; before the first one, and whenever it changes.

        The same values again go on with the same arrays; others begin a new segment.

        Parameters
        ----------
        frame_shape : tuple of int
            (height, width) in pixels.
        dtype : numpy dtype
            Integer or float type of the raw frames.
        pixel_size_nm : float or None
            Size of a pixel at the specimen in nm; None where unknown.
        frame_interval_s : float
            Time from a frame to the next in seconds.

        Raises
        ------
        InputError
            Frames of that type or shape cannot be recorded.
        RecordingError
            The disk is full or broken.
        """
        self._must_be_good()
        kind = np.dtype(dtype)
        height, width = (int(side) for side in frame_shape)
        if kind.kind not in "uif" or height < 1 or width < 1:
            raise InputError(
                f"frames of {kind} and {height}x{width} px cannot be recorded; "
                "give two-dimensional frames of integers or floats"
            )
        signature = _Signature(
            (height, width), kind.newbyteorder("<"), pixel_size_nm, float(frame_interval_s)
        )
        if self._segments and self._segments[-1].signature == signature:
            return
        try:
            segment = _Segment(self._root, len(self._segments), signature)
        except OSError as error:
            raise self._error(error) from None
        self._segments.append(segment)

    def write_raw(self, frame_id: int, raw: npt.NDArray[Any], meta: Mapping[str, Any]) -> None:
        """Store one raw frame, then its metadata.

        Parameters
        ----------
        frame_id : int
            The session's number of the frame, larger than that of the frame before.
        raw : ndarray
            (H, W) counts, as told to `start`.
        meta : mapping
            What is known of the frame, JSON-able.

        Raises
        ------
        RecordingError
            The disk is full or broken; the frames before are kept.
        """
        self._must_be_good()
        if not self._segments:
            raise RecordingError(
                f"{self.path}: a frame came before start(); call start with its shape and type"
            )
        segment = self._segments[-1]
        index = len(segment.ids)
        line = json.dumps(
            plain({**meta, "index": index, "frame_id": int(frame_id)}),
            separators=(",", ":"),
            allow_nan=False,
        )
        try:
            segment.must_be_there()
            segment.raw.write(index, raw)
            segment.append(line.encode() + b"\n")
        except OSError as error:
            raise self._error(error) from None
        segment.ids.append(int(frame_id))
        self.frames += 1

    def write_restored(self, frame_id: int, restored: npt.NDArray[np.float32]) -> None:
        """Store the restored plane of a frame whose raw one is stored.

        A frame whose raw one is not in this recording (it was taken before the recording began)
        is passed over: the halves of a pair stay together.

        Parameters
        ----------
        frame_id : int
            As it was given to `write_raw`.
        restored : ndarray
            (H, W) float32 in e-/px.

        Raises
        ------
        RecordingError
            The disk is full or broken; the frames before are kept.
        """
        self._must_be_good()
        for segment in reversed(self._segments):
            index = segment.find(int(frame_id))
            if index is None:
                continue
            try:
                segment.restored_plane(self._root).write(index, restored)
            except OSError as error:
                raise self._error(error) from None
            return

    def note(self, attributes: Mapping[str, Any]) -> None:
        """Set root attributes, besides those that it began with.

        Raises
        ------
        RecordingError
            The disk is full or broken; the frames before are kept.
        """
        self._must_be_good()
        try:
            self._root.attrs.update(plain(dict(attributes)))
        except OSError as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Cut the arrays to the frames written and mark the recording complete; idempotent.

        After a failed write it keeps what was written and leaves ``complete`` false.

        Raises
        ------
        RecordingError
            The last of the metadata could not be written; `recover` mends it.
        """
        if self._closed:
            return
        self._closed = True
        failure: OSError | None = None
        for segment in self._segments:
            try:
                segment.must_be_there()
                segment.close()
            except OSError as error:
                failure = failure or error
        if self._failed:
            return  # that was told; what close could not do for it, `recover` does
        try:
            if failure is not None:
                raise failure
            self._root.attrs.update({"frames": self.frames, "complete": True})
        except OSError as error:
            raise self._error(error) from None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _must_be_good(self) -> None:
        if self._closed or self._failed:
            state = "has failed" if self._failed else "is closed"
            raise RecordingError(f"the recording {self.path} {state}; begin another one")

    def _error(self, error: OSError) -> RecordingError:
        self._failed = True
        if isinstance(error, FileNotFoundError):
            return RecordingError(
                f"the recording {self.path} was removed or moved while it was written; record to "
                "another path"
            )
        kept = f"{self.frames} frames are kept in {self.path}"
        if error.errno in _FULL:
            return RecordingError(f"disk full: {kept}; make room, or record to another disk")
        return RecordingError(f"the disk failed ({reason(error)}): {kept}; record to another disk")


@dataclass(frozen=True)
class _Signature:
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    pixel_size_nm: float | None
    frame_interval_s: float


class _Segment:
    """Frames of one signature, and the arrays they are in."""

    def __init__(self, root: zarr.Group, number: int, signature: _Signature) -> None:
        self.number = number
        self.signature = signature
        self.ids: array[int] = array("q")
        self.raw = self._image(root, "raw", signature.dtype)
        self._restored: ImageWriter | None = None
        # In the array's folder, where zarr looks for chunks only: a file of no known kind in a
        # group makes zarr warn whoever lists it.
        self._lines = (self.raw.folder / LINES).open("ab", buffering=0)
        lock(self._lines.fileno())

    def must_be_there(self) -> None:
        """Raise `FileNotFoundError` where somebody has removed it; nobody else would notice."""
        gone = self._lines.closed or os.fstat(self._lines.fileno()).st_nlink == 0
        if gone or not self.raw.is_there:
            self._lines.close()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.raw.folder))

    def restored_plane(self, root: zarr.Group) -> ImageWriter:
        # Made with the first restored frame: a run without a restorer has no empty image.
        if self._restored is None:
            self._restored = self._image(root, "restored", np.dtype("<f4"))
        return self._restored

    def find(self, frame_id: int) -> int | None:
        index = bisect.bisect_left(self.ids, frame_id)
        return index if index < len(self.ids) and self.ids[index] == frame_id else None

    def append(self, line: bytes) -> None:
        begin = self._lines.tell()
        written = 0
        try:
            # An unbuffered file may take a part of the line (a full disk); the rest then fails.
            while written < len(line):
                written += self._lines.write(line[written:])
        except OSError:
            self._lines.truncate(begin)
            raise

    def close(self) -> None:
        with self._lines as lines:
            for plane in (self.raw, self._restored):
                if plane is not None:
                    plane.resize(len(self.ids))
            os.fsync(lines.fileno())

    def _image(self, root: zarr.Group, name: str, dtype: np.dtype[Any]) -> ImageWriter:
        like = self.signature
        path = segment_path(self.number, name)
        return ImageWriter(root, path, like.shape, dtype, like.pixel_size_nm, like.frame_interval_s)


# ---------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Segment:
    """Frames of one shape and type in a recording.

    Attributes
    ----------
    raw : zarr.Array
        (frames, H, W) counts.
    restored : zarr.Array or None
        (frames, H, W) float32 in e-/px, NaN for a frame that was not restored.
    frames : list of dict
        Metadata of each frame.
    pixel_size_nm, frame_interval_s : float or None
        Calibration of the arrays.
    """

    raw: zarr.Array[Any]
    restored: zarr.Array[Any] | None
    frames: list[dict[str, Any]] = field(repr=False)
    pixel_size_nm: float | None
    frame_interval_s: float | None


@dataclass(frozen=True)
class Recording:
    """A recording as it is on disk.

    Attributes
    ----------
    path : Path
        Its folder.
    attributes : dict
        Root attributes.
    segments : list of Segment
        In the order of time; one, unless the camera's settings were changed.
    complete : bool
        Whether it was closed properly.
    """

    path: Path
    attributes: dict[str, Any] = field(repr=False)
    segments: list[Segment]
    complete: bool

    @property
    def frames(self) -> int:
        """Number of frames in all segments."""
        return sum(len(segment.frames) for segment in self.segments)


def read_recording(path: str | Path) -> Recording:
    """Open a recording for reading; nothing is changed.

    A recording that was cut short is read as far as its metadata goes.

    Raises
    ------
    InputError
        There is no recording at ``path``, or its metadata is damaged.
    """
    root = open_root(Path(path), "r")
    segments = []
    for number in segment_numbers(root):
        raw = array_of(root, segment_path(number, "raw"))
        if raw is None:
            continue
        lines, _ = read_lines(lines_path(root, number))
        interval, size = image_scale(root[segment_path(number, "raw")].attrs)
        restored = array_of(root, segment_path(number, "restored"))
        segments.append(Segment(raw, restored, lines[: raw.shape[0]], size, interval))
    attributes = dict(root.attrs)
    return Recording(Path(path), attributes, segments, attributes.get("complete") is True)


def is_recording(path: Path) -> bool:
    """Whether the folder ``path`` is a recording of this program."""
    try:
        open_root(path, "r")
    except InputError:
        return False
    return True
