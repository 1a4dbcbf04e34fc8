"""The DECTRIS driver against LiberTEM-live's simulator, and against a detector that fails."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tem_live.drivers.dectris import DectrisCamera, DectrisOptions
from tem_live.drivers.protocols import CameraSettings, CameraState, EndOfFrames
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.alike import STRANGERS, check_death, check_mute, check_stranger, configured
from tests.drivers.conformance import CameraConformance
from tests.drivers.reading import check_second_frame, fails_soon, read_on
from tests.drivers.servers.dectris import DectrisServer, legacy_image, legacy_start, picture
from tests.drivers.servers.libertem_live import Peer, free_port, program

EXPOSURE_S = 0.01
FRAMES = 200
SHAPE = (70, 130)


@pytest.fixture
def server() -> Iterator[DectrisServer]:
    with DectrisServer() as running:
        yield running


def camera_of(server: DectrisServer, **options: Any) -> DectrisCamera:
    ports = {"port": server.port, "stream_port": server.stream_port}
    return DectrisCamera(DectrisOptions.model_validate({**ports, **options}))


def opened(
    server: DectrisServer, cameras: list[DectrisCamera], **options: Any
) -> tuple[DectrisCamera, CameraState, npt.NDArray[Any]]:
    cameras.append(camera_of(server, **options))
    return configured(cameras[-1], EXPOSURE_S)


# --------------------------------------------------------------------------- the simulated detector


def record(file: Path, images: npt.NDArray[Any], mode: str) -> None:
    """What a detector sends for one series, as LiberTEM-live's simulator replays it."""
    height, width = images.shape[1:]
    config = {
        **dict.fromkeys(_NUMBERS, 0),
        **dict.fromkeys(_FLAGS, False),
        **dict.fromkeys(_TEXTS, ""),
        "detector_translation": [0, 0, 0],
        "data_collection_date": "2026-01-01T00:00:00",
        "bit_depth_image": 8 * images.dtype.itemsize,
        "bit_depth_readout": 16,
        "compression": "bslz4",
        "count_time": EXPOSURE_S,
        "frame_time": EXPOSURE_S,
        "nimages": len(images),
        "ntrigger": 1,
        "trigger_mode": mode,
        "x_pixels_in_detector": width,
        "y_pixels_in_detector": height,
    }
    lines = [legacy_start(34)[0], json.dumps(config).encode()]
    for number, pixels in enumerate(images):
        lines += legacy_image(34, number, pixels, "bslz4", EXPOSURE_S)
    lines.append(json.dumps({"htype": "dseries_end-1.0", "series": 34}).encode())
    file.write_bytes(b"".join(struct.pack("<q", len(line)) + line for line in lines))


# The simulator wants every field of a header, whatever is in it.
_NUMBERS = """
    beam_center_x beam_center_y chi_increment chi_start countrate_correction_count_cutoff
    detector_distance detector_readout_time frame_count_time frame_period kappa_increment
    kappa_start number_of_excluded_pixels omega_increment omega_start phi_increment phi_start
    photon_energy sensor_thickness threshold_energy two_theta_increment two_theta_start wavelength
    x_pixel_size y_pixel_size
""".split()  # noqa: SIM905
_FLAGS = """
    auto_summation countrate_correction_applied flatfield_correction_applied pixel_mask_applied
    virtual_pixel_correction_applied
""".split()  # noqa: SIM905
_TEXTS = """
    description detector_number eiger_fw_version element roi_mode sensor_material software_version
""".split()  # noqa: SIM905


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, npt.NDArray[np.uint16]]:
    """A recorded series of random pixels, and its pixels."""
    file = tmp_path_factory.mktemp("dectris") / "known.raw"
    pixels = np.random.default_rng(5).poisson(3.0, (FRAMES, *SHAPE)).astype(np.uint16)
    record(file, pixels, "exts")
    return file, pixels


class Simulator(Peer):
    def __init__(self, file: Path, log: Path) -> None:
        self.port = free_port()
        # It binds a given stream port twice and fails by chance: it chooses one.
        options = ["--port", str(self.port), "--zmqport", "0", "--dwelltime", "1000", str(file)]
        super().__init__(
            [program("libertem-live-dectris-sim"), *options],
            ("RustedReplay listening on", "API server listening"),
            log,
        )
        found = re.findall(r"RustedReplay listening on tcp://[\d.]+:(\d+)", log.read_text())
        self.stream_port = int(found[-1])

    def camera(self, **options: Any) -> DectrisCamera:
        # It replays what was recorded, and refuses every setting that differs from it.
        ports = {"port": self.port, "stream_port": self.stream_port, "trigger_mode": "exts"}
        return DectrisCamera(DectrisOptions.model_validate({**ports, **options}))


