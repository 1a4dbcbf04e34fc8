"""Thermo Fisher's driver against temscript's own server and its simulated microscope."""

from __future__ import annotations

import contextlib
import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from tem_live.drivers.protocols import (
    BeamMonitor,
    BeamShift,
    Blanker,
    CameraSettings,
    ColumnParts,
    ImageShift,
    Magnification,
    Simulated,
    SpotSize,
    Stage,
)
from tem_live.drivers.temscript_link import FAMILY, TemscriptOptions
from tem_live.drivers.thermo import ThermoCamera, ThermoOptions
from tem_live.drivers.thermo_column import ThermoColumn, ThermoColumnOptions, ThermoScreen
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.conformance import CameraConformance
from tests.drivers.reading import read_on, read_one
from tests.drivers.servers.temscript import LEAVES_OPEN, Microscope, SmallMicroscope

temscript = pytest.importorskip("temscript", reason="temscript is not installed")

pytestmark = LEAVES_OPEN
REPLY_S = 2.0


@pytest.fixture(scope="module")
def running() -> Iterator[Microscope]:
    microscope = Microscope()
    yield microscope
    microscope.end()


@pytest.fixture
def microscope(running: Microscope) -> Iterator[Microscope]:
    yield running
    gc.collect()
    running.itself.pretend = None
    SmallMicroscope.__init__(running.itself)


def remote(microscope: Microscope) -> dict[str, Any]:
    return {"route": "remote", "port": microscope.port, "reply_timeout_s": REPLY_S}


class TestRemote(CameraConformance):
    exposure_s = 0.01
    # The next test waits until the exposure has ended.
    long_exposure_s = 0.6
    wakes_within_s = 0.4
    microscope: ClassVar[Microscope]

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def served(request: pytest.FixtureRequest, running: Microscope) -> None:
        request.cls.microscope = running

    def make_camera(self) -> ThermoCamera:
        # The server does one thing at a time: an exposure that was given up is waited for.
        return ThermoCamera(ThermoOptions(**{**remote(self.microscope), "reply_timeout_s": 5.0}))


@pytest.fixture
def camera(microscope: Microscope) -> Iterator[ThermoCamera]:
    camera = ThermoCamera(ThermoOptions(**remote(microscope)))
    camera.open()
    yield camera
    camera.close()


@pytest.fixture
def column(microscope: Microscope) -> Iterator[ThermoColumn]:
    column = ThermoColumn(ThermoColumnOptions(**remote(microscope)))
    column.open()
    yield column
    column.close()


# ------------------------------------------------------------------------------------- the camera


def test_the_simulated_microscope_of_this_process() -> None:
    camera = ThermoCamera(ThermoOptions(route="null"))
    camera.open()
    try:
        assert camera.capabilities.sensor_shape == (2048, 2048)
        assert camera.capabilities.binnings == (1, 2, 4, 8)
        assert read_one(camera).shape == (2048, 2048)
    finally:
        camera.close()


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32])
def test_pixels_come_as_they_were_sent(
    camera: ThermoCamera, microscope: Microscope, dtype: type[np.integer[Any]]
) -> None:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(1)
    sent = rng.integers(limits.min, limits.max, (64, 64), dtype, endpoint=True)
    microscope.itself.pretend = lambda image: {"CCD": sent}
    assert np.array_equal(read_one(camera), sent)


def test_settings_are_those_of_the_microscope(camera: ThermoCamera, microscope: Microscope) -> None:
    state = camera.configure(CameraSettings(0.05, binning=4))
    told = microscope.itself.get_camera_param("CCD")
    assert (told["binning"], told["exposure(s)"]) == (4, 0.05)
    assert (state.binning, state.exposure_s, state.frame_shape) == (4, 0.05, (16, 16))


