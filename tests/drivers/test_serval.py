"""The Serval driver against a server of ours."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tem_live.drivers import serval_wire as wire
from tem_live.drivers.protocols import CameraSettings, CameraState, EndOfFrames
from tem_live.drivers.serval import FAMILY, ServalCamera, ServalOptions
from tem_live.errors import (
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.alike import (
    STRANGERS,
    check_death,
    check_mute,
    check_pieces,
    check_stranger,
    configured,
)
from tests.drivers.conformance import CameraConformance
from tests.drivers.reading import check_second_frame, fails_soon
from tests.drivers.servers.serval import ServalServer, picture, streamed

EXPOSURE_S = 0.01


@pytest.fixture
def server() -> Iterator[ServalServer]:
    with ServalServer() as running:
        yield running


def camera_of(server: ServalServer, **options: Any) -> ServalCamera:
    return ServalCamera(ServalOptions.model_validate({"port": server.port, **options}))


def opened(
    server: ServalServer, cameras: list[ServalCamera], **options: Any
) -> tuple[ServalCamera, CameraState, npt.NDArray[Any]]:
    cameras.append(camera_of(server, **options))
    return configured(cameras[-1], EXPOSURE_S)


class TestServal(CameraConformance):
    exposure_s = EXPOSURE_S

    @pytest.fixture(autouse=True)
    def running(self, server: ServalServer) -> None:
        self.server = server

    def make_camera(self) -> ServalCamera:
        return camera_of(self.server)


@pytest.mark.parametrize("first", [0, 1])
def test_pixels_arrive_as_they_were_sent(
    server: ServalServer, cameras: list[ServalCamera], first: int
):
    server.first = first
    before = server.destination
    camera, state, buffer = opened(server, cameras)
    for _ in range(2):
        camera.start(5)
        for index in range(5):
            meta = camera.read_into(buffer, 5.0)
            assert meta.sequence == index
            assert meta.device_time_s == pytest.approx(1655990130.181 + first + index)
            np.testing.assert_array_equal(buffer, picture(first + index, state.frame_shape))
        camera.stop()
        # Where the images went before, they go again.
        assert server.destination == before


def test_lost_images_show_in_the_numbers(server: ServalServer, cameras: list[ServalCamera]):
    camera, _, buffer = opened(server, cameras)
    server.send = lambda index, whole: b"" if index in (1, 2) else whole
    camera.start(6)
    assert [camera.read_into(buffer, 5.0).sequence for _ in range(3)] == [0, 3, 4]
    # The series ends with its last number, though two of its six never came.
    assert camera.read_into(buffer, 5.0).sequence == 5
    with pytest.raises(EndOfFrames):
        camera.read_into(buffer, 5.0)


def test_the_second_counter_is_left_out(server: ServalServer, cameras: list[ServalCamera]):
    camera, state, buffer = opened(server, cameras)
    other = np.zeros(state.frame_shape, np.uint16)
    server.send = lambda index, whole: whole + streamed(index, other, thresholdID=1)
    camera.start(3)
    for index in range(3):
        assert camera.read_into(buffer, 5.0).sequence == index
        np.testing.assert_array_equal(buffer, picture(index, state.frame_shape))


SMALL = np.ones((128, 256), np.uint16)
WIDE = np.ones((256, 256), np.uint32)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GARBAGE " * 40, "where an image should begin"),
        (streamed(1, SMALL), "uint16 128x256 where uint16 256x256"),
        (streamed(1, WIDE), "uint32 256x256 where uint16 256x256 belongs; set camera.bit_depth"),
        (streamed(1, SMALL, dataSize=7), "7 bytes for 128x256 of 16 bits"),
        (streamed(1, SMALL, bitDepth=12), "pixels of 12 bits"),
        (streamed(1, SMALL, frameNumber="one"), "a header without frameNumber"),
        (b"{no json}\n", "a header that is no JSON"),
        (streamed(0, np.ones((256, 256), np.uint16)), "image 0 after image 0"),
        (None, "ended its stream after 1 images"),
    ],
    ids="garbage smaller wider size bits number json twice hung-up".split(),  # noqa: SIM905
)
def test_what_does_not_belong_there_is_named_and_gives_no_frame(
    server: ServalServer, cameras: list[ServalCamera], sent: bytes | None, said: str
):
    camera, _, _ = opened(server, cameras)
    check_second_frame(
        camera,
        server,
        lambda index, whole: whole if index == 0 else sent,
        lambda _, whole: whole,
        picture,
        said,
    )


def test_an_image_in_pieces_outlasts_short_waits(server: ServalServer, cameras: list[ServalCamera]):
    camera, _, _ = opened(server, cameras)
    check_pieces(camera, server, lambda: server.line, 5000, picture)


@pytest.mark.parametrize(("part", "said"), [(0, "sends no images"), (900, "stopped amid an image")])
def test_one_that_falls_silent_is_given_up(
    server: ServalServer, cameras: list[ServalCamera], part: int, said: str
):
    camera, _, buffer = opened(server, cameras, reply_timeout_s=0.3)
    server.send = lambda index, whole: whole if index == 0 else whole[:part] if index == 1 else b""
    camera.start()
    camera.read_into(buffer, 5.0)
    with fails_soon(DisconnectedError, said, 4):
        camera.read_into(buffer, 5.0)


@pytest.mark.parametrize("how", ["stuck", "stopped"])
def test_one_that_is_silent_is_asked_why(
    server: ServalServer, cameras: list[ServalCamera], how: str
):
    camera, _, buffer = opened(server, cameras)
    server.send = lambda index, whole: whole if index == 0 else b""
    camera.start()
    camera.read_into(buffer, 5.0)
    if how == "stuck":
        server.mute.set()
    else:
        server.status = "DA_IDLE"
    began = time.monotonic()
    said = "does not answer" if how == "stuck" else "stopped measuring after 1 images"
    with pytest.raises(DisconnectedError, match=said):
        camera.read_into(buffer, 10.0)
    # Before the 4 s are over in which an image may be late.
    assert time.monotonic() - began < 3.5
    server.mute.clear()


def test_a_refused_setting_is_named_and_changes_nothing(
    server: ServalServer, cameras: list[ServalCamera]
):
    camera, state, _ = opened(server, cameras)
    server.refused["/detector/config"] = "ExposureTime out of\nrange"
    with pytest.raises(RefusedError, match="/detector/config: 400 ExposureTime out of range"):
        camera.configure(CameraSettings(0.05))
    server.refused.clear()
    assert server.config["ExposureTime"] == EXPOSURE_S
    assert camera.configure(CameraSettings(EXPOSURE_S)) == state


def test_the_state_is_what_serval_took_not_what_was_asked(
    server: ServalServer, cameras: list[ServalCamera]
):
    camera, _, _ = opened(server, cameras, dead_time_s=0.002)
    assert server.config["TriggerMode"] == "AUTOTRIGSTART_TIMERSTOP"
    server.coerced = {"ExposureTime": 0.0105, "TriggerPeriod": 0.0131}
    state = camera.configure(CameraSettings(EXPOSURE_S))
    assert (state.exposure_s, state.frame_interval_s) == (0.0105, 0.0131)


def test_properties_are_set_by_servals_names(server: ServalServer, cameras: list[ServalCamera]):
    opened(server, cameras, properties={"BiasVoltage": 90})
    assert server.config["BiasVoltage"] == 90
    assert server.config["BiasEnabled"] is True
    with pytest.raises(RefusedError, match="has no 'WarpFactor'; it has BiasVoltage"):
        camera_of(server, properties={"WarpFactor": 9}).open()


def test_a_detector_in_use_is_named(server: ServalServer, cameras: list[ServalCamera]):
    camera, _, buffer = opened(server, cameras)
    second, _, _ = opened(server, cameras)
    camera.start()
    camera.read_into(buffer, 5.0)
    with pytest.raises(RefusedError, match=r"in use .*'DA_RECORDING'"):
        second.start()
    # The first one does not notice.
    assert camera.read_into(buffer, 5.0).sequence == 1
    camera.stop()
    second.start(1)
    assert second.read_into(buffer, 5.0).sequence == 0


def test_a_serval_that_does_not_connect_back_is_named(
    server: ServalServer, cameras: list[ServalCamera]
):
    camera, _, _ = opened(server, cameras, reply_timeout_s=0.3)
    server.connects = False
    with pytest.raises(NotConnectedError, match=r"does not connect to 127.0.0.1:\d+; open that"):
        camera.start()
    assert server.status == "DA_IDLE"


def test_a_serval_without_a_detector_is_named(server: ServalServer):
    server.detector = None
    with pytest.raises(NotConnectedError, match="no detector connected"):
        camera_of(server).open()


def test_a_detector_that_makes_no_sense_is_refused(
    server: ServalServer, cameras: list[ServalCamera]
):
    server.info["PixCount"] = 65535
    with pytest.raises(RefusedError, match=r"set camera.shape"):
        camera_of(server).open()
    opened(server, cameras, shape=(256, 256))


def test_one_that_no_longer_answers_is_gone(server: ServalServer, cameras: list[ServalCamera]):
    camera, _, _ = opened(server, cameras, reply_timeout_s=0.3)
    check_mute(camera, server.mute)


def test_one_that_dies_while_it_is_read_leaves_nothing_behind(
    server: ServalServer, cameras: list[ServalCamera]
):
    check_death(lambda: opened(server, cameras), server.end, "Serval", "no Serval answers")


@pytest.mark.parametrize("answer", STRANGERS)
def test_what_is_no_serval_is_named(answer: bytes):
    check_stranger(answer, lambda port: ServalCamera(ServalOptions(port=port)).open(), "Serval")


def test_doctor_sees_it_come_and_go():
    assert FAMILY.reach is not None
    with ServalServer() as server:
        assert FAMILY.reach({"port": server.port})
    assert not FAMILY.reach({"port": server.port})


# ----------------------------------------------------------------------------------------- the wire

PICTURES = [picture(number, (6, 8)) for number in range(3)]
STREAM = b"".join(streamed(number, pixels) for number, pixels in enumerate(PICTURES))


def cut(stream: bytes, pieces: list[int]) -> list[wire.Image]:
    """All images of a stream that comes in pieces of these lengths, over and over."""
    images, found, at = wire.Images(), [], 0
    while at < len(stream):
        for length in pieces:
            images.feed(stream[at : at + length])
            at += length
            while (image := images.next()) is not None:
                found.append(image)
    return found


@settings(deadline=None)
@given(pieces=st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_images_are_found_in_whatever_pieces_they_come(pieces: list[int]):
    for number, image in enumerate(cut(STREAM, pieces)):
        assert image.number == number
        np.testing.assert_array_equal(image.pixels, PICTURES[number])
    assert number == 2


@settings(deadline=None)
@given(length=st.integers(0, len(STREAM) - 1))
def test_a_stream_that_breaks_off_gives_the_whole_images_alone(length: int):
    found = cut(STREAM[:length], [50])
    assert len(found) < 3
    for number, image in enumerate(found):
        np.testing.assert_array_equal(image.pixels, PICTURES[number])


@settings(deadline=None)
@given(noise=st.binary(max_size=3000) | st.text('{}":,0123456789widthframe\n').map(str.encode))
def test_noise_is_no_image(noise: bytes):
    with contextlib.suppress(DisconnectedError):
        assert cut(noise, [64]) == []


@settings(deadline=None, max_examples=300)
@given(at=st.integers(0, 420), noise=st.binary(min_size=1, max_size=12))
def test_a_changed_header_never_gives_an_image_of_another_size(at: int, noise: bytes):
    stream = STREAM[:at] + noise + STREAM[at + len(noise) :]
    with contextlib.suppress(DisconnectedError):
        for image in cut(stream, [500]):
            assert image.pixels.nbytes in (PICTURES[0].nbytes, 8 * 6, 4 * 8 * 6)


def test_a_header_that_never_ends_is_refused():
    with pytest.raises(DisconnectedError, match="where an image should begin"):
        cut(b"{" + b" " * 100_000, [4096])
