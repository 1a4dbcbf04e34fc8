"""The Direct Electron driver against de-twin, a digital twin of microscope and DE-Server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tem_live.drivers.direct_electron import DirectElectronCamera, DirectElectronOptions
from tem_live.drivers.protocols import CameraSettings
from tem_live.errors import DisconnectedError, NotConnectedError, RefusedError
from tests.drivers.conformance import CameraConformance
from tests.drivers.reading import begin, read_on

pytest.importorskip("deapi", reason="deapi is not installed")
pytest.importorskip("de_twin", reason="de-twin is not installed")

# The twin compiles its physics when it starts for the first time.
pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
START_S = 200.0


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


@dataclass
class Twin:
    """A running de-twin; each of its own process."""

    log: Path

    def __post_init__(self) -> None:
        self.port = free_port()
        ports = ["--deapi", str(self.port), "--soap", str(free_port())]
        command = [str(Path(sys.executable).with_name("de-twin")), "serve", "--camera", "DESim"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *ports, "--host", "127.0.0.1"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.skip(f"de-twin did not start: {self.log.read_text()[-300:]}")
            time.sleep(0.2)

    def listens(self) -> bool:
        with socket.socket() as line:
            line.settimeout(0.5)
            return line.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def camera(self, **options: float) -> DirectElectronCamera:
        return DirectElectronCamera(
            DirectElectronOptions.model_validate(
                {
                    "port": self.port,
                    "properties": {"Simulator Auto References": "Off"},
                    **options,
                }
            )
        )


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    running = Twin(tmp_path_factory.mktemp("twin") / "log.txt")
    yield running
    running.end()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Twin]:
    """A twin that the test may kill."""
    running = Twin(tmp_path / "log.txt")
    yield running
    running.end()


class TestDirectElectron(CameraConformance):
    exposure_s = 0.05
    long_exposure_s = 5.0
    first_frame_s = 60.0

    @pytest.fixture(autouse=True)
    def running_twin(self, twin: Twin) -> None:
        self.twin = twin

    def make_camera(self) -> DirectElectronCamera:
        return self.twin.camera()


def mean_counts(camera: DirectElectronCamera, exposure_s: float, frames: int = 5) -> float:
    state = camera.configure(CameraSettings(exposure_s))
    buffer = np.empty(state.frame_shape, state.dtype)
    camera.start(frames)
    means = []
    for _ in range(frames):
        camera.read_into(buffer, 60.0)
        means.append(buffer.mean())
    camera.stop()
    return float(np.mean(means))


def test_every_frame_of_a_long_series_comes_in_order_and_is_another_one(twin: Twin):
    camera = twin.camera()
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.02, roi=(256, 256, 256, 512)))
        assert state.frame_shape == (256, 512)
        buffer = np.empty(state.frame_shape, state.dtype)
        camera.start(200)
        seen: list[int] = []
        sums: set[int] = set()
        for _ in range(200):
            seen.append(camera.read_into(buffer, 60.0).sequence)
            sums.add(int(buffer.sum(dtype=np.int64)))
        assert seen == list(range(200))
        assert len(sums) > 190
    finally:
        camera.close()


def test_twice_the_exposure_is_twice_the_signal_above_the_baseline(twin: Twin):
    camera = twin.camera()
    camera.open()
    try:
        once, twice = (mean_counts(camera, exposure_s) for exposure_s in (0.05, 0.1))
    finally:
        camera.close()
    # Baseline 360 counts; 5 counts of dark current a second.
    assert (twice - 360) / (once - 360) == pytest.approx(2.0, rel=0.03)


def test_the_server_is_asked_for_its_pixel_size_and_exposure(twin: Twin):
    camera = twin.camera()
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.04))
        assert state.exposure_s == pytest.approx(0.04, rel=1e-3)
        assert state.pixel_size_nm == pytest.approx(0.5)
        assert state.dtype == np.uint16
    finally:
        camera.close()


def test_an_unknown_property_is_refused_by_name(twin: Twin):
    camera = DirectElectronCamera(
        DirectElectronOptions(port=twin.port, properties={"Warp Factor": 9})
    )
    with pytest.raises(RefusedError, match="Warp Factor"):
        camera.open()
    camera.close()


def test_no_server_is_said_in_one_line():
    camera = DirectElectronCamera(DirectElectronOptions(port=free_port()))
    with pytest.raises(NotConnectedError, match="no DE-Server answers") as caught:
        camera.open()
    assert "\n" not in str(caught.value)


def test_a_server_killed_in_mid_stream_is_noticed_and_found_again(mortal: Twin, tmp_path: Path):
    camera = mortal.camera()
    camera.open()
    buffer = begin(camera, 0.05)
    camera.read_into(buffer, 60.0)
    mortal.end()
    began = time.monotonic()
    with pytest.raises(DisconnectedError, match="DE-Server"):
        read_on(camera, buffer, at_most=1000)
    camera.stop()
    camera.close()
    assert time.monotonic() - began < 5
    with pytest.raises(NotConnectedError):
        camera.open()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be halted here")
def test_a_server_that_is_stuck_is_given_up(mortal: Twin):
    camera = mortal.camera(reply_timeout_s=1.0)
    camera.open()
    buffer = begin(camera, 0.05)
    camera.read_into(buffer, 60.0)
    os.kill(mortal.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(DisconnectedError, match="DE-Server"):
            read_on(camera, buffer, at_most=1000)
        camera.close()
        assert time.monotonic() - began < 12
    finally:
        os.kill(mortal.process.pid, signal.SIGCONT)
