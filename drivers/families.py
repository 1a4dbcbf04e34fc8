"""What `tem-live doctor` says about a family of devices, told by the driver's own module.

A driver module declares its row, and that is all there is to do; doctor finds it by the module's
entry point (group ``tem_live.cameras`` or ``tem_live.columns``), in a package of your own too::

    from tem_live.drivers.families import Family, listens

    FAMILY = Family(
        "merlin",                                   # how scripts know it; the family's name
        packages=("zmq",),                          # import names that the driver needs
        install='pip install "tem-live[merlin]"',   # the one command that installs them
        reach=lambda fields: listens(fields, port=6341),
        start="start Merlin's software and set camera.host in a profile 'merlin' of your own",
        tested_against="LiberTEM-live 0.3.0's simulator; no camera hardware",
    )

``reach`` is given the driver's own fields of the profile named ``profile`` (the family's name
unless another is given; the user's own before the shipped one), such as ``host`` and ``port``, and
says whether the device or its server answers **now**. It runs in a thread of its own with
`REACH_WITHIN_S` to answer; one that takes longer, or raises, is not reachable. It must leave
nothing behind and disturb nobody: connect, ask for a version at most, hang up.

What no package manager installs (a vendor's library or its software) is looked for by ``vendor``.
Two modules of one family (a camera and a column) import the same ``FAMILY``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

REACH_WITHIN_S = 5.0
"""How long `Family.reach` may take, in seconds."""

Fields = Mapping[str, Any]
"""A driver's own fields of its table in a profile."""


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """Something that no package manager installs.

    Attributes
    ----------
    name : str
        What it is, ``"DCAM-API (dcamapi.dll)"``.
    is_there : callable
        Whether it is installed here; cheap, and starts nothing.
    install : str
        What to do to get it, in one line.
    """

    name: str
    is_there: Callable[[], bool]
    install: str


@dataclass(frozen=True)
class Family:
    """A family of cameras or columns and how to look for it. See the module's text.

    Attributes
    ----------
    name : str
        As scripts know it.
    packages : tuple of str
        Import names that its driver needs besides the program's own dependencies.
    install : str
        Command that installs them.
    vendor : Vendor or None
        What else must be installed.
    reach : callable or None
        Given the profile's fields, says whether a device or server answers now; None where
        nothing can be asked without taking the device.
    start : str
        What to do when nothing answers.
    tested_against : str
        What the driver was tested against.
    profile : str
        Profile whose fields ``reach`` is given; empty for the family's name.
    table : {"camera", "column"}
        The profile's table that has them.
    """

    name: str
    packages: tuple[str, ...] = ()
    install: str = "pip install tem-live"
    vendor: Vendor | None = None
    reach: Callable[[Fields], bool] | None = None
    start: str = ""
    tested_against: str = ""
    profile: str = ""
    table: Literal["camera", "column"] = "camera"


def listens(fields: Fields, *, port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts TCP connections at the ``host`` and ``port`` of the fields.

    Parameters
    ----------
    fields : mapping
        The fields that `Family.reach` is given.
    port, host
        Where they have none.
    """
    address = str(fields.get("host", host)), int(fields.get("port", port))
    try:
        with socket.create_connection(address, timeout=0.5):
            return True
    except (OSError, OverflowError, UnicodeError):
        return False
