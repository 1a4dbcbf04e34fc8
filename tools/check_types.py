"""Run mypy over the package as it is installed, and over the scripts beside this one.

The folders are top level and the import names are not, so mypy cannot see the mapping in the
checkout. It sees it in a tree of links (copies where links are not allowed), made here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / ".build" / "types"


def main() -> int:
    """Lay the tree out and run mypy; returns its exit status."""
    shutil.rmtree(TREE, ignore_errors=True)
    with (ROOT / "pyproject.toml").open("rb") as file:
        folders = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    for package, folder in sorted(folders.items()):
        target = TREE / Path(*package.split("."))
        shutil.copytree(ROOT / folder, target, dirs_exist_ok=True, ignore=_not_source)
    options = ["--config-file", str(ROOT / "pyproject.toml")]
    options += ["--cache-dir", str(ROOT / ".mypy_cache")]
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "MYPYPATH": os.pathsep.join((str(TREE), str(here)))}
    status = 0
    for checked in (["-p", "tem_live"], [str(path) for path in sorted(here.glob("*.py"))]):
        command = [sys.executable, "-m", "mypy", *options, *checked]
        status |= subprocess.run(command, cwd=TREE, env=environment, check=False).returncode
    return status


def _not_source(folder: str, names: list[str]) -> set[str]:
    keep = (".py", ".typed")
    return {n for n in names if not n.endswith(keep) and not (Path(folder) / n).is_dir()} | {
        "__pycache__"
    }


if __name__ == "__main__":
    sys.exit(main())
