"""The Merlin driver against LiberTEM-live's simulator, and against a Merlin that fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tem_live.drivers.merlin import MerlinCamera, MerlinOptions
from tem_live.drivers.protocols import CameraSettings, CameraState, EndOfFrames
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.alike import check_death, check_pieces, configured
from tests.drivers.conformance import CameraConformance
from tests.drivers.reading import check_second_frame, fails_soon, read_on
from tests.drivers.servers.libertem_live import Peer, free_port, program
from tests.drivers.servers.merlin import MerlinServer, frame, message, picture, raw_frame

EXPOSURE_S = 0.01
FRAMES = 120
SHAPE = (64, 96)


@pytest.fixture
def server() -> Iterator[MerlinServer]:
    with MerlinServer() as running:
        yield running


def camera_of(server: MerlinServer, **options: Any) -> MerlinCamera:
    ports = {"port": server.port, "data_port": server.data_port}
    return MerlinCamera(MerlinOptions.model_validate({**ports, **options}))


def opened(
    server: MerlinServer, **options: Any
) -> tuple[MerlinCamera, CameraState, npt.NDArray[Any]]:
    return configured(camera_of(server, **options), EXPOSURE_S)


# ----------------------------------------------------------------------------- the simulated Merlin


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, npt.NDArray[np.uint16]]:
    """A data set of random pixels, and its pixels."""
    folder = tmp_path_factory.mktemp("merlin")
    pixels = np.random.default_rng(7).integers(0, 4096, (FRAMES, *SHAPE)).astype(np.uint16)
    frames = (frame(i + 1, each, exposure_s=EXPOSURE_S) for i, each in enumerate(pixels))
    return data_set(folder, b"".join(frames)), pixels


def data_set(folder: Path, frames: bytes) -> Path:
    (folder / "known.mib").write_bytes(frames)
    header = folder / "known.hdr"
    header.write_text(
        f"HDR,\t\nFrames in Acquisition (Number):\t{FRAMES}\n"
        f"Frames per Trigger (Number):\t{FRAMES}\nCounter Depth (number):\t12\nEnd\t"
    )
    return header


class Simulator(Peer):
    def __init__(self, file: Path, log: Path, *options: str) -> None:
        self.port, self.data_port, other = (free_port() for _ in range(3))
        ports = (
            "--control-port",
            self.port,
            "--data-port",
            self.data_port,
            "--trigger-port",
            other,
        )
        super().__init__(
            [
                program("libertem-live-mib-sim"),
                *(str(word) for word in (file, "--host", "127.0.0.1", *ports)),
                *("--wait-trigger", "--dwelltime", "1000", *options),
            ],
            tuple(f"listening ('127.0.0.1', {port})" for port in ports[1::2]),
            log,
        )

    def camera(self, **options: Any) -> MerlinCamera:
        # Its first frame may take long: it compiles what finds the frames in the file.
        ports = {"port": self.port, "data_port": self.data_port, "trigger": "soft"}
        return MerlinCamera(
            MerlinOptions.model_validate({"reply_timeout_s": 60, **ports, **options})
        )


@pytest.fixture(scope="module")
def simulator(
    known: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Simulator]:
    running = Simulator(known[0], tmp_path_factory.mktemp("sim") / "log.txt", "--continuous")
    yield running
    running.end()


@pytest.mark.peer
@pytest.mark.timeout(300)
class TestMerlinOfOthers(CameraConformance):
    exposure_s = EXPOSURE_S
    first_frame_s = 60.0

    @pytest.fixture(autouse=True)
    def running(self, simulator: Simulator, request: pytest.FixtureRequest) -> None:
        self.simulator = simulator
        # It sends in its own time, whatever the exposure, as soon as it is triggered. What has to
        # wait for a frame waits for an external trigger instead.
        waits = "ends_a_wait" in request.node.name
        if (waits and "stop" in request.node.name) or "timeout_leaves" in request.node.name:
            pytest.skip("LiberTEM-live's simulator does not obey the exposure; see TestMerlin")
        self.trigger = "external" if waits else "soft"

    def make_camera(self) -> MerlinCamera:
        return self.simulator.camera(trigger=self.trigger)


@pytest.mark.peer
@pytest.mark.timeout(300)
class TestKnownFrames:
    def test_every_frame_is_there_in_order_and_to_the_count(
        self, simulator: Simulator, known: tuple[Path, npt.NDArray[np.uint16]]
    ):
        camera = simulator.camera()
        camera.open()
        try:
            state = camera.configure(CameraSettings(EXPOSURE_S))
            assert (state.frame_shape, state.dtype) == (SHAPE, np.uint16)
            assert state.saturation_counts == 4095
            buffer = np.empty(state.frame_shape, state.dtype)
            camera.start(2 * FRAMES + 5)
            for index in range(2 * FRAMES + 5):
                meta = camera.read_into(buffer, 60.0)
                assert meta.sequence == index
                assert meta.exposure_s == EXPOSURE_S
                np.testing.assert_array_equal(buffer, known[1][index % FRAMES])
        finally:
            camera.close()

    def test_another_counter_depth_than_the_frames_have_is_noticed(self, simulator: Simulator):
        # The simulator takes every setting and changes nothing.
        camera = simulator.camera(counter_depth=24)
        camera.open()
        try:
            state = camera.configure(CameraSettings(EXPOSURE_S))
            camera.start()
            with pytest.raises(DisconnectedError, match=r"uint16 64x96 where uint32 64x96"):
                camera.read_into(np.empty(state.frame_shape, state.dtype), 60.0)
        finally:
            camera.close()
            again = simulator.camera(counter_depth=12)
            again.open()
            again.close()

    def test_raw_frames_of_four_chips_after_garbage_and_a_merlin_that_is_killed(
        self, tmp_path: Path
    ):
        pixels = np.random.default_rng(8).integers(0, 4096, (FRAMES, 64, 64)).astype(np.uint16)
        frames = (raw_frame(i + 1, each, 12, chips=4) for i, each in enumerate(pixels))
        file = data_set(tmp_path, b"".join(frames))
        running = Simulator(file, tmp_path / "log.txt", "--garbage")
        camera = running.camera()
        try:
            camera.open()
            state = camera.configure(CameraSettings(EXPOSURE_S))
            buffer = np.empty(state.frame_shape, state.dtype)
            camera.start(FRAMES)
            for index in range(FRAMES):
                assert camera.read_into(buffer, 60.0).sequence == index
                np.testing.assert_array_equal(buffer, pixels[index])
            # A Merlin that is killed ends the wait, and there is none to come back to.
            camera.start()
            camera.read_into(buffer, 60.0)
            running.end()
            began = time.monotonic()
            with pytest.raises(DisconnectedError, match="Merlin at"):
                read_on(camera, buffer)
            camera.close()
            assert time.monotonic() - began < 5
            with pytest.raises(NotConnectedError, match="no Merlin answers"):
                camera.open()
        finally:
            camera.close()
            running.end()

    @pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be halted here")
    def test_one_that_is_stuck_is_given_up_and_found_again(self, simulator: Simulator):
        camera = simulator.camera(reply_timeout_s=0.5)
        camera.open()
        state = camera.configure(CameraSettings(EXPOSURE_S))
        buffer = np.empty(state.frame_shape, state.dtype)
        camera.start()
        camera.read_into(buffer, 5.0)
        os.kill(simulator.process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(DisconnectedError, match="Merlin at"):
                read_on(camera, buffer)
            camera.close()
            assert time.monotonic() - began < 5
        finally:
            os.kill(simulator.process.pid, signal.SIGCONT)
        again = simulator.camera()
        again.open()
        again.configure(CameraSettings(EXPOSURE_S))
        again.start(3)
        assert [again.read_into(buffer, 60.0).sequence for _ in range(3)] == [0, 1, 2]
        again.close()


# -------------------------------------------------------------------------------- a Merlin to break


class TestMerlin(CameraConformance):
    exposure_s = EXPOSURE_S

    @pytest.fixture(autouse=True)
    def running(self, server: MerlinServer) -> None:
        self.server = server

    def make_camera(self) -> MerlinCamera:
        return camera_of(self.server)


@pytest.mark.parametrize("counts_the_comma", [True, False])
@pytest.mark.parametrize("trigger", ["internal", "soft"])
def test_pixels_arrive_as_they_were_sent(
    server: MerlinServer, trigger: str, counts_the_comma: bool
):
    server.counts_the_comma = counts_the_comma
    server.before_header = b"left over" * 100
    camera, state, buffer = opened(server, trigger=trigger)
    for _ in range(2):
        camera.start(5)
        for index in range(5):
            assert camera.read_into(buffer, 5.0).sequence == index
            np.testing.assert_array_equal(buffer, picture(index, state.frame_shape))
        camera.stop()
    camera.close()


@pytest.mark.parametrize("period_ms", ["5", "60"])
def test_a_merlin_that_runs_by_itself_is_taken_from_a_beginning(
    server: MerlinServer, period_ms: str
):
    server.runs_by_itself = True
    server.parameters.update(ACQUISITIONTIME=period_ms, ACQUISITIONPERIOD=period_ms)
    camera = camera_of(server)
    camera.open()
    try:
        state = camera.configure(CameraSettings(float(period_ms) / 1e3))
        buffer = np.empty(state.frame_shape, state.dtype)
        for _ in range(2):
            camera.start()
            for index in range(3):
                assert camera.read_into(buffer, 5.0).sequence == index
                np.testing.assert_array_equal(buffer, picture(index, state.frame_shape))
            camera.stop()
    finally:
        camera.close()


def test_a_frame_that_comes_in_pieces_outlasts_short_waits(server: MerlinServer):
    # What the reader waits for in slices is put together over many of them.
    camera, _, _ = opened(server)
    check_pieces(camera, server, lambda: server._data, 500, picture)
    camera.close()


def test_lost_frames_show_in_the_numbers(server: MerlinServer):
    camera, _, buffer = opened(server)
    server.send = lambda index, whole: b"" if index in (1, 2) else whole
    camera.start(6)
    assert [camera.read_into(buffer, 5.0).sequence for _ in range(3)] == [0, 3, 4]
    # The series ends with its last number, though two of its six never came.
    assert camera.read_into(buffer, 5.0).sequence == 5
    with pytest.raises(EndOfFrames):
        camera.read_into(buffer, 5.0)
    camera.close()


SMALLER = message(frame(1, picture(0, (8, 24))))
WIDER = message(frame(1, picture(0, (16, 24)), "U32"))


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GARBAGE" * 40, "where a message should begin"),
        (SMALLER, "uint16 8x24 where uint16 16x24"),
        (WIDER, "uint32 16x24 where uint16 16x24"),
        (message(b"MQ1,nonsense" * 30), "a frame with the header"),
        (message(b"XYZ" * 30), "where a frame should be"),
        (message(b"HDR,\nEnd\t"), "another acquisition"),
        (message(frame(1, picture(0, (16, 24)))) * 2, "frame 0 after frame 0"),
        (None, "closed the connection"),
    ],
    ids=["garbage", "smaller", "wider", "header", "kind", "acquisition", "twice", "hung up"],
)
def test_what_does_not_belong_there_is_named_and_gives_no_frame(
    server: MerlinServer, sent: bytes | None, said: str
):
    camera, _, _ = opened(server)
    twice = said.startswith("frame 0")
    check_second_frame(
        camera,
        server,
        lambda index, whole: whole if index == 0 and not twice else sent,
        lambda _, whole: whole,
        picture,
        said,
    )
    camera.close()


@pytest.mark.parametrize(("part", "said"), [(0, "sends no frames"), (100, "stopped amid a frame")])
def test_one_that_falls_silent_is_given_up(server: MerlinServer, part: int, said: str):
    camera, _, buffer = opened(server, reply_timeout_s=0.3)
    server.send = lambda index, whole: whole if index == 0 else whole[:part] if index == 1 else b""
    camera.start()
    camera.read_into(buffer, 5.0)
    with fails_soon(DisconnectedError, said, 4):
        camera.read_into(buffer, 5.0)
    camera.close()


def test_nobody_is_given_up_for_a_trigger_that_does_not_come(server: MerlinServer):
    camera, _, buffer = opened(server, reply_timeout_s=0.1, trigger="external")
    camera.start()
    with pytest.raises(DeviceTimeoutError):
        camera.read_into(buffer, 0.4)
    assert server.parameters["NUMFRAMESPERTRIGGER"] == "1"
    server._triggered.set()
    assert camera.read_into(buffer, 5.0).sequence == 0
    camera.close()


def test_a_refused_setting_is_named_and_changes_nothing(server: MerlinServer):
    camera, state, _ = opened(server)
    server.statuses["SET,ACQUISITIONPERIOD"] = "3"
    with pytest.raises(RefusedError, match="ACQUISITIONPERIOD,50: the value is out of range"):
        camera.configure(CameraSettings(0.05))
    assert server.parameters["ACQUISITIONTIME"] == "10"
    server.statuses.clear()
    assert camera.configure(CameraSettings(EXPOSURE_S)) == state
    camera.close()


def test_the_state_is_what_merlin_took_not_what_was_asked(server: MerlinServer):
    camera, _, _ = opened(server)
    server.coerced = {"ACQUISITIONTIME": "12.5", "ACQUISITIONPERIOD": "14.14"}
    state = camera.configure(CameraSettings(EXPOSURE_S))
    assert state.exposure_s == pytest.approx(0.0125)
    assert state.frame_interval_s == pytest.approx(0.01414)
    camera.close()


def test_a_busy_merlin_does_not_start(server: MerlinServer):
    camera, _, buffer = opened(server)
    server.statuses["CMD,STARTACQUISITION"] = "1"
    with pytest.raises(RefusedError, match="another program"):
        camera.start()
    with pytest.raises(DisconnectedError):
        camera.read_into(buffer, 0.1)
    server.statuses.clear()
    camera.start(1)
    assert camera.read_into(buffer, 5.0).sequence == 0
    camera.close()


def test_a_command_port_in_use_is_named(server: MerlinServer):
    first = camera_of(server)
    first.open()
    # Merlin serves one program: the second one is connected and never answered.
    second = camera_of(server, reply_timeout_s=0.3)
    with pytest.raises(NotConnectedError, match=r"does not answer.*other programs"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_data_port_in_use_is_named(server: MerlinServer):
    camera, _, _ = opened(server, reply_timeout_s=0.3)
    server.header = b""
    with pytest.raises(NotConnectedError, match="another program"):
        camera.start(0)
    camera.close()


def test_one_that_no_longer_answers_is_gone(server: MerlinServer):
    camera, _, _ = opened(server, reply_timeout_s=0.3)
    server.mute = True
    with pytest.raises(DisconnectedError, match="does not answer"):
        camera.configure(CameraSettings(EXPOSURE_S))
    began = time.monotonic()
    camera.close()
    assert time.monotonic() - began < 3
    server.mute = False
    camera.open()
    camera.close()


def test_one_that_dies_while_it_is_read_leaves_nothing_behind(server: MerlinServer):
    check_death(lambda: opened(server), server.end, "Merlin", "no Merlin answers")


@pytest.mark.parametrize("fault", ["IMAGEX", "COUNTERDEPTH"])
def test_a_sensor_that_makes_no_sense_is_refused(server: MerlinServer, fault: str):
    server.parameters[fault] = "undef" if fault == "IMAGEX" else "13"
    camera = camera_of(server)
    with pytest.raises(RefusedError) as caught:
        camera.open()
    assert "\n" not in str(caught.value)
    server.parameters.update(IMAGEX="24", COUNTERDEPTH="12")
    camera.open()
    camera.close()


def test_properties_are_set_by_merlins_names(server: MerlinServer):
    camera = camera_of(server, counter_depth=24, properties={"CONTINUOUSRW": 1, "GAIN": 2})
    camera.open()
    assert camera.capabilities.dtype == np.uint32
    assert server.parameters["CONTINUOUSRW"] == "1"
    assert server.parameters["GAIN"] == "2"
    camera.close()
