"""Names of computers, as options have them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

__all__ = ["Host"]


def _checked(name: str) -> str:
    try:
        # What Python does to a name before it asks for its address; what it refuses is told by
        # neither its sockets nor its web clients as an error of the connection.
        name.encode("idna")
    except UnicodeError:
        raise ValueError(f"{name!r} is no name or address of a computer") from None
    if any(sign.isspace() or not sign.isprintable() for sign in name):
        raise ValueError(f"{name!r} is no name or address of a computer")
    return name


Host = Annotated[str, AfterValidator(_checked)]
"""Name or address of a computer, which a connection can at least be tried to."""
