"""``python -m tem_live.models.deepen fast --blocks 3,2,2,2``: more residual blocks for a network.

A trained network is given further blocks that at first pass on what they get, so that it computes
what it did before (after Chen, Goodfellow and Shlens, "Net2Net", arXiv:1511.05641), to be trained
on from there (``start`` in a recipe): much sooner done than a deeper network from nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tem_live.errors import InputError, TemLiveError
from tem_live.models.network import DoseUNet
from tem_live.models.restorers import load_restorer
from tem_live.models.trim import network_of, numbers, write

__all__ = ["deepened", "main"]


def deepened(
    network: DoseUNet, blocks: Sequence[int], middles: Sequence[int] = (), seed: int = 0
) -> DoseUNet:
    """Add residual blocks behind those of each stage; they add nothing at first.

    Parameters
    ----------
    network : DoseUNet
        Is not changed.
    blocks : sequence of int
        How many each level is to have on the way down, and all but the last on the way up.
    middles : sequence of int, optional
        Channels in the middle of each new block, from the finest level on, on the way down and then
        up; by default as many as outside.
    seed : int
        Of the new blocks' random weights.

    Returns
    -------
    DoseUNet
        It gives what `network` gives.

    Raises
    ------
    InputError
        The numbers do not fit the network.
    """
    had = (*network.blocks, *network.blocks[:-1])
    told = f"blocks {_text(blocks)} do not fit: the network has {_text(network.blocks)}"
    if len(blocks) != len(network.blocks):
        raise InputError(f"{told}; give as many numbers")
    wanted = (*blocks, *blocks[:-1])
    if any(new < old for new, old in zip(wanted, had, strict=True)):
        raise InputError(f"{told}; give no smaller ones")
    widths = (*network.widths, *network.widths[:-1])
    more = [
        w for w, new, old in zip(widths, wanted, had, strict=True) for _ in range(new - old)
    ]  # fmt: skip
    if middles and (len(middles) != len(more) or min(middles) < 1):
        raise InputError(
            f"middles {_text(middles)} do not fit: there are {len(more)} new blocks; give as many "
            "numbers, each of them 1 or more"
        )
    fresh, old_middles = iter(middles or more), iter(network.middles)
    all_middles = [
        next(old_middles) if number < old else next(fresh)
        for new, old in zip(wanted, had, strict=True)
        for number in range(new)
    ]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        made = DoseUNet(network.widths, blocks, network.waves, all_middles)
    # Blocks are numbered within their stage, so that each of the old ones keeps its name.
    made.load_state_dict(network.state_dict(), strict=False)
    with torch.no_grad():
        stages: list[Any] = [*made.encoders, *made.decoders]
        for stage, old in zip(stages, had, strict=True):
            for block in stage[old:]:
                block.second.weight.zero_()
                block.second.bias.zero_()
    return made.eval()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tem_live.models.deepen", description=__doc__)
    parser.add_argument("start", help="a restorer's name, or the path of its .safetensors")
    parser.add_argument(
        "--blocks", required=True, help="residual blocks of each level, finest first"
    )
    parser.add_argument("--middles", help="channels in the middle of each new block, down then up")
    parser.add_argument("--to", type=Path, required=True, help="the .safetensors to be written")
    options = parser.parse_args(argv)
    try:
        if options.to.suffix != ".safetensors":
            raise InputError("--to must name a .safetensors file")
        restorer = load_restorer(options.start, "cpu", "float32")
        middles = () if options.middles is None else numbers(options.middles, "--middles")
        made = deepened(network_of(restorer), numbers(options.blocks, "--blocks"), middles)
        card = write(made, restorer, options.to)
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{options.to}: {card.parameters} parameters, {card.gmac_512} GMAC at 512^2\n")
    return 0


def _text(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


if __name__ == "__main__":
    sys.exit(main())
