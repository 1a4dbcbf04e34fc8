"""Starts de-twin, a digital twin of microscope and DE-Server that others wrote."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tem_live.drivers.direct_electron import DirectElectronCamera, DirectElectronOptions
from tem_live.drivers.protocols import CameraSettings
from tem_live.errors import DeviceError
from tests.drivers.servers.libertem_live import free_port, listens

START_S = 200.0
"""It compiles its physics when it takes its first frame ever."""
RAW = {"Simulator Auto References": "Off"}
"""Properties with which it sends what its sensor counted."""


@dataclass
class Twin:
    """A running de-twin; each of its own process."""

    log: Path

    def __post_init__(self) -> None:
        pytest.importorskip("deapi", reason="deapi is not installed")
        pytest.importorskip("de_twin", reason="de-twin is not installed")
        self.port = free_port()
        ports = ["--deapi", str(self.port), "--soap", str(free_port())]
        command = [str(Path(sys.executable).with_name("de-twin")), "serve", "--camera", "DESim"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *ports, "--host", "127.0.0.1"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while not listens(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.skip(f"de-twin did not start: {self.log.read_text()[-300:]}")
            time.sleep(0.1)
        while not self._exposes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.skip(f"de-twin takes no frame: {self.log.read_text()[-300:]}")

    def _exposes(self) -> bool:
        camera = self.camera()
        try:
            camera.open()
            state = camera.configure(CameraSettings(0.05))
            camera.start()
            camera.read_into(np.empty(state.frame_shape, state.dtype), 10.0)
        except DeviceError:
            return False
        finally:
            camera.close()
        return True

    def end(self) -> None:
        """Die."""
        self.process.kill()
        self.process.wait()

    def camera(self, **options: Any) -> DirectElectronCamera:
        """A camera of it, not open yet."""
        return DirectElectronCamera(
            DirectElectronOptions.model_validate(
                {"port": self.port, "properties": RAW, "reply_timeout_s": 10, **options}
            )
        )
