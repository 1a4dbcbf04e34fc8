from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tem_live.drivers.mm import MMCamera, MMOptions, MMShutter, MMShutterOptions
from tem_live.drivers.protocols import Blanker, CameraSettings, FrameMeta
from tem_live.errors import (
    NotConnectedError,
    OverflowedError,
    RefusedError,
)
from tests.drivers.conformance import CameraConformance

pytest.importorskip("pymmcore", reason="pymmcore is not installed")
pytest.importorskip("mm_test_adapters", reason="no device adapters: mm-test-adapters")

SMALL = {"PixelType": "16bit", "BitDepth": 16, "OnCameraCCDXSize": 128, "OnCameraCCDYSize": 96}
NOISE = {**SMALL, "Mode": "Noise", "Photon Flux": 20.0}


def make(properties: dict[str, str | int | float], **options: Any) -> MMCamera:
    return MMCamera(MMOptions(properties=properties, **options))


@pytest.fixture
def noise() -> Iterator[MMCamera]:
    camera = make(NOISE)
    camera.open()
    yield camera
    camera.close()


def frames(
    camera: MMCamera, count: int, settings: CameraSettings
) -> tuple[npt.NDArray[Any], list[FrameMeta]]:
    state = camera.configure(settings)
    stack = np.empty((count, *state.frame_shape), state.dtype)
    camera.start(count)
    metas = [camera.read_into(buffer, 5.0) for buffer in stack]
    camera.stop()
    return stack, metas


def read_all(camera: MMCamera, buffer: npt.NDArray[Any]) -> None:
    while True:
        camera.read_into(buffer, 1.0)


class TestDemoCamera(CameraConformance):
    exposure_s = 0.02

    def make_camera(self) -> MMCamera:
        return make(SMALL)


class TestDemoCameraOf8Bits(CameraConformance):
    exposure_s = 0.02

    def make_camera(self) -> MMCamera:
        return make({**SMALL, "PixelType": "8bit", "BitDepth": 8})


@pytest.mark.parametrize("exposure_s", [0.01, 0.02])
def test_noise_is_the_flux_times_the_exposure(noise: MMCamera, exposure_s: float) -> None:
    stack, _ = frames(noise, 8, CameraSettings(exposure_s))
    assert stack.mean() == pytest.approx(99 + 20.0 * 1e3 * exposure_s, rel=0.01)


def test_twice_the_exposure_is_twice_the_light(noise: MMCamera) -> None:
    once, twice = (
        frames(noise, 8, CameraSettings(exposure_s))[0].mean() - 99 for exposure_s in (0.01, 0.02)
    )
    assert twice / once == pytest.approx(2, rel=0.02)


def test_none_of_100_frames_is_lost(noise: MMCamera) -> None:
    stack, metas = frames(noise, 100, CameraSettings(0.005, roi=(16, 32, 32, 64)))
    assert [meta.sequence for meta in metas] == list(range(100))
    times = [meta.device_time_s for meta in metas]
    assert times == sorted(times)
    assert stack.shape == (100, 32, 64)
    # No frame twice.
    assert len({frame.tobytes() for frame in stack}) == 100


def test_a_buffer_that_runs_over_says_so() -> None:
    camera = make({"PixelType": "16bit", "FastImage": 1}, buffer_MB=16)
    camera.open()
    try:
        state = camera.configure(CameraSettings(0.001))
        buffer = np.empty(state.frame_shape, state.dtype)
        camera.start()
        deadline = time.monotonic() + 10
        while not camera.core.isBufferOverflowed() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(OverflowedError, match="buffer_MB"):
            read_all(camera, buffer)
        camera.stop()
        camera.start(1)
        assert camera.read_into(buffer, 5.0).sequence == 0
    finally:
        camera.close()


def test_unknown_property_is_named() -> None:
    camera = make({"Colour of the sky": 1})
    with pytest.raises(RefusedError, match="Colour of the sky") as caught:
        camera.open()
    assert "PixelType" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(NotConnectedError):
        _ = camera.capabilities


