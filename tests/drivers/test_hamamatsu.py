"""The Hamamatsu driver against a fake of DCAM's functions."""

from __future__ import annotations

import ctypes
import time
from typing import ClassVar

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
from tests.drivers.alike import LibraryFaults, check_pictures, of_library, opened
from tests.drivers.conformance import CameraConformance
from tests.drivers.instruments import dcam
from tests.drivers.instruments.dcam import Dcam
from tests.drivers.reading import begin, read_on, take

make, fake, camera = of_library(Dcam, HamamatsuCamera, HamamatsuOptions)


class TestHamamatsu(CameraConformance):
    exposure_s = 0.01
    long_exposure_s = 1.0

    def make_camera(self) -> HamamatsuCamera:
        return make(Dcam())


class TestHamamatsuFaults(LibraryFaults):
    make = staticmethod(make)
    missing = r"dcam-api\.com"
    keeps: ClassVar = {"none": "NOCAMERA", "in use": "another program", "gone": "NOCONNECTION"}
    gone = "NOCONNECTION"
    # What its buffer holds still comes.
    ready = 100
    size = "97x128"

    def die_silently(self, fake: Dcam) -> None:
        fake.values[dcam.ALIVE] = 1

    def change_size(self, fake: Dcam) -> None:
        fake.wrong_size = True


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
    check_pictures(fake, frames, list(range(20)))
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
    with opened(make(fake)) as camera:
        frames, metas = take(camera, 8)
    arrived = [0, 1, 2, 5, 6, 7, 8, 10]
    check_pictures(fake, frames, arrived)
    expected = arrived if stamps != 1 else list(range(8))
    assert [meta.sequence for meta in metas] == expected


def test_what_is_not_fetched_in_time_is_counted(fake: Dcam) -> None:
    with opened(make(fake, buffer_frames=8)) as camera:
        buffer = begin(camera, 0.005)
        first = camera.read_into(buffer, 1.0).sequence
        while fake.sensor.exposures() < 30:
            time.sleep(0.005)
        late = camera.read_into(buffer, 1.0).sequence
        assert first == 0
        assert late >= 24 - 1
        assert np.array_equal(buffer, fake.sensor.picture(late))


@pytest.mark.parametrize(("stamps", "sequence"), [(4, 0), (1, 1)], ids=["stamped", "without"])
def test_a_lost_frame_that_dcam_tells_of(fake: Dcam, stamps: int, sequence: int) -> None:
    fake.stamps = stamps
    with opened(make(fake)) as camera:
        buffer = begin(camera, 0.3)
        fake.sensor.failing["dcamwait_start"] = dcam.LOSTFRAME
        with pytest.raises(DeviceTimeoutError):
            camera.read_into(buffer, 0.0)
        fake.sensor.failing.clear()
        # Where frames have a stamp, it tells whether one is missing.
        assert camera.read_into(buffer, 1.0).sequence == sequence


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


def test_index_is_named(fake: Dcam) -> None:
    with pytest.raises(NotConnectedError, match=r"camera\.index = 3"):
        make(fake, index=3).open()


def test_a_library_without_the_functions(fake: Dcam) -> None:
    del fake.library.dcamwait_start
    with pytest.raises(NotConnectedError, match="dcamwait_start"):
        make(fake).open()
