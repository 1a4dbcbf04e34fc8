"""Recordings: raw and restored frames as OME-Zarr, of which a crash costs the tail at most.

A recording is a Zarr 3 group, ``NAME.zarr``::

    NAME.zarr/            attributes: profile, program, model, started, complete
        raw/              OME-NGFF 0.5 image, array "0": (t, y, x), the camera's counts
        restored/         the same for restored frames, float32 in e-/px, NaN where there is none
        raw/0/frames.jsonl   one line of JSON a frame: its index along t and its metadata
        segment_1/raw …   frames of another shape, type, pixel size or interval (a changed binning)

A chunk is a frame. It is written beside its place and renamed into it, so that a chunk file is
whole or absent; its line in ``frames.jsonl`` follows, and its restored plane only after that.
`Recorder` writes the chunk files itself (zarr-python takes twice as long, see ADR 2); everything
else about the store, and all of the reading, is plain zarr.
"""

from __future__ import annotations

import bisect
import errno
import json
import math
import os
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError, RecordingError

if TYPE_CHECKING:
    import zarr

FORMAT = "tem_live recording 1"
"""Value of the root attribute ``format``, by which a recording is known."""

_LINES = "frames.jsonl"
_ARRAY = "0"
_PART = ".part"
# The arrays grow by this many frames at a time: their metadata is rewritten once in a while, and
# what a crash leaves too long is cut by `recover`.
_BLOCK = 256
_LOCK_BYTE = 2**30
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
                f"{self.path} cannot be made ({_reason(error)}); record to another path"
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
        return RecordingError(f"the disk failed ({_reason(error)}): {kept}; record to another disk")


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
        self.raw = _Plane(root, self._name("raw"), signature, signature.dtype)
        self._restored: _Plane | None = None
        # In the array's folder, where zarr looks for chunks only: a file of no known kind in a
        # group makes zarr warn whoever lists it.
        self._lines = (self.raw.folder / _LINES).open("ab", buffering=0)
        _lock(self._lines.fileno())

    def must_be_there(self) -> None:
        """Raise `FileNotFoundError` where somebody has removed it; nobody else would notice."""
        gone = self._lines.closed or os.fstat(self._lines.fileno()).st_nlink == 0
        if gone or not self.raw.is_there:
            self._lines.close()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.raw.folder))

    def restored_plane(self, root: zarr.Group) -> _Plane:
        # Made with the first restored frame: a run without a restorer has no empty image.
        if self._restored is None:
            self._restored = _Plane(root, self._name("restored"), self.signature, np.dtype("<f4"))
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

    def _name(self, name: str) -> str:
        return _segment_path(self.number, name)


