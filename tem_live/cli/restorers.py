"""Commands that train, score, list and import restorers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tem_live.cli.options import JsonOption, numbers, words
from tem_live.cli.printing import overwrite, show, train_progress
from tem_live.errors import InputError

if TYPE_CHECKING:
    from tem_live.models.training import Progress, Recipe

ToOption = Annotated[
    Path | None,
    typer.Option("--to", help="Folder to write to; by default where names are looked up."),
]


def train(
    recipe: Annotated[Path | None, typer.Argument(help="Training recipe, TOML.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default .train/ and its name.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, typer.Option(help="How many GPUs.")] = 1,
    start: Annotated[
        str | None, typer.Option("--from", help="Go on from this restorer, with --data.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Own data: folder of short/ and long/, a series, a frame.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="To a single frame: another one of the same place.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new restorer.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="Where it is published; by default where names are found.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="How long to go on training; by default 12.")
    ] = None,
    counts_per_electron: Annotated[
        float | None, typer.Option(help="Gain; by default what the files say.")
    ] = None,
    offset_counts: Annotated[
        float | None, typer.Option(help="Pedestal to subtract first; by default what files say.")
    ] = None,
    reduce: Annotated[
        int | None, typer.Option(help="Pixels of a side that become one; by default 1.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Train a restorer by a recipe, or go on training one on your own data."""
    from tem_live.models.training import load_recipe

    if (recipe is None) == (data is None):
        raise InputError("give a recipe, or --from and --data")
    told: dict[str, Any] = {
        "name": name,
        "minutes": minutes,
        "counts_per_electron": counts_per_electron,
        "offset_counts": offset_counts,
        "check": check,
        "reduce": reduce,
    }
    given = {key: value for key, value in told.items() if value is not None}
    if data is not None:
        from tem_live.models.finetune import own_recipe

        for key in ("minutes", "counts_per_electron", "reduce"):
            if key in given and not 0 < given[key] < float("inf"):
                option = key.replace("_", "-")
                raise InputError(f"--{option} {given[key]:g}: give a positive number")
        loaded = own_recipe(start or "fast", data, **given)
        # The folder of the run may be another data's.
        resume = False
    else:
        assert recipe is not None
        idle = (["from"] if start is not None else []) + [key.replace("_", "-") for key in given]
        if idle:
            raise InputError(f"--{idle[0]} goes with --data; a recipe says it itself")
        loaded = load_recipe(recipe)
        if to is not None and loaded.own is None:
            raise InputError("--to goes with own data; publish this one when it is trained")
    folder = out or Path(".train") / loaded.name
    said = None if json_ else train_progress
    if loaded.own is not None:
        _train_on_own(loaded, folder, to, resume, device, devices, said, json_)
        return
    from tem_live.models.lightning_run import fit

    path = fit(loaded, folder, resume=resume, device=device, devices=devices, progress=said)
    if sys.stderr.isatty():
        typer.echo(err=True)
    if json_:
        show({"name": loaded.name, "weights": str(path)}, True)
        return
    typer.echo(f"weights: {path}")


def _train_on_own(
    recipe: Recipe,
    folder: Path,
    to: Path | None,
    resume: bool,
    device: str,
    devices: int,
    said: Callable[[Progress], None] | None,
    json_: bool,
) -> None:
    from tem_live.models.finetune import finetune

    outcome = finetune(
        recipe, folder, target=to, resume=resume, device=device, devices=devices, progress=said
    )
    if json_:
        show(outcome.as_dict(), True)
        return
    if sys.stderr.isatty():
        typer.echo(err=True)
    for warning in outcome.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(outcome.message())
    typer.echo(f"weights: {outcome.path or outcome.weights}")


