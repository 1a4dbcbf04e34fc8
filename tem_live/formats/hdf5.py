"""HDF5 of nobody's convention, by h5py."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tem_live.errors import InputError
from tem_live.formats.metadata import tidy
from tem_live.formats.source import Source


def read(path: Path) -> Source:
    """Open the largest array of images."""
    import h5py

    with ExitStack() as stack:
        file = stack.enter_context(h5py.File(path, "r"))
        found: list[Any] = []

        def visit(_: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "uif":
                found.append(node)

        file.visititems(visit)
        if not found:
            raise InputError(f"{path} holds no array of two or more dimensions")
        chosen = max(found, key=lambda node: node.size)
        lead = chosen.shape[:-2]
        return Source(
            shape=(math.prod(lead), *chosen.shape[-2:]),
            dtype=chosen.dtype,
            read=lambda index: np.asarray(
                chosen[tuple(int(at) for at in np.unravel_index(index, lead))] if lead else chosen
            ),
            close=stack.pop_all().close,
            metadata={"format": "HDF5", "dataset": chosen.name, "attributes": tidy(chosen.attrs)},
            skipped=[f"{path.name}: its array '{one.name}'" for one in found if one is not chosen],
        )
