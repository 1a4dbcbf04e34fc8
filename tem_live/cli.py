"""The command line. Commands are thin: they parse, call the library, and print.

Errors are one line on stderr; the exit status is 2 for bad input, 3 for a device or a disk. With
``--json`` the last line of stdout is one JSON value. Imports wait until a command needs them, so
that ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from tem_live.errors import InputError, TemLiveError
from tem_live.paths import check_target, numbered
from tem_live.threads import let_threads_sleep, switch_quickly

if TYPE_CHECKING:
    from tem_live.account import Cost
    from tem_live.models.training import Progress, Recipe
    from tem_live.profiles import Profile
    from tem_live.state import RunStats

HEADLESS_FRAMES = 60

LARGEST_SIDE = 16384
"""Frames of `bench` in pixels: larger ones than any camera's would not fit into the memory."""

Number = TypeVar("Number", int, float)

app = typer.Typer(
    help="Live low-dose cockpit for transmission electron microscopes.",
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Restorers and their cards.", rich_markup_mode=None)
calibrate_app = typer.Typer(
    help="Take dark and gain references; measure gain and dose rate.", rich_markup_mode=None
)
ledger_app = typer.Typer(help="What each specimen area has taken.", rich_markup_mode=None)
capture_app = typer.Typer(help="Take images to train restorers with.", rich_markup_mode=None)
import_app = typer.Typer(help="Bring in networks that others trained.", rich_markup_mode=None)
models_app.add_typer(import_app, name="import")
app.add_typer(models_app, name="models")
app.add_typer(calibrate_app, name="calibrate")
app.add_typer(capture_app, name="capture")
app.add_typer(ledger_app, name="ledger")

ProfileOption = Annotated[
    str, typer.Option("--profile", "-p", help="Name of an instrument profile, or a .toml file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a field of the profile; repeatable."),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Restorer: a name, a weights file, or 'none'."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value as the last line.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Start the cockpit when no command is given."""
    if version:
        from tem_live import __version__

        typer.echo(f"tem-live {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        gui()


@app.command()
def gui(
    profile: ProfileOption = "sim",
    set_: SetOption = None,
    model: ModelOption = None,
    screenshot: Annotated[
        Path | None, typer.Option(help="Run offscreen, save the window as PNG here, and exit.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Restored frames to show before the picture.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Record from the start, to this folder.")] = None,
) -> None:
    """Open the cockpit."""
    from tem_live.gui.app import run_gui

    if frames < 1:
        raise InputError(f"--frames {frames}: show 1 frame or more")
    overrides = _overrides(set_, model)
    if screenshot is None and not _has_display():
        # The same session, to be looked at afterwards.
        out = out or Path("recordings")
        folder = out.parent if out.suffix == ".zarr" else out
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}; give --out") from None
        screenshot = numbered(folder, Path(profile).stem, ".png")
        frames = max(frames, HEADLESS_FRAMES)
        typer.echo(f"no display: {frames} frames of the session run offscreen")
    if out is not None and out.suffix != ".zarr":
        out = numbered(out, Path(profile).stem, ".zarr")
    status = run_gui(profile, overrides=overrides, screenshot=screenshot, frames=frames, out=out)
    for what, path in (("window", screenshot), ("recording", out)):
        if path is not None and path.exists():
            typer.echo(f"{what}: {path.resolve()}")
    raise typer.Exit(status)


@app.command()
def run(
    profile: ProfileOption = "sim",
    frames: Annotated[int | None, typer.Option(help="Raw frames to take.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds to run.")] = None,
    model: ModelOption = None,
    out: Annotated[Path | None, typer.Option(help="Record here, as OME-Zarr.")] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="E_PER_A2", help="Stop at this fluence in e-/Å².")
    ] = None,
    area: Annotated[
        str | None, typer.Option(help="Specimen area; its fluence counts on across sessions.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="Set of optics of the profile, such as record.")
    ] = None,
    fidelity: Annotated[
        bool, typer.Option("--fidelity", help="Judge the restored frames, and follow damage.")
    ] = False,
    target_resolution: Annotated[
        float | None,
        typer.Option(metavar="NM", help="Hold the dose as low as restored frames resolve this."),
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Acquire without a window: frames, speed, losses, dose; recorded with --out."""
    from tem_live.run import run as acquire

    overrides = _overrides(set_, model)
    if budget is not None:
        overrides.append(f"dose.budget_e_per_A2={budget!r}")
    if area is not None:
        overrides.append(f"dose.area={json.dumps(area)}")
    loaded = _load(profile, overrides)
    progress = None if json_ else _progress
    with _ended_in_order():
        figures = acquire(
            loaded,
            frames,
            seconds,
            out,
            progress,
            fidelity,
            target_resolution,
            mode,
            on_cost=None if json_ else _tell_cost,
        )
    reason = figures["stop_reason"] or ""
    _print(figures, json_)
    if reason.startswith("error: "):
        _complain(reason.removeprefix("error: "))
        raise typer.Exit(3)


@app.command()
def restore(
    sources: Annotated[list[Path], typer.Argument(help="Files or folders.", metavar="SRC...")],
    out: Annotated[Path, typer.Option(help="File, or folder for several sources.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Restorer.")] = "fast",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    counts_per_electron: Annotated[
        float | None, typer.Option(help="Gain; by default what the file says.")
    ] = None,
    offset_counts: Annotated[float, typer.Option(help="Pedestal to subtract first.")] = 0.0,
    overwrite: Annotated[bool, typer.Option(help="Replace what is at DST.")] = False,
    json_: JsonOption = False,
) -> None:
    """Restore files: dm3, dm4, ser, emd, mrc, tif, mib, blo, zarr, npy and more."""
    from tem_live.models import load_restorer
    from tem_live.restore_files import restore_files

    if counts_per_electron is not None and not counts_per_electron > 0:
        raise InputError(f"--counts-per-electron {counts_per_electron:g}: give a positive number")
    results = restore_files(
        sources,
        out,
        load_restorer(model, device=device),
        counts_per_electron=counts_per_electron,
        offset_counts=offset_counts,
        overwrite=overwrite,
        progress=None if json_ else _file_progress,
    )
    _print([_plain(result) for result in results], json_)


@app.command()
def recover(
    path: Annotated[Path, typer.Argument(help="A recording that was cut short.")],
    json_: JsonOption = False,
) -> None:
    """Make a broken recording whole again, as far as its frames were written."""
    from tem_live.recovery import recover as mend

    _print(_plain(mend(path)), json_)


@app.command()
def profiles(json_: JsonOption = False) -> None:
    """List the instrument profiles."""
    from tem_live.profiles import load_profile, profile_names

    rows: list[dict[str, Any]] = []
    for name in profile_names():
        try:
            found = load_profile(name)
        except TemLiveError as error:
            rows.append({"name": name, "title": f"broken: {error}"})
        else:
            rows.append({"name": name, "title": found.title, "camera": found.camera.driver})
    _print(rows, json_)


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """Say which camera families are installed and reachable, and how to mend what is not."""
    from tem_live.doctor import examine

    rows = examine()
    if json_:
        _print(rows, True)
        return
    columns = ("name", "installed", "reachable", "missing")
    _print([{column: row[column] for column in columns} for row in rows], False)
    # Beside the table and never broken into lines: these are there to be pasted.
    for row in rows:
        if row["mend"] is not None:
            typer.echo(f"{row['name']}: {row['mend']}")


@app.command()
def bench(
    size: Annotated[int, typer.Option(help="Side of the square frames, in pixels.")] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    model: Annotated[str, typer.Option("--model", "-m", help="Restorer.")] = "fast",
    sizes: Annotated[
        str | None, typer.Option(help="Cost at several sizes instead, as in 256,512,1024.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --sizes: cost per pixel against size, .svg.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure the speed of each stage and end to end."""
    try:
        many = [int(part) for part in (sizes or "").split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--sizes {sizes}: give whole numbers, as in 256,512,1024") from None
    for side in (size, *many):
        if not 16 <= side <= LARGEST_SIDE:
            raise InputError(f"--size {side}: give 16 to {LARGEST_SIDE} pixels")
    if sizes is not None and not many:
        raise InputError("--sizes: give whole numbers, as in 256,512,1024")
    if plot is not None and not many:
        raise InputError("--plot needs --sizes, as in --sizes 256,512,1024")
    if many:
        from tem_live.bench_scaling import cost_by_size, draw

        if plot is not None:
            check_target(plot)
        measured = cost_by_size(many, device, model)
        if plot is not None:
            draw(measured, plot)
        _print(measured, json_)
        return
    from tem_live.bench import measure

    _print(measure(size, device, model), json_)


@app.command()
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
    said = None if json_ else _train_progress
    if loaded.own is not None:
        _train_on_own(loaded, folder, to, resume, device, devices, said, json_)
        return
    from tem_live.models.lightning_run import fit

    path = fit(loaded, folder, resume=resume, device=device, devices=devices, progress=said)
    if sys.stderr.isatty():
        typer.echo(err=True)
    if json_:
        _print({"name": loaded.name, "weights": str(path)}, True)
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
        _print(outcome.as_dict(), True)
        return
    if sys.stderr.isatty():
        typer.echo(err=True)
    for warning in outcome.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(outcome.message())
    typer.echo(f"weights: {outcome.path or outcome.weights}")


@capture_app.command("pairs")
def capture_pairs(
    short_s: Annotated[float, typer.Option("--short-s", help="Short exposure in seconds.")],
    long_s: Annotated[float, typer.Option("--long-s", help="Long exposure in seconds.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    pairs: Annotated[int, typer.Option("-n", "--pairs", help="How many.")] = 10,
    summed: Annotated[
        bool, typer.Option("--summed", help="Long ones as sums of registered short ones.")
    ] = False,
    profile: ProfileOption = "sim",
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Take pairs of short and long exposures to train a restorer with; states the dose first."""
    from tem_live import capture
    from tem_live.session import Session

    plan = capture.Plan(short_s, long_s, pairs, summed)

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r{done}/{total} pairs   ", nl=done >= total, err=True)

    with Session(_load(profile, _overrides(set_, "none"))) as session:
        typer.echo(plan.dose_text(session.state), err=True)
        taken = capture.capture_pairs(session, plan, out, progress=told)
    _print(taken.as_dict(), json_)


@app.command()
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
                say=None if json_ else _overwrite,
            )
        if not json_:
            _overwrite("")
        _print(rows if json_ else judging.table(rows), json_)
        return
    options = scoring.Options(
        models=tuple(model or [default_restorer()]),
        baselines=_words(baselines),
        doses=_numbers("--doses", doses, float),
        cameras=_words(cameras),
        size=size,
        seeds=_numbers("--seeds", seeds, int),
        scenes=scoring.Options().scenes if scenes is None else _words(scenes),
        references=references,
        pair=pair,
        counts_per_electron=counts_per_electron,
        device=device,
        picture=picture,
        columns=columns,
    )
    report = scoring.evaluate(options, None if json_ else _overwrite)
    if json_:
        _print(report, True)
        return
    _overwrite("")
    for table in scoring.tables(report):
        _print(table, False)
    if report["picture"] is not None:
        shown = report["picture"]
        typer.echo(f"picture: {shown['path']}, from left to right: {', '.join(shown['columns'])}")


def _refuse_idle(context: typer.Context, taken: Container[str], option: str) -> None:
    """Refuse options that were given and do nothing beside another one."""
    for key in context.params:
        source = context.get_parameter_source(key)
        if key not in taken and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{key.replace('_', '-')} does nothing with {option}; leave it out")


@models_app.command("list")
def models_list(json_: JsonOption = False) -> None:
    """List the restorers."""
    from tem_live.models import list_restorers

    cards = [card.model_dump(mode="json") for card in list_restorers()]
    if json_:
        _print(cards, json_)
        return
    _print([{key: card.get(key) for key in ("name", "title", "default")} for card in cards], False)


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="Name of a restorer.")], json_: JsonOption = False
) -> None:
    """Show a restorer's card."""
    from tem_live.models import load_restorer

    _print(load_restorer(name, device="cpu").card.model_dump(mode="json"), json_)


ToOption = Annotated[
    Path | None,
    typer.Option("--to", help="Folder to write to; by default where names are looked up."),
]


@import_app.command("tk-r-em")
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


@import_app.command("katsuno")
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


FramesOption = Annotated[int, typer.Option(help="Frames to average.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Where to keep it; by default where the profile finds it.")
]


@calibrate_app.command("dark")
def calibrate_dark(
    profile: ProfileOption = "sim",
    frames: FramesOption = 64,
    out: OutOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Take a dark reference, with the beam blanked."""
    _reference("dark", profile, frames, out, set_, json_)


@calibrate_app.command("gain")
def calibrate_gain(
    profile: ProfileOption = "sim",
    frames: FramesOption = 64,
    out: OutOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Take a gain reference, with the beam on, even, and no specimen in it."""
    _reference("gain", profile, frames, out, set_, json_)


@calibrate_app.command("dose")
def calibrate_dose(
    profile: ProfileOption = "sim",
    vacuum: Annotated[
        bool, typer.Option("--vacuum", help="No specimen is in the beam: use its frames as well.")
    ] = False,
    beam_area_nm2: Annotated[
        float | None,
        typer.Option(metavar="NM2", help="Illuminated area at the specimen, for the current."),
    ] = None,
    excess_noise: Annotated[
        float | None,
        typer.Option(help="Of the camera: 1 + (relative spread of an electron's signal)^2."),
    ] = None,
    use: Annotated[
        str | None, typer.Option(help="Book by column, current or vacuum; by default the first.")
    ] = None,
    out: OutOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure counts per electron and dose rate, with an even beam on what may be lost."""
    from tem_live import dose_calibration as calibration
    from tem_live.session import Session

    if beam_area_nm2 is not None and not 0 < beam_area_nm2 < math.inf:
        raise InputError(f"--beam-area-nm2 {beam_area_nm2:g}: give a positive area in nm²")
    source = next((s for s in calibration.SOURCES if s == use), None)
    if use is not None and source is None:
        raise InputError(f"--use {use}: one of {', '.join(calibration.SOURCES)}")
    if out is not None:
        check_target(out)
    with Session(_load(profile, _overrides(set_, "none"))) as session:
        found = calibration.calibrate_dose(
            session,
            vacuum=vacuum,
            beam_area_nm2=beam_area_nm2,
            excess_noise=excess_noise,
            use=source,
            progress=(lambda text: None) if json_ else _say,
        )
    path = found.save(out or calibration.calibration_path(found.profile))
    if json_:
        _print({**found.model_dump(mode="json"), "path": str(path)}, True)
        return
    _print(calibration.as_rows(found), False)
    _print(
        {
            "counts per electron": found.counts_per_electron,
            "95 % interval": found.counts_interval,
            "disagreement": found.disagreement,
            "kept in": str(path),
        },
        False,
    )
    for text in found.assumptions:
        typer.echo(f"assumed: {text}")


AreaArgument = Annotated[
    str | None, typer.Argument(help="Name of the area; without it all of them, or the unnamed.")
]


@ledger_app.command("show")
def ledger_show(area: AreaArgument = None, json_: JsonOption = False) -> None:
    """What the specimen areas have taken, all sessions together."""
    from tem_live import ledger

    if area is not None and area not in ledger.areas():
        ledger.check_area(area)
        known = ", ".join(ledger.areas()) or "none yet; set dose.area"
        raise InputError(f"there is no ledger of '{area}'; there is {known}")
    names = [*ledger.areas(), None] if area is None else [area]
    rows = [_plain(ledger.summarise(name)) for name in names]
    _print([row for row in rows if row["sessions"]], json_)


@ledger_app.command("export")
def ledger_export(
    area: AreaArgument = None,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("ledger.csv"),
    json_: JsonOption = False,
) -> None:
    """Write an area's ledger as CSV: a row for each run, frame, and beam on or off."""
    from tem_live.ledger import export_csv

    rows = export_csv(out, area)
    _print({"area": area, "rows": rows, "path": str(out)}, json_)


@ledger_app.command("map")
def ledger_map(
    area: AreaArgument = None,
    out: Annotated[
        Path, typer.Option(help="File to write: .tif, .npy (its scale in a .json beside it), .png.")
    ] = Path("fluence.tif"),
    json_: JsonOption = False,
) -> None:
    """Write what each place of an area has taken, in e-/A^2, with its scale."""
    from tem_live.fluence_map import export_map

    _print({"path": str(out), **export_map(out, area)}, json_)


def main() -> None:
    """Entry point of ``tem-live``: every error that is not a bug becomes one line."""
    let_threads_sleep()
    switch_quickly()
    command = typer.main.get_command(app)
    try:
        status = command.main(standalone_mode=False)
    except TemLiveError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except OSError as error:
        # What every reader and writer looks for itself, met in a place where none was expected.
        where = "" if error.filename is None else f"{error.filename}: "
        _complain(f"{where}{error.strerror or error}")
        sys.exit(3)
    except Exception as error:
        # Wrong options: click's own exceptions carry their text and status.
        message, status = getattr(error, "format_message", None), getattr(error, "exit_code", None)
        if message is None or status is None:
            raise
        _complain(f"{message()} (--help tells the options)")
        sys.exit(status)
    sys.exit(status if isinstance(status, int) else 0)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Whoever ends the program by its id, or by closing its terminal, means what Ctrl+C means."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_display() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _overrides(pairs: list[str] | None, model: str | None) -> list[str]:
    overrides = list(pairs or ())
    if model is not None:
        overrides.append(f"restorer.model={json.dumps(model)}")
    return overrides


def _load(profile: str, overrides: Sequence[str]) -> Profile:
    from tem_live.profiles import load_profile

    return load_profile(profile, overrides)


def _reference(
    kind: Literal["dark", "gain"],
    profile: str,
    frames: int,
    out: Path | None,
    pairs: list[str] | None,
    json_: bool,
) -> None:
    from tem_live.session import Session

    with Session(_load(profile, _overrides(pairs, "none"))) as session:
        path = session.take_reference(kind, frames, out)
    _print({"kind": kind, "frames": frames, "path": str(path)}, json_)


def _plain(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        key: str(item) if isinstance(item, Path) else item for key, item in asdict(value).items()
    }


def _print(value: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, default=str))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    # As Text: brackets, as in tem-live[mm], are no markup.
    if isinstance(value, list):
        columns = list(dict.fromkeys(key for row in value for key in row))
        table = Table(*columns, box=None)
        for row in value:
            table.add_row(*(Text(_cell(row.get(column))) for column in columns))
        console.print(table)
        return
    table = Table(box=None, show_header=False)
    for key, item in value.items():
        table.add_row(key, Text(_cell(item)))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    return str(value)


def _tell_cost(cost: Cost) -> None:
    """What a run costs, on the terminal before the beam comes on."""
    if cost.e_per_A2 is None:
        said = "cost: not known before the first frame"
    else:
        said = f"cost: {cost.e_per_A2:.3g} e-/Å² ({cost.source})"
    if cost.left_e_per_A2 is not None:
        said += f", {cost.left_e_per_A2:.3g} left"
        if not cost.fits:
            said += ": it ends where the budget does"
    typer.echo(said, err=True)


def _progress(stats: RunStats) -> None:
    if not sys.stderr.isatty():
        return
    fluence = stats.fluence_e_per_A2
    dose = "" if fluence is None else f"  {fluence:.3g} e-/Å²"
    line = f"{stats.frames} frames  {stats.fps:.1f}/s  restored {stats.restored}{dose}"
    typer.echo(f"\r{line:<70}", nl=False, err=True)


def _train_progress(progress: Progress) -> None:
    line = (
        f"step {progress.step}  {progress.minutes:.1f}/{progress.max_minutes:g} min  "
        f"loss {progress.loss:.3f}  error ratio {progress.error_ratio:.3f}  "
        f"rate {progress.learning_rate:.1e}"
    )
    # A log keeps every line; a terminal shows the last.
    if sys.stderr.isatty():
        _overwrite(line)
    else:
        typer.echo(line, err=True)


def _overwrite(line: str) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{line:<78}", nl=not line, err=True)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(word) for word in _words(text))
    except ValueError as error:
        raise InputError(f"{option} {text!r}: give numbers with commas between them") from error


def _print_imported(paths: list[Path], as_json: bool) -> None:
    from tem_live.models.cards import read_card

    cards = [read_card(path.with_suffix(".json")) for path in paths]
    rows = [
        {"name": card.name, "title": card.title, "licence": card.licence, "path": str(path)}
        for card, path in zip(cards, paths, strict=True)
    ]
    if as_json:
        _print(rows, True)
        return
    _print([{key: row[key] for key in ("name", "title", "licence")} for row in rows], False)
    typer.echo(f"written to {paths[0].parent}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _file_progress(done: int, total: int, name: str) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{name}: {done}/{total} frames   ", nl=done >= total, err=True)


def _complain(text: str) -> None:
    if sys.stderr.isatty():
        typer.echo("\r", nl=False, err=True)
    typer.echo(f"tem-live: error: {' '.join(text.split())}", err=True)
