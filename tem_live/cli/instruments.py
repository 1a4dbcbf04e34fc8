"""Commands that calibrate an instrument, capture with it, and tell what specimens have taken."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tem_live.cli.options import JsonOption, ProfileOption, SetOption, overrides_of, profile_of
from tem_live.cli.printing import plain, say, show
from tem_live.errors import InputError
from tem_live.interrupts import ended_in_order
from tem_live.paths import check_target

FramesOption = Annotated[int, typer.Option(help="Frames to average.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Where to keep it; by default where the profile finds it.")
]
AreaArgument = Annotated[
    str | None, typer.Argument(help="Name of the area; without it all of them, or the unnamed.")
]


def calibrate_dark(
    profile: ProfileOption = "sim",
    frames: FramesOption = 64,
    out: OutOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Take a dark reference, with the beam blanked."""
    _reference("dark", profile, frames, out, set_, json_)


def calibrate_gain(
    profile: ProfileOption = "sim",
    frames: FramesOption = 64,
    out: OutOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Take a gain reference, with the beam on, even, and no specimen in it."""
    _reference("gain", profile, frames, out, set_, json_)


def _reference(
    kind: Literal["dark", "gain"],
    profile: str,
    frames: int,
    out: Path | None,
    pairs: list[str] | None,
    json_: bool,
) -> None:
    from tem_live.session import Session

    loaded = profile_of(profile, overrides_of(pairs, "none"))
    with ended_in_order(), Session(loaded) as session:
        path = session.take_reference(kind, frames, out)
    show({"kind": kind, "frames": frames, "path": str(path)}, json_)


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
    loaded = profile_of(profile, overrides_of(set_, "none"))
    with ended_in_order(), Session(loaded) as session:
        found = calibration.calibrate_dose(
            session,
            vacuum=vacuum,
            beam_area_nm2=beam_area_nm2,
            excess_noise=excess_noise,
            use=source,
            progress=(lambda text: None) if json_ else say,
        )
    path = found.save(out or calibration.calibration_path(found.profile))
    if json_:
        show({**found.model_dump(mode="json"), "path": str(path)}, True)
        return
    show(calibration.as_rows(found), False)
    show(
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


def calibrate_magnification(
    spacing_nm: Annotated[
        float, typer.Option("--spacing-nm", help="Known spacing of the lattice or grating.")
    ],
    profile: ProfileOption = "sim",
    frames: Annotated[int, typer.Option(help="Frames to look at.")] = 8,
    period_px: Annotated[
        float | None,
        typer.Option(help="Which wave has that spacing, roughly; by default the strongest."),
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure the size of a pixel at the specimen, on a spacing that is known."""
    from tem_live.pixel_size import strongest_waves
    from tem_live.session import Session

    for name, value in (("--spacing-nm", spacing_nm), ("--period-px", period_px)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} {value:g}: give a positive number")
    if not 1 <= frames <= 256:
        raise InputError(f"--frames {frames}: give 1 to 256")
    loaded = profile_of(profile, overrides_of(set_, "none"))
    with ended_in_order(), Session(loaded) as session:
        waves = strongest_waves([frame.electrons for frame in session.frames(frames)])
        state = session.state
    meant = waves[0]
    if period_px is not None:
        meant = min(waves, key=lambda wave: abs(math.log(wave.period_px / period_px)))
    size_nm = spacing_nm / (meant.period_px * state.binning)
    if json_:
        facts = {"profile": profile, "magnification": state.magnification, "frames": frames}
        facts |= {"spacing_nm": spacing_nm, "binning": state.binning, "pixel_size_nm": size_nm}
        show({**facts, "wave": plain(meant), "waves": [plain(wave) for wave in waves]}, True)
        return
    show([plain(wave) for wave in waves], False)
    typer.echo(f"{meant.period_px:.5g} px are {spacing_nm:g} nm. For the profile:")
    if state.magnification is None:
        typer.echo(f"[camera]\npixel_size_nm = {size_nm:.5g}")
    else:
        typer.echo(f"[[magnifications]]\nmagnification = {state.magnification:.10g}")
        typer.echo(f"pixel_size_nm = {size_nm:.5g}")


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

    loaded = profile_of(profile, overrides_of(set_, "none"))
    with ended_in_order(), Session(loaded) as session:
        typer.echo(plan.dose_text(session.state), err=True)
        taken = capture.capture_pairs(session, plan, out, progress=told)
    show(taken.as_dict(), json_)


def ledger_show(area: AreaArgument = None, json_: JsonOption = False) -> None:
    """What the specimen areas have taken, all sessions together."""
    from tem_live.ledger_reading import areas, check_area, summarise

    if area is not None and area not in areas():
        check_area(area)
        known = ", ".join(areas()) or "none yet; set dose.area"
        raise InputError(f"there is no ledger of '{area}'; there is {known}")
    names = [*areas(), None] if area is None else [area]
    rows = [plain(summarise(name)) for name in names]
    show([row for row in rows if row["sessions"]], json_)


def ledger_export(
    area: AreaArgument = None,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("ledger.csv"),
    json_: JsonOption = False,
) -> None:
    """Write an area's ledger as CSV: a row for each run, frame, and beam on or off."""
    from tem_live.ledger_reading import export_csv

    rows = export_csv(out, area)
    show({"area": area, "rows": rows, "path": str(out)}, json_)


def ledger_map(
    area: AreaArgument = None,
    out: Annotated[
        Path, typer.Option(help="File to write: .tif, .npy (its scale in a .json beside it), .png.")
    ] = Path("fluence.tif"),
    json_: JsonOption = False,
) -> None:
    """Write what each place of an area has taken, in e-/A^2, with its scale."""
    from tem_live.ledger_map import export_map

    show({"path": str(out), **export_map(out, area)}, json_)