def test_what_the_microscope_refuses_changes_nothing(
    camera: ThermoCamera, microscope: Microscope, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = camera.configure(CameraSettings(0.05))

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("exposure time out of range")

    with monkeypatch.context() as patch:
        patch.setattr(microscope.itself, "set_camera_param", refuse)
        with pytest.raises(RefusedError, match="exposure time out of range") as caught:
            camera.configure(CameraSettings(90.0))
        assert "\n" not in str(caught.value)
    assert camera.configure(CameraSettings(0.05)) == before
    assert read_one(camera).shape == (64, 64)


@pytest.mark.parametrize(
    ("pretend", "error", "words"),
    [
        (lambda image: {}, RefusedError, "no image of CCD"),
        (lambda image: {"CCD": image[:-1]}, DisconnectedError, "63x64"),
        (lambda image: {"CCD": image.astype(np.float64)}, DisconnectedError, "float64"),
    ],
    ids=["no image", "wrong size", "wrong type"],
)
def test_nonsense_is_named(
    camera: ThermoCamera,
    microscope: Microscope,
    pretend: Callable[[npt.NDArray[Any]], dict[str, Any]],
    error: type[Exception],
    words: str,
) -> None:
    microscope.itself.pretend = pretend
    with pytest.raises(error, match=words) as caught:
        read_one(camera)
    assert "\n" not in str(caught.value)
    camera.stop()
    microscope.itself.pretend = None
    assert read_one(camera).shape == (64, 64)


def test_an_exposure_that_never_ends_times_out(
    camera: ThermoCamera, microscope: Microscope
) -> None:
    never = threading.Event()

    def hang(image: npt.NDArray[Any]) -> dict[str, Any]:
        never.wait(20)
        return {"CCD": image}

    microscope.itself.pretend = hang
    began = time.monotonic()
    try:
        with pytest.raises(DeviceTimeoutError):
            read_one(camera, 0.3)
        camera.stop()
        with pytest.raises(DisconnectedError, match="does not answer"):
            camera.configure(CameraSettings(0.01))
        assert time.monotonic() - began < 5
    finally:
        never.set()


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


@pytest.mark.peer
def test_a_server_that_is_killed_amid_a_run() -> None:
    port = free_port()
    arguments = ["--null", "--host", "127.0.0.1", "-p", str(port)]
    start = f"from temscript import run_server; run_server({arguments})"
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.DEVNULL) as server:
        options = {"route": "remote", "port": port}
        camera = ThermoCamera(ThermoOptions(**options))
        column = ThermoColumn(ThermoColumnOptions(**options))
        try:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(NotConnectedError):
                    camera.open()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.1)
            column.open()
            state = camera.configure(CameraSettings(0.2, binning=8))
            buffer = np.empty(state.frame_shape, state.dtype)
            camera.start()
            assert camera.read_into(buffer, 5.0).sequence == 0
            server.kill()
            server.wait()
            began = time.monotonic()
            with pytest.raises(DisconnectedError, match="gone"):
                read_on(camera, buffer)
            with pytest.raises(DisconnectedError, match="gone"):
                column.set_blanked(True)
            assert time.monotonic() - began < 5
        finally:
            server.kill()
            camera.close()
            column.close()


@pytest.mark.parametrize("make", [ThermoCamera, ThermoColumn, ThermoScreen])
def test_where_nobody_listens(make: Any) -> None:
    options = make.Options(route="remote", port=free_port())
    with pytest.raises(NotConnectedError, match="temscript-server") as caught:
        make(options).open()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="here it may be there")
def test_without_the_scripting_interface() -> None:
    with pytest.raises(NotConnectedError, match="scripting interface"):
        ThermoCamera(ThermoOptions()).open()


def test_unknown_camera_is_named(microscope: Microscope) -> None:
    with pytest.raises(NotConnectedError, match="it has: CCD"):
        ThermoCamera(ThermoOptions(camera="Ceta", **remote(microscope))).open()


def test_without_temscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tem_live.drivers.temscript_link.find_spec", lambda name: None)
    with pytest.raises(NotConnectedError, match="pip install"):
        ThermoCamera(ThermoOptions(route="null")).open()


# ------------------------------------------------------------------------------------- the column


def test_what_the_column_can_do(column: ThermoColumn) -> None:
    for part in (Blanker, SpotSize, Magnification, Stage, BeamShift, ImageShift, Simulated):
        assert isinstance(column, part)
    parts = ColumnParts.of(column)
    assert parts.dose_rate is None
    assert parts.beam_area is None
    assert column.pixel_size_nm is None
    assert not column.simulated


def test_blanking_is_read_back(column: ThermoColumn, microscope: Microscope) -> None:
    for blanked in (True, False, True, True):
        column.set_blanked(blanked)
        assert column.blanked is blanked
        assert microscope.itself.get_beam_blanked() is blanked


