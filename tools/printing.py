"""What these scripts print: their lines as they come, an error of the program's as one line."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tem_live.errors import TemLiveError

__all__ = ["print_lines"]


def print_lines(lines: Iterable[str]) -> int:
    """Print lines, each as soon as it is there; returns the exit status."""
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0