class _Plane:
    """One image group with its array, whose chunks are written directly."""

    def __init__(
        self, root: zarr.Group, name: str, signature: _Signature, dtype: np.dtype[Any]
    ) -> None:
        from numcodecs import Blosc  # type: ignore[import-untyped]

        self._array = create_image(
            root,
            name,
            (_BLOCK, *signature.shape),
            dtype,
            signature.pixel_size_nm,
            signature.frame_interval_s,
        )
        self._dtype = dtype
        self.folder = _folder(root) / name / _ARRAY
        self._chunks = self.folder / self._array.metadata.encode_chunk_key((0, 0, 0)).split("/")[0]
        self._chunks.mkdir(exist_ok=True)
        self._blosc = Blosc(**_BLOSC)

    @property
    def is_there(self) -> bool:
        """Whether what tells zarr of the array still stands."""
        return (self.folder / "zarr.json").exists()

    def write(self, index: int, frame: npt.NDArray[Any]) -> None:
        height, width = self._array.shape[1:]
        if frame.shape != (height, width):
            raise RecordingError(
                f"a frame of {frame.shape} px came where ({height}, {width}) was announced; "
                "call start before frames of another shape"
            )
        if index >= self._array.shape[0]:
            self.resize(self._array.shape[0] + max(_BLOCK, self._array.shape[0] // 4))
        data = self._blosc.encode(np.ascontiguousarray(frame, dtype=self._dtype))
        target = self.folder / self._array.metadata.encode_chunk_key((index, 0, 0))
        for folder in (target.parent.parent, target.parent):
            # Without its parents: a recording that was removed does not come back in parts.
            folder.mkdir(exist_ok=True)
        write_whole(target, data, _checksum(data))

    def resize(self, frames: int) -> None:
        if self._array.shape[0] != frames:
            self._array.resize((frames, *self._array.shape[1:]))


_BLOSC: dict[str, Any] = {"cname": "lz4", "clevel": 1, "shuffle": 2}  # 2: bitshuffle


def create_image(
    root: zarr.Group,
    name: str,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    pixel_size_nm: float | None,
    frame_interval_s: float | None,
) -> zarr.Array[Any]:
    """Make an OME-NGFF 0.5 image group ``name`` with its array "0" of (t, y, x), a chunk a frame.

    Parameters
    ----------
    root : zarr.Group
        Group to make it in.
    name : str
        Path of the image in ``root``; empty makes ``root`` itself the image.
    shape : tuple of int
        (frames, height, width).
    dtype : numpy dtype
        Type of the frames; floats are filled with NaN, integers with 0.
    pixel_size_nm : float or None
        Size of a pixel in nm, the scale of y and x; None leaves the unit out.
    frame_interval_s : float or None
        Time between frames in seconds, the scale of t; None leaves the unit out.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec

    space = {"type": "space"} | ({} if pixel_size_nm is None else {"unit": "nanometer"})
    time = {"type": "time"} | ({} if frame_interval_s is None else {"unit": "second"})
    step = 1.0 if pixel_size_nm is None else float(pixel_size_nm)
    interval = 1.0 if frame_interval_s is None else float(frame_interval_s)
    image: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [
            {
                "name": name.rpartition("/")[2] or "image",
                "axes": [
                    {"name": "t", **time},
                    {"name": "y", **space},
                    {"name": "x", **space},
                ],
                "datasets": [
                    {
                        "path": _ARRAY,
                        "coordinateTransformations": [
                            {"type": "scale", "scale": [interval, step, step]}
                        ],
                    }
                ],
            }
        ],
    }
    group = root.create_group(name) if name else root
    group.attrs.update({"ome": image})
    return group.create_array(
        _ARRAY,
        shape=shape,
        chunks=(1, *shape[1:]),
        dtype=dtype,
        compressors=[
            BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle", typesize=dtype.itemsize),
            Crc32cCodec(),
        ],
        fill_value=math.nan if dtype.kind == "f" else 0,
        dimension_names=["t", "y", "x"],
    )


def write_whole(target: Path, *parts: bytes) -> None:
    """Write a file so that it is there as a whole or not at all.

    Raises
    ------
    OSError
        The disk is full or broken; nothing is left at ``target``.
    """
    part = target.with_name(target.name + _PART)
    try:
        with part.open("wb", buffering=0) as file:
            for data in parts:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
        part.replace(target)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:
    """Copy of ``value`` that strict JSON can hold; NaN and infinity become None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    return str(value)


def _checksum(data: bytes) -> bytes:
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _segment_path(number: int, name: str) -> str:
    return name if number == 0 else f"segment_{number}/{name}"


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
    root = _open_root(Path(path), "r")
    segments = []
    for number in _segment_numbers(root):
        raw = _array_of(root, _segment_path(number, "raw"))
        if raw is None:
            continue
        lines, _ = _read_lines(_lines_path(root, number))
        interval, size = image_scale(root[_segment_path(number, "raw")].attrs)
        restored = _array_of(root, _segment_path(number, "restored"))
        segments.append(Segment(raw, restored, lines[: raw.shape[0]], size, interval))
    attributes = dict(root.attrs)
    return Recording(Path(path), attributes, segments, attributes.get("complete") is True)


def is_recording(path: Path) -> bool:
    """Whether the folder ``path`` is a recording of this program."""
    try:
        _open_root(path, "r")
    except InputError:
        return False
    return True


def image_scale(attributes: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Frame interval in s and pixel size in nm of an OME-NGFF image; None where it has none.

    Parameters
    ----------
    attributes : mapping
        Attributes of the image group, NGFF 0.4 or 0.5.
    """
    try:
        ome = attributes.get("ome", attributes)
        scales = ome["multiscales"][0]
        axes = scales["axes"]
        scale = next(
            step["scale"]
            for step in scales["datasets"][0]["coordinateTransformations"]
            if step["type"] == "scale"
        )
        found = {
            axis["name"]: float(step) * _UNITS[axis["unit"]]
            for axis, step in zip(axes, scale, strict=True)
            if axis.get("unit") in _UNITS
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration):
        return None, None
    return found.get("t"), found.get("x")


# OME-NGFF units of time in s and of space in nm.
_UNITS = {
    "second": 1.0,
    "millisecond": 1e-3,
    "microsecond": 1e-6,
    "nanosecond": 1e-9,
    "minute": 60.0,
    "meter": 1e9,
    "millimeter": 1e6,
    "micrometer": 1e3,
    "nanometer": 1.0,
    "angstrom": 0.1,
    "picometer": 1e-3,
}


# -------------------------------------------------------------------------------------- recovering


@dataclass(frozen=True)
class RecoveryReport:
    """What `recover` found.

    Attributes
    ----------
    path : Path
        The recording.
    frames : int
        Whole raw frames that it holds.
    restored : int
        How many of them have their restored plane.
    complete : bool
        Whether it was closed properly and nothing of it is missing.
    lost : tuple of str
        What is lost, one line each; empty if nothing is.
    """

    path: Path
    frames: int
    restored: int
    complete: bool
    lost: tuple[str, ...] = ()


def recover(path: str | Path) -> RecoveryReport:
    """Make a recording that was cut short whole again, as far as its frames were written.

    Every chunk is read and its checksum compared. The arrays are cut to the last whole frame, torn
    tails and half-written files are removed. A damaged frame amid whole ones keeps its place: its
    pixels become the fill value, and its line in ``frames.jsonl`` gets ``"lost": true``. A
    recording that is in order is left as it is. Safe to repeat.

    Parameters
    ----------
    path : str or Path
        The recording's folder.

    Raises
    ------
    InputError
        There is no recording at ``path``, it cannot be changed, or it is still being written.
    """
    place = Path(path)
    root = _open_root(place, "r")
    for number in _segment_numbers(root):
        if _is_locked(_lines_path(root, number)):
            raise InputError(f"{place} is still being written; stop that recording first")
    found = [_inspect(root, number) for number in _segment_numbers(root)]
    lost = [text for one in found for text in one.lost]
    closed = root.attrs.get("complete") is True
    report = RecoveryReport(
        place,
        sum(len(one.whole) for one in found),
        sum(len(one.restored) for one in found),
        closed and not lost,
        tuple(lost),
    )
    if report.complete:
        return report
    try:
        _mend(place, found, report)
    except OSError as error:
        raise InputError(
            f"{place} cannot be mended ({_reason(error)}); make it writable, or copy it first"
        ) from None
    return report


@dataclass
class _Found:
    """One segment as it is on disk: indices of what is whole, and what goes."""

    number: int
    length: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    whole: set[int] = field(default_factory=set)
    restored: set[int] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    debris: list[Path] = field(default_factory=list)


def _inspect(root: zarr.Group, number: int) -> _Found:
    found = _Found(number)
    raw = _array_of(root, _segment_path(number, "raw"))
    lines, torn = _read_lines(_lines_path(root, number))
    if raw is None:
        if lines:
            found.lost.append(f"{len(lines)} frames of segment {number}, whose zarr.json is gone")
        return found
    if torn:
        found.lost.append(f"metadata of the frame of segment {number} that was being written")
    known = {line["index"]: line for line in lines if not line.get("lost")}
    chunks, found.debris = _chunks(root, number, "raw", raw)
    broken = [index for index, file in chunks.items() if not _is_whole(raw, file)]
    found.whole = {index for index in chunks if index in known} - set(broken)
    found.length = 1 + max(found.whole, default=-1)
    found.lines = [
        known.get(index, {"index": index}) | ({} if good else {"lost": True})
        for index in range(found.length)
        for good in [index in found.whole]
    ]
    found.debris += [chunks[index] for index in chunks if index not in found.whole]
    missing = len(known) - len(found.whole)
    if missing:
        found.lost.append(f"{missing} raw frames of segment {number} that were not wholly written")
    without = len([index for index in chunks if index not in known and index not in broken])
    if without:
        found.lost.append(f"{without} raw frames of segment {number} without metadata")

    restored = _array_of(root, _segment_path(number, "restored"))
    if restored is not None:
        chunks, debris = _chunks(root, number, "restored", restored)
        found.debris += debris
        for index, file in chunks.items():
            if index in found.whole and _is_whole(restored, file):
                found.restored.add(index)
            else:
                found.debris.append(file)
        bad = len([index for index in chunks if index in found.whole]) - len(found.restored)
        if bad:
            found.lost.append(f"{bad} restored frames of segment {number}, damaged")
    return found


def _chunks(
    root: zarr.Group, number: int, name: str, data: zarr.Array[Any]
) -> tuple[dict[int, Path], list[Path]]:
    """Chunk files by frame index, and half-written files."""
    folder = _folder(root) / _segment_path(number, name) / _ARRAY
    chunks: dict[int, Path] = {}
    for entry in (folder / "c").glob("*"):
        if entry.name.isdecimal():
            index = int(entry.name)
            file = folder / data.metadata.encode_chunk_key((index, 0, 0))
            if file.is_file():
                chunks[index] = file
    return chunks, list(folder.rglob(f"*{_PART}"))


def _is_whole(data: zarr.Array[Any], file: Path) -> bool:
    from numcodecs import Blosc

    try:
        content = file.read_bytes()
        if len(content) < 20 or _checksum(content[:-4]) != content[-4:]:
            return False
        frame = Blosc().decode(content[:-4])
    except (OSError, RuntimeError, ValueError):
        return False
    return len(frame) == math.prod(data.shape[1:]) * data.dtype.itemsize


def _mend(place: Path, found: list[_Found], report: RecoveryReport) -> None:
    for file in (file for one in found for file in one.debris):
        file.unlink(missing_ok=True)
    root = _open_root(place, "r+")
    for one in found:
        for name in ("restored", "raw"):
            data = _array_of(root, _segment_path(one.number, name))
            if data is not None and data.shape[0] != one.length:
                data.resize((one.length, *data.shape[1:]))
        if data is not None:
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in one.lines)
            write_whole(_lines_path(root, one.number), text.encode())
    root.attrs.update(
        {
            "complete": False,
            "frames": report.frames,
            "recovered": datetime.now(UTC).isoformat(timespec="seconds"),
            "lost": list(report.lost),
        }
    )


def _open_root(path: Path, mode: Any) -> zarr.Group:
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


def _folder(root: zarr.Group) -> Path:
    store: Any = root.store_path.store  # a LocalStore: all groups here are opened by path
    return Path(store.root)


def _lock(descriptor: int) -> bool:
    """Lock an open file for as long as this process has it open; False if another one has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Windows locks bytes against reading, too: one far behind the text serves as the lock.
            position = os.lseek(descriptor, 0, os.SEEK_CUR)
            os.lseek(descriptor, _LOCK_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, position, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: that must not keep anybody from working.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not _lock(file.fileno())
    except OSError:
        return False


def _lines_path(root: zarr.Group, number: int) -> Path:
    return _folder(root) / _segment_path(number, "raw") / _ARRAY / _LINES


def _segment_numbers(root: zarr.Group) -> Iterator[int]:
    number = 0
    folder = _folder(root)
    while (folder / _segment_path(number, "raw")).is_dir():
        yield number
        number += 1


def _array_of(root: zarr.Group, name: str) -> zarr.Array[Any] | None:
    import zarr

    try:
        found = root[f"{name}/{_ARRAY}"]
    except Exception:
        # Missing, or its zarr.json was cut: both mean that the array cannot be had.
        return None
    return found if isinstance(found, zarr.Array) and found.ndim == 3 else None


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
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
