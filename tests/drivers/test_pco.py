"""The PCO driver against a fake of pco.sdk's functions."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from tem_live.drivers import pco_api
from tem_live.drivers.pco import PcoCamera, PcoOptions
from tem_live.drivers.protocols import CameraSettings
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.conformance import CameraConformance
from tests.drivers.instruments import pco_sdk
from tests.drivers.instruments.pco_sdk import PcoSdk
from tests.drivers.reading import begin, fails_soon, take


def make(fake: PcoSdk, **options: Any) -> PcoCamera:
    return PcoCamera(PcoOptions(**options), lambda: fake.library)


@pytest.fixture
def fake() -> Iterator[PcoSdk]:
    fake = PcoSdk()
    yield fake
    assert fake.library.errors == []
    assert fake.open_handles == [], "what was opened is closed"


@pytest.fixture
def camera(fake: PcoSdk) -> Iterator[PcoCamera]:
    camera = make(fake)
    camera.open()
    yield camera
    camera.close()


class TestPco(CameraConformance):
    exposure_s = 0.01
    long_exposure_s = 1.0

    def make_camera(self) -> PcoCamera:
        return make(PcoSdk())


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
    for number, frame in enumerate(frames):
        assert np.array_equal(frame, fake.sensor.picture(number))
    assert metas[12].raw == {
        "image_counter": 12 + first,
        "sensor_temperature_C": -5,
        "dark_offset": 100,
    }


@pytest.mark.parametrize("count", [1, 99, 100, 12_345_678])
def test_the_image_counter_is_decimal(fake: PcoSdk, count: int) -> None:
    fake.count_from = count
    camera = make(fake)
    camera.open()
    try:
        assert take(camera, 2)[1][1].raw["image_counter"] == count + 1
    finally:
        camera.close()


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
    camera = make(fake, metadata=metadata)
    camera.open()
    try:
        frames, metas = take(camera, 8)
    finally:
        camera.close()
    arrived = [0, 1, 2, 5, 6, 7, 8, 10]
    for number, frame in zip(arrived, frames, strict=True):
        assert np.array_equal(frame, fake.sensor.picture(number))
    assert [meta.sequence for meta in metas] == arrived


def test_a_first_frame_that_was_lost_counts(fake: PcoSdk) -> None:
    fake.sensor.lost = {0}
    fake.tells_losses = True
    camera = make(fake)
    camera.open()
    try:
        assert [meta.sequence for meta in take(camera, 2)[1]] == [1, 2]
    finally:
        camera.close()


def test_what_is_not_fetched_in_time_is_counted(fake: PcoSdk) -> None:
    camera = make(fake, buffer_frames=4)
    camera.open()
    try:
        buffer = begin(camera, 0.005)
        while fake.sensor.exposures() < 12:
            time.sleep(0.005)
        sequences = [camera.read_into(buffer, 1.0).sequence for _ in range(6)]
        assert sequences[:4] == [0, 1, 2, 3]
        assert sequences[4] >= 12
    finally:
        camera.close()


def test_a_camera_without_metadata(fake: PcoSdk) -> None:
    fake.caps = 0
    camera = make(fake)
    camera.open()
    try:
        frames, metas = take(camera, 3)
    finally:
        camera.close()
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


def test_unplugged_amid_a_run(camera: PcoCamera, fake: PcoSdk) -> None:
    buffer = begin(camera)
    camera.read_into(buffer, 1.0)
    fake.sensor.present = False
    with fails_soon(DisconnectedError, "DRIVER_DEVICEOFF", 5):
        camera.read_into(buffer, 5.0)
    camera.close()


def test_silent_and_gone_is_told_from_silent(camera: PcoCamera, fake: PcoSdk) -> None:
    fake.sensor.silent = True
    buffer = begin(camera)
    with pytest.raises(DeviceTimeoutError):
        camera.read_into(buffer, 0.15)
    fake.sensor.failing["PCO_GetCameraHealthStatus"] = pco_sdk.DEVICEOFF
    with pytest.raises(DisconnectedError, match="does not answer"):
        camera.read_into(buffer, 0.15)


def test_wrong_size_is_named(camera: PcoCamera, fake: PcoSdk) -> None:
    fake.told_size = (48, 64)
    with pytest.raises(DisconnectedError, match="48x64"):
        take(camera, 1)


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


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda fake: setattr(fake, "cameras", 0), "no camera is connected"),
        (lambda fake: setattr(fake.sensor, "in_use", True), "another program has it"),
        (lambda fake: setattr(fake.sensor, "present", False), "DRIVER_DEVICEOFF"),
    ],
    ids=["none", "in use", "gone"],
)
def test_what_keeps_it_from_opening_is_named(fake: PcoSdk, spoil: Any, words: str) -> None:
    spoil(fake)
    camera = make(fake)
    with pytest.raises(NotConnectedError, match=words) as caught:
        camera.open()
    assert "\n" not in str(caught.value)
    camera.close()


def test_without_the_library() -> None:
    with pytest.raises(NotConnectedError, match="pip install") as caught:
        PcoCamera(PcoOptions(library="no-such-file.dll")).open()
    assert "\n" not in str(caught.value)


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
