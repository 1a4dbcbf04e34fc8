"""The cockpit on the real session with the simulated microscope: nothing in between is faked."""

from __future__ import annotations

import time

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QImage

from tem_live.gui.app import list_models, open_for_gui, run_gui

PROFILE = ("camera.exposure_s=0.1", "restorer.model=gaussian")


@pytest.fixture
def live(make_rig, qtbot, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    rig = make_rig(opener=lambda profile, overrides: open_for_gui("sim", PROFILE))
    rig.window.show()
    rig.cockpit.open("sim", autostart=lambda session, state: True)
    qtbot.waitUntil(lambda: rig.hub.session is not None, timeout=60_000)
    rig.wait_frames(3)
    return rig


def test_settings_are_taken_and_read_back(live, qtbot):
    window, hub = live.window, live.hub
    seen = []
    live.cockpit.display.shown.connect(lambda meta, restored: seen.append(meta))
    window.camera.exposure.setValue(0.15)
    qtbot.waitUntil(lambda: hub.session.exposure_s == 0.15 and not hub.is_pending("exposure_s"))
    qtbot.waitUntil(lambda: bool(seen) and seen[-1].exposure_s == 0.15)
    window.beam.dose_rate.setValue(200.0)
    qtbot.waitUntil(lambda: not hub.is_pending("dose_rate"))
    assert hub.session.dose_rate == pytest.approx(200.0, rel=0.01)
    qtbot.waitUntil(lambda: seen[-1].dose_rate_e_per_px_s == pytest.approx(200.0, rel=0.01))
    window.camera.binning_chosen.emit(2)
    qtbot.waitUntil(lambda: seen[-1].binning == 2)
    assert seen[-1].pixel_size_nm == pytest.approx(2 * seen[0].pixel_size_nm)
    ids = [meta.frame_id for meta in seen]
    assert ids == sorted(set(ids))


def test_emergency_blanks_the_real_blanker_and_frames_go_dark(live, qtbot):
    qtbot.keyClick(live.window, Qt.Key.Key_F12)
    qtbot.waitUntil(lambda: live.hub.session.blanked is True)
    qtbot.waitUntil(lambda: live.window.beam.chip.text() == "BLANKED")
    qtbot.waitUntil(lambda: live.cockpit.display._pair.meta.blanked is True)


def test_a_stopped_frame_is_drawn_where_one_looks(live, qtbot):
    display = live.cockpit.display

    def look(left):
        for pane in (display._raw, display._restored):
            pane.show_range((left, left + 50, 200, 250))

    look(350)
    qtbot.waitUntil(lambda: display._pair.raw.extent.width < 200)
    live.hub.session.stop()
    qtbot.waitUntil(lambda: not live.hub.state.running)
    look(60)
    qtbot.waitUntil(lambda: display._pair.raw.extent.left <= 60)
    assert display._pair.raw.extent.width < 200
    display.fit()
    whole = display._pair.raw.plane.shape
    qtbot.waitUntil(lambda: display._pair.raw.image.shape == whole)


def test_record_stop_and_close(live, qtbot, tmp_path):
    live.cockpit.record.set_folder(str(tmp_path / "recordings"))
    live.window.record.button.click()
    qtbot.waitUntil(lambda: live.hub.state.recording is not None)
    qtbot.waitUntil(lambda: live.hub.session.stats().recorded > 3)
    session = live.hub.session
    live.end()
    assert session.blanked is True
    assert session.state.recording is None
    (recording,) = (tmp_path / "recordings").iterdir()
    assert recording.suffix == ".zarr"


def test_dark_reference_from_the_gui(live, qtbot):
    live.cockpit.camera.take_reference("dark", 4)
    qtbot.waitUntil(lambda: not live.hub.is_pending("reference"), timeout=20_000)
    assert any("dark reference" in text for _, text in live.hub.session.messages)
    qtbot.waitUntil(lambda: live.hub.state.running)
    live.wait_frames(2)


def test_models_are_listed():
    names = [name for name, title in list_models()]
    assert {"gaussian", "none"} <= set(names)


def test_screenshot_of_the_simulator(qtbot, tmp_path):
    path = tmp_path / "sim.png"
    before = time.monotonic()
    assert run_gui("sim", overrides=PROFILE, screenshot=path, frames=5, limit_s=60) == 0
    assert time.monotonic() - before < 60
    assert QImage(str(path)).width() == 1280


def test_unknown_profile_ends_a_screenshot_with_its_line(qtbot, tmp_path, capsys):
    assert run_gui("simm", screenshot=tmp_path / "a.png", frames=1) == 2
    assert "no profile named 'simm', did you mean 'sim'?" in capsys.readouterr().err


def test_modes_area_and_map_from_the_window(live, qtbot):
    window, session = live.window, live.hub.session
    blanked_meanwhile = []
    column = session._beam._column
    change = column.set_magnification

    def set_magnification(magnification):
        blanked_meanwhile.append(column.blanked)
        return change(magnification)

    column.set_magnification = set_magnification
    window.top.modes["search"].click()
    qtbot.waitUntil(lambda: window.top.modes["search"].isChecked(), timeout=20_000)
    assert session.mode == "search"
    assert session.state.binning == 2
    assert blanked_meanwhile == [True]
    qtbot.waitUntil(lambda: session.blanked is False)
    window.beam.area.setFocus()
    qtbot.keyClicks(window.beam.area, "square5")
    qtbot.keyClick(window.beam.area, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: session.area == "square5")
    window.dose.budget_edited.emit(5000.0)
    qtbot.waitUntil(lambda: window.beam.left.text().endswith(" left"), timeout=20_000)
    live.cockpit.display.toggle("fluence_map")
    live.cockpit.display.toggle("dose")
    qtbot.waitUntil(window.raw._map.isVisible, timeout=20_000)
    qtbot.waitUntil(lambda: window.dose.here.text().startswith("at most"))
    assert window.raw._overlay.map_highest.endswith("e⁻/Å²")
