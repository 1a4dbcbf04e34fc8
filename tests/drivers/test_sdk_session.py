"""The makers' libraries, each a fake: a run counts what is lost, and ends when a call hangs."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from tem_live import open_session
from tem_live.drivers import native
from tem_live.drivers.andor import AndorCamera, AndorOptions
from tem_live.drivers.hamamatsu import HamamatsuCamera, HamamatsuOptions
from tem_live.drivers.pco import PcoCamera, PcoOptions
from tem_live.drivers.protocols import CameraSettings
from tem_live.errors import DisconnectedError, NotConnectedError
from tests.drivers.instruments.atcore import Atcore
from tests.drivers.instruments.dcam import Dcam
from tests.drivers.instruments.pco_sdk import PcoSdk

FAKES = {"hamamatsu": Dcam, "andor": Atcore, "pco": PcoSdk}


@pytest.mark.parametrize("overflow", ["count", "stop"])
@pytest.mark.parametrize("driver", FAKES)
def test_lost_frames_are_counted_or_end_the_run(
    driver: str, overflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake: Any = FAKES[driver]()
    fake.sensor.lost = {4, 5, 11}
    monkeypatch.setattr(native, "loader", lambda *_: lambda: fake.library)
    overrides = {"camera.overflow": overflow, "camera.exposure_s": 0.02, "restorer.model": "none"}
    with open_session(driver, overrides) as session:
        session.start(20)
        assert session.wait(20)
        stats = session.stats()
    assert fake.library.errors == []
    assert fake.open_handles == []
    if overflow == "count":
        assert (stats.frames, stats.dropped_raw, stats.stop_reason) == (17, 3, "frames")
    else:
        assert stats.dropped_raw == 2
        assert stats.stop_reason is not None
        assert stats.stop_reason.startswith("error:")


CAMERAS: dict[str, tuple[Any, Any, str]] = {
    "hamamatsu": (HamamatsuCamera, HamamatsuOptions, "dcamwait_start"),
    "andor": (AndorCamera, AndorOptions, "AT_WaitBuffer"),
    "pco": (PcoCamera, PcoOptions, "PCO_GetBufferStatus"),
}


@pytest.mark.parametrize("driver", CAMERAS)
def test_a_call_that_does_not_return_is_given_up(driver: str) -> None:
    make, options, function = CAMERAS[driver]
    fake: Any = FAKES[driver]()
    camera = make(options(reply_timeout_s=0.3), lambda: fake.library)
    camera.open()
    returned = threading.Event()
    try:
        state = camera.configure(CameraSettings(0.05))
        buffer = np.empty(state.frame_shape, state.dtype)
        camera.start()
        camera.read_into(buffer, 1.0)
        fake.library.hanging[function] = returned
        began = time.monotonic()
        with pytest.raises(DisconnectedError, match="has not answered") as caught:
            camera.read_into(buffer, 5.0)
        assert "\n" not in str(caught.value)
        camera.stop()
        camera.close()
        with pytest.raises(NotConnectedError, match="given up; restart"):
            camera.open()
        assert time.monotonic() - began < 5
        fake.library.hanging.clear()
        returned.set()
        deadline = time.monotonic() + 5
        while not open_again(camera) and time.monotonic() < deadline:
            time.sleep(0.01)
        camera.configure(CameraSettings(0.05))
        camera.start(1)
        assert camera.read_into(buffer, 1.0).sequence == 0
    finally:
        returned.set()
        camera.close()
    assert fake.library.errors == []
    assert fake.open_handles == []


def open_again(camera: Any) -> bool:
    try:
        camera.open()
    except NotConnectedError:
        return False
    return True