@pytest.fixture(scope="module")
def simulator(
    known: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Simulator]:
    running = Simulator(known[0], tmp_path_factory.mktemp("sim") / "log.txt")
    yield running
    running.end()


@pytest.mark.peer
@pytest.mark.timeout(300)
class TestDectrisOfOthers(CameraConformance):
    exposure_s = EXPOSURE_S
    has_series = False

    @pytest.fixture(autouse=True)
    def running(self, simulator: Simulator) -> None:
        self.simulator = simulator

    def make_camera(self) -> DectrisCamera:
        return self.simulator.camera(keep_settings=True)


@pytest.mark.peer
@pytest.mark.timeout(300)
class TestKnownImages:
    @pytest.mark.parametrize("keep_settings", [False, True])
    def test_every_image_is_there_in_order_and_to_the_count(
        self,
        simulator: Simulator,
        known: tuple[Path, npt.NDArray[np.uint16]],
        cameras: list[DectrisCamera],
        keep_settings: bool,
    ):
        camera = simulator.camera(keep_settings=keep_settings)
        cameras.append(camera)
        camera.open()
        state = camera.configure(CameraSettings(EXPOSURE_S))
        assert (state.frame_shape, state.dtype) == (SHAPE, np.uint16)
        buffer = np.empty(state.frame_shape, state.dtype)
        for _ in range(2):
            camera.start(FRAMES)
            for index in range(FRAMES):
                meta = camera.read_into(buffer, 5.0)
                assert meta.sequence == index
                assert meta.exposure_s == EXPOSURE_S
                np.testing.assert_array_equal(buffer, known[1][index])
            camera.stop()

    def test_settings_that_the_detector_does_not_take_are_refused(
        self, simulator: Simulator, cameras: list[DectrisCamera]
    ):
        camera = simulator.camera()
        cameras.append(camera)
        camera.open()
        with pytest.raises(RefusedError, match=r"count_time = 0.5.*does not match"):
            camera.configure(CameraSettings(0.5))
        camera.configure(CameraSettings(EXPOSURE_S))
        with pytest.raises(RefusedError, match="nimages = 3"):
            camera.start(3)

    def test_a_series_that_is_shorter_than_the_run_is_named(
        self, simulator: Simulator, cameras: list[DectrisCamera]
    ):
        camera = simulator.camera(keep_settings=True)
        cameras.append(camera)
        camera.open()
        state = camera.configure(CameraSettings(EXPOSURE_S))
        with pytest.raises(RefusedError, match=f"{FRAMES} images a series"):
            camera.start(FRAMES + 1)
        camera.start()
        with pytest.raises(DisconnectedError, match=f"ended the series after {FRAMES} images"):
            read_on(camera, np.empty(state.frame_shape, state.dtype))

    @pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be halted here")
    def test_one_that_is_stuck_is_given_up_and_one_that_is_killed_too(
        self, known: tuple[Path, Any], tmp_path: Path, cameras: list[DectrisCamera]
    ):
        running = Simulator(known[0], tmp_path / "log.txt")
        try:
            camera = running.camera(keep_settings=True, reply_timeout_s=0.5)
            cameras.append(camera)
            camera.open()
            state = camera.configure(CameraSettings(EXPOSURE_S))
            buffer = np.empty(state.frame_shape, state.dtype)
            camera.start()
            camera.read_into(buffer, 5.0)
            os.kill(running.process.pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(DisconnectedError, match="DECTRIS"):
                read_on(camera, buffer)
            os.kill(running.process.pid, signal.SIGCONT)
            camera.stop()
            camera.start()
            assert camera.read_into(buffer, 5.0).sequence == 0
            running.end()
            with pytest.raises(DisconnectedError, match="DECTRIS"):
                read_on(camera, buffer)
            camera.close()
            assert time.monotonic() - began < 20
        finally:
            running.end()


# ------------------------------------------------------------------------------ a detector to break


class TestDectris(CameraConformance):
    exposure_s = EXPOSURE_S

    @pytest.fixture(autouse=True)
    def running(self, server: DectrisServer) -> None:
        self.server = server

    def make_camera(self) -> DectrisCamera:
        # LiberTEM-live's simulator has the other format, and no exposures.
        return camera_of(self.server, stream="cbor")


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("stream", ["legacy", "cbor"])
def test_pixels_arrive_as_they_were_sent(
    server: DectrisServer, cameras: list[DectrisCamera], stream: str, bits: int
):
    server.parameters["detector/config/bit_depth_image"] = bits
    camera, state, buffer = opened(server, cameras, stream=stream)
    assert state.dtype == f"uint{bits}"
    for _ in range(2):
        camera.start(3)
        for index in range(3):
            assert camera.read_into(buffer, 5.0).sequence == index
            np.testing.assert_array_equal(buffer, picture(index, state.frame_shape, f"uint{bits}"))
        camera.stop()


def test_what_is_left_of_an_earlier_series_is_thrown_away(
    server: DectrisServer, cameras: list[DectrisCamera]
):
    camera, state, buffer = opened(server, cameras)
    camera.start()
    camera.read_into(buffer, 5.0)
    time.sleep(5 * EXPOSURE_S)
    camera.stop()
    camera.start(2)
    for index in range(2):
        assert camera.read_into(buffer, 5.0).sequence == index
        np.testing.assert_array_equal(buffer, picture(index, state.frame_shape))


def test_lost_images_show_in_the_numbers(server: DectrisServer, cameras: list[DectrisCamera]):
    camera, _, buffer = opened(server, cameras)
    server.send = lambda number, parts: [] if number in (1, 2) else [parts]
    camera.start(6)
    assert [camera.read_into(buffer, 5.0).sequence for _ in range(3)] == [0, 3, 4]
    # The series ends with its last number, though two of its six never came.
    assert camera.read_into(buffer, 5.0).sequence == 5
    with pytest.raises(EndOfFrames):
        camera.read_into(buffer, 5.0)
    camera.stop()
    # Not "abort": it has taken them all.
    assert server.commands[-1] == "disarm"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([b"GARBAGE"] * 4, "no JSON"),
        (legacy_image(41, 1, picture(1, (8, 28))), "uint16 8x28 where uint16 18x28"),
        (legacy_image(41, 1, picture(1, (18, 28), "uint32")), "uint32 18x28 where uint16"),
        (legacy_image(41, 0, picture(0, (18, 28))), "image 0 after image 0"),
        (legacy_image(41, 1, picture(1, (18, 28)))[:3], "an image in 3 parts"),
        (legacy_start(4242), "began another series after 1 images"),
        ([json.dumps({"htype": "dseries_end-1.0", "series": 41}).encode()], "ended the series"),
    ],
    ids=["garbage", "smaller", "wider", "twice", "torn", "another series", "ended"],
)
def test_what_does_not_belong_there_is_named_and_gives_no_frame(
    server: DectrisServer, cameras: list[DectrisCamera], sent: list[bytes], said: str
):
    camera, _, _ = opened(server, cameras)
    check_second_frame(
        camera,
        server,
        lambda number, parts: [parts if number == 0 else sent],
        lambda _, parts: [parts],
        picture,
        said,
    )


