"""A session's restored frames as a camera, with pymmcore-plus' real core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tem_live.errors import NotConnectedError, RefusedError, TemLiveError
from tem_live.plugins import restored_camera
from tem_live.session import Session, open_session
from tem_live.state import Frame

unicore = pytest.importorskip(
    "pymmcore_plus.experimental.unicore", reason="pymmcore-plus is not installed"
)
pymmcore = pytest.importorskip("pymmcore", reason="pymmcore is not installed")

SETTINGS = {
    "camera.sensor_height_px": 64,
    "camera.sensor_width_px": 96,
    "camera.exposure_s": 0.02,
    "restorer.device": "cpu",
}
AMPLE_S = 30.0


@pytest.fixture
def session() -> Iterator[Session]:
    with open_session("sim", SETTINGS) as session:
        yield session


def core_with(camera: Any) -> Any:
    core = unicore.UniMMCore()
    core.loadPyDevice("tem_live", camera)
    core.initializeDevice("tem_live")
    core.setCameraDevice("tem_live")
    return core


@pytest.fixture
def core(session: Session) -> Iterator[Any]:
    core = core_with(restored_camera(session, counts_per_electron=100.0))
    yield core
    core.reset()


def eventually(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + AMPLE_S
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


def pop(core: Any) -> tuple[Any, dict[str, str]]:
    assert eventually(lambda: core.getRemainingImageCount() > 0)
    metadata = pymmcore.Metadata()
    image = core.popNextImageMD(metadata)
    return image, {key: metadata.GetSingleTag(key).GetValue() for key in metadata.GetKeys()}


def test_the_core_sees_a_camera(core: Any, session: Session) -> None:
    assert core.getCameraDevice() == "tem_live"
    assert (core.getImageHeight(), core.getImageWidth()) == (64, 96)
    assert core.getBytesPerPixel() == 2
    assert core.getExposure() == pytest.approx(20.0)
    core.setExposure(40.0)
    assert session.exposure_s == pytest.approx(0.04)
    assert "restored by fast" in core.getProperty("tem_live", "CameraName")


def test_the_sequence_is_the_restored_frames(core: Any, session: Session) -> None:
    kept: dict[int, Frame] = {}
    end = session.subscribe(lambda frame: kept.update({frame.meta.frame_id: frame}))
    core.startSequenceAcquisition(5, 0, True)
    # It only shows: the run is started here.
    session.start()
    images = [pop(core) for _ in range(5)]
    session.stop()
    end()
    for image, told in images:
        restored = kept[int(told["tem_live-frame_id"])].restored
        assert restored is not None
        assert np.array_equal(image, np.clip(np.rint(restored * 100), 0, 65535))
        assert told["tem_live-model"] == "fast"
        assert float(told["tem_live-counts_per_electron"]) == 100
        assert float(told["tem_live-dose_e_per_px"]) > 0
    ids = [int(told["tem_live-frame_id"]) for _, told in images]
    assert ids == sorted(set(ids))
    assert not core.isSequenceRunning()


def test_snap_shows_a_frame_of_the_run(core: Any, session: Session) -> None:
    session.start()
    core.snapImage()
    image = core.getImage()
    session.stop()
    assert image.shape == (64, 96)
    # The whole dose of 5 e-/px is in it, and the specimen takes a part of it away.
    assert 100 < image.mean() < 600


def test_nothing_is_irradiated_for_a_viewer(core: Any, session: Session) -> None:
    with pytest.raises(RefusedError, match="start a run"):
        core.snapImage()
    assert session.blanked is True
    assert session.stats().frames == 0


def test_it_may_be_allowed_to_drive(session: Session) -> None:
    core = core_with(restored_camera(session, drives=True))
    try:
        core.snapImage()
        assert core.getImage().any()
        assert eventually(lambda: session.blanked is True)
        assert session.stats().frames == 1
        core.startContinuousSequenceAcquisition(0)
        pop(core)
        assert session.blanked is False
        core.stopSequenceAcquisition()
        assert eventually(lambda: session.blanked is True)
        assert not session.state.running
    finally:
        core.reset()


def test_live_ends_with_the_run(core: Any, session: Session) -> None:
    session.start()
    core.startContinuousSequenceAcquisition(0)
    pop(core)
    session.stop()
    assert eventually(lambda: not core.isSequenceRunning())


def test_without_a_restorer_there_is_nothing_to_show() -> None:
    with open_session("sim", {**SETTINGS, "restorer.model": "none"}) as session:
        core = core_with(restored_camera(session))
        with pytest.raises(RefusedError, match="without a restorer"):
            core.snapImage()
        core.reset()


def test_a_gain_that_is_none_is_refused(session: Session) -> None:
    with pytest.raises(TemLiveError, match="counts_per_electron"):
        restored_camera(session, counts_per_electron=0.0)


def test_a_missing_package_has_its_command(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "tem_live.plugins.camera_device", raising=False)
    monkeypatch.setitem(sys.modules, "pymmcore_plus.experimental.unicore", None)
    with pytest.raises(NotConnectedError, match="pip install"):
        restored_camera(session)
