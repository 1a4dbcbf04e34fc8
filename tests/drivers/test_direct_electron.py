"""The Direct Electron driver against de-twin, a digital twin of microscope and DE-Server."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any

import numpy as np
import pytest

from tem_live.drivers.direct_electron import DirectElectronCamera, DirectElectronOptions
from tem_live.drivers.protocols import CameraSettings
from tem_live.errors import DisconnectedError, NotConnectedError, RefusedError
from tests.drivers.conformance import CameraConformance
from tests.drivers.reading import begin, fails_soon, read_on
from tests.drivers.servers.libertem_live import free_port
from tests.drivers.servers.proxy import Proxy
from tests.drivers.servers.twin import Twin

pytest.importorskip("deapi", reason="deapi is not installed")
pytest.importorskip("de_twin", reason="de-twin is not installed")

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


class TestDirectElectron(CameraConformance):
    exposure_s = 0.05
    long_exposure_s = 2.0
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


def test_a_server_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        options = DirectElectronOptions(port=mute.getsockname()[1], reply_timeout_s=0.5)
        with fails_soon(NotConnectedError, "it does not answer", 10):
            DirectElectronCamera(options).open()


def test_opened_twice_it_is_open_once(twin: Twin):
    camera = twin.camera()
    camera.open()
    client = camera._client
    camera.open()
    assert camera._client is client
    camera.close()


def test_a_refused_exposure_leaves_the_region(twin: Twin, monkeypatch: pytest.MonkeyPatch):
    camera = twin.camera()
    camera.open()
    before = camera.configure(CameraSettings(0.05))
    height, width = before.frame_shape
    put = camera._set

    def refuse(name: str, value: str | float) -> None:
        if name == "Frames Per Second":
            raise RefusedError("DE-Server refuses it")
        put(name, value)

    with monkeypatch.context() as patch:
        patch.setattr(camera, "_set", refuse)
        with pytest.raises(RefusedError):
            camera.configure(CameraSettings(0.05, roi=(0, 0, height // 2, width // 2)))
    assert int(camera._get("Image Size Y (pixels)")) == height
    assert int(camera._get("Image Size X (pixels)")) == width
    camera.close()


def test_a_server_that_is_gone_is_found_again(twin: Twin):
    with Proxy(twin.port) as proxy:
        camera = twin.camera(port=proxy.port)
        camera.open()
        buffer = begin(camera, 0.05)
        camera.read_into(buffer, 60.0)
        proxy.end()
        with fails_soon(DisconnectedError, "DE-Server", 5):
            read_on(camera, buffer, at_most=1000)
        camera.close()
        with pytest.raises(NotConnectedError, match="no DE-Server answers"):
            camera.open()
        proxy.begin()
        camera.open()
        buffer = begin(camera, 0.05)
        assert camera.read_into(buffer, 60.0).sequence == 0
        camera.close()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be halted here")
def test_a_server_that_is_stuck_is_given_up(twin: Twin):
    camera = twin.camera(reply_timeout_s=1.0)
    camera.open()
    buffer = begin(camera, 0.05)
    camera.read_into(buffer, 60.0)
    os.kill(twin.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(DisconnectedError, match="DE-Server"):
            read_on(camera, buffer, at_most=1000)
        camera.close()
        assert time.monotonic() - began < 12
    finally:
        os.kill(twin.process.pid, signal.SIGCONT)


class Client:
    """deapi's client, as far as a frame is fetched by it; what it gives is a test's."""

    def __init__(self, *frames: bytes) -> None:
        self._frames = list(frames)

    def get_movie_buffer(self, *_: object) -> tuple[Any, int, int, bytes]:
        from deapi.data_types import MovieBufferStatus

        return MovieBufferStatus.OK, 1, 1, self._frames.pop(0)

    def disconnect(self) -> None: ...


def framed(number: int, pixels: int = 6) -> bytes:
    return number.to_bytes(8, "little", signed=True) + bytes(2 * pixels)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (framed(1, 5), "18 bytes where 8 and 12"),
        (b"", "0 bytes"),
        (framed(0), "frame 0 where frame 1"),
        (framed(-1), "frame -1"),
        (framed(2**62), "look for another program"),
    ],
    ids=["smaller", "empty", "twice", "negative", "far ahead"],
)
def test_what_does_not_belong_there_is_named(sent: bytes, said: str):
    camera = DirectElectronCamera(DirectElectronOptions())
    camera._client = Client(framed(0), sent)
    camera._shape, camera._header_bytes, camera._running = (2, 3), 8, True
    buffer = np.empty((2, 3), np.uint16)
    assert camera.read_into(buffer, 1.0).sequence == 0
    with pytest.raises(DisconnectedError, match=said) as caught:
        camera.read_into(buffer, 1.0)
    assert "\n" not in str(caught.value)
