"""The Gatan driver against a protocol server of ours, and against `gatan_dm` with a fake module."""

from __future__ import annotations

import ast
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tem_live.drivers import gatan_dm
from tem_live.drivers import gatan_wire as wire
from tem_live.drivers.gatan import FAMILY, GatanCamera, GatanOptions
from tem_live.drivers.protocols import CameraSettings, CameraState
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.alike import check_death, check_mute, check_pieces, configured
from tests.drivers.conformance import CameraConformance
from tests.drivers.reading import check_second_frame, fails_soon, read_on
from tests.drivers.servers.digital_micrograph import DigitalMicrograph
from tests.drivers.servers.gatan import IMAGE, READ_MODE, GatanServer, packed, picture
from tests.drivers.servers.instamatic import client

EXPOSURE_S = 0.01


@pytest.fixture
def server() -> Iterator[GatanServer]:
    with GatanServer() as running:
        yield running


def camera_of(port: int, **options: Any) -> GatanCamera:
    return GatanCamera(GatanOptions.model_validate({"port": port, **options}))


def opened(
    server: GatanServer, cameras: list[GatanCamera], **options: Any
) -> tuple[GatanCamera, CameraState, npt.NDArray[Any]]:
    cameras.append(camera_of(server.port, **options))
    return configured(cameras[-1], EXPOSURE_S)


class TestGatan(CameraConformance):
    exposure_s = EXPOSURE_S
    long_exposure_s = 1.0

    @pytest.fixture(autouse=True)
    def running(self, server: GatanServer) -> None:
        self.server = server

    def make_camera(self) -> GatanCamera:
        return camera_of(self.server.port)


class TestWithinDigitalMicrograph(CameraConformance):
    exposure_s = EXPOSURE_S
    long_exposure_s = 1.0

    @pytest.fixture(autouse=True)
    def running(self) -> Iterator[None]:
        server = gatan_dm.Server(0, dm=DigitalMicrograph())
        serving = threading.Thread(target=server.run)
        serving.start()
        self.port = server.port
        yield
        server.end()
        serving.join()

    def make_camera(self) -> GatanCamera:
        return camera_of(self.port)

    def test_pixels_arrive_as_they_were_taken(self) -> None:
        camera = self.make_camera()
        camera.open()
        state = camera.configure(CameraSettings(EXPOSURE_S, binning=2, roi=(4, 8, 8, 12)))
        buffer = np.empty(state.frame_shape, state.dtype)
        camera.start(3)
        for index in range(3):
            assert camera.read_into(buffer, 5.0).sequence == index
            np.testing.assert_array_equal(buffer, picture(index, (4, 6)))
        camera.close()

    def test_one_that_went_without_a_word_keeps_nobody_out(self) -> None:
        # A cable was pulled: its connection stands, and nothing comes of it any more.
        with socket.create_connection(("127.0.0.1", self.port)):
            camera = self.make_camera()
            camera.open()
            camera.close()

    def test_what_it_does_not_know_is_refused(self) -> None:
        with pytest.raises(RefusedError, match="read mode counting: its plug-in is too old"):
            camera_of(self.port, read_mode="counting").open()


