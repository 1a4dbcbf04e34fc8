"""Clients that others wrote, of instamatic: whether our servers speak as the devices do.

``pip install --no-deps instamatic==2.2.2`` in an environment of its own, and name the folder of the
package in ``INSTAMATIC``.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


def client(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of ``instamatic/camera``, alone; the test is skipped where there is none."""
    file = Path(os.environ.get("INSTAMATIC", "")) / "camera" / f"{name}.py"
    if not file.is_file():
        pytest.skip("INSTAMATIC does not name the folder of an installed instamatic")
    # A C long as Windows has it, where DigitalMicrograph runs.
    monkeypatch.setattr(np, "int_", np.int32)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