def test_an_image_that_does_not_decompress_is_no_frame(
    server: DectrisServer, cameras: list[DectrisCamera]
):
    camera, _, buffer = opened(server, cameras)
    server.send = lambda _, parts: [[*parts[:2], bytes(len(parts[2])), parts[3]]]
    buffer[:] = 7
    camera.start()
    with pytest.raises(DisconnectedError, match="another size"):
        camera.read_into(buffer, 5.0)
    assert np.all(buffer == 7)


def test_one_that_falls_silent_is_given_up(server: DectrisServer, cameras: list[DectrisCamera]):
    camera, _, buffer = opened(server, cameras, reply_timeout_s=0.3)
    server.send = lambda number, parts: [parts] if number == 0 else []
    camera.start()
    camera.read_into(buffer, 5.0)
    with fails_soon(DisconnectedError, "sends no images", 4):
        camera.read_into(buffer, 5.0)


@pytest.mark.parametrize("trigger_mode", ["exts", "exte"])
def test_nobody_is_given_up_for_a_trigger_that_does_not_come(
    server: DectrisServer, cameras: list[DectrisCamera], trigger_mode: str
):
    camera, _, buffer = opened(server, cameras, reply_timeout_s=0.1, trigger_mode=trigger_mode)
    camera.start(5)
    with pytest.raises(DeviceTimeoutError):
        camera.read_into(buffer, 0.4)
    counter, other = ("nimages", "ntrigger") if trigger_mode == "exts" else ("ntrigger", "nimages")
    assert server.parameters[f"detector/config/{counter}"] == 5
    assert server.parameters[f"detector/config/{other}"] == 1
    server.signal()
    assert [camera.read_into(buffer, 5.0).sequence for _ in range(5)] == [0, 1, 2, 3, 4]


def test_a_refused_setting_is_named_and_changes_nothing(
    server: DectrisServer, cameras: list[DectrisCamera]
):
    camera, state, _ = opened(server, cameras)
    server.refused.add("detector/config/frame_time")
    with pytest.raises(RefusedError, match=r"frame_time = 0.05: 400 .* is not possible"):
        camera.configure(CameraSettings(0.05))
    assert server.parameters["detector/config/count_time"] == EXPOSURE_S
    server.refused.clear()
    assert camera.configure(CameraSettings(EXPOSURE_S)) == state


