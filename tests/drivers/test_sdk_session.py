"""A whole run of the program on the makers' libraries, each a fake: what is lost is counted."""

from __future__ import annotations

from typing import Any

import pytest

from tem_live import open_session
from tem_live.drivers import native
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
