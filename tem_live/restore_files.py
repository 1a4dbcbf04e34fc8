"""Restore files: every frame of each source through a restorer, into files that keep the metadata.

The command ``tem-live restore`` is a thin skin on `restore_files`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.files import WRITABLE, Movie, open_movie, write_frames


class Restorer(Protocol):
    """What is needed of a restorer; `tem_live.load_restorer` gives one."""

    @property
    def name(self) -> str:
        """Its short name."""

    def restore(self, counts: Any, out: Any = None) -> Any:
        """Restore (H, W) float32 electrons per pixel; same shape and type back."""


@dataclass(frozen=True)
class Result:
    """One restored file.

    Attributes
    ----------
    source, destination : Path
        What was read and what was written.
    frames : int
        How many frames.
    model : str
        The restorer.
    counts_per_electron : float
        Gain by which the counts were divided.
    gain_from : {"given", "file", "assumed"}
        Where the gain is from; "assumed" is 1 because nobody knows it.
    offset_counts : float
        Pedestal that was subtracted, in counts.
    pixel_size_nm : float or None
        Size of a pixel at the specimen in nm.
    seconds : float
        How long it took.
    notes : tuple of str
        What the user should know, one line each.
    """

    source: Path
    destination: Path
    frames: int
    model: str
    counts_per_electron: float
    gain_from: Literal["given", "file", "assumed"]
    offset_counts: float
    pixel_size_nm: float | None
    seconds: float
    notes: tuple[str, ...] = ()


def restore_files(
    sources: Sequence[str | Path],
    destination: str | Path,
    restorer: Restorer,
    counts_per_electron: float | None = None,
    offset_counts: float = 0.0,
    progress: Callable[[int, int, str], None] | None = None,
    overwrite: bool = False,
) -> list[Result]:
    """Restore files frame by frame.

    Parameters
    ----------
    sources : sequence of path
        Files or folders that `tem_live.files.open_movie` reads; each becomes one movie.
    destination : path
        A file named ``.tif``, ``.tiff`` (OME-TIFF), ``.mrc``, ``.npy`` or ``.zarr`` (OME-Zarr) for
        one source; else a folder, in which every source gets an OME-TIFF ``NAME.tif``.
    restorer : Restorer
        Takes and gives electrons per pixel.
    counts_per_electron : float or None
        Gain of the camera; None takes what the file states, else 1.
    offset_counts : float
        Pedestal to subtract from the counts first; 0 takes what the file states, else 0.
    progress : callable of (done, total, name), optional
        Told after every frame of a source.
    overwrite : bool
        Replace destinations that exist. A source is never replaced.

    Returns
    -------
    list of Result
        In the order of ``sources``.

    Raises
    ------
    InputError
        A source cannot be read, a destination exists or cannot be written, a value is out of
        range. Names and sources are checked before the first frame is restored.
    """
    if counts_per_electron is not None and not 0 < counts_per_electron < math.inf:
        raise InputError(f"{counts_per_electron:g} counts per electron: give a positive number")
    if not math.isfinite(offset_counts):
        raise InputError(f"an offset of {offset_counts} counts: give a number")
    pairs = _pairs([Path(source) for source in sources], Path(destination), overwrite)
    for source, _ in pairs:
        open_movie(source).close()
    return [
        _restore(source, target, restorer, counts_per_electron, offset_counts, progress, overwrite)
        for source, target in pairs
    ]


def _pairs(sources: Sequence[Path], destination: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """Every source with its destination, after all that can be checked by name."""
    if not sources:
        raise InputError("no files to restore; name one or more")
    for source in sources:
        if not source.exists():
            raise InputError(f"{source} does not exist; check the path")
    suffix = destination.suffix.lower()
    is_file = suffix in WRITABLE and (suffix == ".zarr" or not destination.is_dir())
    if is_file and len(sources) > 1:
        raise InputError(
            f"{destination} is one file and there are {len(sources)} sources; give a folder"
        )
    if suffix and not is_file and not destination.is_dir() and len(sources) == 1:
        raise InputError(
            f"{destination}: cannot write '{suffix}' files; use {', '.join(WRITABLE)}, or a folder"
        )
    if not is_file and destination.is_file():
        raise InputError(f"{destination} is a file and no folder; give another name")
    targets = [destination] if is_file else [destination / name for name in _names(sources)]
    taken = {source.resolve() for source in sources}
    for target in targets:
        place = target.resolve()
        if place in taken or taken & set(place.parents):
            raise InputError(f"{target} is a source or lies in one; write to another place")
        if any(place in source.parents for source in taken):
            raise InputError(f"{target} holds a source; write to another place")
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists; give another name, or --overwrite")
    return list(zip(sources, targets, strict=True))


def _names(sources: Sequence[Path]) -> list[str]:
    """A name for the output of each source: its own, with its suffix where two are alike."""
    stems = [source.resolve().stem.casefold() for source in sources]
    full = [source.resolve().name.casefold() for source in sources]
    names = []
    for source, stem, name in zip(sources, stems, full, strict=True):
        place = source.resolve()
        if full.count(name) > 1:
            names.append(f"{place.parent.name}_{place.name}.tif")
        else:
            names.append(f"{place.name if stems.count(stem) > 1 else place.stem}.tif")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"two sources would become {twice[0]}; restore them one by one")
    return names


def _restore(
    source: Path,
    target: Path,
    restorer: Restorer,
    counts_per_electron: float | None,
    offset_counts: float,
    progress: Callable[[int, int, str], None] | None,
    overwrite: bool,
) -> Result:
    began = time.monotonic()
    with open_movie(source) as movie:
        gain, origin = _gain(movie, counts_per_electron)
        offset = offset_counts or movie.offset_counts
        notes = [f"left out: {text}" for text in movie.skipped]
        if origin == "assumed":
            notes.append(
                "the file states no gain: its values were taken as electrons (1 count per "
                "electron); give --counts-per-electron if they are counts"
            )
        doses: list[float] = []
        write_frames(
            target,
            _restored(movie, restorer, gain, offset, progress, source.name, doses),
            movie.shape,
            pixel_size_nm=movie.pixel_size_nm,
            frame_interval_s=movie.frame_interval_s,
            metadata={
                "unit": "e-/px",
                "model": restorer.name,
                "model_sha256": getattr(getattr(restorer, "card", None), "sha256", None),
                "precision": getattr(restorer, "precision", None),
                "engine": getattr(restorer, "engine", None),
                "counts_per_electron": gain,
                "counts_per_electron_from": origin,
                "offset_counts": offset,
                "source": source.name,
                "original": movie.metadata,
            },
            overwrite=overwrite,
        )
        card = getattr(restorer, "card", None)
        unseen = card.unseen_dose(float(np.mean(doses))) if card is not None and doses else None
        notes += [unseen] if unseen is not None else []
        return Result(
            source,
            target,
            len(movie),
            restorer.name,
            gain,
            origin,
            offset,
            movie.pixel_size_nm,
            round(time.monotonic() - began, 3),
            tuple(notes),
        )


def _gain(movie: Movie, given: float | None) -> tuple[float, Literal["given", "file", "assumed"]]:
    if given is not None:
        return given, "given"
    if movie.counts_per_electron is not None and movie.counts_per_electron > 0:
        return movie.counts_per_electron, "file"
    return 1.0, "assumed"


def _restored(
    movie: Movie,
    restorer: Restorer,
    gain: float,
    offset: float,
    progress: Callable[[int, int, str], None] | None,
    name: str,
    doses: list[float],
) -> Iterator[npt.NDArray[np.float32]]:
    """Restored frames one by one; the mean of each raw one is added to `doses`."""
    for index in range(len(movie)):
        # In double: integers of 32 bits less an offset do not fit into float32.
        frame = movie.frame(index)
        electrons = ((frame - np.float64(offset)) / gain).astype(np.float32)
        if frame.dtype.kind == "u" and frame.dtype.itemsize >= 4:
            # No pixel counts so far: detectors mark by it what they have not measured. Restorers
            # fill it from around.
            electrons[frame == np.iinfo(frame.dtype).max] = np.nan
        measured = np.isfinite(electrons)
        doses.append(
            float(electrons.mean(dtype=np.float64, where=measured)) if measured.any() else 0.0
        )
        yield np.asarray(restorer.restore(electrons), dtype=np.float32)
        if progress is not None:
            progress(index + 1, len(movie), name)