def test_the_state_is_what_the_detector_took_not_what_was_asked(
    server: DectrisServer, cameras: list[DectrisCamera]
):
    camera, _, _ = opened(server, cameras)
    server.coerced = {"detector/config/count_time": 0.0099, "detector/config/frame_time": 0.0101}
    state = camera.configure(CameraSettings(EXPOSURE_S))
    assert state.exposure_s == 0.0099
    assert state.frame_interval_s == 0.0101
    assert state.saturation_counts == 12000


def test_kept_settings_are_read_and_never_set(server: DectrisServer, cameras: list[DectrisCamera]):
    server.parameters["detector/config/nimages"] = 4
    server.parameters["detector/config/count_time"] = 0.004
    before = dict(server.parameters)
    camera, state, buffer = opened(server, cameras, keep_settings=True)
    assert state.exposure_s == 0.004
    camera.start(4)
    assert [camera.read_into(buffer, 5.0).sequence for _ in range(4)] == [0, 1, 2, 3]
    camera.stop()
    assert server.parameters == before


def test_a_detector_in_use_is_named(server: DectrisServer, cameras: list[DectrisCamera]):
    camera, _, buffer = opened(server, cameras)
    server.parameters["detector/status/state"] = "acquire"
    with pytest.raises(RefusedError, match=r"in use .*'acquire'"):
        camera.start()
    server.parameters["detector/status/state"] = "idle"
    camera.start(1)
    assert camera.read_into(buffer, 5.0).sequence == 0


def test_a_stream_in_use_is_named(server: DectrisServer, cameras: list[DectrisCamera]):
    # ZeroMQ gives each message to one of those that pull: the other one has taken it.
    camera, _, _ = opened(server, cameras, reply_timeout_s=0.3)
    server.armed_in_silence = True
    with pytest.raises(NotConnectedError, match="another program"):
        camera.start()


@pytest.mark.parametrize("what", ["arm", "nimages"])
def test_a_refused_start_is_named_and_can_be_tried_again(
    server: DectrisServer, cameras: list[DectrisCamera], what: str
):
    camera, _, buffer = opened(server, cameras)
    server.refused.add(f"detector/{'command' if what == 'arm' else 'config'}/{what}")
    with pytest.raises(RefusedError, match=what):
        camera.start(2)
    with pytest.raises(DisconnectedError):
        camera.read_into(buffer, 0.1)
    server.refused.clear()
    camera.start(1)
    assert camera.read_into(buffer, 5.0).sequence == 0


@pytest.mark.parametrize("state", ["na", "error"])
def test_a_detector_that_is_not_initialised_is_named(server: DectrisServer, state: str):
    server.parameters["detector/status/state"] = state
    with pytest.raises(NotConnectedError, match="initialise"):
        camera_of(server).open()


@pytest.mark.parametrize(
    ("name", "value"),
    [("bit_depth_image", 12), ("x_pixels_in_detector", 0), ("y_pixels_in_detector", "many")],
)
def test_a_sensor_that_makes_no_sense_is_refused(server: DectrisServer, name: str, value: object):
    server.parameters[f"detector/config/{name}"] = value
    with pytest.raises(RefusedError) as caught:
        camera_of(server).open()
    assert "\n" not in str(caught.value)


def test_properties_are_set_by_simplons_names(server: DectrisServer, cameras: list[DectrisCamera]):
    opened(server, cameras, properties={"compression": "lz4"})
    assert server.parameters["detector/config/compression"] == "lz4"
    assert server.parameters["stream/config/mode"] == "enabled"
    with pytest.raises(RefusedError, match="warp_factor = 9"):
        camera_of(server, properties={"warp_factor": 9}).open()


def test_a_detector_without_cbor_says_so(server: DectrisServer):
    del server.parameters["stream/config/format"]
    legacy = camera_of(server)
    legacy.open()
    legacy.close()
    with pytest.raises(RefusedError, match="format = 'cbor'"):
        camera_of(server, stream="cbor").open()


def test_one_that_no_longer_answers_is_gone(server: DectrisServer, cameras: list[DectrisCamera]):
    camera, _, _ = opened(server, cameras, reply_timeout_s=0.3)
    check_mute(camera, server.mute)


def test_one_that_dies_while_it_is_read_leaves_nothing_behind(
    server: DectrisServer, cameras: list[DectrisCamera]
):
    check_death(
        lambda: opened(server, cameras), server.end, "DECTRIS", "no DECTRIS detector answers"
    )


@pytest.mark.parametrize("answer", STRANGERS)
def test_what_is_no_detector_is_named(answer: bytes):
    check_stranger(
        answer, lambda port: DectrisCamera(DectrisOptions(port=port)).open(), "DECTRIS detector"
    )


def test_without_zeromq_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(NotConnectedError, match=r"tem-live\[dectris\]"):
        DectrisCamera(DectrisOptions()).open()
