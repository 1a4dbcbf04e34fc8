"""Lattices are taken out of the frames to train on, for the restorer takes them out, too.

What is beyond doubt periodic never reaches the network of a restorer, see
`tem_live.models.spectrum.lattice_part`; defects, edges and what else is left of such frames does.
Trained on whole lattices, it would learn what it never meets, and not what it does.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.network import BLOCK, block_bands, conditions
from tem_live.models.spectrum import lattice_part

__all__ = ["lattice_of", "without_lattices"]


def lattice_of(frame: Tensor) -> Tensor | None:
    """The lattice that a restorer takes out of a frame.

    Parameters
    ----------
    frame : Tensor
        float32 (H, W), electrons.

    Returns
    -------
    Tensor or None
        float32 (H, W), electrons, mean 0; None where there is none.
    """
    height, width = (side // BLOCK * BLOCK for side in frame.shape)
    mean = frame.mean()
    with torch.no_grad():
        blocks = functional.pixel_unshuffle(frame[None, None, :height, :width], BLOCK)
        sigma = conditions(block_bands(blocks), mean[None])[0][0]
        found = lattice_part((frame - mean) / sigma) if sigma > 0.0 else None
        return None if found is None else (found - found.mean()).mul_(sigma)


def without_lattices(frames: Tensor, targets: Tensor) -> None:
    """Take the lattice of each frame out of it and out of its target, in place.

    Parameters
    ----------
    frames, targets : Tensor
        float32 (N, H, W), electrons.
    """
    for frame, target in zip(frames, targets, strict=True):
        lattice = lattice_of(frame)
        if lattice is not None:
            frame -= lattice
            target -= lattice
