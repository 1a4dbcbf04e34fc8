"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tem_live.errors import InputError

if TYPE_CHECKING:
    from tem_live.profiles import Profile

Number = TypeVar("Number", int, float)

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


def overrides_of(pairs: list[str] | None, model: str | None) -> list[str]:
    """What ``--set`` and ``--model`` set of the profile."""
    overrides = list(pairs or ())
    if model is not None:
        overrides.append(f"restorer.model={json.dumps(model)}")
    return overrides


def profile_of(profile: str, overrides: Sequence[str]) -> Profile:
    """The profile of this name, with what was set of it."""
    from tem_live.profiles import load_profile

    return load_profile(profile, overrides)


def words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """Numbers between commas; `InputError`, naming the option, where there is anything else."""
    try:
        return tuple(kind(word) for word in words(text))
    except ValueError as error:
        raise InputError(f"{option} {text!r}: give numbers with commas between them") from error
