"""The formats of microscopes and cameras that RosettaSciIO reads: dm3, ser, emd, mib and others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.formats import hdf5
from tem_live.formats.metadata import axes_calibration, tidy
from tem_live.formats.source import Source


def read(path: Path) -> Source:
    """Open the largest image, by the plugins that know the suffix, one after the other."""
    plugins = _plugins(path)
    if not plugins:
        raise InputError(
            f"{path}: no reader for files named '{path.suffix or path.name}'; convert it to tif, "
            "mrc or npy"
        )
    failure: Exception | None = None
    for plugin in plugins:
        try:
            return _read_with(plugin, path)
        except ImportError as error:
            # A format whose library is not installed; another plugin may know the same suffix.
            failure = failure or error
        except InputError:
            raise
        except Exception as error:
            failure = error
    if path.suffix.lower() in _HDF5:
        return hdf5.read(path)
    raise failure or InputError(f"{path} cannot be read")


_HDF5 = {".h5", ".hdf5", ".hdf", ".nxs", ".emd", ".hspy"}


def _plugins(path: Path) -> list[str]:
    from rsciio import IO_PLUGINS

    suffix = path.suffix.lower().removeprefix(".")
    found = [
        str(plugin["api"])
        for plugin in IO_PLUGINS
        if suffix in {str(each).lower() for each in plugin["file_extensions"]}
    ]
    return sorted(dict.fromkeys(found), key=lambda api: ("hspy" not in api, found.index(api)))


class _Reader(Protocol):
    def __call__(self, filename: str, *, lazy: bool = ...) -> list[dict[str, Any]]: ...


def _read_with(api: str, path: Path) -> Source:
    from importlib import import_module

    reader = cast(_Reader, import_module(api).file_reader)
    try:
        signals = reader(str(path), lazy=True)
    except NotImplementedError:
        signals = reader(str(path), lazy=False)
    images = [signal for signal in signals if _is_image(signal)]
    if not images:
        raise InputError(f"{path} holds spectra or numbers and no images; give a file with images")
    chosen = max(images, key=lambda signal: math.prod(signal["data"].shape))
    _must_hold(path, api, chosen)
    data = chosen["data"]
    size, interval = axes_calibration(chosen["axes"])
    titles = [str(one.get("metadata", {}).get("General", {}).get("title", "")) for one in images]
    lead = tuple(int(side) for side in data.shape[:-2])
    height, width = (int(side) for side in data.shape[-2:])
    return Source(
        shape=(math.prod(lead), height, width),
        dtype=np.dtype(data.dtype),
        read=_Blocks(data, lead).read,
        close=lambda: _close_hdf5(data),
        pixel_size_nm=size,
        metadata={
            "format": api.rpartition(".")[2],
            "general": tidy(chosen.get("metadata", {})),
            "original": tidy(chosen.get("original_metadata", {})),
        },
        frame_interval_s=interval,
        skipped=[
            f"{path.name}: its image '{title}'"
            for title, signal in zip(titles, images, strict=True)
            if signal is not chosen
        ],
    )


def _is_image(signal: Mapping[str, Any]) -> bool:
    data = signal["data"]
    if data.ndim < 2 or data.dtype.kind not in "uifbcV":
        return False
    across = [axis for axis in signal["axes"] if not axis.get("navigate", False)]
    # Some plugins mark no axis at all; of a spectrum image they mark one.
    return len(across) != 1


def _must_hold(path: Path, api: str, signal: Mapping[str, Any]) -> None:
    """Refuse files that a plugin shortens silently to the frames that are left."""
    if api.endswith("quantumdetector"):
        header = path.with_suffix(".hdr")
        text = header.read_text(errors="replace") if header.is_file() else ""
        stated = re.search(r"Frames in Acquisition[^:]*:\s*(\d+)", text)
        frames = math.prod(signal["data"].shape[:-2])
        if stated and frames < int(stated[1]):
            raise ValueError(f"it holds {frames} of {stated[1]} frames")


class _Blocks:
    """Frames of a dask or NumPy array; a chunk with several frames is computed once."""

    def __init__(self, data: Any, lead: tuple[int, ...]) -> None:
        self._data = data
        self._lead = lead
        self._block: npt.NDArray[Any] | None = None
        self._where: tuple[slice, ...] = ()

    def read(self, index: int) -> npt.NDArray[Any]:
        place = tuple(int(at) for at in np.unravel_index(index, self._lead)) if self._lead else ()
        if not hasattr(self._data, "compute"):
            return np.asarray(self._data[place])
        inside = self._block is not None and all(
            span.start <= at < span.stop for span, at in zip(self._where, place, strict=True)
        )
        if not inside:
            self._where = self._spans(place)
            self._block = np.asarray(self._data[self._where].compute(scheduler="synchronous"))
        offset = tuple(at - span.start for span, at in zip(self._where, place, strict=True))
        return np.asarray(cast(npt.NDArray[Any], self._block)[offset])

    def _spans(self, place: tuple[int, ...]) -> tuple[slice, ...]:
        spans = []
        for at, chunks in zip(place, self._data.chunks, strict=False):
            ends = np.cumsum(chunks)
            which = int(np.searchsorted(ends, at, side="right"))
            spans.append(slice(int(ends[which]) - chunks[which], int(ends[which])))
        frame = math.prod(self._data.shape[-2:]) * self._data.dtype.itemsize
        if frame * math.prod(span.stop - span.start for span in spans) > _BLOCK_BYTES:
            return tuple(slice(at, at + 1) for at in place)
        return tuple(spans)


# Frames that one chunk of a file holds are kept together up to this size, to decode them once.
_BLOCK_BYTES = 256 * 2**20


def _close_hdf5(data: Any) -> None:
    """Close the HDF5 file that a lazy plugin left open."""
    for value in dict(getattr(data, "dask", {})).values():
        if hasattr(value, "file") and hasattr(value.file, "close"):
            value.file.close()
