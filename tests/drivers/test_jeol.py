"""The JEOL drivers against a fake module of PyJEM's shape."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tem_live.drivers.jeol import JeolCamera, JeolOptions
from tem_live.drivers.jeol_column import JeolColumn
from tem_live.drivers.protocols import Blanker, CameraSettings, ColumnParts
from tem_live.drivers.pyjem_link import PyJemOptions
from tem_live.errors import (
    DeviceError,
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.conformance import CameraConformance
from tests.drivers.instruments.pyjem import HEIGHT, WIDTH, PyJem
from tests.drivers.reading import read_one


def make(fake: PyJem, **options: Any) -> JeolCamera:
    return JeolCamera(JeolOptions(**options), lambda: fake)


@pytest.fixture
def fake() -> Iterator[PyJem]:
    fake = PyJem()
    yield fake
    fake.ended.set()


@pytest.fixture
def camera(fake: PyJem) -> Iterator[JeolCamera]:
    camera = make(fake, reply_timeout_s=1.0)
    camera.open()
    yield camera
    camera.close()


@pytest.fixture
def column(fake: PyJem) -> Iterator[JeolColumn]:
    column = JeolColumn(PyJemOptions(reply_timeout_s=1.0), connect=lambda: fake)
    column.open()
    yield column
    column.close()


class TestJeol(CameraConformance):
    exposure_s = 0.01
    # The next settings wait until the exposure has ended.
    long_exposure_s = 0.6
    wakes_within_s = 0.4

    def make_camera(self) -> JeolCamera:
        return make(PyJem())


# ------------------------------------------------------------------------------------- the camera


@pytest.mark.parametrize("pixel_type", ["<u2", "<i2", ">u2", ">i2"])
def test_pixels_of_two_bytes(fake: PyJem, pixel_type: str) -> None:
    fake.sent = np.arange(HEIGHT * WIDTH).astype(pixel_type) + np.dtype(pixel_type).type(30_000)
    fake.sent = fake.sent.astype(pixel_type)
    camera = make(fake, pixel_type=pixel_type)
    camera.open()
    try:
        assert np.array_equal(read_one(camera).ravel(), fake.sent.astype(np.int32))
    finally:
        camera.close()


def test_pixels_of_one_byte(camera: JeolCamera, fake: PyJem) -> None:
    fake.sent = (np.arange(HEIGHT * WIDTH) % 256).astype(np.uint8)
    assert np.array_equal(read_one(camera).ravel(), fake.sent)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, 50_000),
        ({"exposure_unit": "ms"}, 50),
        ({"kind": "scan"}, 0.05 / (HEIGHT * WIDTH) * 1e6),
    ],
    ids=["µs", "ms", "scan"],
)
def test_exposure_in_pyjems_units(fake: PyJem, options: dict[str, Any], value: float) -> None:
    camera = make(fake, **options)
    camera.open()
    try:
        assert camera.configure(CameraSettings(0.05)).exposure_s == pytest.approx(0.05)
        assert fake.settings["ExposureTimeValue"] == pytest.approx(value)
    finally:
        camera.close()


def test_size_without_the_output_images(fake: PyJem) -> None:
    fake.settings["ImagingArea"] = {"X": 0, "Y": 0, "Width": 20, "Height": 10}
    del fake.settings["OutputImageInformation"]
    camera = make(fake, detector="ADF1")
    camera.open()
    assert camera.capabilities.sensor_shape == (10, 20)
    assert camera.capabilities.name == "JEOL ADF1"
    camera.close()


def test_size_that_was_changed_meanwhile(camera: JeolCamera, fake: PyJem) -> None:
    fake.settings["OutputImageInformation"] = {"ImageSize": {"Width": 32, "Height": 24}}
    with pytest.raises(RefusedError, match="connect again"):
        camera.configure(CameraSettings(0.01))


@pytest.mark.parametrize("settings", [{}, -1, {"ImagingArea": {"Width": "wide", "Height": 8}}])
def test_settings_that_nobody_knows_are_refused(fake: PyJem, settings: Any) -> None:
    fake.get_detectorsetting = lambda: settings  # type: ignore[method-assign]
    camera = make(fake)
    with pytest.raises(RefusedError, match="otherwise than is known here"):
        camera.open()
    camera.close()


def test_an_exposure_that_is_not_told_is_refused(camera: JeolCamera, fake: PyJem) -> None:
    known = {name: value for name, value in fake.settings.items() if name != "ExposureTimeValue"}
    fake.get_detectorsetting = lambda: known  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="ExposureTimeValue"):
        camera.configure(CameraSettings(0.01))


def test_what_pyjem_refuses_changes_nothing(
    camera: JeolCamera, fake: PyJem, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = camera.configure(CameraSettings(0.05))

    def refuse(value: float) -> None:
        raise ValueError("exposure time out of range")

    with monkeypatch.context() as patch:
        patch.setattr(fake, "set_exposuretime_value", refuse)
        with pytest.raises(RefusedError, match="exposure time out of range"):
            camera.configure(CameraSettings(90.0))
    assert camera.configure(CameraSettings(0.05)) == before
    assert read_one(camera).shape == (HEIGHT, WIDTH)


def test_wrong_size_is_named(camera: JeolCamera, fake: PyJem) -> None:
    fake.sent = fake.sent[1:]
    with pytest.raises(DisconnectedError, match="6142 bytes"):
        read_one(camera)


@pytest.mark.parametrize(
    ("failing", "error", "words"),
    [
        (ConnectionError("no route"), DisconnectedError, "no route"),
        (KeyError("ExposureTimeValue"), RefusedError, "otherwise"),
    ],
    ids=["gone", "another version"],
)
def test_what_fails_is_named(
    camera: JeolCamera, fake: PyJem, failing: Exception, error: type[Exception], words: str
) -> None:
    state = camera.configure(CameraSettings(0.01))
    camera.start()
    fake.failing = failing
    with pytest.raises(error, match=words) as caught:
        camera.read_into(np.empty(state.frame_shape, state.dtype), 5.0)
    assert "\n" not in str(caught.value)
    camera.stop()
    with pytest.raises(error):
        camera.configure(CameraSettings(0.01))


def test_an_exposure_that_never_ends(camera: JeolCamera, fake: PyJem) -> None:
    fake.frame_s = 20.0
    began = time.monotonic()
    with pytest.raises(DeviceTimeoutError):
        read_one(camera, 0.2)
    camera.stop()
    with pytest.raises(DisconnectedError, match="does not answer"):
        camera.configure(CameraSettings(0.01))
    assert time.monotonic() - began < 5


def test_unknown_detector_is_named(fake: PyJem) -> None:
    with pytest.raises(NotConnectedError, match="it has: TVCAM_U, ADF1"):
        make(fake, detector="OneView").open()


@pytest.mark.parametrize("route", ["online", "offline"])
def test_without_pyjem(route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tem_live.drivers.pyjem_link.find_spec", lambda name: None)
    for device in (JeolCamera(JeolOptions(route=route)), JeolColumn(PyJemOptions(route=route))):
        with pytest.raises(NotConnectedError, match="PyJEM") as caught:
            device.open()
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- the column


def test_what_the_column_can_do(column: JeolColumn) -> None:
    assert isinstance(column, Blanker)
    parts = ColumnParts.of(column)
    assert parts.blanker
    assert parts.spot_size
    assert parts.magnification
    assert parts.stage is None
    assert parts.dose_rate is None
    assert not column.simulated


def test_blanking_is_read_back(column: JeolColumn, fake: PyJem) -> None:
    for blanked in (True, False, True, True):
        column.set_blanked(blanked)
        assert column.blanked is blanked
        assert fake.blanked == int(blanked)
    fake.obeys = False
    with pytest.raises(RefusedError, match="look at its screen"):
        column.set_blanked(False)


def test_a_microscope_that_is_gone(column: JeolColumn, fake: PyJem) -> None:
    fake.failing = ConnectionError("no route")
    with pytest.raises(DisconnectedError, match="no route"):
        column.set_blanked(True)
    fake.failing = None
    column.set_blanked(True)
    assert fake.blanked == 1


def test_spot_size_is_what_the_microscope_shows(column: JeolColumn, fake: PyJem) -> None:
    assert column.spot_size == 4
    assert column.set_spot_size(1) == 1
    assert fake.spot == 0
    for wrong in (0, 9):
        with pytest.raises(RefusedError, match="1 to 8"):
            column.set_spot_size(wrong)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [(12_000, 12_000), (19_000, 20_000), (8_100, 8_000), (1e6, 25_000), (1, 8_000)],
)
def test_magnification_is_the_nearest_step(
    column: JeolColumn, fake: PyJem, asked: float, nearest: float
) -> None:
    assert column.set_magnification(asked) == nearest
    assert fake.steps[fake.step] == nearest


def test_no_magnification_in_diffraction(column: JeolColumn, fake: PyJem) -> None:
    fake.unit = "cm"
    with pytest.raises(RefusedError, match="imaging mode"):
        _ = column.magnification


def test_a_blank_behind_a_call_that_takes_its_time_comes_late(fake: PyJem) -> None:
    busy, back = threading.Event(), threading.Event()

    def select(size: int) -> None:
        busy.set()
        back.wait(10)

    fake.SelectSpotSize = select  # type: ignore[method-assign]
    column = JeolColumn(PyJemOptions(reply_timeout_s=0.2), connect=lambda: fake)
    column.open()
    column.set_blanked(False)

    def spot() -> None:
        with contextlib.suppress(DeviceError):
            column.set_spot_size(3)

    changing = threading.Thread(target=spot)
    changing.start()
    assert busy.wait(10)
    with pytest.raises(DisconnectedError, match="does not answer"):
        column.set_blanked(True)
    # An unblanking that nobody waits for is not done any more.
    with pytest.raises(DisconnectedError, match="does not answer"):
        column.set_blanked(False)
    back.set()
    changing.join(10)
    deadline = time.monotonic() + 10
    while not fake.blanked and time.monotonic() < deadline:
        time.sleep(0.01)
    assert column.blanked
    column.close()
