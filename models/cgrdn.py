"""CGRDN: the grouped residual dense network of Lobato et al., and the restorer around it.

Source: I. Lobato, T. Friedrich, S. Van Aert, "Deep convolutional neural networks to restore
single-shot electron microscopy images", arXiv:2303.17025 (2023). Written from the paper's figures
and the layers' shapes; the published weights are not part of tem_live (`tem_live.models.imports`).

This module imports torch; import it lazily.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tem_live.models.cards import ModelCard
from tem_live.models.restorer import Restorer
from tem_live.models.tiles import run_tiled

__all__ = ["CGRDN", "STD_FLOOR", "CgrdnRestorer", "normalisation"]

STD_FLOOR = 0.1
"""Frames are divided by their standard deviation, or by this where it is smaller."""

_WIDTH = 64
_GROWTH = 32
_LAYERS = 8
_BLOCKS = 4
_GROUPS = 4

# A convolution of half the resolution holds 320 channels: 84 MB for a tile of 512 x 512.
_TILE_PX = 1024
_HALO_PX = 128


class CGRDN(nn.Module):
    """Residual dense blocks in groups, at half the resolution; frames are normalised outside.

    Notes
    -----
    conv3x3 1 to 64; conv4x4, stride 2; 4 groups of 4 residual dense blocks; all groups
    concatenated, conv1x1 256 to 64, plus the first feature map; deconv4x4, stride 2; conv3x3 64 to
    1; plus the input. No normalisation layer. 7.04 million parameters, 461 GMAC at 512 x 512.
    """

    multiple = 2

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, _WIDTH, 3, padding=1)
        self.down = nn.Conv2d(_WIDTH, _WIDTH, 4, stride=2, padding=1)
        self.groups = nn.ModuleList(_Group() for _ in range(_GROUPS))
        self.fuse = nn.Conv2d(_GROUPS * _WIDTH, _WIDTH, 1)
        self.up = nn.ConvTranspose2d(_WIDTH, _WIDTH, 4, stride=2, padding=1)
        self.last = nn.Conv2d(_WIDTH, 1, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        """Restore normalised frames.

        Parameters
        ----------
        frames : Tensor
            float32 (N, 1, H, W), see `normalisation`; H and W even.

        Returns
        -------
        Tensor
            float32 (N, 1, H, W), in the same unit.
        """
        start = x = self.down(self.first(frames))
        maps: list[Tensor] = []
        for group in self.groups:
            x = group(x)
            maps.append(x)
        x = self.fuse(torch.cat(maps, dim=1)).add_(start)
        out: Tensor = self.last(self.up(x))
        return out.add_(frames)


class _Group(nn.Module):
    """Residual dense blocks, all of them concatenated, conv1x1, plus the input."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_DenseBlock() for _ in range(_BLOCKS))
        self.fuse = nn.Conv2d(_BLOCKS * _WIDTH, _WIDTH, 1)

    def forward(self, start: Tensor) -> Tensor:
        x = start
        maps: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        out: Tensor = self.fuse(torch.cat(maps, dim=1))
        return out.add_(start)


class _DenseBlock(nn.Module):
    """conv3x3 and ReLU, each on all maps before it; conv1x1, plus the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(_WIDTH + k * _GROWTH, _GROWTH, 3, padding=1) for k in range(_LAYERS)
        )
        self.fuse = nn.Conv2d(_WIDTH + _LAYERS * _GROWTH, _WIDTH, 1)

    def forward(self, start: Tensor) -> Tensor:
        x = start
        for layer in self.layers:
            x = torch.cat([x, functional.relu(layer(x), inplace=True)], dim=1)
        out: Tensor = self.fuse(x)
        return out.add_(start)


def normalisation(frame: Tensor) -> tuple[float, float]:
    """Mean of a frame and what it is divided by: its standard deviation, at least `STD_FLOOR`.

    Parameters
    ----------
    frame : Tensor
        Any shape, finite.

    Returns
    -------
    mean, scale : float
        In the unit of the frame; the standard deviation is the population's (divided by N).
    """
    exact = frame.double()
    return float(exact.mean()), max(float(exact.std(correction=0)), STD_FLOOR)


class CgrdnRestorer(Restorer):
    """Runs a `CGRDN`: normalise, restore, take the normalisation back, set the mean.

    The last step is ours: the published network shifts the mean of a frame a little.
    """

    def __init__(self, card: ModelCard, device: str, network: CGRDN) -> None:
        super().__init__(card, device)
        self._network = network.eval().requires_grad_(False).to(torch.device(device))

    def _restore_finite(self, frame: Tensor, mean: float, out: Tensor) -> None:
        if bool((frame == frame.flatten()[0]).all()):
            out.copy_(frame)
            return
        centre, scale = normalisation(frame)
        restored = run_tiled(
            self._network,
            (frame - centre) / scale,
            multiple=CGRDN.multiple,
            tile_px=_TILE_PX,
            halo_px=_HALO_PX,
        )
        shift = mean - scale * float(restored.mean())
        torch.add(torch.tensor(shift, device=out.device), restored, alpha=scale, out=out)
