"""What the reader of a format makes of a file: frames, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Source:
    """Frames of one file, as a library gives them; what the fields are, `Movie` says.

    Attributes
    ----------
    read : callable of int to ndarray (H, W)
        Reads a frame; raises whatever the library raises.
    close : callable
        Closes what ``read`` needs.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    read: Callable[[int], npt.NDArray[Any]]
    close: Callable[[], None] = lambda: None
    pixel_size_nm: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    counts_per_electron: float | None = None
    offset_counts: float = 0.0
    frame_interval_s: float | None = None
    names: Sequence[str] = ()
    skipped: Sequence[str] = ()


def joined(folder: Path, parts: list[Source]) -> Source:
    """Frames of several sources, one after the other; what is known of them is the first one's."""
    ends = np.cumsum([part.shape[0] for part in parts])

    def read(index: int) -> npt.NDArray[Any]:
        which = int(np.searchsorted(ends, index, side="right"))
        return parts[which].read(index - int(ends[which]) + parts[which].shape[0])

    def close() -> None:
        for part in parts:
            part.close()

    first = parts[0]
    return Source(
        shape=(int(ends[-1]), *first.shape[1:]),
        dtype=first.dtype,
        read=read,
        close=close,
        pixel_size_nm=first.pixel_size_nm,
        metadata={"folder": folder.name, "first": first.metadata},
        counts_per_electron=first.counts_per_electron,
        offset_counts=first.offset_counts,
        frame_interval_s=first.frame_interval_s,
        names=[name for part in parts for name in part.names],
        skipped=[text for part in parts for text in part.skipped],
    )
