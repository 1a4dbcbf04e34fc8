"""TIFF by tifffile: of cameras' programs and of ours, which writes OME-TIFF."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.formats.metadata import as_number, length_nm, tidy
from tem_live.formats.own import gain_of, recognised
from tem_live.formats.source import Source


def read(path: Path) -> Source:
    """Open the first series of grey images."""
    import tifffile

    with ExitStack() as stack:
        file = stack.enter_context(tifffile.TiffFile(path))
        series = file.series[0]
        page = file.pages[0]
        if "S" in series.axes and series.shape[series.axes.index("S")] > 1:
            raise InputError(f"{path} is a colour image; export it as grey values")
        shape = tuple(
            side for axis, side in zip(series.axes, series.shape, strict=True) if axis != "S"
        )
        if len(shape) < 2:
            raise InputError(f"{path} holds no image of two dimensions")
        height, width = shape[-2:]
        frames = math.prod(shape[:-2])
        _must_reach(path, file)
        frame: Callable[[int], npt.NDArray[Any]]
        if series.dataoffset is not None:
            whole = np.memmap(
                path,
                series.dtype.newbyteorder(file.byteorder),
                "r",
                series.dataoffset,
                (frames, height, width),
            )
            frame = whole.__getitem__
        elif len(series.pages) == frames:

            def frame(index: int) -> npt.NDArray[Any]:
                return np.asarray(series.pages[index].asarray(maxworkers=1)).reshape(height, width)
        else:
            block = series.asarray(maxworkers=1).reshape(frames, height, width)
            frame = block.__getitem__
        metadata = _metadata(file, page)
        size, gain, interval = _calibration(file, page)
        skipped = [
            f"{path.name}: its image series {number} of {other.shape}"
            for number, other in enumerate(file.series[1:], 1)
        ]
        return Source(
            shape=(frames, height, width),
            dtype=np.dtype(series.dtype),
            read=frame,
            close=stack.pop_all().close,
            pixel_size_nm=size,
            metadata=metadata,
            counts_per_electron=gain,
            frame_interval_s=interval,
            skipped=skipped,
        )


def _must_reach(path: Path, file: Any) -> None:
    """Refuse a TIFF whose pixels lie past its end, which tifffile would read as zeros."""
    size = path.stat().st_size
    for page in (file.pages[0], file.pages[len(file.pages) - 1]):
        ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if ends and max(ends) > size:
            raise ValueError(f"{max(ends) - size} bytes are missing at its end")


def _metadata(file: Any, page: Any) -> dict[str, Any]:
    tags = {tag.name: tag.value for tag in page.tags.values() if tag.name not in _LAYOUT}
    own = _own_description(page.description)
    return {"format": "TIFF", "tags": tidy(tags), **({"tem_live": own} if own else {})}


_LAYOUT = {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts", "BitsPerSample"}


def _own_description(text: str | None) -> dict[str, Any]:
    """Our note in the description of an OME-TIFF's image."""
    found = re.search(r"<Description>(.*?)</Description>", text or "", re.DOTALL)
    return recognised(html.unescape(found[1])) if found else {}


def _calibration(file: Any, page: Any) -> tuple[float | None, float | None, float | None]:
    """Pixel size in nm, counts per electron, and frame interval in s."""
    tags = {tag.code: tag.value for tag in page.tags.values()}
    gain = None
    if tags.get(65022) == "e-":  # Gatan's DigitalMicrograph: unit and scale of the intensity
        per_count = as_number(tags.get(65025))
        gain = 1 / per_count if per_count and per_count > 0 else None
    if file.is_ome:
        pixels = re.search(r"<Pixels\b[^>]*>", page.description or "")
        values = dict(re.findall(r'(\w+)="([^"]*)"', pixels[0])) if pixels else {}
        own = _own_description(page.description)
        return (
            length_nm(values.get("PhysicalSizeX"), values.get("PhysicalSizeXUnit", "µm")),
            gain or gain_of(own),
            as_number(own.get("frame_interval_s")) or as_number(values.get("TimeIncrement")),
        )
    for unit, scale in ((65012, 65009), (65003, 65009)):
        if (size := length_nm(tags.get(scale), tags.get(unit))) is not None:
            return size, gain, None
    tvips = getattr(file, "tvips_metadata", None) or {}
    fei = getattr(file, "fei_metadata", None) or {}
    for size in (
        length_nm(tvips.get("PixelSizeX"), "nm"),
        length_nm(fei.get("Scan", {}).get("PixelWidth"), "m"),
        length_nm(fei.get("EScan", {}).get("PixelWidth"), "m"),
    ):
        if size is not None:
            return size, gain, None
    resolution = tags.get(282)
    per_unit = resolution[0] / resolution[1] if resolution and resolution[1] else 0
    if per_unit > 0:
        imagej = (file.imagej_metadata or {}) if file.is_imagej else {}
        if "unit" in imagej:
            interval = as_number(imagej.get("finterval"))
            return length_nm(1 / per_unit, imagej["unit"].replace("\\u00B5", "µ")), gain, interval
        in_nm = {2: 25.4e6, 3: 1e7}.get(int(tags.get(296, 0)))
        # 72 dpi is how to print it; no printer makes dots of under a micrometre.
        if in_nm is not None and in_nm / per_unit < 1000:
            return in_nm / per_unit, gain, None
    return None, gain, None


def write(
    path: Path,
    frames: Iterator[npt.NDArray[np.float32]],
    shape: tuple[int, int, int],
    own: dict[str, Any],
) -> None:
    """Write float32 frames as OME-TIFF, with our note as the description of its image."""
    import tifffile

    size, interval = own["pixel_size_nm"], own["frame_interval_s"]
    ome: dict[str, Any] = {"axes": "TYX", "Description": json.dumps(own)}
    resolution: dict[str, Any] = {}
    if size is not None:
        ome |= {f"PhysicalSize{axis}": size for axis in "XY"}
        ome |= {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
        resolution = {"resolution": (1e7 / size, 1e7 / size), "resolutionunit": "CENTIMETER"}
    if interval is not None:
        ome |= {"TimeIncrement": interval, "TimeIncrementUnit": "s"}
    # Offsets of classic TIFF end at 4 GiB; the description and the tags need some room, too.
    big = math.prod(shape) * 4 > 2**32 - 2**26
    with tifffile.TiffWriter(path, ome=True, bigtiff=big, byteorder="<") as file:
        file.write(
            frames, shape=shape, dtype="<f4", photometric="minisblack", metadata=ome, **resolution
        )
