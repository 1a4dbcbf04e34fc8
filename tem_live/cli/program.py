"""The program: its commands, and what becomes of an error in one."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tem_live.cli import instruments, restorers, running
from tem_live.cli.printing import complain
from tem_live.errors import TemLiveError
from tem_live.threads import let_threads_sleep, share_one_heap, switch_quickly

INTERRUPTED = 130
"""Exit status of an interrupted program: 128 and the number of SIGINT, as shells have it."""


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Start the cockpit when no command is given."""
    if version:
        from tem_live import __version__

        typer.echo(f"tem-live {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        running.gui()


def _program() -> typer.Typer:
    """The commands, in the order in which ``--help`` lists them."""
    program = typer.Typer(
        help="Live low-dose cockpit for transmission electron microscopes.",
        no_args_is_help=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback(invoke_without_command=True)(_root)
    for command in (
        running.gui,
        running.run,
        running.restore,
        running.recover,
        running.profiles,
        running.doctor,
        running.bench,
        restorers.train,
        restorers.evaluate,
    ):
        program.command()(command)
    models = _group(program, "models", "Restorers and their cards.")
    models.command("list")(restorers.models_list)
    models.command("show")(restorers.models_show)
    imports = _group(models, "import", "Bring in networks that others trained.")
    imports.command("tk-r-em")(restorers.import_tk_r_em)
    imports.command("katsuno")(restorers.import_katsuno)
    calibrate = _group(
        program, "calibrate", "Take references; measure gain, dose rate and pixel size."
    )
    calibrate.command("dark")(instruments.calibrate_dark)
    calibrate.command("gain")(instruments.calibrate_gain)
    calibrate.command("dose")(instruments.calibrate_dose)
    calibrate.command("magnification")(instruments.calibrate_magnification)
    capture = _group(program, "capture", "Take images to train restorers with.")
    capture.command("pairs")(instruments.capture_pairs)
    ledger = _group(program, "ledger", "What each specimen area has taken.")
    ledger.command("show")(instruments.ledger_show)
    ledger.command("export")(instruments.ledger_export)
    ledger.command("map")(instruments.ledger_map)
    return program


def _group(of: typer.Typer, name: str, help_: str) -> typer.Typer:
    group = typer.Typer(help=help_, rich_markup_mode=None)
    of.add_typer(group, name=name)
    return group


app = _program()


def main() -> None:
    """Entry point of ``tem-live``: every error that is not a bug becomes one line."""
    # A training has the cores to itself, and its threads wait for each other most of all: it takes
    # half as many steps a second on two cores if each of them is woken for every operation.
    if sys.argv[1:2] != ["train"]:
        let_threads_sleep()
    share_one_heap()
    switch_quickly()
    command = typer.main.get_command(app)
    try:
        status = command.main(standalone_mode=False)
    except TemLiveError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as error:
        # What every reader and writer looks for itself, met in a place where none was expected.
        where = "" if error.filename is None else f"{error.filename}: "
        complain(f"{where}{error.strerror or error}")
        sys.exit(3)
    except Exception as error:
        # Wrong options: click's own exceptions carry their text and status.
        message, status = getattr(error, "format_message", None), getattr(error, "exit_code", None)
        if message is None or status is None:
            raise
        complain(f"{message()} (--help tells the options)")
        sys.exit(status)
    # Typer makes an exit status of it by itself, and says nothing.
    if status == INTERRUPTED:
        complain("interrupted")
    sys.exit(status if isinstance(status, int) else 0)
