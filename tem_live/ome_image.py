"""Images of OME-NGFF in a Zarr group: one is made for frames, and the scale of any is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import zarr

ARRAY = "0"
"""Name of the array in the group of an image that `create_image` made."""


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
                        "path": ARRAY,
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
        ARRAY,
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


def array_of(root: zarr.Group, name: str) -> zarr.Array[Any] | None:
    """The array of frames of such an image, or None where it cannot be had."""
    import zarr

    try:
        found = root[f"{name}/{ARRAY}"]
    except Exception:
        # Missing, or its zarr.json was cut: both mean that the array cannot be had.
        return None
    return found if isinstance(found, zarr.Array) and found.ndim == 3 else None


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
