"""Commands that acquire, restore and measure."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tem_live.cli.options import (
    JsonOption,
    ModelOption,
    ProfileOption,
    SetOption,
    overrides_of,
    profile_of,
)
from tem_live.cli.printing import complain, file_progress, plain, run_progress, show, tell_cost
from tem_live.errors import InputError, TemLiveError
from tem_live.interrupts import ended_in_order
from tem_live.paths import check_target, numbered
from tem_live.threads import keep_memory

HEADLESS_FRAMES = 60

LARGEST_SIDE = 16384
"""Frames of `bench` in pixels: larger ones than any camera's would not fit into the memory."""


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
    overrides = overrides_of(set_, model)
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

    overrides = overrides_of(set_, model)
    if budget is not None:
        overrides.append(f"dose.budget_e_per_A2={budget!r}")
    if area is not None:
        overrides.append(f"dose.area={json.dumps(area)}")
    loaded = profile_of(profile, overrides)
    progress = None if json_ else run_progress
    with ended_in_order():
        figures = acquire(
            loaded,
            frames,
            seconds,
            out,
            progress,
            fidelity,
            target_resolution,
            mode,
            on_cost=None if json_ else tell_cost,
        )
    reason = figures["stop_reason"] or ""
    show(figures, json_)
    if reason.startswith("error: "):
        complain(reason.removeprefix("error: "))
        raise typer.Exit(3)


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
    keep_memory()
    results = restore_files(
        sources,
        out,
        load_restorer(model, device=device),
        counts_per_electron=counts_per_electron,
        offset_counts=offset_counts,
        overwrite=overwrite,
        progress=None if json_ else file_progress,
    )
    show([plain(result) for result in results], json_)


def recover(
    path: Annotated[Path, typer.Argument(help="A recording that was cut short.")],
    json_: JsonOption = False,
) -> None:
    """Make a broken recording whole again, as far as its frames were written."""
    from tem_live.recovery import recover as mend

    show(plain(mend(path)), json_)


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
    show(rows, json_)


def doctor(json_: JsonOption = False) -> None:
    """Say which camera families are installed and reachable, and how to mend what is not."""
    from tem_live.doctor import examine

    rows = examine()
    if json_:
        show(rows, True)
        return
    columns = ("name", "installed", "reachable", "missing")
    show([{column: row[column] for column in columns} for row in rows], False)
    # Beside the table and never broken into lines: these are there to be pasted.
    for row in rows:
        if row["mend"] is not None:
            typer.echo(f"{row['name']}: {row['mend']}")


def bench(
    size: Annotated[int, typer.Option(help="Side of the square frames, in pixels.")] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Restorer, fast if none; repeatable.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Cost at several sizes instead, as in 256,512,1024.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --sizes: cost per pixel against size, .svg.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure the speed of each stage and end to end."""
    models = model or ["fast"]
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
    if many and len(models) > 1:
        raise InputError("--sizes takes one --model; give them one after the other")
    if many:
        from tem_live.bench_scaling import cost_by_size, draw

        if plot is not None:
            check_target(plot)
        measured = cost_by_size(many, device, models[0])
        if plot is not None:
            draw(measured, plot)
        show(measured, json_)
        return
    from tem_live.bench import compared, measure, silence_profiler

    silence_profiler()
    if len(models) == 1:
        show(measure(size, device, models[0]), json_)
        return
    measured_each = compared(size, device, models)
    show(measured_each if json_ else [_in_short(each) for each in measured_each], json_)


def _in_short(measured: dict[str, Any]) -> dict[str, Any]:
    """One row of a table of restorers."""
    times = {f"times {name}": ratio for name, ratio in measured["peer_ratio"].items()}
    return {
        "model": measured["model"],
        "precision": measured["precision"],
        "ms": measured["stages_ms"]["restore"],
        "frames/s": measured["restore_fps"][measured["model"]],
        "end to end": measured["end_to_end_fps"],
        "recorded": measured["recorded_fps"],
        "ms 50 %": measured["latency_ms_p50"],
        "ms 99 %": measured["latency_ms_p99"],
        "memory MB": measured["memory_MB"]["recorded"],
        **times,
    }


def _has_display() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
