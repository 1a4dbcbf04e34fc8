"""One file as frames: the reader for its name is tried out, and what fails is told in one line."""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tem_live.errors import InputError, reason
from tem_live.formats import mrc, numpy_files, recorded, rosettasciio, tiff, zarr_folders
from tem_live.formats.source import Source
from tem_live.recording import is_recording


def open_source(path: Path) -> Source:
    """Open one file with the reader for its name; whatever goes wrong is an `InputError`."""
    suffix = path.suffix.lower()
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty; copy it again from where it was made")
    with _quiet() as told:
        try:
            source = _reader_for(path)(path)
            _check(source, path)
            try:
                # tifffile passes over tags whose values are past the end: the gain could be one.
                if beyond := [text for text in told if re.search(r"invalid .*offset", text)]:
                    raise ValueError(beyond[0].rpartition("> ")[2].strip("')"))
                # A file that was cut short misses its end: better told now than amid a run.
                last = source.read(source.shape[0] - 1)
                if last.shape != source.shape[1:]:
                    raise ValueError(f"its last frame has {last.shape} pixels")
            except BaseException:
                source.close()
                raise
        except InputError as error:
            traceback.clear_frames(error.__traceback__)
            raise
        except MemoryError:
            raise InputError(
                f"{path} states more data than memory holds; it is damaged or too large"
            ) from None
        except Exception as error:
            # Each library has errors of its own for a damaged or foreign file. Some leave it open
            # in a frame of the traceback: close it here, where its warning is not seen.
            traceback.clear_frames(error.__traceback__)
            raise InputError(
                f"{path} cannot be read as {suffix or 'an image'} ({reason(error)}); "
                "it is damaged, cut short, or of another format than its name says"
            ) from None
    frames = source.shape[0]
    source.names = source.names or (
        [path.name] if frames == 1 else [f"{path.name}[{number}]" for number in range(frames)]
    )
    return source


def _reader_for(path: Path) -> Callable[[Path], Source]:
    suffix = path.suffix.lower()
    if path.is_dir() and is_recording(path):
        return recorded.read
    if path.is_dir() and suffix != ".zspy":
        return zarr_folders.read
    return _READERS.get(suffix, rosettasciio.read)


_READERS: dict[str, Callable[[Path], Source]] = {
    ".tif": tiff.read,
    ".tiff": tiff.read,
    ".btf": tiff.read,
    ".tf8": tiff.read,
    ".mrc": mrc.read,
    ".mrcs": mrc.read,
    ".st": mrc.read,
    ".ali": mrc.read,
    ".rec": mrc.read,
    ".npy": numpy_files.read_npy,
    ".npz": numpy_files.read_npz,
}


def _check(source: Source, path: Path) -> None:
    kind = source.dtype
    if kind.kind == "c":
        raise InputError(f"{path} holds complex numbers; export its modulus or intensity")
    if kind.names or kind.kind not in "uifb":
        raise InputError(f"{path} holds {kind} and no grey values; export it as grey values")
    if 0 in source.shape:
        raise InputError(f"{path} holds no frames; record or export it again")


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep the libraries' warnings and log lines from the user, who gets one line of ours.

    Yields the list that the log lines go to.
    """
    import rsciio  # noqa: F401 - it gives its logger a handler of its own, which must go, too

    told: list[str] = []
    silent = logging.Handler()
    silent.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [(logger.propagate, logger.handlers) for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.handlers = [silent]
            logger.propagate = False
        try:
            yield told
        finally:
            for logger, (propagate, handlers) in zip(loggers, before, strict=True):
                logger.handlers = handlers
                logger.propagate = propagate


_LIBRARIES = ("tifffile", "rsciio", "mrcfile", "h5py", "zarr")