def test_gatan_dm_is_one_file_that_digitalmicrographs_python_reads():
    source = Path(gatan_dm.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(str(module).startswith("tem_live") for module in imported)


# --------------------------------------------------------------------------------------- the images


@pytest.mark.parametrize("chunk_bytes", [33554432, 200, 7])
def test_pixels_arrive_as_they_were_sent(cameras: list[GatanCamera], chunk_bytes: int):
    with GatanServer(chunk_bytes=chunk_bytes) as server:
        camera, state, buffer = opened(server, cameras)
        for first in (0, 5):
            camera.start(5)
            for index in range(5):
                assert camera.read_into(buffer, 5.0).sequence == index
                np.testing.assert_array_equal(buffer, picture(first + index, state.frame_shape))
            camera.stop()
        chunks = -(-buffer.nbytes // (-(-buffer.nbytes // -(-buffer.nbytes // chunk_bytes))))
        assert server.handshakes == 10 * (chunks - 1)
        # No exposure that nobody asked for: each of them is dose.
        assert server.images == 10


def test_the_region_and_the_processing_are_asked_for(
    server: GatanServer, cameras: list[GatanCamera]
):
    camera, _, _ = opened(server, cameras, processing="dark", camera=1)
    state = camera.configure(CameraSettings(0.02, binning=2, roi=(4, 6, 8, 14)))
    camera.start(1)
    buffer = np.empty(state.frame_shape, state.dtype)
    camera.read_into(buffer, 5.0)
    longs = next(longs for function, longs in server.requests if function == IMAGE)
    # Pixels, width, height, processing, binning, top, left, bottom, right of the binned image.
    assert longs[:9] == (28, 7, 4, 1, 2, 2, 3, 6, 10)
    assert (9, (1,)) in server.requests
    np.testing.assert_array_equal(buffer, picture(0, (4, 7)))


def test_a_region_between_binned_pixels_is_told_as_it_is_read(
    server: GatanServer, cameras: list[GatanCamera]
):
    camera, _, _ = opened(server, cameras)
    state = camera.configure(CameraSettings(0.02, binning=4, roi=(3, 7, 8, 8)))
    assert state.roi == (0, 4, 8, 8)
    camera.start(1)
    camera.read_into(np.empty(state.frame_shape, state.dtype), 5.0)
    longs = next(longs for function, longs in server.requests if function == IMAGE)
    assert tuple(4 * side for side in longs[5:7]) == state.roi[:2]


def test_the_state_is_what_digitalmicrograph_took(server: GatanServer, cameras: list[GatanCamera]):
    camera, _, _ = opened(server, cameras)
    server.exposure_taken = lambda exposure_s: exposure_s + 0.0005
    assert camera.configure(CameraSettings(EXPOSURE_S)).exposure_s == pytest.approx(0.0105)


def test_a_refused_setting_is_named_and_changes_nothing(
    server: GatanServer, cameras: list[GatanCamera]
):
    camera, state, buffer = opened(server, cameras)
    server.binnings = (1,)
    with pytest.raises(RefusedError, match=r"refuses 0.01 s at binning 4"):
        camera.configure(CameraSettings(EXPOSURE_S, binning=4))
    camera.start(1)
    assert camera.read_into(buffer, 5.0).sequence == 0
    camera.stop()
    assert camera.configure(CameraSettings(EXPOSURE_S)) == state
    assert server.images == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [(3, "DigitalMicrograph raised an exception"), (-2, "out of memory"), (77, "error 77")],
)
def test_a_refused_image_is_named_and_can_be_asked_for_again(
    server: GatanServer, cameras: list[GatanCamera], code: int, said: str
):
    camera, _, buffer = opened(server, cameras)
    server.codes[IMAGE] = code
    camera.start(1)
    with pytest.raises(RefusedError, match=f"refuses the image: .*{said}"):
        camera.read_into(buffer, 5.0)
    server.codes.clear()
    assert camera.read_into(buffer, 5.0).sequence == 0


GOOD = packed(0, 384, 24, 16, 1) + picture(1, (16, 24)).tobytes()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GARBAGE " * 120, r"a reply of \d+ bytes"),
        (packed(0, 192, 12, 16, 1) + GOOD[24:], "16x12 .* where 16x24 was set"),
        (packed(0, 385, 24, 16, 1) + GOOD[24:], r"16x24 \(385 pixels\) where"),
        (packed(0, 384, 24, 16, 0) + GOOD[24:], "in 0 parts"),
        (packed(0, 384, 24, 16, -4) + GOOD[24:], "in -4 parts"),
        (packed(0, 1), "a reply of 12 bytes"),
        (None, "closed the connection"),
    ],
    ids=["garbage", "smaller", "count", "no part", "negative", "short", "hung up"],
)
def test_what_does_not_belong_there_is_named_and_gives_no_frame(
    server: GatanServer, cameras: list[GatanCamera], sent: bytes | None, said: str
):
    camera, _, _ = opened(server, cameras)
    check_second_frame(
        camera,
        server,
        lambda number, whole: whole if number == 0 else sent,
        lambda _, whole: whole,
        picture,
        said,
    )


def test_an_image_in_pieces_outlasts_short_waits(server: GatanServer, cameras: list[GatanCamera]):
    camera, _, _ = opened(server, cameras)
    check_pieces(camera, server, lambda: server._client, 99, picture)


