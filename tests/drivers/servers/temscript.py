"""temscript's own server of this process, with a small sensor and faults to order."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import pytest

temscript = pytest.importorskip("temscript", reason="temscript is not installed")


LEAVES_OPEN = pytest.mark.filterwarnings("ignore::ResourceWarning")
"""temscript's client leaves the answers open that refuse something, until they are collected."""


class SmallMicroscope(temscript.NullMicroscope):  # type: ignore[misc]
    """temscript's simulated microscope with a sensor of another form, and faults to order."""

    CCD_SIZE = 64

    def __init__(self) -> None:
        super().__init__()
        self.pretend: Callable[[npt.NDArray[Any]], dict[str, Any]] | None = None
        self.steps = range(5, 16)

    def acquire(self, *names: str) -> dict[str, Any]:
        images: dict[str, Any] = super().acquire(*names)
        return self.pretend(images["CCD"]) if self.pretend else images

    def set_magnification_index(self, index: int) -> None:
        if index not in self.steps:
            raise ValueError("no such step")
        super().set_magnification_index(index)


class Microscope:
    """A temscript server of this process."""

    def __init__(self, port: int = 0) -> None:
        from temscript.server import MicroscopeServer

        self.server = MicroscopeServer(("127.0.0.1", port), SmallMicroscope)
        self.server.RequestHandlerClass.log_message = lambda *_: None
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def itself(self) -> SmallMicroscope:
        microscope: SmallMicroscope = self.server.microscope
        return microscope

    def end(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        gc.collect()
