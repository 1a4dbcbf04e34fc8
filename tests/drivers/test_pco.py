"""The PCO driver against a fake of pco.sdk's functions."""

from __future__ import annotations

import ctypes
import time
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import pytest

from tem_live.drivers import pco_api
from tem_live.drivers.pco import PcoCamera, PcoOptions
from tem_live.drivers.protocols import CameraSettings
from tem_live.errors import (
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.alike import LibraryFaults, check_pictures, of_library, opened
from tests.drivers.conformance import CameraConformance
from tests.drivers.instruments import pco_sdk
from tests.drivers.instruments.pco_sdk import PcoSdk
from tests.drivers.reading import begin, take

make, fake, camera = of_library(PcoSdk, PcoCamera, PcoOptions)


class TestPco(CameraConformance):
    exposure_s = 0.01
    long_exposure_s = 1.0

    def make_camera(self) -> PcoCamera:
        return make(PcoSdk())


class TestPcoFaults(LibraryFaults):
    make = staticmethod(make)
    missing = "pip install"
    keeps: ClassVar = {
        "none": "no camera is connected",
        "in use": "another program has it",
        "gone": "DRIVER_DEVICEOFF",
    }
    gone = "DRIVER_DEVICEOFF"
    size = "48x64"

    def die_silently(self, fake: PcoSdk) -> None:
        fake.sensor.failing["PCO_GetCameraHealthStatus"] = pco_sdk.DEVICEOFF

    def change_size(self, fake: PcoSdk) -> None:
        fake.told_size = (48, 64)


def test_structures_are_as_long_as_the_headers_say() -> None:
    # Computed with the C compiler from the structures of SC2_SDKStructures.h and SC2_common.h.
    assert ctypes.sizeof(pco_api.PcoDescription) == 436
    assert ctypes.sizeof(pco_api.PcoMetadata) == 69
    assert pco_api.PcoDescription.dwMinExposureDESC.offset == 192
    assert pco_api.PcoDescription.dwGeneralCapsDESC1.offset == 244
    assert pco_api.PcoMetadata.wIMAGE_SIZE_X.offset == 30


@pytest.mark.parametrize("first", [1, 41])
def test_pixels_are_those_of_their_exposure(camera: PcoCamera, fake: PcoSdk, first: int) -> None:
    fake.count_from = first
    frames, metas = take(camera, 20)
    assert [meta.sequence for meta in metas] == list(range(20))
    check_pictures(fake, frames, list(range(20)))
    assert metas[12].raw == {
        "image_counter": 12 + first,
        "sensor_temperature_C": -5,
        "dark_offset": 100,
    }


@pytest.mark.parametrize("count", [1, 99, 100, 12_345_678])
def test_the_image_counter_is_decimal(fake: PcoSdk, count: int) -> None:
    fake.count_from = count
    with opened(make(fake)) as camera:
        assert take(camera, 2)[1][1].raw["image_counter"] == count + 1


def test_what_is_told_of_it(camera: PcoCamera) -> None:
    told = camera.capabilities
    assert told.name == "pco.edge 4.2"
    assert told.binnings == (1, 2, 4)
    assert told.exposure_range_s == pytest.approx((1e-4, 10.0))
    assert camera.configure(CameraSettings(0.01)).saturation_counts == 65535


@pytest.mark.parametrize(("asked", "taken"), [(0.010004, 0.01), (5.0, 5.0), (1e-4, 1e-4)])
def test_exposure_is_read_back(camera: PcoCamera, asked: float, taken: float) -> None:
    assert camera.configure(CameraSettings(asked)).exposure_s == pytest.approx(taken)


@pytest.mark.parametrize(("metadata", "tells"), [(True, False), (False, True), (True, True)])
def test_lost_frames_are_counted(fake: PcoSdk, metadata: bool, tells: bool) -> None:
    fake.sensor.lost = {3, 4, 9}
    fake.tells_losses = tells
    with opened(make(fake, metadata=metadata)) as camera:
        frames, metas = take(camera, 8)
    arrived = [0, 1, 2, 5, 6, 7, 8, 10]
    check_pictures(fake, frames, arrived)
    assert [meta.sequence for meta in metas] == arrived


def test_a_first_frame_that_was_lost_counts(fake: PcoSdk) -> None:
    fake.sensor.lost = {0}
    fake.tells_losses = True
    with opened(make(fake)) as camera:
        assert [meta.sequence for meta in take(camera, 2)[1]] == [1, 2]


def test_what_is_not_fetched_in_time_is_counted(fake: PcoSdk) -> None:
    with opened(make(fake, buffer_frames=4)) as camera:
        buffer = begin(camera, 0.005)
        while fake.sensor.exposures() < 12:
            time.sleep(0.005)
        sequences = [camera.read_into(buffer, 1.0).sequence for _ in range(6)]
        assert sequences[:4] == [0, 1, 2, 3]
        assert sequences[4] >= 12


def test_a_camera_without_metadata(fake: PcoSdk) -> None:
    fake.caps = 0
    with opened(make(fake)) as camera:
        frames, metas = take(camera, 3)
    assert [meta.sequence for meta in metas] == [0, 1, 2]
    assert np.array_equal(frames[2], fake.sensor.picture(2))


@pytest.mark.parametrize("name", ["PCO_GetBufferStatus", "PCO_GetMetaData", "PCO_AddBufferEx"])
def test_errors_of_a_run_are_named(camera: PcoCamera, fake: PcoSdk, name: str) -> None:
    buffer = begin(camera)
    camera.read_into(buffer, 1.0)
    fake.sensor.failing[name] = 0x80002007
    with pytest.raises(DisconnectedError, match=f"{name}.*DRIVER_IOFAILURE") as caught:
        camera.read_into(buffer, 1.0)
    assert "\n" not in str(caught.value)
    fake.sensor.failing.clear()


def test_region_out_of_step_is_refused(camera: PcoCamera, fake: PcoSdk) -> None:
    before = camera.configure(CameraSettings(0.01, roi=(8, 16, 32, 64)))
    with pytest.raises(RefusedError, match="4 columns"):
        camera.configure(CameraSettings(0.01, roi=(8, 18, 32, 64)))
    assert fake.sensor.roi == before.roi == (8, 16, 32, 64)


@pytest.mark.parametrize("name", ["PCO_ArmCamera", "PCO_SetBinning"])
def test_what_the_camera_refuses_changes_nothing(
    camera: PcoCamera, fake: PcoSdk, name: str
) -> None:
    before = camera.configure(CameraSettings(0.01))
    fake.sensor.failing[name] = pco_sdk.WRONGVALUE
    with pytest.raises(RefusedError, match=f"{name} says WRONGVALUE"):
        camera.configure(CameraSettings(0.02))
    fake.sensor.failing.clear()
    assert camera.configure(CameraSettings(0.01)) == before


@pytest.mark.peer
@pytest.mark.skipif(find_spec("pco") is None, reason="pco is not installed")
def test_the_makers_library_has_the_functions_and_no_camera() -> None:
    camera = PcoCamera(PcoOptions())
    with pytest.raises(NotConnectedError) as caught:
        camera.open()
    camera.close()
    said = str(caught.value)
    if "cannot be loaded" in said:
        pytest.skip(said)
    assert "PCO_OpenCamera says" in said
    assert "\n" not in said
