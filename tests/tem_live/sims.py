"""Sessions on the simulated microscope, closed at the end of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from tem_live.profiles import load_profile
from tem_live.session import Session

Opener = Callable[..., Session]
"""Takes fields of the profile, with two underscores for the point."""


def square(side_px: int) -> dict[str, Any]:
    """Fields of the profile for a sensor of so many pixels a side."""
    return {"camera.sensor_height_px": side_px, "camera.sensor_width_px": side_px}


@contextmanager
def sims(settings: Mapping[str, Any]) -> Iterator[Opener]:
    """Opens sessions on `sim` with these settings, and others for each."""
    with ExitStack() as opened:

        def open_sim(**changes: Any) -> Session:
            asked = {key.replace("__", "."): value for key, value in changes.items()}
            return opened.enter_context(Session(load_profile("sim", {**settings, **asked})))

        yield open_sim
