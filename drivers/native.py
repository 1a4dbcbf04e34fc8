"""Vendors' libraries (DLLs, shared objects) through ctypes: finding them and their functions.

Only 64-bit Python is served, where Windows has one calling convention.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tem_live.errors import NotConnectedError

Prototypes = Mapping[str, tuple[Any, Sequence[Any]]]
"""Result type and argument types of each function, by its name."""

Loader = Callable[[], Any]
"""Gives the library, an object with its functions as attributes."""


class LibraryOptions(BaseModel):
    """Fields of the profile's ``[camera]`` table that all cameras of makers' libraries have.

    Attributes
    ----------
    library : str or None
        The library's file, where it is in none of the usual places.
    reply_timeout_s : float
        How long the library may take for a call in the course of a run, in seconds, before it is
        given up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: str | None = None
    reply_timeout_s: float = Field(default=4.0, gt=0, le=600)


def loader(
    names: Sequence[str], path: str | None, folders: Sequence[str | Path], mend: str
) -> Loader:
    """How to find a library.

    Parameters
    ----------
    names : sequence of str
        File names that it has, on Windows and on Linux.
    path : str or None
        The file itself, where the user named one.
    folders : sequence of path
        Where the vendor's installer puts it; ``PATH`` and the system's folders are looked at too.
    mend : str
        What to do when it is not there.

    Returns
    -------
    callable
        Loads it. Raises `NotConnectedError`.
    """

    def load() -> Any:
        why = "not found"
        for candidate in candidates(names, path, folders):
            try:
                return ctypes.CDLL(candidate)
            except OSError as error:
                if Path(candidate).is_file():
                    why = " ".join(str(error).split())
        raise NotConnectedError(f"{path or names[0]} cannot be loaded ({why}); {mend}")

    return load


def candidates(names: Sequence[str], path: str | None, folders: Sequence[str | Path]) -> list[str]:
    """The files and names to try, in order; see `loader`."""
    if path is not None:
        return [path]
    found = [str(Path(folder) / name) for folder in folders for name in names]
    # Not by `shutil.which`: on Windows Python 3.11's finds programs alone.
    on_path = [str(Path(folder) / name) for folder in _path_folders() for name in names]
    return [
        *(file for file in found if Path(file).is_file()),
        *(file for file in on_path if Path(file).is_file()),
        # The system's own search: System32, the loader's cache.
        *names,
    ]


def _path_folders() -> list[str]:
    """Where Windows looks for libraries of programs, but not ctypes for those of Python."""
    if not _is_windows():
        return []
    return [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]


def _is_windows() -> bool:
    return os.name == "nt"


def is_installed(names: Sequence[str], folders: Sequence[str | Path]) -> bool:
    """Whether such a library is here; one that is found as a file is not even loaded."""
    for candidate in candidates(names, None, folders):
        if Path(candidate).is_file():
            return True
        with contextlib.suppress(OSError):
            ctypes.CDLL(candidate)
            return True
    return False


def declare(library: Any, prototypes: Prototypes) -> Any:
    """Tell ctypes the functions' types. Raises `NotConnectedError` where one is missing."""
    for name, (result, arguments) in prototypes.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise NotConnectedError(
                f"the library has no function {name}; install the vendor's current version"
            ) from None
        function.restype = result
        function.argtypes = list(arguments)
    return library


def rows_at(
    address: int, height: int, row_bytes: int, width: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """The image at an address of another's memory, a view (height, width) of ``dtype``.

    Parameters
    ----------
    address : int
        Where its first pixel is.
    height, width : int
        Its size in pixels.
    row_bytes : int
        From one row to the next, in bytes; what is more than the pixels is left out.
    dtype : numpy dtype
        Of a pixel.
    """
    memory = (ctypes.c_ubyte * (height * row_bytes)).from_address(address)
    rows = np.frombuffer(memoryview(memory), np.uint8).reshape(height, row_bytes)
    image: npt.NDArray[Any] = rows[:, : width * dtype.itemsize].view(dtype)
    return image
