"""The TVIPS driver against a fake of EMMENU's COM objects."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tem_live.drivers.protocols import CameraSettings
from tem_live.drivers.tvips import TvipsCamera, TvipsOptions
from tem_live.errors import (
    DeviceTimeoutError,
    DisconnectedError,
    NotConnectedError,
    RefusedError,
)
from tests.drivers.conformance import CameraConformance
from tests.drivers.instruments.emmenu import FOLDERS, HEIGHT, WIDTH, ComError, Emmenu, Picture
from tests.drivers.reading import read_one


def make(emmenu: Emmenu, **options: Any) -> TvipsCamera:
    return TvipsCamera(TvipsOptions(**options), emmenu.connect)


@pytest.fixture
def emmenu() -> Iterator[Emmenu]:
    emmenu = Emmenu()
    yield emmenu
    emmenu.ended.set()


@pytest.fixture
def camera(emmenu: Emmenu) -> Iterator[TvipsCamera]:
    camera = make(emmenu, reply_timeout_s=1.0)
    camera.open()
    yield camera
    camera.close()


class TestTvips(CameraConformance):
    exposure_s = 0.01
    # The next settings wait until the exposure has ended.
    long_exposure_s = 0.6
    wakes_within_s = 0.4

    def make_camera(self) -> TvipsCamera:
        return make(Emmenu())


def test_pixels_and_their_places(camera: TvipsCamera) -> None:
    rows, columns = np.indices((HEIGHT, WIDTH))
    assert np.array_equal(read_one(camera), 10 * rows + columns - 5)


def test_settings_are_set_and_read_back(camera: TvipsCamera, emmenu: Emmenu) -> None:
    state = camera.configure(CameraSettings(0.0501, binning=2, roi=(8, 16, 32, 40)))
    at = emmenu.configuration
    assert (at.BinningX, at.BinningY, at.FlatMode) == (2, 2, 0)
    assert (at.CCDOffsetY, at.CCDOffsetX, at.DimensionY, at.DimensionX) == (8, 16, 16, 20)
    assert emmenu.viewport.ExposureTime == 50
    assert state.exposure_s == 0.05
    assert emmenu.CameraConfigurations.updates == 1


def test_a_setting_that_is_not_taken(camera: TvipsCamera, emmenu: Emmenu) -> None:
    def forget() -> None:
        emmenu.configuration.BinningX = 1

    emmenu.CameraConfigurations.Update = forget  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="BinningX = 1 for 4"):
        camera.configure(CameraSettings(0.01, binning=4))


def test_its_images_are_deleted_and_no_others(camera: TvipsCamera, emmenu: Emmenu) -> None:
    mine = Picture(np.zeros((2, 2)))
    emmenu.stored[FOLDERS["top"], 3] = mine
    state = camera.configure(CameraSettings(0.01))
    camera.start(3)
    for _ in range(3):
        camera.read_into(np.empty(state.frame_shape, state.dtype), 2.0)
    camera.close()
    assert list(emmenu.stored.values()) == [mine]
    deadline = time.monotonic() + 2
    while emmenu.viewport.DirectoryHandle != FOLDERS["top"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert emmenu.viewport.DirectoryHandle == FOLDERS["top"]


def test_one_thread_uses_it(camera: TvipsCamera, emmenu: Emmenu) -> None:
    read_one(camera)
    assert emmenu.threads == {"emmenu"}


@pytest.mark.parametrize(
    ("failing", "error", "words"),
    [
        (ComError(0x80004005, "camera not ready"), RefusedError, "camera not ready"),
        # HRESULT_FROM_WIN32(ERROR_BUSY), winerror.h.
        (ComError(0x800700AA, "The requested resource is in use"), RefusedError, "is in use"),
        (ComError(0x800706BA, "RPC server is unavailable"), DisconnectedError, "is gone"),
        (AttributeError("AcquireAndDisplayImage"), RefusedError, "works otherwise"),
    ],
    ids=["refused", "in use", "gone", "another version"],
)
def test_what_fails_is_named(
    camera: TvipsCamera,
    emmenu: Emmenu,
    failing: Exception,
    error: type[Exception],
    words: str,
) -> None:
    emmenu.failing = failing
    with pytest.raises(error, match=words) as caught:
        read_one(camera)
    assert "\n" not in str(caught.value)
    camera.stop()
    emmenu.failing = None
    assert read_one(camera).shape == (HEIGHT, WIDTH)


def test_wrong_size_is_named(camera: TvipsCamera, emmenu: Emmenu) -> None:
    emmenu.spoil = lambda pixels: pixels[1:]
    with pytest.raises(DisconnectedError, match="47x64"):
        read_one(camera)


def test_an_exposure_that_never_ends(camera: TvipsCamera, emmenu: Emmenu) -> None:
    camera.configure(CameraSettings(0.01))
    emmenu.viewport.ExposureTime = 20_000
    camera.start()
    with pytest.raises(DeviceTimeoutError):
        camera.read_into(np.empty((HEIGHT, WIDTH), np.int32), 0.2)
    camera.stop()
    with pytest.raises(DisconnectedError, match="does not answer"):
        camera.configure(CameraSettings(0.01))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"viewport": 2}, "no viewport 2"),
        ({"configuration": "mine"}, "no camera configuration 'mine'"),
    ],
)
def test_what_is_missing_is_named(emmenu: Emmenu, options: dict[str, Any], words: str) -> None:
    with pytest.raises(NotConnectedError, match=words):
        make(emmenu, **options).open()


def test_a_folder_that_emmenu_5_cannot_make(emmenu: Emmenu) -> None:
    emmenu.EMMENUVersion = "5.0.10.0"  # type: ignore[misc]
    with pytest.raises(NotConnectedError, match="no folder 'tem_live'"):
        make(emmenu).open()
    emmenu.folders.add("tem_live")
    camera = make(emmenu)
    camera.open()
    camera.close()


def test_without_windows_or_comtypes() -> None:
    if sys.platform == "win32":
        pytest.skip("here EMMENU might be there")
    with pytest.raises(NotConnectedError, match="Windows") as caught:
        TvipsCamera(TvipsOptions()).open()
    assert "\n" not in str(caught.value)
