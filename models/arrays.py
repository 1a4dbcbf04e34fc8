"""Frames as their callers have them (NumPy, torch, CuPy), seen as tensors and given back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from tem_live.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["as_tensor", "like", "out_tensor"]


def as_tensor(counts: Any) -> torch.Tensor:
    """View an array as a torch tensor, without a copy where that is possible."""
    import torch
    from torch.utils.dlpack import from_dlpack

    if isinstance(counts, torch.Tensor):
        return counts.detach()
    if isinstance(counts, np.ndarray):
        array = counts
        if array.dtype.kind not in "biufc":
            raise InputError(f"frames must be numbers, got an array of {array.dtype}")
        if array.dtype.kind == "c":
            raise InputError("frames must be real; give the intensity of a complex image")
        # torch knows neither big-endian nor negative strides, and warns of read-only memory.
        if array.dtype != np.float32 or min(array.strides, default=0) < 0:
            array = array.astype(np.float32)
        elif not array.flags.writeable:
            array = array.copy()
        return torch.from_numpy(array)
    if hasattr(counts, "__dlpack__"):
        return from_dlpack(counts)
    raise InputError(
        f"cannot restore a {type(counts).__name__}; give a NumPy array, a torch tensor or an "
        "array that supports DLPack"
    )


def out_tensor(out: Any, counts: Any, frames: torch.Tensor) -> torch.Tensor:
    """View `out` as a tensor to write to."""
    import torch
    from torch.utils.dlpack import from_dlpack

    if type(out) is not type(counts) and not isinstance(out, type(counts)):
        raise InputError(
            f"out is a {type(out).__name__} but the frames are a {type(counts).__name__}; "
            "give the same kind"
        )
    if tuple(out.shape) != tuple(frames.shape):
        raise InputError(f"out has shape {tuple(out.shape)}, the frames {tuple(frames.shape)}")
    if isinstance(out, np.ndarray):
        if out.dtype != np.float32 or not out.flags.writeable or min(out.strides, default=0) < 0:
            raise InputError("out must be a writable float32 array")
        return torch.from_numpy(out)
    target = out if isinstance(out, torch.Tensor) else from_dlpack(out)
    if target.dtype != torch.float32:
        raise InputError(f"out must be float32, got {target.dtype}")
    return target


def like(result: torch.Tensor, counts: Any) -> Any:
    """Return a tensor as the kind of array that `counts` is."""
    import torch

    if isinstance(counts, torch.Tensor):
        return result
    if isinstance(counts, np.ndarray):
        return result.numpy()
    library = sys.modules[type(counts).__module__.partition(".")[0]]
    return library.from_dlpack(result)
