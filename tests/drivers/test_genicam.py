"""The GenICam driver against cameras that others simulate, and against a link that fails."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tem_live.drivers import genicam_viva
from tem_live.drivers.genicam import FAMILY, GenICamCamera, GenICamOptions
from tem_live.drivers.genicam_link import Block, Numbers, plane
from tem_live.drivers.protocols import CameraSettings, CameraState
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.conformance import CameraConformance
from tests.drivers.instruments.genicam_link import BrokenLink
from tests.drivers.reading import fails_soon, read_on
from tests.drivers.servers.gige import GigePeer, picture

SHAPE = (64, 96)
REGION = (0, 0, *SHAPE)
VIKY = "VikyTL_DEV_green"


def opened(
    cameras: list[GenICamCamera], exposure_s: float = 0.01, **options: Any
) -> tuple[GenICamCamera, CameraState, npt.NDArray[Any]]:
    camera = GenICamCamera(GenICamOptions.model_validate(options))
    cameras.append(camera)
    camera.open()
    roi = REGION if camera.capabilities.has_roi else None
    state = camera.configure(CameraSettings(exposure_s, roi=roi))
    return camera, state, np.empty(state.frame_shape, state.dtype)


# ------------------------------------------------------------------- the producer of the EMVA: viky


@pytest.fixture(scope="session")
def viky() -> str:
    genicam = pytest.importorskip("genicam")
    pytest.importorskip("harvesters")
    return str(Path(genicam.__file__).with_name("viky.cti"))


@pytest.mark.peer
class TestViky(CameraConformance):
    exposure_s = 0.02
    long_exposure_s = 1.0

    @pytest.fixture(autouse=True)
    def producer(self, viky: str) -> None:
        self.path = viky

    def make_camera(self) -> GenICamCamera:
        # Each of its buffers has 10 MB.
        return GenICamCamera(GenICamOptions(producer=self.path, device=VIKY, buffer_frames=4))


@pytest.mark.peer
class TestProducer:
    def test_every_frame_is_there_in_order_and_to_the_count(
        self, viky: str, cameras: list[GenICamCamera]
    ):
        # Its pictures are the same after each connection; what they are, harvesters says by itself.
        expected = straight_from_harvesters(viky, 40)
        # The producer waits for nobody: there is a buffer for each frame, however busy the machine.
        camera, state, buffer = opened(cameras, producer=viky, device=VIKY, buffer_frames=42)
        assert (state.frame_shape, state.dtype, state.exposure_s) == ((800, 800), np.uint8, 0.01)
        camera.start(40)
        for index in range(40):
            meta = camera.read_into(buffer, 5.0)
            assert (meta.sequence, meta.raw["block"]) == (index, index + 1)
            np.testing.assert_array_equal(buffer, expected[index])
        assert not all(np.array_equal(each, expected[0]) for each in expected)

    def test_what_the_producer_refuses_is_named(self, viky: str, cameras: list[GenICamCamera]):
        with pytest.raises(
            RefusedError, match=r"BouncingBallSize = 4000.*must be equal or smaller"
        ):
            opened(cameras, producer=viky, device=VIKY, properties={"BouncingBallSize": 4000})
        with pytest.raises(RefusedError, match="no feature 'WarpFactor'"):
            opened(cameras, producer=viky, device=VIKY, properties={"WarpFactor": 9})
        with pytest.raises(RefusedError, match="no pixel format Mono16"):
            opened(cameras, producer=viky, device=VIKY, pixel_format="Mono16")
        with pytest.raises(RefusedError, match=r"RGBa8 is not read here"):
            opened(cameras, producer=viky, device=VIKY, pixel_format="RGBa8")
        with pytest.raises(RefusedError, match="no feature 'Gain'"):
            opened(cameras, producer=viky, device=VIKY, gain=2.0)
        with pytest.raises(RefusedError, match="no trigger"):
            opened(cameras, producer=viky, device=VIKY, trigger="external")
        opened(cameras, producer=viky, device=VIKY, properties={"BouncingBallSize": 30})

    @pytest.mark.parametrize(
        ("device", "said"),
        [("", "more than one camera; set camera.device to one of VikyTL_DEV_red"),
         ("nobody", "no camera 'nobody'")],
    )  # fmt: skip
    def test_a_camera_that_is_not_clear_is_named(self, viky: str, device: str, said: str):
        with pytest.raises(NotConnectedError, match=said) as caught:
            GenICamCamera(GenICamOptions(producer=viky, device=device)).open()
        assert "\n" not in str(caught.value)

    def test_doctor_finds_it(self, viky: str):
        assert FAMILY.reach is not None
        assert FAMILY.reach({"producer": viky})
        assert FAMILY.reach({"producer": viky, "device": VIKY})

    def test_interrupts_stay_with_the_program(self, viky: str, cameras: list[GenICamCamera]):
        before = signal.getsignal(signal.SIGINT)
        opened(cameras, producer=viky, device=VIKY)
        assert signal.getsignal(signal.SIGINT) is before

    def test_what_is_no_producer_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        pytest.importorskip("harvesters")
        monkeypatch.delenv("GENICAM_GENTL64_PATH", raising=False)
        file = tmp_path / "broken.cti"
        file.write_bytes(b"no library")
        for producer, said in (
            (str(file), "no GenTL producer that can be loaded"),
            (str(tmp_path / "missing.cti"), "there is no GenTL producer"),
            ("", "no GenTL producer is installed"),
        ):
            with pytest.raises(NotConnectedError, match=said) as caught:
                GenICamCamera(GenICamOptions(producer=producer)).open()
            assert "\n" not in str(caught.value)

    def test_producers_are_found_where_the_standard_says(
        self, viky: str, monkeypatch: pytest.MonkeyPatch, cameras: list[GenICamCamera]
    ):
        monkeypatch.setenv("GENICAM_GENTL64_PATH", str(Path(viky).parent))
        opened(cameras, device=VIKY)

    def test_a_camera_in_use_is_named(self, viky: str, monkeypatch: pytest.MonkeyPatch):
        from genicam import gentl
        from harvesters.core import Harvester

        def refuse(self: Any, which: Any) -> None:
            raise gentl.AccessDeniedException("opened by another program")

        monkeypatch.setattr(Harvester, "create", refuse)
        with pytest.raises(NotConnectedError, match=f"{VIKY} is in use; close the other program"):
            GenICamCamera(GenICamOptions(producer=viky, device=VIKY)).open()

    def test_a_producer_that_fails_is_named(self, viky: str, cameras: list[GenICamCamera]):
        from genicam import gentl

        camera, _, buffer = opened(cameras, producer=viky, device=VIKY)
        camera.start()
        camera.read_into(buffer, 5.0)

        def fail(**_: Any) -> None:
            raise gentl.IoException("the cable is out")

        link: Any = camera._link
        fetch, link._acquirer.try_fetch = link._acquirer.try_fetch, fail
        with pytest.raises(DisconnectedError, match="the cable is out") as caught:
            camera.read_into(buffer, 5.0)
        assert "\n" not in str(caught.value)
        link._acquirer.try_fetch = fetch
        camera.stop()
        camera.start(2)
        assert [camera.read_into(buffer, 5.0).sequence for _ in range(2)] == [0, 1]


def straight_from_harvesters(viky: str, count: int) -> list[npt.NDArray[np.uint8]]:
    from harvesters.core import Harvester

    interrupts = signal.getsignal(signal.SIGINT)
    harvester = Harvester()
    harvester.add_file(viky)
    harvester.update()
    acquirer = harvester.create({"id_": VIKY})
    signal.signal(signal.SIGINT, interrupts)
    nodes = acquirer.remote_device.node_map
    nodes.PixelFormat.value = "Mono8"
    nodes.Width.value = nodes.Height.value = 800
    nodes.AcquisitionFrameRate.value = 100
    acquirer.num_buffers = 32
    acquirer.start()
    images = []
    for index in range(count):
        with acquirer.fetch(timeout=5) as buffer:
            assert buffer.module.frame_id == index + 1
            images.append(buffer.payload.components[0].data.copy().reshape(800, 800))
    acquirer.destroy()
    harvester.reset()
    return images


# ------------------------------------------------------------------------------ GigE Vision of viva


@pytest.fixture(scope="module")
def gige(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GigePeer]:
    peer = GigePeer(tmp_path_factory.mktemp("gige") / "log.txt")
    yield peer
    peer.end()


@pytest.mark.peer
class TestGige(CameraConformance):
    """Its sensor is 4096 x 4096 and its pace its own: a region of it is read."""

    exposure_s = 0.01

    @pytest.fixture(autouse=True)
    def running(self, gige: GigePeer, request: pytest.FixtureRequest) -> None:
        # It sends whatever the exposure. What has to wait for a frame waits for a trigger instead.
        waits = "ends_a_wait" in request.node.name
        if (waits and "stop" in request.node.name) or "timeout_leaves" in request.node.name:
            pytest.skip("viva-genicam's camera does not obey the exposure; see TestViky")
        self.trigger = "external" if waits else "internal"

    def make_camera(self) -> GenICamCamera:
        options = {"route": "gige", "trigger": self.trigger, "trigger_source": "Software"}
        return GenICamCamera(GenICamOptions.model_validate(options))

    long_exposure_s = 1.0

    def settings(self, **changes: Any) -> CameraSettings:
        return super().settings(**{"roi": REGION, **changes})

    def test_state_is_what_was_asked_for(self, opened: Any) -> None:
        state = opened.configure(self.settings())
        assert (state.roi, state.frame_shape, state.dtype) == (REGION, SHAPE, np.uint16)
        assert opened.capabilities.sensor_shape == (4096, 4096)

    def test_frames_of_every_binning(self, opened: Any) -> None:
        assert opened.capabilities.binnings == (1, 2, 3, 4)
        for binning in opened.capabilities.binnings:
            state = opened.configure(self.settings(binning=binning))
            rows, columns = SHAPE[0] // binning, SHAPE[1] // binning
            assert (state.binning, state.frame_shape) == (binning, (rows, columns))
            opened.start(1)
            assert self.read(opened, state)[0].shape == state.frame_shape
            opened.stop()

    def test_frames_of_a_region(self, opened: Any) -> None:
        for roi in ((8, 16, 32, 48), (0, 0, 64, 64), (4032, 4000, 64, 96)):
            state = opened.configure(self.settings(roi=roi))
            assert (state.roi, state.frame_shape) == (roi, roi[2:])
            opened.start(1)
            assert self.read(opened, state)[0].shape == state.frame_shape
            opened.stop()


@pytest.mark.peer
class TestGigeVision:
    def test_every_frame_is_there_in_order_and_to_the_count(
        self, gige: GigePeer, cameras: list[GenICamCamera]
    ):
        camera, state, buffer = opened(cameras, route="gige", gain=6.0, device="FakeGigE")
        assert (state.frame_shape, state.exposure_s) == (SHAPE, 0.01)
        assert state.saturation_counts == 65535
        camera.start(40)
        for index in range(40):
            meta = camera.read_into(buffer, 5.0)
            assert (meta.sequence, meta.exposure_s, meta.raw["gain"]) == (index, 0.01, 6.0)
            np.testing.assert_array_equal(buffer, picture(meta.raw["block"], SHAPE))

    def test_doctor_sees_it_come_and_go(self, gige: GigePeer, tmp_path: Path):
        assert FAMILY.reach is not None
        assert FAMILY.reach({"route": "gige"})
        assert not FAMILY.reach({"route": "gige", "device": "another"})
        gige.end()
        assert not FAMILY.reach({"route": "gige"})
        gige.__init__(tmp_path / "again.txt")  # type: ignore[misc]

    def test_what_the_camera_refuses_is_named_and_changes_nothing(
        self, gige: GigePeer, cameras: list[GenICamCamera]
    ):
        camera, state, buffer = opened(cameras, route="gige")
        with pytest.raises(RefusedError, match="binning 5 is refused"):
            camera.configure(CameraSettings(0.02, binning=5, roi=REGION))
        with pytest.raises(RefusedError, match=r"Width = 8 .*below the minimum"):
            camera.configure(CameraSettings(0.02, roi=(0, 0, 64, 8)))
        camera.start(1)
        camera.read_into(buffer, 5.0)
        camera.stop()
        assert camera.configure(CameraSettings(0.01, roi=REGION)) == state
        camera.close()
        with pytest.raises(RefusedError, match=r"no trigger source Line7.*one of .*Software"):
            opened([], route="gige", trigger="external", trigger_source="Line7")
        with pytest.raises(RefusedError, match=r"Gain = 99\.0"):
            opened([], route="gige", gain=99.0)

    def test_a_camera_in_use_is_named(self, gige: GigePeer, cameras: list[GenICamCamera]):
        opened(cameras, route="gige")
        second = GenICamCamera(GenICamOptions(route="gige"))
        with pytest.raises(NotConnectedError, match="is in use; close the other program"):
            second.open()
        cameras.pop().close()
        second.open()
        second.close()

    def test_a_camera_that_another_program_takes_ends_the_run(
        self, gige: GigePeer, cameras: list[GenICamCamera]
    ):
        camera, _, buffer = opened(cameras, route="gige")
        camera.start()
        camera.read_into(buffer, 5.0)
        gige.revoke_control()
        began = time.monotonic()
        with pytest.raises(DisconnectedError, match="no longer obeys"):
            read_on(camera, buffer)
        camera.close()
        assert time.monotonic() - began < 5
        camera.open()

    @pytest.mark.parametrize("end", ["killed", "stuck"])
    def test_one_that_is_gone_ends_the_wait_and_is_found_again(
        self, gige: GigePeer, tmp_path: Path, cameras: list[GenICamCamera], end: str
    ):
        if end == "stuck" and not hasattr(signal, "SIGSTOP"):
            pytest.skip("processes cannot be halted here")
        gige.end()
        peer = GigePeer(tmp_path / "log.txt")
        threads = set(threading.enumerate())
        camera, _, buffer = opened(cameras, route="gige")
        try:
            camera.start()
            camera.read_into(buffer, 5.0)
            if end == "killed":
                peer.end()
            else:
                os.kill(peer.process.pid, signal.SIGSTOP)
            began = time.monotonic()
            with fails_soon(DisconnectedError, r"camera|VivaCam", 5):
                read_on(camera, buffer)
            camera.close()
            assert time.monotonic() - began < 6
            assert set(threading.enumerate()) <= threads
            with pytest.raises(NotConnectedError, match="no camera answers"):
                camera.open()
        finally:
            peer.end()
        gige.__init__(tmp_path / "again.txt")  # type: ignore[misc]
        state = opened(cameras, route="gige")[1]
        assert state.frame_shape == SHAPE

    @pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be halted here")
    def test_one_that_is_stuck_before_the_start_is_given_up_too(
        self, gige: GigePeer, cameras: list[GenICamCamera], monkeypatch: pytest.MonkeyPatch
    ):
        # The library waits many seconds for each answer: it is not asked.
        monkeypatch.setattr(genicam_viva, "_ASK_AFTER_S", 0.1)
        camera, _, _ = opened(cameras, route="gige")
        os.kill(gige.process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            time.sleep(0.15)
            with pytest.raises(DisconnectedError, match="no longer answers"):
                camera.start()
            camera.close()
            assert time.monotonic() - began < 5
        finally:
            os.kill(gige.process.pid, signal.SIGCONT)

    def test_lost_packets_show_in_the_numbers(
        self, gige: GigePeer, tmp_path: Path, cameras: list[GenICamCamera]
    ):
        gige.end()
        peer = GigePeer(tmp_path / "log.txt", drops=3)
        try:
            camera, _, buffer = opened(cameras, route="gige")
            camera.start(20)
            metas = []
            for _ in range(20):
                metas.append(camera.read_into(buffer, 5.0))
                np.testing.assert_array_equal(buffer, picture(metas[-1].raw["block"], SHAPE))
            blocks = [meta.raw["block"] for meta in metas]
            # A busy computer may lose more of them.
            assert set(range(blocks[0], blocks[-1])) - set(blocks) >= {7, 12, 17}
            assert [meta.sequence for meta in metas] == [block - blocks[0] for block in blocks]
        finally:
            peer.end()
        gige.__init__(tmp_path / "again.txt")  # type: ignore[misc]


# --------------------------------------------------------------------------------- a link to break


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> tuple[GenICamCamera, BrokenLink]:
    link = BrokenLink()
    monkeypatch.setattr(GenICamCamera, "_connect", lambda self: link)
    camera = GenICamCamera(GenICamOptions(reply_timeout_s=0.2))
    camera.open()
    camera.configure(CameraSettings(0.01))
    camera.start()
    return camera, link


def block(number: int, shape: tuple[int, int] = (6, 8), kind: str = "Mono12") -> Block:
    return Block(number, kind, np.full(shape, number, np.uint8 if kind == "Mono8" else np.uint16))


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (block(2, (6, 4)), "sends Mono12 6x4 where Mono12 6x8 was set"),
        (block(2, kind="Mono8"), "sends Mono8 6x8 where Mono12"),
        (block(1), "block 1 after block 1"),
    ],
)
def test_what_does_not_belong_there_is_named_and_gives_no_frame(
    broken: tuple[GenICamCamera, BrokenLink], sent: Block, said: str
):
    camera, link = broken
    buffer = np.empty((6, 8), np.uint16)
    link.blocks += [block(1), sent]
    camera.read_into(buffer, 1.0)
    with pytest.raises(DisconnectedError, match=said):
        camera.read_into(buffer, 1.0)
    assert np.all(buffer == 1)
    camera.stop()
    camera.start(2)
    link.blocks += [block(1), block(4)]
    assert [camera.read_into(buffer, 1.0).sequence for _ in range(2)] == [0, 3]


def test_one_that_falls_silent_is_given_up(broken: tuple[GenICamCamera, BrokenLink]):
    camera, _ = broken
    with pytest.raises(DeviceTimeoutError):
        camera.read_into(np.empty((6, 8), np.uint16), 0.01)
    with pytest.raises(DisconnectedError, match="sends no images"):
        camera.read_into(np.empty((6, 8), np.uint16), 5.0)


def test_without_the_libraries_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    for route, package in (("gentl", "harvesters.core"), ("gige", "viva_genicam")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(NotConnectedError, match=r"tem-live\[genicam\]"):
            GenICamCamera(GenICamOptions.model_validate({"route": route})).open()


# ------------------------------------------------------------------------------ numbers and pixels


@given(
    first=st.integers(1, 65535),
    steps=st.lists(st.integers(1, 30000), max_size=30),
)
def test_numbers_of_16_bits_turn_over(first: int, steps: list[int]):
    numbers = Numbers()
    assert numbers.frame(first) == 0
    at = first
    for step in steps:
        at += step
        assert numbers.frame((at - 1) % 65535 + 1) == at - first


@given(first=st.integers(0, 2**48), steps=st.lists(st.integers(1, 10**6), max_size=20))
def test_numbers_of_64_bits_do_not(first: int, steps: list[int]):
    numbers, at = Numbers(), first + 65536
    numbers.frame(at)
    for step in steps:
        at += step
        assert numbers.frame(at) == at - first - 65536


@given(first=st.integers(1, 65000), ahead=st.integers(0, 500), back=st.integers(0, 500))
def test_a_block_that_comes_again_is_refused(first: int, ahead: int, back: int):
    numbers = Numbers()
    numbers.frame(first)
    numbers.frame(first + ahead + 1)
    with pytest.raises(DisconnectedError, match="after block"):
        numbers.frame(max(0, first + ahead + 1 - back))


@given(
    size=st.integers(0, 400), height=st.integers(-1, 20), width=st.integers(-1, 20),
)  # fmt: skip
def test_a_plane_has_its_size_or_is_refused(size: int, height: int, width: int):
    data = np.arange(size, dtype=np.uint16)
    if height > 0 and width > 0 and size % height == 0 and size // height >= width:
        image = plane(data, height, width)
        assert image.shape == (height, width)
        assert image[-1, -1] == (height - 1) * (size // height) + width - 1
    else:
        with pytest.raises(DisconnectedError):
            plane(data, height, width)