def evaluate(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Restorer: a name or a weights file; repeatable."),
    ] = None,
    baselines: Annotated[
        str, typer.Option(help="Of raw, best-gaussian, nlm and bm3d, or an empty string.")
    ] = "raw,best-gaussian",
    doses: Annotated[str, typer.Option(metavar="E_PER_PX", help="With commas.")] = "1,5,20",
    cameras: Annotated[str, typer.Option(help="Of poisson and cmos.")] = "poisson,cmos",
    size: Annotated[int, typer.Option(help="Side of the scenes, in pixels.")] = 512,
    seeds: Annotated[str, typer.Option(help="A scene and its noise for each.")] = "0",
    scenes: Annotated[str | None, typer.Option(help="With commas; all of them by default.")] = None,
    references: Annotated[
        Path | None, typer.Option(help="Folder of clean images to thin instead of the scenes.")
    ] = None,
    pair: Annotated[
        Path | None, typer.Option(help="Folder with a real pair, frame_1.tif and frame_2.tif.")
    ] = None,
    counts_per_electron: Annotated[
        float, typer.Option(help="Gain of the camera that took the pair.")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Save truth, raw and restored side by side.")
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="Atom columns against the bound of the raw counts.")
    ] = False,
    targets: Annotated[
        bool,
        typer.Option("--targets", help="Every target, row by row; takes --size and --pair too."),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Score restorers and baselines on scenes whose truth is known."""
    from tem_live.models import default_restorer, load_restorer
    from tem_live.models import evaluate as scoring
    from tem_live.models import evaluate_targets as judging

    if targets or columns:
        taken = {"model", "size", "device", "json_"}
        taken |= {"targets", "pair", "counts_per_electron"} if targets else {"columns"}
        taken |= set() if targets else {"doses", "seeds", "baselines"}
        _refuse_idle(context, taken, "--targets" if targets else "--columns")
    if targets:
        rows: list[dict[str, Any]] = []
        for name in model or [default_restorer()]:
            rows += judging.evaluate_targets(
                load_restorer(name, device),
                size=size,
                pair=pair,
                counts_per_electron=counts_per_electron,
                say=None if json_ else overwrite,
            )
        if not json_:
            overwrite("")
        show(rows if json_ else judging.table(rows), json_)
        return
    options = scoring.Options(
        models=tuple(model or [default_restorer()]),
        baselines=words(baselines),
        doses=numbers("--doses", doses, float),
        cameras=words(cameras),
        size=size,
        seeds=numbers("--seeds", seeds, int),
        scenes=scoring.Options().scenes if scenes is None else words(scenes),
        references=references,
        pair=pair,
        counts_per_electron=counts_per_electron,
        device=device,
        picture=picture,
        columns=columns,
    )
    report = scoring.evaluate(options, None if json_ else overwrite)
    if json_:
        show(report, True)
        return
    overwrite("")
    for table in scoring.tables(report):
        show(table, False)
    if report["picture"] is not None:
        shown = report["picture"]
        typer.echo(f"picture: {shown['path']}, from left to right: {', '.join(shown['columns'])}")


def _refuse_idle(context: typer.Context, taken: Container[str], option: str) -> None:
    """Refuse options that were given and do nothing beside another one."""
    for key in context.params:
        source = context.get_parameter_source(key)
        if key not in taken and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{key.replace('_', '-')} does nothing with {option}; leave it out")


def models_list(json_: JsonOption = False) -> None:
    """List the restorers."""
    from tem_live.models import list_restorers

    cards = [card.model_dump(mode="json") for card in list_restorers()]
    if json_:
        show(cards, json_)
        return
    show([{key: card.get(key) for key in ("name", "title", "default")} for card in cards], False)


def models_show(
    name: Annotated[str, typer.Argument(help="Name of a restorer.")], json_: JsonOption = False
) -> None:
    """Show a restorer's card."""
    from tem_live.models import load_restorer

    show(load_restorer(name, device="cpu").card.model_dump(mode="json"), json_)


def import_tk_r_em(
    source: Annotated[
        Path | None, typer.Argument(help="The unpacked package; by default the installed one.")
    ] = None,
    to: ToOption = None,
    json_: JsonOption = False,
) -> None:
    """Convert the six networks (GPL-3) of the package tk-r-em, on this machine for this user."""
    from tem_live.models import imports

    _print_imported(imports.import_tk_r_em(source, to), json_)


def import_katsuno(
    path: Annotated[Path, typer.Argument(help="State dict, .pth or .safetensors.")],
    to: ToOption = None,
    name: Annotated[str, typer.Option(help="Name of the restorer.")] = "katsuno",
    sigmoid: Annotated[
        bool, typer.Option("--sigmoid", help="The network ends in a sigmoid (theirs of 2023).")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Take in a state dict of segmentation-models-pytorch's Unet("resnet18", in_channels=1)."""
    from tem_live.models import imports

    _print_imported([imports.import_katsuno(path, to, name=name, sigmoid=sigmoid)], json_)


def _print_imported(paths: list[Path], as_json: bool) -> None:
    from tem_live.models.cards import read_card

    cards = [read_card(path.with_suffix(".json")) for path in paths]
    rows = [
        {"name": card.name, "title": card.title, "licence": card.licence, "path": str(path)}
        for card, path in zip(cards, paths, strict=True)
    ]
    if as_json:
        show(rows, True)
        return
    show([{key: row[key] for key in ("name", "title", "licence")} for row in rows], False)
    typer.echo(f"written to {paths[0].parent}")
