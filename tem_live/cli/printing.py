"""What commands print: tables or JSON on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tem_live.account import Cost
    from tem_live.models.training import Progress
    from tem_live.state import RunStats


def show(value: Any, as_json: bool) -> None:
    """Print a table, of rows or of one thing, or one JSON value."""
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


def plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, paths as text."""
    from dataclasses import asdict

    return {
        key: str(item) if isinstance(item, Path) else item for key, item in asdict(value).items()
    }


def tell_cost(cost: Cost) -> None:
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


def run_progress(stats: RunStats) -> None:
    """How a run goes, on one line of a terminal."""
    if not sys.stderr.isatty():
        return
    fluence = stats.fluence_e_per_A2
    dose = "" if fluence is None else f"  {fluence:.3g} e-/Å²"
    line = f"{stats.frames} frames  {stats.fps:.1f}/s  restored {stats.restored}{dose}"
    typer.echo(f"\r{line:<70}", nl=False, err=True)


def train_progress(progress: Progress) -> None:
    """How a training goes."""
    line = (
        f"step {progress.step}  {progress.minutes:.1f}/{progress.max_minutes:g} min  "
        f"loss {progress.loss:.3f}  error ratio {progress.error_ratio:.3f}  "
        f"rate {progress.learning_rate:.1e}"
    )
    # A log keeps every line; a terminal shows the last.
    if sys.stderr.isatty():
        overwrite(line)
    else:
        typer.echo(line, err=True)


def file_progress(done: int, total: int, name: str) -> None:
    """How far a file is restored, on one line of a terminal."""
    if sys.stderr.isatty():
        typer.echo(f"\r{name}: {done}/{total} frames   ", nl=done >= total, err=True)


def overwrite(line: str) -> None:
    """Write over the line of the terminal."""
    if sys.stderr.isatty():
        typer.echo(f"\r{line:<78}", nl=not line, err=True)


def say(text: str) -> None:
    """A line for whoever waits."""
    typer.echo(text, err=True)


def complain(text: str) -> None:
    """An error, on one line."""
    if sys.stderr.isatty():
        typer.echo("\r", nl=False, err=True)
    typer.echo(f"tem-live: error: {' '.join(text.split())}", err=True)
