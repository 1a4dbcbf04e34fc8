"""What each place of a `DoseUNet` reaches, by which its 8 bit integers are scaled.

That depends on the specimen: it is measured on scenes as they are trained on, each at the dose that
gives it the contrast of a step. It takes some seconds, so weights carry it along.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.network import BLOCK, DoseUNet, block_bands, conditions

__all__ = [
    "CONTRASTS",
    "Ranges",
    "Scales",
    "blocks_in",
    "contrast_of",
    "measured_scales",
    "numbers_of",
    "scales_in",
    "tensors_of",
    "without_scales",
]

Ranges = dict[str, npt.NDArray[np.float64]]
"""(channels,), what each input of a convolution reaches, by its place in the network."""

Scales = tuple[Ranges, ...]
"""One for each of `CONTRASTS`."""

CONTRASTS = (1.25, 2.5, 5.0, 10.0)
"""Steps of a frame's contrast, see `contrast_of`. Noise alone has up to 1.25; the first three are
enough up to 20 e-/px for anything, and up to 180 for thin specimens."""

_MEAN = torch.full((BLOCK * BLOCK,), 1.0 / BLOCK**2)
_SCENES, _SCENE_PX, _SEED = 64, 192, 7
# Of the largest values of all frames: one frame in fifty may go beyond, and all have finer steps.
_SHARE = 0.98
# Noise adds to the contrast of a scene: this share is its own, and so much more is still counted.
_OWN, _OVER = 0.85, 1.05
_DOSES = (0.2, 2000.0)
_KEY = "reaches"


def contrast_of(blocks: Tensor) -> float:
    """Largest mean of a block of a frame (1, 16, h, w), in its unit, that of the noise."""
    lying = blocks.permute(0, 2, 3, 1)
    return float((lying.reshape(-1, BLOCK * BLOCK) @ _MEAN).abs_().max())


def measured_scales(network: DoseUNet) -> Scales:
    """What each input of a convolution reaches, channel by channel, in frames of each contrast.

    Parameters
    ----------
    network : DoseUNet
        On the CPU.
    """
    from tem_live.models.scenes import random_scene

    random = np.random.default_rng(_SEED)
    scenes = [random_scene(random, _SCENE_PX) for _ in range(_SCENES)]
    found: list[Ranges] = []
    with torch.inference_mode():
        for contrast in CONTRASTS:
            reached: dict[str, list[Tensor]] = {}
            for scene in scenes:
                strongest = contrast_of(_blocks_of(scene - scene.mean()))
                dose = np.clip((_OWN * contrast / max(strongest, 1e-3)) ** 2, *_DOSES)
                frame = random.poisson(dose * scene).astype(np.float32)
                _look(network, frame, _OVER * contrast, reached)
            found.append(
                {
                    place: numbers_of(torch.stack(values).quantile(_SHARE, dim=0))
                    for place, values in reached.items()
                }
            )
    return tuple(found)


def _look(
    network: DoseUNet, frame: npt.NDArray[np.float32], most: float, reached: dict[str, list[Tensor]]
) -> None:
    """Add to `reached` what a frame reaches, if its contrast is not more than `most`."""

    def see(place: str, x: Tensor) -> None:
        reached.setdefault(place, []).append(x.abs().amax(dim=(0, 2, 3)))

    blocks = _blocks_of(frame - frame.mean())
    sigma, vector = conditions(block_bands(blocks), torch.tensor([float(frame.mean())]))
    # A frame without noise has no unit.
    blocks /= sigma.clamp_min(1e-6)
    if contrast_of(blocks) <= most:
        inputs = torch.cat([blocks, torch.zeros_like(blocks)], 1) if network.waves else blocks
        _walk(network, network.head(inputs), vector, see)


def _blocks_of(frame: npt.NDArray[np.float32]) -> Tensor:
    return functional.pixel_unshuffle(torch.from_numpy(frame)[None, None], BLOCK)


# ------------------------------------------------------------------------------ beside the weights


def tensors_of(scales: Scales) -> dict[str, Tensor]:
    """Scales as tensors to be kept in a file with the weights."""
    return {
        f"{_KEY}.{step}.{place}": torch.from_numpy(value).float()
        for step, ranges in enumerate(scales)
        for place, value in ranges.items()
    }


def without_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights alone, of what a file holds."""
    return {name: value for name, value in tensors.items() if not name.startswith(f"{_KEY}.")}


def scales_in(tensors: Mapping[str, Tensor]) -> Scales | None:
    """The scales of what a file holds; None where it has none, or not all that are used here."""
    found: list[Ranges] = []
    for step in range(len(CONTRASTS)):
        start = f"{_KEY}.{step}."
        ranges = {
            name.removeprefix(start): numbers_of(value)
            for name, value in tensors.items()
            if name.startswith(start)
        }
        found.append(ranges)
    shapes = [{place: value.shape for place, value in ranges.items()} for ranges in found]
    whole = bool(found[0]) and all(shape == shapes[0] for shape in shapes)
    return tuple(found) if whole else None


# ------------------------------------------------------------------------------------- the network


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


def blocks_in(stage: Any) -> list[Any]:
    """The blocks of a stage, `DoseUNet.encoders[i]` or `DoseUNet.decoders[i]`."""
    return list(stage)


def numbers_of(tensor: Any) -> npt.NDArray[np.float64]:
    """A tensor or parameter as an array."""
    array: npt.NDArray[np.float64] = tensor.detach().numpy().astype(np.float64)
    return array
