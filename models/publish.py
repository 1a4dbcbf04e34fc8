"""``python -m tem_live.models.publish .train/fast``: put trained weights and their card in place.

Counts parameters, multiplications and the receptive field on the network itself, copies the scores
out of the JSON that ``tem-live evaluate --json`` printed, and never makes up any.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tem_live.errors import InputError, TemLiveError
from tem_live.models.cards import ModelCard, Score, sha256_of, write_card
from tem_live.models.training import load_recipe, writing_to
from tem_live.paths import written_whole

if TYPE_CHECKING:
    from tem_live.models.network import DoseUNet

__all__ = ["count_gmac", "main", "publish", "receptive_field_px", "scores_from"]


def count_gmac(network: DoseUNet, size: int = 512) -> float:
    """Count the multiplications for a size x size frame, in 10^9."""
    from tem_live.models.macs import unet_work
    from tem_live.models.network import BLOCK

    # The noise spectrum is 15 x 16 products for each block, the linear path 16 x 16.
    beside = (15 + 16) * 16 * (size // BLOCK) ** 2
    return (unet_work(network, (size, size)).macs + beside) / 1e9


def receptive_field_px(network: DoseUNet) -> int:
    """Side of the square of input pixels that reach one output pixel.

    Measured as the support of the gradient of a copy with all weights positive, where nothing can
    cancel; the frame's noise level and mean, which all pixels share, are left out.
    """
    import torch

    from tem_live.models.network import BLOCK, CONDITIONS

    probe = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.fill_(1e-2)
    side = 192
    x = torch.ones(1, BLOCK**2, side, side, requires_grad=True)
    y = probe(x, torch.zeros(1, CONDITIONS), *([torch.ones_like(x)] if network.waves else []))
    extent = 0
    # How far it reaches depends on where in the coarsest cell the output lies.
    for offset in (0, probe.multiple // BLOCK - 1):
        at = side // 2 + offset
        (gradient,) = torch.autograd.grad(y[0, :, at, at].sum(), x, retain_graph=True)
        rows = gradient[0].abs().sum(dim=(0, 2)).nonzero()
        extent = max(extent, int(rows.max() - rows.min()) + 1)
    return extent * BLOCK


def scores_from(path: Path, method: str, data: str, command: str) -> list[Score]:
    """Turn the JSON of an evaluation into the card's scores."""
    try:
        value = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        rows = [
            Score(
                data=data,
                camera=row["camera"],
                dose_e_per_px=row["dose_e_per_px"],
                error_ratio=round(row["error_ratio"], 3),
                error_ratio_worst=round(row["error_ratio_worst"], 3),
                dose_gain=round(row["dose_gain"], 1),
                command=command,
            )
            for row in value["summary"]
            if row["method"] == method
        ]
        pair = value["pair"]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} is not the --json output of an evaluation") from error
    if pair is not None and "references" not in command:
        figures = {
            f"{who}_{key}": round(pair[where][key], 4)
            for who, where in (("restored", method), ("gaussian", "gaussian"), ("raw", "raw"))
            for key in ("error_e2", "texture")
        }
        rows.append(
            Score(
                data="two successive real TEM frames of particles at 4.6 e-/px, 3 nm/px",
                camera="real",
                dose_e_per_px=4.6,
                extra=figures,
                command=command,
            )
        )
    return rows


def publish(
    source: Path,
    recipe_path: Path,
    target: Path,
    *,
    default: bool,
    scores: Sequence[Score] = (),
    title: str,
    version: str = "1",
    limits: Sequence[str] = (),
    training: str = "",
    views: bool = False,
) -> ModelCard:
    """Copy ``<source>/<name>.safetensors`` into `target` and write its card.

    With ``views`` it is run on all `tem_live.models.views.VIEWS` of a frame.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    from tem_live.models.network import DoseUNet
    from tem_live.models.openvino_scales import without_scales
    from tem_live.models.views import VIEWS

    recipe = load_recipe(recipe_path)
    weights = source / f"{recipe.name}.safetensors"
    if not weights.is_file():
        raise InputError(f"no {weights}; train first")
    try:
        with safe_open(weights, "pt") as stream:
            metadata = stream.metadata() or {}
        shape: dict[str, Any] = {k: list(json.loads(metadata[k])) for k in ("widths", "blocks")}
        shape["waves"] = bool(json.loads(metadata.get("waves", "false")))
        shape["middles"] = list(json.loads(metadata.get("middles", "[]")))
        network = DoseUNet(*(shape[k] for k in ("widths", "blocks", "waves", "middles")))
        held = without_scales(load_file(weights))
        network.load_state_dict({k: v.float() for k, v in held.items()})
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{weights} is damaged, or no training wrote it") from error
    except RuntimeError as error:
        raise InputError(f"{weights} was made by another version of the network") from error
    placed = target / weights.name
    with writing_to(target), written_whole(placed) as part:
        shutil.copyfile(weights, part)
    data = recipe.data
    card = ModelCard(
        name=recipe.name,
        title=title,
        version=version,
        default=default,
        kind="views" if views else "network",
        modality="TEM and STEM, single frames, any specimen; simulated training scenes only",
        doses_e_per_px=data.dose_range,
        pixel_sizes="any: nothing depends on the pixel size, features of 2.6 to 100 px were seen",
        noise=(
            f"{data.poisson:.0%} Poisson; else excess noise up to 4 e-^2/e-, read noise up to "
            "5 e-, blur up to 0.8 px, row or column streaks, column offsets, gain residue up to "
            "3 %, clipping at zero, hot and dead pixels, X-ray hits; the noise is measured from "
            "each frame, no calibration is needed beyond counts per electron"
        ),
        parameters=sum(p.numel() for p in network.parameters()),
        gmac_512=round(count_gmac(network) * (len(VIEWS) if views else 1), 2),
        receptive_field_px=receptive_field_px(network),
        architecture=shape,
        scores=tuple(scores),
        training=training or f"tem-live train {recipe_path.as_posix()} ({metadata['step']} steps)",
        recipe=recipe_path.read_text(encoding="utf-8"),
        sha256=sha256_of(placed),
        limits=tuple(limits),
    )
    write_card(placed.with_suffix(".json"), card)
    return card


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tem_live.models.publish", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of the training, e.g. .train/fast")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--title", required=True)
    parser.add_argument("--version", default="1")
    parser.add_argument("--default", action="store_true")
    parser.add_argument("--views", action="store_true", help="run it on several views of a frame")
    parser.add_argument("--training", default="", help="how the weights came about, if not simply")
    parser.add_argument("--limit", action="append", default=[], help="a sentence for the card")
    parser.add_argument(
        "--scores",
        nargs=3,
        action="append",
        default=[],
        metavar=("JSON", "DATA", "COMMAND"),
        help="output of evaluate --json, what it was measured on, the command",
    )
    options = parser.parse_args(argv)
    try:
        name = load_recipe(options.recipe).name
        scores: list[Score] = []
        for path, data, command in options.scores:
            scores += scores_from(Path(path), name, data, command)
        card = publish(
            options.source,
            options.recipe,
            options.to,
            default=options.default,
            scores=scores,
            title=options.title,
            version=options.version,
            limits=options.limit,
            training=options.training,
            views=options.views,
        )
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(
        f"{card.name}: {card.parameters} parameters, {card.gmac_512} GMAC at 512^2, "
        f"receptive field {card.receptive_field_px} px\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
