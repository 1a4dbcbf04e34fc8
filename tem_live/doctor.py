"""What is connected, what is missing, and the one command that mends it.

Driver modules tell of their own family (`tem_live.drivers.families.Family`, a module's ``FAMILY``);
doctor finds the modules by the entry points of cameras and columns, those of other packages too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from typing import Any

from tem_live.drivers.families import REACH_WITHIN_S, Family
from tem_live.errors import InputError
from tem_live.instrument import CAMERAS, COLUMNS, drivers
from tem_live.profiles import load_profile

FAMILIES = (
    "micro-manager",
    "pycromanager",
    "direct-electron",
    "dectris",
    "merlin",
    "genicam",
    "gatan",
    "tvips",
    "thermo",
    "jeol",
    "asi",
    "hamamatsu",
    "andor",
    "pco",
)
"""Families that are always listed, in this order; those of other packages follow."""

_NO_DRIVER = "no driver yet: use it through Micro-Manager (profile mm-demo) where that knows it"


def examine() -> list[dict[str, Any]]:
    """Look for every family, all at once; takes `REACH_WITHIN_S` at most and a moment.

    Returns
    -------
    list of dict
        ``name``, ``family``, ``installed``, ``reachable`` (None where it was not tried),
        ``tested_against``, ``missing`` (None where nothing is), ``mend`` (None where nothing is to
        be done).
    """
    families, broken = find_families()
    missing = {name: _missing(family) for name, family in families.items()}
    reachable = _reach(family for name, family in families.items() if missing[name] is None)
    rows = []
    for name in dict.fromkeys([*FAMILIES, *families, *broken]):
        if name in families:
            rows.append(_row(families[name], missing[name], reachable.get(name)))
        elif name in broken:
            rows.append(_bare_row(name, broken[name], "reinstall the package that has this driver"))
        else:
            rows.append(_bare_row(name, "a driver", _NO_DRIVER))
    return rows


def find_families() -> tuple[dict[str, Family], dict[str, str]]:
    """Families that the installed drivers declare, and why those that cannot be loaded fail.

    Returns
    -------
    dict of str to Family
        By the family's name.
    dict of str to str
        What went wrong, by the entry point's name.
    """
    families: dict[str, Family] = {}
    broken: dict[str, str] = {}
    points: list[EntryPoint] = [*drivers(CAMERAS).values(), *drivers(COLUMNS).values()]
    for point in points:
        try:
            family = getattr(import_module(point.module), "FAMILY", None)
        # Whatever a module of somebody else does: the others are still told of.
        except Exception as error:
            broken[point.name] = " ".join(f"the driver cannot be loaded: {error}".split())
            continue
        if isinstance(family, Family):
            families.setdefault(family.name, family)
    return families, broken


def _row(family: Family, missing: tuple[str, str] | None, reachable: bool | None) -> dict[str, Any]:
    what, mend = missing or (None, None)
    if missing is None and not reachable:
        what = "an answer" if family.reach is not None else None
        mend = family.start or None
    return {
        "name": family.name,
        "family": family.name,
        "installed": missing is None,
        "reachable": reachable,
        "tested_against": family.tested_against or None,
        "missing": what,
        "mend": mend,
    }


def _bare_row(name: str, missing: str, mend: str) -> dict[str, Any]:
    return {
        "name": name,
        "family": name,
        "installed": False,
        "reachable": None,
        "tested_against": None,
        "missing": missing,
        "mend": mend,
    }


def _missing(family: Family) -> tuple[str, str] | None:
    """What is not installed and what installs it; None where all is there."""
    packages = [package for package in family.packages if not _installed(package)]
    if packages:
        return f"package {', '.join(packages)}", family.install
    vendor = family.vendor
    if vendor is not None and not _calmly(vendor.is_there):
        return vendor.name, vendor.install
    return None


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _reach(families: Iterable[Family]) -> dict[str, bool]:
    """Which of them answer. One that hangs is left to its thread, which ends with the program."""
    found: dict[str, bool] = {}
    threads = []
    for family in families:
        if family.reach is not None:
            found[family.name] = False
            thread = threading.Thread(target=_reach_one, args=(family, found), daemon=True)
            thread.start()
            threads.append(thread)
    deadline = time.monotonic() + REACH_WITHIN_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def _reach_one(family: Family, found: dict[str, bool]) -> None:
    reach, options = family.reach, _options(family)
    assert reach is not None
    found[family.name] = _calmly(lambda: reach(options))


def _calmly(ask: Any) -> bool:
    try:
        return bool(ask())
    # A vendor's library may raise anything; what fails is not there.
    except Exception:
        return False


def _options(family: Family) -> Mapping[str, Any]:
    """The driver's fields of the family's profile, the user's own or the shipped one."""
    try:
        profile = load_profile(family.profile or family.name)
    except InputError:
        return {}
    return (profile.camera if family.table == "camera" else profile.column).options
