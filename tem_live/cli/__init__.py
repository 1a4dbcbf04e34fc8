"""The command line. Commands are thin: they parse, call the library, and print.

Errors are one line on stderr; the exit status is 2 for bad input, 3 for a device or a disk. With
``--json`` the last line of stdout is one JSON value. Imports wait until a command needs them, so
that ``--help`` is quick.
"""

from __future__ import annotations

from tem_live.cli.program import app, main

__all__ = ["app", "main"]