@pytest.mark.parametrize(("part", "said"), [(0, "sends no image"), (100, "stopped amid an image")])
def test_one_that_falls_silent_is_given_up(
    server: GatanServer, cameras: list[GatanCamera], part: int, said: str
):
    camera, _, buffer = opened(server, cameras, reply_timeout_s=0.3)
    server.send = lambda number, whole: whole if number == 0 else whole[:part]
    camera.start()
    camera.read_into(buffer, 5.0)
    with fails_soon(DisconnectedError, said, 4):
        camera.read_into(buffer, 5.0)


# ------------------------------------------------------------------------------------- two programs


def test_a_second_program_ends_the_first_and_both_are_told(
    server: GatanServer, cameras: list[GatanCamera]
):
    first, _, buffer = opened(server, cameras)
    first.start()
    first.read_into(buffer, 5.0)
    second, _, _ = opened(server, cameras)
    with pytest.raises(DisconnectedError, match="another program came"):
        read_on(first, buffer)
    first.close()
    second.start(2)
    assert [second.read_into(buffer, 5.0).sequence for _ in range(2)] == [0, 1]
    # It is taken back in the same way.
    first.open()
    assert first.configure(CameraSettings(EXPOSURE_S)).frame_shape == (16, 24)


def test_an_exposure_that_was_given_up_is_waited_for(
    server: GatanServer, cameras: list[GatanCamera]
):
    camera, _, buffer = opened(server, cameras, reply_timeout_s=0.5)
    camera.configure(CameraSettings(1.0))
    camera.start()
    with pytest.raises(DeviceTimeoutError):
        camera.read_into(buffer, 0.05)
    camera.stop()
    camera.configure(CameraSettings(EXPOSURE_S))
    camera.start(1)
    assert camera.read_into(buffer, 5.0).sequence == 0


def test_one_that_no_longer_answers_is_gone(server: GatanServer, cameras: list[GatanCamera]):
    camera, _, _ = opened(server, cameras, reply_timeout_s=0.3)
    check_mute(camera, server.mute)


def test_one_that_dies_while_it_is_read_leaves_nothing_behind(
    server: GatanServer, cameras: list[GatanCamera]
):
    check_death(
        lambda: opened(server, cameras),
        server.end,
        "closed the connection",
        "no DigitalMicrograph answers",
    )


def test_a_camera_that_is_not_there_is_named(server: GatanServer):
    with pytest.raises(NotConnectedError, match="has 2 cameras"):
        camera_of(server.port, camera=2).open()


def test_doctor_sees_it_come_and_go():
    assert FAMILY.reach is not None
    with GatanServer() as server:
        assert FAMILY.reach({"port": server.port})
    assert not FAMILY.reach({"port": server.port})


def test_the_read_mode_of_a_k2_is_set(server: GatanServer, cameras: list[GatanCamera]):
    camera, _, _ = opened(server, cameras, read_mode="counting", scaling=100.0)
    camera.start(1)
    values = [longs[0] for function, longs in server.requests if function == READ_MODE]
    assert values == [2, 2]


def test_a_sensor_that_makes_no_sense_is_refused(cameras: list[GatanCamera]):
    with (
        GatanServer(shape=(0, 24)) as server,
        pytest.raises(RefusedError, match="a sensor of 0x24"),
    ):
        camera_of(server.port).open()


# ----------------------------------------------------------------------------------------- the wire


def test_messages_are_as_the_plug_in_expects_them():
    assert struct.unpack("<2i", wire.HANDSHAKE) == (8, 24)
    assert wire.message(wire.Function.SET_READ_MODE, (2,), doubles=(1.5,)) == struct.pack(
        "<3id", 20, 10, 2, 1.5
    )
    text = wire.message(wire.Function.EXECUTE_SCRIPT, flags=(0,), text="Exit(1)")
    assert text == struct.pack("<4i", 24, 1, 2, 0) + b"Exit(1)\0"


@settings(deadline=None)
@given(
    data=st.binary(max_size=64),
    numbers=st.integers(0, 4),
    flags=st.integers(0, 3),
    doubles=st.integers(0, 3),
)
def test_noise_is_no_reply(data: bytes, numbers: int, flags: int, doubles: int):
    shape = wire.Shape(numbers, flags, doubles)
    with contextlib.suppress(DisconnectedError, RefusedError):
        found = wire.reply(data, shape, "noise")
        assert len(data) == shape.size_bytes
        assert struct.unpack_from("<2i", data) == (len(data), 0)
        assert len(found.numbers) == numbers
        assert len(found.doubles) == doubles