def test_property_out_of_range_is_named() -> None:
    with pytest.raises(RefusedError, match="Photon Flux"):
        make({"Photon Flux": -4.0}).open()


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": "NoSuchAdapter"},
        {"device": "NoSuchDevice"},
        {"shutter": "NoSuchShutter"},
        {"config_file": "no-such-file.cfg"},
        {"micromanager_path": "no-such-folder"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_missing_is_said_in_one_line(options: dict[str, Any]) -> None:
    camera = MMCamera(MMOptions(**options))
    with pytest.raises(NotConnectedError) as caught:
        camera.open()
    assert "\n" not in str(caught.value)
    camera.close()


def test_negative_exposure_is_refused(noise: MMCamera) -> None:
    with pytest.raises(RefusedError, match="exposure"):
        noise.configure(CameraSettings(-0.01))


class Core:
    """Micro-Manager's core, of which one function is a test's."""

    def __init__(self, core: Any, **functions: Any) -> None:
        self._core = core
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def test_what_is_refused_changes_nothing(noise: MMCamera, monkeypatch: pytest.MonkeyPatch) -> None:
    before = noise.configure(CameraSettings(0.02, binning=1, roi=(8, 16, 32, 48)))
    core = noise.core

    def unaligned(left: int, top: int, width: int, height: int) -> None:
        if width != 48:
            raise RuntimeError("ROI not aligned")
        core.setROI(left, top, width, height)

    with monkeypatch.context() as patch:
        patch.setattr(noise, "_core", Core(core, setROI=unaligned))
        with pytest.raises(RefusedError, match="ROI not aligned"):
            noise.configure(CameraSettings(0.01, binning=2, roi=(0, 0, 40, 40)))
    # The run that was on goes on with frames as they were.
    buffer = np.empty(before.frame_shape, before.dtype)
    noise.start(1)
    meta = noise.read_into(buffer, 5.0)
    assert (meta.raw["ROI-X-start"], meta.raw["ROI-Y-start"]) == ("16", "8")
    assert core.getExposure() == 20.0
    noise.stop()


def test_a_binning_that_the_adapter_writes_as_2x2(
    noise: MMCamera, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = noise.core
    words = {"1x1": "1", "2x2": "2"}

    def set_property(label: str, name: str, value: str) -> None:
        if name == "Binning" and value not in words:
            raise RuntimeError(f'Cannot set property "Binning" to "{value}"')
        core.setProperty(label, name, words.get(value, value))

    wrapped = Core(core, getAllowedPropertyValues=lambda *_: tuple(words), setProperty=set_property)
    monkeypatch.setattr(noise, "_core", wrapped)
    assert noise.capabilities.binnings == (1, 2)
    assert noise.configure(CameraSettings(0.02, binning=2)).frame_shape == (48, 64)


@pytest.mark.parametrize("pixels", ["32bitRGB", "64bitRGB"])
def test_colour_is_refused(pixels: str) -> None:
    camera = make({"PixelType": pixels})
    with pytest.raises(NotConnectedError, match="colour"):
        camera.open()


def test_raw_metadata_is_what_the_core_told(noise: MMCamera) -> None:
    _, metas = frames(noise, 2, CameraSettings(0.01))
    assert metas[1].raw["ImageNumber"] == "1"
    assert all(isinstance(value, str) for value in metas[0].raw.values())


def test_shutter_blanks_and_reads_back() -> None:
    camera = make(SMALL, shutter="DShutter")
    camera.open()
    try:
        shutter = MMShutter(MMShutterOptions(), camera)
        shutter.open()
        assert isinstance(shutter, Blanker)
        assert not hasattr(shutter, "set_dose_rate")
        for blanked in (True, False, True, True):
            shutter.set_blanked(blanked)
            assert shutter.blanked is blanked
            assert bool(camera.core.getShutterOpen()) is not blanked
        shutter.close()
        shutter.close()
    finally:
        camera.close()


def test_shutter_can_be_moved_while_frames_come() -> None:
    camera = make(SMALL, shutter="DShutter")
    camera.open()
    try:
        shutter = MMShutter(MMShutterOptions(), camera)
        shutter.open()
        state = camera.configure(CameraSettings(0.01))
        buffer = np.empty(state.frame_shape, state.dtype)
        camera.start()
        for sequence in range(6):
            shutter.set_blanked(sequence % 2 == 0)
            assert camera.read_into(buffer, 5.0).sequence == sequence
    finally:
        camera.close()


def test_shutter_that_is_not_there() -> None:
    camera = make(SMALL)
    camera.open()
    try:
        with pytest.raises(NotConnectedError, match="shutter"):
            MMShutter(MMShutterOptions(), camera).open()
    finally:
        camera.close()
    with pytest.raises(NotConnectedError):
        MMShutter(MMShutterOptions(), camera).open()


def test_shutter_of_another_camera_is_refused() -> None:
    with pytest.raises(RefusedError, match="mm"):
        MMShutter(MMShutterOptions(), object())


def test_two_cameras_at_once() -> None:
    first, second = make(SMALL), make({**SMALL, "OnCameraCCDXSize": 64})
    try:
        first.open()
        second.open()
        states = [camera.configure(CameraSettings(0.01)) for camera in (first, second)]
        assert [state.frame_shape for state in states] == [(96, 128), (96, 64)]
        first.start()
        second.start()
        for sequence in range(5):
            for camera, state in zip((first, second), states, strict=True):
                buffer = np.empty(state.frame_shape, state.dtype)
                assert camera.read_into(buffer, 5.0).sequence == sequence
        first.close()
        assert second.read_into(np.empty((96, 64), np.uint16), 5.0).sequence == 5
    finally:
        first.close()
        second.close()
