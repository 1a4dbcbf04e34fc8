"""Zarr folders: OME-Zarr of anybody, plain arrays, and the images of a recording."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.formats.metadata import as_number, tidy
from tem_live.formats.own import gain_of
from tem_live.formats.source import Source
from tem_live.ome_image import create_image, image_scale
from tem_live.plain_json import plain
from tem_live.recording import is_recording, read_recording


def is_zarr(path: Path) -> bool:
    """Whether a folder is one of Zarr, of whatever version."""
    return path.is_dir() and any(
        (path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs")
    )


def read(path: Path) -> Source:
    """Open the image of full size, or the largest array."""
    import zarr

    node = zarr.open(path, mode="r")
    attributes: Mapping[str, Any] = node.attrs
    if isinstance(node, zarr.Group):
        array, skipped = _image_of(node, path)
    else:
        array, skipped = node, []
    if array.ndim < 2:
        raise InputError(f"{path} holds no array of two or more dimensions")
    interval, size = image_scale(attributes)
    own = plain(dict(attributes))
    gain = gain_of(own.get("tem_live", {}))
    offset = 0.0
    if path.name in ("raw", "restored") and is_recording(path.parent):
        recording = read_recording(path.parent).attributes
        raw = path.name == "raw"
        gain = as_number(recording.get("counts_per_electron")) if raw else 1.0
        offset = (as_number(recording.get("offset_counts")) or 0.0) if raw else 0.0
    *lead, height, width = (int(side) for side in array.shape)
    return Source(
        shape=(math.prod(lead), height, width),
        dtype=np.dtype(array.dtype),
        read=lambda index: np.asarray(array[np.unravel_index(index, lead) if lead else ()]),
        pixel_size_nm=size,
        metadata={"format": "Zarr", "attributes": tidy(own)},
        counts_per_electron=gain,
        offset_counts=offset,
        frame_interval_s=interval,
        skipped=skipped,
    )


def _image_of(group: Any, path: Path) -> tuple[Any, list[str]]:
    """The array of full size of an OME-Zarr image, or the largest array of a plain group."""
    import zarr

    ome = group.attrs.get("ome", group.attrs)
    if "multiscales" in ome:
        return group[ome["multiscales"][0]["datasets"][0]["path"]], []
    arrays = {
        name: node
        for name, node in group.members(max_depth=3)
        if isinstance(node, zarr.Array) and node.ndim >= 2 and node.dtype.kind in "uifb"
    }
    if not arrays:
        raise InputError(f"{path} holds no array of two or more dimensions")
    chosen = max(sorted(arrays), key=lambda name: math.prod(arrays[name].shape))
    return arrays[chosen], [f"{path.name}: its array '{n}'" for n in sorted(arrays) if n != chosen]


def write(
    path: Path,
    frames: Iterator[npt.NDArray[np.float32]],
    shape: tuple[int, int, int],
    own: dict[str, Any],
) -> None:
    """Write float32 frames as OME-Zarr, with our note among the attributes of its group."""
    import zarr

    root = zarr.create_group(path, zarr_format=3, attributes={"tem_live": own})
    image = create_image(
        root, "", shape, np.dtype("<f4"), own["pixel_size_nm"], own["frame_interval_s"]
    )
    for number, frame in enumerate(frames):
        image[number] = frame
