"""Count what a network's convolutions multiply and move, by its layers' geometry alone.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tem_live.models.network import BLOCK, CONDITIONS, DoseUNet

__all__ = ["Work", "count_work", "unet_work"]


class Work(NamedTuple):
    """What the convolutions of a network have to do for a frame, at least.

    Biases, normalisation and interpolation are left out.
    """

    macs: int
    """Products of weights and pixels."""
    planes: int
    """Numbers in the planes that they read and write."""
    weights: int
    """Numbers in their weights."""

    def times(self, frames: int) -> Work:
        """That of so many frames at once."""
        return Work(frames * self.macs, frames * self.planes, self.weights)


def count_work(network: nn.Module, *inputs: Tensor) -> Work:
    """What `network` has to do to turn `inputs` into its output.

    Parameters
    ----------
    network : Module
        On the device "meta" nothing is computed and nothing allocated.
    *inputs : Tensor
        What it is called with, on its device.

    Returns
    -------
    Work
    """
    macs = planes = weights = 0

    def count(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, planes, weights
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        # Each pixel of a convolution's output, and of a transposed one's input, meets all taps.
        image = arguments[0] if isinstance(layer, nn.ConvTranspose2d) else output
        pixels = image.shape[0] * image.shape[-2] * image.shape[-1]
        macs += layer.weight.numel() * pixels
        planes += arguments[0].numel() + output.numel()
        weights += layer.weight.numel()

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks: list[Any] = [
        layer.register_forward_hook(count)
        for layer in network.modules()
        if isinstance(layer, kinds)
    ]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Work(macs, planes, weights)


def unet_work(network: DoseUNet, shape: tuple[int, int]) -> Work:
    """What such a network has to do for one frame of (height, width) px; nothing is computed."""
    step = network.multiple
    height, width = (-(-side // step) * step // BLOCK for side in shape)
    with torch.device("meta"):
        twin = DoseUNet(network.widths, network.blocks, network.waves, network.middles)
        # Two frames: for a single one the layers are passed by, see `network._Block`.
        blocks = torch.empty(2, BLOCK * BLOCK, height, width)
        waves = [blocks] if network.waves else []
        both = count_work(twin, blocks, torch.empty(2, CONDITIONS), *waves)
    return Work(both.macs // 2, both.planes // 2, both.weights)
