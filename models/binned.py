"""Restore frames binned: a quarter of the pixels, or less, for a quarter of the time.

A camera of 4096 x 4096 px shows more than a screen can, and more than a processor without a GPU
restores live. Binned by 4 it is restored sixteen times as fast, and each large pixel holds sixteen
times the electrons. What is finer than two large pixels is lost in the restored plane; the raw
frame keeps it. This module imports torch; import it lazily.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.restorer import Restorer, padded

if TYPE_CHECKING:
    from tem_live.models.macs import Work

__all__ = ["BinnedRestorer", "restored_binned"]


def restored_binned(
    frame: Tensor, factor: int, restore: Callable[[Tensor], Tensor], out: Tensor
) -> None:
    """Bin a frame, restore it, and enlarge it again.

    Parameters
    ----------
    frame : Tensor
        float32 (H, W) in e-/px.
    factor : int
        Side of a large pixel; a rest at the edges is filled up by what is beside it.
    restore : callable
        Restores float32 (h, w) in electrons per large pixel, into new memory.
    out : Tensor
        float32 (H, W) in e-/px, linear between the centres of the large pixels. Its mean is that
        of the frame, less what the restorer took from that of the binned frame (hits).
    """
    height, width = frame.shape
    full = padded(frame[None, None], 0, -height % factor, 0, -width % factor)
    means = functional.avg_pool2d(full, factor)[0, 0]
    restored = restore(means * float(factor**2)) / float(factor**2)
    large = functional.interpolate(
        restored[None, None], size=full.shape[-2:], mode="bilinear", align_corners=False
    )[0, 0, :height, :width]
    # What was filled up counts twice in the means.
    mean = frame.mean() + (restored.mean() - means.mean())
    torch.add(large, mean - large.mean(), out=out)


class BinnedRestorer(Restorer):
    """A restorer that is given binned frames.

    Parameters
    ----------
    restorer : Restorer
        What restores them.
    binning : int
        Side of a large pixel.
    """

    def __init__(self, restorer: Restorer, binning: int) -> None:
        super().__init__(restorer.card, restorer.device)
        self._restorer = restorer
        self.binning = binning
        self.concurrent = restorer.concurrent
        self.precision = restorer.precision
        self.engine = restorer.engine

    def work(self, shape: tuple[int, int]) -> Work | None:
        """See `Restorer.work`."""
        return self._restorer.work(self._binned(shape))

    def prepare(self, shape: tuple[int, int]) -> None:
        """See `Restorer.prepare`."""
        self._restorer.prepare(self._binned(shape))

    def _binned(self, shape: tuple[int, int]) -> tuple[int, int]:
        height, width = shape
        return -(-height // self.binning), -(-width // self.binning)

    def _restore_finite(self, frame: Tensor, mean: float, out: Tensor) -> None:
        restored_binned(frame, self.binning, self._restorer.restore, out)
