"""The Hamamatsu driver against a fake of DCAM's functions."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tem_live.drivers import dcam_api
from tem_live.drivers.hamamatsu import HamamatsuCamera, HamamatsuOptions
from tem_live.drivers.protocols import CameraSettings
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.conformance import CameraConformance
from tests.drivers.instruments import dcam
from tests.drivers.instruments.dcam import Dcam
from tests.drivers.reading import begin, fails_soon, read_on, take


def make(fake: Dcam, **options: Any) -> HamamatsuCamera:
    return HamamatsuCamera(HamamatsuOptions(**options), lambda: fake.library)


@pytest.fixture
def fake() -> Iterator[Dcam]:
    fake = Dcam()
    yield fake
    assert fake.library.errors == []
    assert fake.open_handles == [], "what was opened is closed"


@pytest.fixture
def camera(fake: Dcam) -> Iterator[HamamatsuCamera]:
    camera = make(fake)
    camera.open()
    yield camera
    camera.close()


class TestHamamatsu(CameraConformance):
    exposure_s = 0.01
    long_exposure_s = 1.0

    def make_camera(self) -> HamamatsuCamera:
        return make(Dcam())


def test_structures_are_as_long_as_the_headers_say() -> None:
    # Of 64-bit DCAM; computed with the C compiler from the structures of dcamapi4.h.
    sizes = {
        dcam_api.DcamInit: 32,
        dcam_api.DcamOpen: 16,
        dcam_api.DcamString: 24,
        dcam_api.DcamAttribute: 88,
        dcam_api.DcamValueText: 32,
        dcam_api.DcamFrame: 64,
        dcam_api.DcamWaitOpen: 24,
        dcam_api.DcamWait: 16,
        dcam_api.DcamTransfer: 16,
    }
    assert {kind.__name__: ctypes.sizeof(kind) for kind in sizes} == {
        kind.__name__: size for kind, size in sizes.items()
    }


def test_pixels_are_those_of_their_exposure(camera: HamamatsuCamera, fake: Dcam) -> None:
    frames, metas = take(camera, 20)
    assert [meta.sequence for meta in metas] == list(range(20))
    for number, frame in enumerate(frames):
        assert np.array_equal(frame, fake.sensor.picture(number))
    assert metas[3].device_time_s == pytest.approx(1003.25)
    assert metas[3].raw["framestamp"] == fake.first_stamp + 3


def test_what_is_told_of_it(camera: HamamatsuCamera) -> None:
    told = camera.capabilities
    assert told.name == "Hamamatsu C15550-20UP S/N: 000123"
    assert told.binnings == (1, 2, 4)
    assert told.exposure_range_s == (1e-5, 10.0)
    assert camera.configure(CameraSettings(0.01)).saturation_counts == 4095


def test_exposure_is_read_back(camera: HamamatsuCamera) -> None:
    assert camera.configure(CameraSettings(0.0100004)).exposure_s == 0.01


def test_the_camera_is_let_to_trigger_itself(camera: HamamatsuCamera, fake: Dcam) -> None:
    assert fake.values[dcam.TRIGGER] == 1


@pytest.mark.parametrize("stamps", [4, 1], ids=["stamped", "without stamps"])
def test_lost_frames_are_counted(fake: Dcam, stamps: int) -> None:
    fake.stamps = stamps
    fake.sensor.lost = {3, 4, 9}
    camera = make(fake)
    camera.open()
    try:
        frames, metas = take(camera, 8)
    finally:
        camera.close()
    arrived = [0, 1, 2, 5, 6, 7, 8, 10]
    for number, frame in zip(arrived, frames, strict=True):
        assert np.array_equal(frame, fake.sensor.picture(number))
    expected = arrived if stamps != 1 else list(range(8))
    assert [meta.sequence for meta in metas] == expected


def test_what_is_not_fetched_in_time_is_counted(fake: Dcam) -> None:
    camera = make(fake, buffer_frames=8)
    camera.open()
    try:
        buffer = begin(camera, 0.005)
        first = camera.read_into(buffer, 1.0).sequence
        while fake.sensor.exposures() < 30:
            time.sleep(0.005)
        late = camera.read_into(buffer, 1.0).sequence
        assert first == 0
        assert late >= 24 - 1
        assert np.array_equal(buffer, fake.sensor.picture(late))
    finally:
        camera.close()


@pytest.mark.parametrize(("stamps", "sequence"), [(4, 0), (1, 1)], ids=["stamped", "without"])
def test_a_lost_frame_that_dcam_tells_of(fake: Dcam, stamps: int, sequence: int) -> None:
    fake.stamps = stamps
    camera = make(fake)
    camera.open()
    try:
        buffer = begin(camera, 0.3)
        fake.sensor.failing["dcamwait_start"] = dcam.LOSTFRAME
        with pytest.raises(DeviceTimeoutError):
            camera.read_into(buffer, 0.0)
        fake.sensor.failing.clear()
        # Where frames have a stamp, it tells whether one is missing.
        assert camera.read_into(buffer, 1.0).sequence == sequence
    finally:
        camera.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dcamwait_start", "FAILREADCAMERA"),
        ("dcambuf_lockframe", "FAILREADCAMERA"),
        ("dcamcap_transferinfo", "FAILREADCAMERA"),
    ],
)
def test_errors_of_a_run_are_named(
    camera: HamamatsuCamera, fake: Dcam, name: str, words: str
) -> None:
    buffer = begin(camera)
    camera.read_into(buffer, 1.0)
    fake.sensor.failing[name] = 0x83001002
    with pytest.raises(DisconnectedError, match=words) as caught:
        read_on(camera, buffer, at_most=100, timeout_s=2.0)
    assert "\n" not in str(caught.value)
    fake.sensor.failing.clear()


def test_unplugged_amid_a_run(camera: HamamatsuCamera, fake: Dcam) -> None:
    buffer = begin(camera)
    camera.read_into(buffer, 1.0)
    fake.sensor.present = False
    with fails_soon(DisconnectedError, "NOCONNECTION", 5):
        read_on(camera, buffer, at_most=100, timeout_s=2.0)
    camera.close()


def test_silent_and_gone_is_told_from_silent(camera: HamamatsuCamera, fake: Dcam) -> None:
    state = camera.configure(CameraSettings(0.02))
    buffer = np.empty(state.frame_shape, state.dtype)
    fake.sensor.silent = True
    camera.start()
    with pytest.raises(DeviceTimeoutError):
        camera.read_into(buffer, 0.15)
    fake.values[dcam.ALIVE] = 1
    with pytest.raises(DisconnectedError, match="does not answer"):
        camera.read_into(buffer, 0.15)


def test_wrong_size_is_named(camera: HamamatsuCamera, fake: Dcam) -> None:
    fake.wrong_size = True
    with pytest.raises(DisconnectedError, match="97x128"):
        take(camera, 1)


def test_8_bits(fake: Dcam) -> None:
    fake.pixel_type = 1
    camera = make(fake)
    camera.open()
    assert camera.capabilities.dtype == np.uint8
    camera.close()
    fake.pixel_type = 0x21
    with pytest.raises(RefusedError, match="type 33"):
        camera.open()


def test_region_out_of_step_is_refused(camera: HamamatsuCamera, fake: Dcam) -> None:
    before = camera.configure(CameraSettings(0.01, roi=(8, 16, 32, 64)))
    with pytest.raises(RefusedError, match="multiples of 4"):
        camera.configure(CameraSettings(0.01, roi=(8, 18, 32, 64)))
    assert fake.sensor.roi == before.roi == (8, 16, 32, 64)


def test_properties_by_name(fake: Dcam) -> None:
    camera = make(fake, properties={"READOUT SPEED": 1})
    camera.open()
    assert fake.values[dcam.SPEED] == 1
    camera.close()
    with pytest.raises(RefusedError, match="READOUT SPEED"):
        make(fake, properties={"Colour": 1}).open()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda fake: setattr(fake, "cameras", 0), "NOCAMERA"),
        (lambda fake: setattr(fake.sensor, "in_use", True), "another program"),
        (lambda fake: setattr(fake.sensor, "present", False), "NOCONNECTION"),
    ],
    ids=["none", "in use", "gone"],
)
def test_what_keeps_it_from_opening_is_named(fake: Dcam, spoil: Any, words: str) -> None:
    spoil(fake)
    camera = make(fake)
    with pytest.raises(NotConnectedError, match=words) as caught:
        camera.open()
    assert "\n" not in str(caught.value)
    camera.close()


def test_index_is_named(fake: Dcam) -> None:
    with pytest.raises(NotConnectedError, match=r"camera\.index = 3"):
        make(fake, index=3).open()


def test_without_the_library() -> None:
    with pytest.raises(NotConnectedError, match=r"dcam-api\.com") as caught:
        HamamatsuCamera(HamamatsuOptions(library="no-such-file.dll")).open()
    assert "\n" not in str(caught.value)


def test_a_library_without_the_functions(fake: Dcam) -> None:
    del fake.library.dcamwait_start
    with pytest.raises(NotConnectedError, match="dcamwait_start"):
        make(fake).open()
