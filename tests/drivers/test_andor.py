"""The Andor driver against a fake of SDK3's functions."""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
import pytest

from tem_live.drivers.andor import AndorCamera, AndorOptions
from tem_live.drivers.protocols import CameraSettings
from tem_live.errors import (
    DisconnectedError,
    OverflowedError,
    RefusedError,
)
from tests.drivers.alike import LibraryFaults, check_pictures, of_library, opened
from tests.drivers.conformance import CameraConformance
from tests.drivers.instruments import atcore
from tests.drivers.instruments.atcore import Atcore
from tests.drivers.reading import begin, take

make, fake, camera = of_library(Atcore, AndorCamera, AndorOptions)


class TestAndor(CameraConformance):
    exposure_s = 0.01
    long_exposure_s = 1.0

    def make_camera(self) -> AndorCamera:
        return make(Atcore())


class TestAndorFaults(LibraryFaults):
    make = staticmethod(make)
    missing = "SDK3"
    keeps: ClassVar = {
        "none": "finds 0 cameras", "in use": "close the other program", "gone": "AT_ERR_CONNECTION",
    }  # fmt: skip
    gone = "CONNECTION"
    size = "bytes where"

    def die_silently(self, fake: Atcore) -> None:
        fake.bools["CameraPresent"] = 0

    def change_size(self, fake: Atcore) -> None:
        fake.short_by = 4


def test_pixels_are_those_of_their_exposure(camera: AndorCamera, fake: Atcore) -> None:
    frames, metas = take(camera, 40)
    assert [meta.sequence for meta in metas] == list(range(40))
    check_pictures(fake, frames, list(range(40)))
    assert metas[4].device_time_s == pytest.approx(0.05 + 4 * 0.005)


def test_what_is_told_of_it(camera: AndorCamera) -> None:
    told = camera.capabilities
    assert told.name == "Andor ZYLA-4.2P VSC-1"
    assert told.binnings == (1, 2, 4)
    assert told.exposure_range_s == (1e-5, 30.0)
    assert camera.configure(CameraSettings(0.01)).offset_counts == 100


def test_exposure_is_read_back(camera: AndorCamera) -> None:
    assert camera.configure(CameraSettings(0.010004)).exposure_s == pytest.approx(0.01)


def test_it_is_set_up_to_run_by_itself(camera: AndorCamera, fake: Atcore) -> None:
    chosen = {name: fake.words[name][index] for name, index in fake.chosen.items()}
    assert chosen["TriggerMode"] == "Internal"
    assert chosen["CycleMode"] == "Continuous"
    assert chosen["PixelEncoding"] == "Mono16"


@pytest.mark.parametrize("by_clock", [True, False])
def test_lost_frames_are_counted_by_the_clock(fake: Atcore, by_clock: bool) -> None:
    fake.sensor.lost = {3, 4, 9}
    with opened(make(fake, count_by_clock=by_clock)) as camera:
        frames, metas = take(camera, 8)
    arrived = [0, 1, 2, 5, 6, 7, 8, 10]
    check_pictures(fake, frames, arrived)
    assert [meta.sequence for meta in metas] == (arrived if by_clock else list(range(8)))


def test_without_metadata_frames_are_counted_here(fake: Atcore) -> None:
    fake.bools.clear()
    fake.has_baseline = False
    with opened(make(fake)) as camera:
        frames, metas = take(camera, 3)
    assert [meta.sequence for meta in metas] == [0, 1, 2]
    assert metas[0].device_time_s is None
    assert np.array_equal(frames[2], fake.sensor.picture(2))


def test_what_is_not_fetched_in_time_is_told(fake: Atcore) -> None:
    with opened(make(fake, buffer_frames=4)) as camera:
        buffer = begin(camera, 0.005)
        while fake.sensor.exposures() < 8:
            time.sleep(0.005)
        for sequence in range(4):
            assert camera.read_into(buffer, 1.0).sequence == sequence
        with pytest.raises(OverflowedError, match="buffer_frames"):
            camera.read_into(buffer, 1.0)
        # A new series is sound again.
        camera.start(1)
        assert camera.read_into(buffer, 1.0).sequence == 0


@pytest.mark.parametrize("name", ["AT_WaitBuffer", "AT_QueueBuffer"])
def test_errors_of_a_run_are_named(camera: AndorCamera, fake: Atcore, name: str) -> None:
    buffer = begin(camera)
    camera.read_into(buffer, 1.0)
    fake.sensor.failing[name] = 17
    with pytest.raises(DisconnectedError, match=f"{name}.*AT_ERR_COMM") as caught:
        camera.read_into(buffer, 1.0)
    assert "\n" not in str(caught.value)
    fake.sensor.failing.clear()


def test_properties(fake: Atcore) -> None:
    camera = make(fake, properties={"SimplePreAmpGainControl": "16-bit"})
    camera.open()
    assert fake.chosen["SimplePreAmpGainControl"] == 1
    camera.close()
    with pytest.raises(RefusedError, match="it has: 12-bit, 16-bit"):
        make(fake, properties={"SimplePreAmpGainControl": "64-bit"}).open()
    with pytest.raises(RefusedError, match="Colour"):
        make(fake, properties={"Colour": 3}).open()


def test_the_fake_knows_its_numbers() -> None:
    from tem_live.drivers import andor

    assert andor._CODES[atcore.OVERFLOW] == "HARDWARE_OVERFLOW"
    assert andor._CODES[atcore.INUSE] == "DEVICEINUSE"
