"""``python -m tem_live.models.trim fast --middles 32,48,...``: channels that nothing passes.

A ReLU that stays below its threshold for every frame has no gradient and never comes back. In the
deep blocks of a network trained at high rates most channels can end so: they cost time and do
nothing. Here each channel in the middle of a residual block is asked for its share of what the
block adds; those with the least are taken out, and those that are kept but sleep can be begun anew
(Sokar et al., arXiv:2302.12902), to be trained on from there (``start`` in a recipe). Where all of
a block's channels do something it can be given more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tem_live.errors import InputError, TemLiveError
from tem_live.models import cameras, scenes
from tem_live.models.cards import ModelCard, sha256_of, write_card
from tem_live.models.network import CONDITIONS, DoseUNet
from tem_live.models.restorers import Restorer, load_restorer
from tem_live.models.training import writing_to
from tem_live.models.views import VIEWS

__all__ = [
    "Middle",
    "blocks_of",
    "main",
    "network_of",
    "numbers",
    "seen_middles",
    "trimmed",
    "write",
]

ASLEEP = 1e-4
"""Share of what a block adds, below which a channel is said to sleep."""
_SCENE_PX = 192
_DOSES_E_PER_PX = (0.5, 50.0)


class Middle:
    """What the channels in the middle of one block did, summed over frames."""

    def __init__(self, width: int) -> None:
        self._count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, dtype=torch.float64)

    def see(self, x: Tensor) -> None:
        """Add a frame's (N, C, h, w)."""
        x = x.double()
        self._count += x.numel() // x.shape[1]
        self._sum += x.sum(dim=(0, 2, 3))
        self._squares += x.square().sum(dim=(0, 2, 3))

    @property
    def mean(self) -> Tensor:
        """float64 (C,)."""
        return self._sum / max(self._count, 1)

    def shares(self, second: nn.Conv2d) -> Tensor:
        """float64 (C,), sum 1: of the variance that the convolution behind makes of them."""
        variance = (self._squares / max(self._count, 1) - self.mean.square()).clamp_min(0.0)
        passed = variance * second.weight.detach().double().square().sum(dim=(0, 2, 3))
        return passed / passed.sum().clamp_min(1e-30)


def blocks_of(network: DoseUNet) -> list[Any]:
    """The residual blocks, in the order of ``middles``."""
    stages: list[Any] = [*network.encoders, *network.decoders]
    return [block for stage in stages for block in stage]


def network_of(restorer: Restorer) -> DoseUNet:
    """The network that a restorer of this package runs; `InputError` where there is none."""
    network = getattr(restorer, "_network", None)
    if not isinstance(network, DoseUNet):
        raise InputError(f"{restorer.name} has no network of this package; use fast or best")
    return network


def seen_middles(restorer: Restorer, frames: int = 150, seed: int = 0) -> list[Middle]:
    """Restore frames of the training's scenes and cameras, and watch the middles of the blocks.

    Parameters
    ----------
    restorer : Restorer
        On the CPU, in float32.
    frames : int
        How many.
    seed : int
        Of scenes, doses and cameras.
    """
    blocks = blocks_of(network_of(restorer))
    middles = [Middle(block.second.in_channels) for block in blocks]
    hooks = [
        block.second.register_forward_pre_hook(lambda _, inputs, middle=middle: middle.see(*inputs))
        for block, middle in zip(blocks, middles, strict=True)
    ]
    rng = np.random.default_rng(seed)
    low, high = np.log(_DOSES_E_PER_PX)
    try:
        for _ in range(frames):
            scene = scenes.random_scene(rng, _SCENE_PX)
            dose = float(np.exp(rng.uniform(low, high)))
            restorer.restore(cameras.expose(rng, scene, dose, cameras.random_camera(rng))[0])
    finally:
        for hook in hooks:
            hook.remove()
    return middles


def trimmed(
    network: DoseUNet,
    seen: Sequence[Middle],
    middles: Sequence[int],
    *,
    waken: bool = False,
    seed: int = 0,
) -> DoseUNet:
    """Keep of each middle the channels that do most; what the others gave on the average stays.

    Parameters
    ----------
    network : DoseUNet
        Is not changed.
    seen : sequence of Middle
        See `seen_middles`.
    middles : sequence of int
        How many channels each block is to have.
    waken : bool
        Whether those kept that sleep begin anew: with random weights in front of them, none
        behind. The network then computes the same at first. So do those that a block has not had.
    seed : int
        Of these weights.

    Raises
    ------
    InputError
        `middles` do not fit the network.
    """
    _must_fit(network, middles, waken)
    made = DoseUNet(network.widths, network.blocks, network.waves, middles)
    random = torch.Generator().manual_seed(seed)
    weights = network.state_dict()
    new = made.state_dict()
    inside = {id(part) for block in blocks_of(network) for part in block.parameters()}
    for (name, tensor), parameter in zip(weights.items(), network.parameters(), strict=True):
        if id(parameter) not in inside:
            new[name] = tensor
    made.load_state_dict(new)
    with torch.no_grad():
        for old, block, middle in zip(blocks_of(network), blocks_of(made), seen, strict=True):
            _fill(block, old, middle, random if waken else None)
    return made.eval()


