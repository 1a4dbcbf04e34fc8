"""Names for what is written, and whether it can be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tem_live.errors import InputError


def check_target(path: Path) -> Path:
    """A path to which a file can be written; its folder is made.

    To be asked before what the file is going to hold has cost anything.

    Raises
    ------
    InputError
        A folder or a device is there, or the folder around it cannot be made or written to.
    """
    try:
        if not path.name or (path.exists() and not path.is_file()):
            raise InputError(f"{path} is not a file; give the path of one")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written: permission denied")
    return path


@contextlib.contextmanager
def written_whole(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Have a file there as a whole or not at all; an older one stays until the new one is whole.

    Yields the path beside it that is to be written: ``part``, or one that no other process writes
    to. At the end it is moved to its place; after an error (a full disk) it is removed, and what it
    took is free again. What a kill leaves of a ``part`` the next one writes over.
    """
    if part is None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def numbered(folder: Path, stem: str, suffix: str) -> Path:
    """A path in a folder at which nothing stands yet: ``sim_001.zarr``, ``sim_002.zarr``."""
    number = 1
    while (path := folder / f"{stem}_{number:03d}{suffix}").exists():
        number += 1
    return path