def put_together(data: bytes, shape: tuple[int, int], pieces: list[int]) -> wire.ImageReply:
    image, at, turn = wire.ImageReply(shape), 0, 0
    while not image.done and at < len(data):
        room = image.room()
        piece = data[at : at + min(len(room), pieces[turn % len(pieces)])]
        room[: len(piece)] = piece
        image.took(len(piece))
        at += len(piece)
        turn += 1
    return image


@settings(deadline=None)
@given(
    pieces=st.lists(st.integers(1, 900), min_size=1, max_size=6),
    chunks=st.integers(1, 768),
)
def test_images_are_put_together_from_whatever_pieces(pieces: list[int], chunks: int):
    data = packed(0, 384, 24, 16, chunks) + GOOD[24:]
    image = put_together(data, (16, 24), pieces)
    assert image.done
    np.testing.assert_array_equal(image.pixels(), picture(1, (16, 24)))


@settings(deadline=None)
@given(length=st.integers(0, len(GOOD) - 1), pieces=st.lists(st.integers(1, 99), min_size=1))
def test_an_image_that_breaks_off_is_never_whole(length: int, pieces: list[int]):
    assert not put_together(GOOD[:length], (16, 24), pieces).done


@settings(deadline=None, max_examples=300)
@given(at=st.integers(0, 23), noise=st.binary(min_size=1, max_size=12))
def test_a_changed_head_never_gives_an_image_of_another_size(at: int, noise: bytes):
    data = (GOOD[:at] + noise + GOOD[at + len(noise) :])[: len(GOOD)]
    with contextlib.suppress(DisconnectedError, RefusedError):
        image = put_together(data, (16, 24), [64])
        if image.done:
            assert image.pixels().shape == (16, 24)


@settings(deadline=None)
@given(noise=st.binary(min_size=24, max_size=2000), height=st.integers(1, 40))
def test_noise_is_no_image(noise: bytes, height: int):
    with contextlib.suppress(DisconnectedError, RefusedError):
        image = put_together(noise, (height, 16), [512])
        assert not image.done or image.pixels().shape == (height, 16)


# ------------------------------------------------------------------------- a client of other people


@pytest.mark.peer
@pytest.mark.parametrize("within", ["plug-in", "plug-in in parts", "gatan_dm"])
def test_instamatics_client_reads_the_servers(within: str, monkeypatch: pytest.MonkeyPatch):
    # Thus the driver was tested against what speaks as others expect it, too.
    module = client("gatansocket3", monkeypatch)
    with contextlib.ExitStack() as stack:
        if within == "gatan_dm":
            running = gatan_dm.Server(0, dm=DigitalMicrograph())
            serving = threading.Thread(target=running.run)
            serving.start()
            stack.callback(serving.join)
            stack.callback(running.end)
            port, cameras = running.port, 1
        else:
            chunk_bytes = 200 if within.endswith("parts") else 33554432
            port = stack.enter_context(GatanServer(chunk_bytes=chunk_bytes)).port
            cameras = 2
        other = module.GatanSocket(host="127.0.0.1", port=port)
        stack.callback(other.disconnect)
        assert other.GetNumberOfCameras() == cameras
        assert other.IsCameraInserted(0)
        other.SelectCamera(0)
        # Its GetImage trips over NumPy 2 once the pixels come; its messages are what is compared.
        longs = (IMAGE, 384, 24, 16, 2, 1, 0, 0, 16, 24, 0, 0, 0, 0)
        answer = module.Message(longargs=(0,) * 5)
        other.ExchangeMessages(module.Message(longargs=longs, dblargs=(0.01, 0.0)), answer)
        code, count, width, height, chunks = (int(n) for n in answer.array["longargs"])
        assert (code, count, width, height) == (0, 384, 24, 16)
        size, pixels = -(-768 // chunks), b""
        while len(pixels) < 768:
            if pixels and len(pixels) % size == 0:
                other.ExchangeMessages(module.Message(longargs=(24,)))
            pixels += other.recv_data(min(768, (len(pixels) // size + 1) * size) - len(pixels))
        assert chunks == (4 if within.endswith("parts") else 1)
        np.testing.assert_array_equal(
            np.frombuffer(pixels, "<u2").reshape(16, 24), picture(0, (16, 24))
        )