def _must_fit(network: DoseUNet, middles: Sequence[int], waken: bool) -> None:
    """Refuse numbers of channels that the blocks cannot have."""
    told = f"middles {','.join(map(str, middles))} do not fit: the network has "
    told += ",".join(map(str, network.middles))
    if len(middles) != len(network.middles) or min(middles) < 1:
        raise InputError(f"{told}; give as many numbers, each of them 1 or more")
    if not waken and any(a > b for a, b in zip(middles, network.middles, strict=True)):
        raise InputError(f"{told}; larger ones only begin anew, with --waken")


def _fill(block: Any, old: Any, middle: Middle, random: torch.Generator | None) -> None:
    """Copy the channels that do most from block `old` into `block`; others of it begin anew."""
    shares = middle.shares(old.second)
    order = shares.argsort(descending=True)
    width = block.second.in_channels
    kept = order[:width].sort().values
    asleep = shares[kept] < ASLEEP if random is not None else torch.zeros(len(kept)).bool()
    gone = torch.cat([order[width:], kept[asleep]])
    there = slice(0, len(kept))
    block.first.weight[there] = old.first.weight[kept]
    block.first.bias[there] = old.first.bias[kept]
    block.noise.weight[there] = old.noise.weight[kept]
    block.noise.bias[there] = old.noise.bias[kept]
    block.second.weight[:, there] = old.second.weight[:, kept]
    left = (old.second.weight[:, gone] * middle.mean[gone].float()[None, :, None, None]).sum(
        (1, 2, 3)
    )
    block.second.bias.copy_(old.second.bias + left)
    fresh = torch.cat([asleep, torch.ones(width - len(kept)).bool()])
    if random is not None and bool(fresh.any()):
        awake = old.first.weight[kept[~asleep]].flatten(1).norm(dim=1)
        _begin_anew(block, fresh, float(awake.median()) if len(awake) else 1.0, random)


def _begin_anew(block: Any, fresh: Tensor, norm: float, random: torch.Generator) -> None:
    """Give channels random weights of this norm in front of them, and none behind."""
    count = int(fresh.sum())
    weight = torch.randn(block.first.weight[fresh].shape, generator=random)
    weight *= norm / weight.flatten(1).norm(dim=1)[:, None, None, None]
    block.first.weight[fresh] = weight
    block.first.bias[fresh] = 0.0
    block.noise.bias[fresh] = 0.0
    block.noise.weight[fresh] = 0.02 * torch.randn(count, CONDITIONS, generator=random)
    block.second.weight[:, fresh] = 0.0


def write(network: DoseUNet, restorer: Restorer, path: Path) -> ModelCard:
    """Write a changed network beside its card, both named by `path` (.safetensors)."""
    from safetensors.torch import save_file

    from tem_live.models.publish import count_gmac

    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In half precision, as trained weights are kept.
        save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, path)
    times = len(VIEWS) if restorer.card.kind == "views" else 1
    card = restorer.card.model_copy(
        update={
            "name": path.stem,
            "default": False,
            "architecture": {
                **restorer.card.architecture,
                "blocks": list(network.blocks),
                "middles": list(network.middles),
            },
            "parameters": sum(p.numel() for p in network.parameters()),
            "gmac_512": round(count_gmac(network) * times, 2),
            "scores": (),
            "weights": "",
            "sha256": sha256_of(path),
        }
    )
    write_card(path.with_suffix(".json"), card)
    return card


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tem_live.models.trim", description=__doc__)
    parser.add_argument("start", help="a restorer's name, or the path of its .safetensors")
    parser.add_argument("--middles", help="channels of each block to be; without: only tell")
    parser.add_argument("--waken", action="store_true", help="begin anew what sleeps or is new")
    parser.add_argument("--frames", type=int, default=150, help="how many are looked at")
    parser.add_argument("--to", type=Path, help="path of the .safetensors to be written")
    options = parser.parse_args(argv)
    try:
        if options.frames < 1:
            raise InputError(f"--frames {options.frames}: look at one frame or more")
        restorer = load_restorer(options.start, "cpu", "float32")
        network = network_of(restorer)
        # What is wrong is told before the frames are looked at, which takes its time.
        middles = None if options.middles is None else numbers(options.middles, "--middles")
        if middles is not None:
            if options.to is None or options.to.suffix != ".safetensors":
                raise InputError("--to must name a .safetensors file")
            _must_fit(network, middles, options.waken)
        seen = seen_middles(restorer, options.frames)
        for block, middle in zip(blocks_of(network), seen, strict=True):
            shares = middle.shares(block.second).sort().values
            awake, needed = (int((shares >= ASLEEP).sum()), int((shares.cumsum(0) >= 1e-3).sum()))
            sys.stdout.write(
                f"{len(shares)} channels, {awake} awake, {needed} give 99.9 % of the variance\n"
            )
        if middles is None:
            return 0
        made = trimmed(network, seen, middles, waken=options.waken)
        card = write(made, restorer, options.to)
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{options.to}: {card.parameters} parameters, {card.gmac_512} GMAC at 512^2\n")
    return 0


def numbers(text: str, option: str) -> list[int]:
    """Numbers separated by commas; `InputError` names the option where they are none."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r}: give numbers, separated by commas") from error


if __name__ == "__main__":
    sys.exit(main())
