"""MRC by mrcfile; the microscope's own values in it by RosettaSciIO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.formats.metadata import as_number, axes_calibration, decoded, length_nm, tidy
from tem_live.formats.own import gain_of, read_sidecar
from tem_live.formats.source import Source


def read(path: Path) -> Source:
    """Open a stack of images, or a single one."""
    import mrcfile

    with ExitStack() as stack:
        file = stack.enter_context(mrcfile.mmap(path, mode="r", permissive=True))
        data = file.data
        if data is None:
            raise ValueError("its data block is cut short or its header is damaged")
        if data.dtype.names or data.dtype.kind == "V":
            raise InputError(f"{path} is a colour image; export it as grey values")
        if data.ndim < 2:
            raise InputError(f"{path} holds no image of two dimensions")
        height, width = (int(side) for side in data.shape[-2:])
        frames = data.reshape(-1, height, width)
        header = {
            name: file.header[name].tolist()
            for name in file.header.dtype.names
            if name not in ("extra1", "extra2", "label")
        }
        labels = [text for label in file.header.label.tolist() if (text := decoded(label).strip())]
        metadata = {"format": "MRC", "header": tidy({**header, "labels": labels})}
        size = length_nm(float(file.voxel_size.x), "Å") if file.header.mx > 0 else None
        beside = _microscope(path)
        own = read_sidecar(path)
        metadata |= {"tem_live": own} if own else {}
        return Source(
            shape=(len(frames), height, width),
            dtype=frames.dtype,
            read=lambda index: np.asarray(frames[index]),
            close=stack.pop_all().close,
            pixel_size_nm=beside[0] or size,
            metadata={**metadata, **beside[1]},
            counts_per_electron=gain_of(own),
            frame_interval_s=as_number(own.get("frame_interval_s")),
        )


def _microscope(path: Path) -> tuple[float | None, dict[str, Any]]:
    """Pixel size and metadata of the extended header of Thermo Fisher and others, if there is one.

    The cell of many such files says 1 Å a pixel because nobody set it.
    """
    from rsciio.mrc import file_reader

    try:
        signal = file_reader(str(path), lazy=True)[0]
        size, _ = axes_calibration(signal["axes"])
        return size, {"original": tidy(signal.get("original_metadata", {}))}
    except Exception:
        # RosettaSciIO is the stricter of the two; mrcfile has read what is needed.
        return None, {}


def write(
    path: Path,
    frames: Iterator[npt.NDArray[np.float32]],
    shape: tuple[int, int, int],
    own: dict[str, Any],
) -> None:
    """Write float32 frames as a stack of images; our note has no place in it."""
    from mrcfile.dtypes import HEADER_DTYPE

    number, height, width = shape
    sums = np.zeros(2)
    low, high = math.inf, -math.inf
    with path.open("wb") as file:
        file.write(bytes(1024))
        for frame in frames:
            file.write(frame.data)
            sums += frame.sum(dtype=np.float64), np.square(frame, dtype=np.float64).sum()
            low, high = min(low, float(frame.min())), max(high, float(frame.max()))
        mean, square = sums / math.prod(shape)
        step = 10 * (own["pixel_size_nm"] or 0.0)  # MRC counts in Å; 0 is "not known"
        labels = [f"tem_live: {own.get('unit', '')}, restored by {own.get('model', '')}"[:80]]
        header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
        for key, value in {
            "nx": width,
            "ny": height,
            "nz": number,
            "mode": 2,
            "mx": width,
            "my": height,
            "mz": 1,  # a stack of images: every section is a volume of its own
            "cella": (width * step, height * step, step),
            "cellb": (90, 90, 90),
            "mapc": 1,
            "mapr": 2,
            "maps": 3,
            "dmin": low,
            "dmax": high,
            "dmean": mean,
            "rms": math.sqrt(max(0.0, square - mean**2)),
            "ispg": 0,
            "nversion": 20141,
            "map": b"MAP ",
            "machst": (0x44, 0x44, 0, 0),
            "nlabl": len(labels),
            "label": [text.encode("ascii", "replace") for text in labels] + [b""] * 9,
        }.items():
            header[key] = value
        file.seek(0)
        file.write(header.tobytes())
