"""What each place of a `DoseUNet` reaches, by which its 8 bit integers are scaled.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.network import BLOCK, DoseUNet, block_bands, conditions

__all__ = ["Ranges", "blocks_in", "measured_ranges", "numbers_of"]

Ranges = dict[str, npt.NDArray[np.float64]]
"""(channels,), what each input of a convolution reaches, by its place in the network."""

# Contrast, see `measured_ranges`, at which the scales are measured.
_MEASURED_AT = 16.0
_SIDE = 192
# The middles of deep blocks depend most on what is seen: there the scales leave room.
_DEEP_MIDDLE = 1.5


def measured_ranges(network: DoseUNet) -> tuple[Ranges, Ranges]:
    """What each input of a convolution reaches, channel by channel.

    Returns
    -------
    noise : dict of str to ndarray
        From noise alone.
    per_contrast : dict of str to ndarray
        What is added, for each unit of contrast (largest mean of a block, in units of the noise).
    """
    random = torch.Generator().manual_seed(7)
    noise = torch.randn(1, 1, _SIDE, _SIDE, generator=random)
    with torch.inference_mode():
        alone = _reached(network, noise, (0.3, 2.0, 10.0))
        seen = {place: torch.zeros_like(value) for place, value in alone.items()}
        for kind in _structures(random):
            frame = noise + kind * (
                _MEASURED_AT / float(functional.avg_pool2d(kind, BLOCK).abs().max())
            )
            for place, value in _reached(network, frame, (2.0, 40.0)).items():
                seen[place] = torch.maximum(seen[place], value)
    for place in alone:
        if place.endswith("middle") and " 0." not in place:
            alone[place] *= _DEEP_MIDDLE
            seen[place] *= _DEEP_MIDDLE
    added = {place: (seen[place] - alone[place]).clamp_min(0.0) / _MEASURED_AT for place in alone}
    return (
        {place: numbers_of(value) for place, value in alone.items()},
        {place: numbers_of(value) for place, value in added.items()},
    )


def _reached(network: DoseUNet, frame: Tensor, means: tuple[float, ...]) -> dict[str, Tensor]:
    """Largest values, channel by channel, where the frame's mean is one of these."""
    found: dict[str, Tensor] = {}

    def see(place: str, x: Tensor) -> None:
        largest = x.abs().amax(dim=(0, 2, 3))
        found[place] = torch.maximum(found[place], largest) if place in found else largest

    blocks = functional.pixel_unshuffle(frame - frame.mean(), BLOCK)
    bands = block_bands(blocks)
    for mean in means:
        sigma, vector = conditions(bands, torch.tensor([mean]))
        scaled = blocks / sigma
        inputs = torch.cat([scaled, torch.zeros_like(scaled)], 1) if network.waves else scaled
        _walk(network, network.head(inputs), vector, see)
    return found


def _walk(network: DoseUNet, x: Tensor, vector: Tensor, see: Callable[[str, Tensor], None]) -> None:
    """Compute the U-Net's body and show `see` what goes into each convolution."""

    def through(block: Any, x: Tensor, place: str) -> Tensor:
        see(place, x)
        middle = functional.relu(block.first(x) + block.noise(vector)[:, :, None, None])
        see(f"{place} middle", middle)
        out: Tensor = block.second(middle) + x
        return out

    last = len(network.widths) - 1
    skips: list[Tensor] = []
    for level, stage in enumerate(network.encoders):
        for number, block in enumerate(blocks_in(stage)):
            x = through(block, x, f"down {level}.{number}")
        if level < last:
            skips.append(x)
            see(f"step down {level}", x)
            x = network.down[level](x)
    for level in range(last - 1, -1, -1):
        see(f"step up {level}", x)
        x = network.up[level](x) + skips.pop()
        for number, block in enumerate(blocks_in(network.decoders[level])):
            x = through(block, x, f"up {level}.{number}")


def _structures(random: torch.Generator) -> list[Tensor]:
    """Specimens of many sizes, with soft and hard edges, (1, 1, side, side), mean near 0."""
    kinds = []
    for cells in (4, 16, 48):
        coarse = torch.randn(1, 1, cells, cells, generator=random)
        kinds.append(functional.interpolate(coarse, size=(_SIDE, _SIDE), mode="bicubic"))
    places = torch.arange(_SIDE, dtype=torch.float32)
    squares = torch.zeros(_SIDE, _SIDE)
    squares[40:90, 40:90] = -3.0
    squares[120:150, 100:150] = 2.0
    squares[60:70, 120:130] = -5.0
    disc = (torch.hypot(places - 96.0, places[:, None] - 96.0) < 60.0).float()
    edge = (places > 96.0).float().expand(_SIDE, _SIDE)
    kinds += [part[None, None] for part in (squares, disc, -disc, edge, -edge)]
    kinds.append(sum(kinds[:4], torch.zeros(1, 1, _SIDE, _SIDE)))
    return kinds


def blocks_in(stage: Any) -> list[Any]:
    """The blocks of a stage, `DoseUNet.encoders[i]` or `DoseUNet.decoders[i]`."""
    return list(stage)


def numbers_of(tensor: Any) -> npt.NDArray[np.float64]:
    """A tensor or parameter as an array."""
    array: npt.NDArray[np.float64] = tensor.detach().numpy().astype(np.float64)
    return array