def test_a_blanker_that_does_not_follow(
    column: ThermoColumn, microscope: Microscope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microscope.itself, "set_beam_blanked", lambda blanked: None)
    with pytest.raises(RefusedError, match="not blanked"):
        column.set_blanked(True)
    assert not column.blanked


def test_blanking_waits_for_no_exposure_and_no_stage() -> None:
    camera = ThermoCamera(ThermoOptions(route="null"))
    column = ThermoColumn(ThermoColumnOptions(route="null"))
    camera.open()
    column.open()
    try:
        camera.configure(CameraSettings(2.0))
        camera.start()
        moving = threading.Event()
        held = threading.Event()

        def move(microscope: Any) -> None:
            moving.set()
            held.wait(10)

        column._link.submit(move)
        assert moving.wait(5)
        began = time.monotonic()
        column.set_blanked(True)
        assert column.blanked
        assert time.monotonic() - began < 1
    finally:
        held.set()
        camera.close()
        column.close()


def test_spot_size(column: ThermoColumn) -> None:
    assert column.set_spot_size(5) == column.spot_size == 5
    for wrong in (0, 12, -1):
        with pytest.raises(RefusedError, match="1 to 11"):
            column.set_spot_size(wrong)
    assert column.spot_size == 5


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [(100_000, 100_000), (131_000, 130_000), (72_000, 70_000), (1e9, 150_000), (1, 50_000)],
)
def test_magnification_is_the_nearest_step(
    column: ThermoColumn, microscope: Microscope, asked: float, nearest: float
) -> None:
    assert column.set_magnification(asked) == nearest
    assert column.magnification == microscope.itself.get_indicated_magnification() == nearest


def test_no_magnification_in_diffraction(column: ThermoColumn, microscope: Microscope) -> None:
    microscope.itself.set_projection_mode("DIFFRACTION")
    with pytest.raises(RefusedError, match="diffraction"):
        _ = column.magnification
    with pytest.raises(RefusedError, match="diffraction"):
        column.set_magnification(1e5)


def test_stage(column: ThermoColumn, microscope: Microscope) -> None:
    assert column.move_stage(12.5, -300.0) == pytest.approx((12.5, -300.0))
    where = microscope.itself.get_stage_position()
    assert (where["x"], where["y"], where["a"]) == pytest.approx((12.5e-6, -300e-6, 0.0))
    with pytest.raises(RefusedError, match="y = 2000 µm"):
        column.move_stage(0.0, 2000.0)
    assert column.stage_position_um == pytest.approx((12.5, -300.0))


def test_beam_shift(column: ThermoColumn, microscope: Microscope) -> None:
    assert column.set_beam_shift(20.0, -5.0) == pytest.approx((20.0, -5.0))
    assert microscope.itself.get_beam_shift() == pytest.approx((2e-8, -5e-9))
    with pytest.raises(RefusedError):
        column.set_beam_shift(float("nan"), 0.0)


def test_image_shift_leaves_the_beam_where_it_is(
    column: ThermoColumn, microscope: Microscope
) -> None:
    column.set_beam_shift(20.0, -5.0)
    assert column.set_image_shift(300.0, -40.0) == pytest.approx((300.0, -40.0))
    assert microscope.itself.get_image_shift() == pytest.approx((3e-7, -4e-8))
    assert column.beam_shift_nm == pytest.approx((20.0, -5.0))
    with pytest.raises(RefusedError, match="image shift"):
        column.set_image_shift(0.0, float("inf"))


def test_screen_current(microscope: Microscope) -> None:
    screen = ThermoScreen(TemscriptOptions(**remote(microscope)))
    assert isinstance(screen, BeamMonitor)
    screen.open()
    try:
        assert screen.read_current().current_A == pytest.approx(1e-9)
        microscope.itself.set_screen_position("UP")
        with pytest.raises(RefusedError, match="lower it"):
            screen.read_current()
    finally:
        screen.close()
    with pytest.raises(NotConnectedError):
        screen.read_current()


def test_doctor_sees_a_server_come_and_go() -> None:
    assert FAMILY.reach is not None
    microscope = Microscope()
    fields = {"route": "remote", "port": microscope.port}
    assert FAMILY.reach(fields)
    microscope.end()
    assert not FAMILY.reach(fields)
