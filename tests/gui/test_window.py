"""The whole window with a fake session: threads, keys, start and end, looks."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from PySide6.QtCore import QPoint, Qt, QTimer
from PySide6.QtGui import QImage
from PySide6.QtWidgets import (
    QAbstractButton,
    QApplication,
    QDialog,
    QLabel,
    QMenu,
    QMessageBox,
    QWidget,
)

from tem_live.errors import InputError, NotConnectedError, OverflowedError, RecordingError
from tem_live.gui import app as gui_app
from tem_live.gui.app import run_gui
from tem_live.gui.controllers import cockpit
from tem_live.gui.models.settings import GuiSettings, SettingsStore
from tem_live.gui.workers import Worker


def test_window_shows_pairs_and_ends_with_the_beam_blanked(rig, qtbot):
    rig.open()
    rig.wait_frames(5)
    qtbot.waitUntil(lambda: rig.window.status.values["fps"].text() == "19.8 /s")
    window = rig.window
    assert window.header.frame.text().startswith("Frame ")
    assert window.beam.chip.text() == "BEAM ON"
    assert window.beam.frame_dose.text().endswith("e⁻/px")
    assert window.beam.rate_area.text() == "25.0 e⁻/Å²/s"
    assert window.camera.exposure.text() == "200 ms"
    assert window.top.device.text() == "Fake camera 4k"
    assert [window.restorer.model.itemText(i) for i in range(3)] == ["fast", "gaussian", "none"]
    window.close()
    assert not rig.ended
    qtbot.waitUntil(lambda: rig.ended)
    calls = rig.session.calls
    assert calls.index("blank_now") < calls.index("close")
    assert rig.session.closed
    assert not window.isVisible()


@pytest.mark.parametrize("key", [Qt.Key.Key_Escape, Qt.Key.Key_F12])
def test_emergency_key_while_the_settings_worker_is_stuck(rig, qtbot, key):
    rig.open()
    rig.session.hold.clear()
    rig.window.camera.exposure_edited.emit(0.5)
    qtbot.waitUntil(lambda: rig.window.camera.exposure.property("pending") is True)
    qtbot.keyClick(rig.window, key)
    qtbot.waitUntil(lambda: rig.session.blank_calls == 1)
    qtbot.waitUntil(lambda: rig.window.beam.chip.text() == "BLANKED")
    assert rig.hub.is_pending("exposure_s")
    rig.session.hold.set()
    qtbot.waitUntil(lambda: not rig.hub.is_pending("exposure_s"))


def test_emergency_key_works_in_fields_lists_menus_and_dialogs(rig, qtbot):
    rig.open()

    def press(widget, key, times):
        qtbot.keyClick(widget, key)
        qtbot.waitUntil(lambda: rig.session.blank_calls == times)
        qtbot.wait(10)

    window = rig.window
    window.camera.exposure.setFocus()
    press(window.camera.exposure, Qt.Key.Key_Escape, 1)
    window.restorer.model.showPopup()
    press(window.restorer.model.view(), Qt.Key.Key_F12, 2)
    window.restorer.model.hidePopup()
    window.ask_reference("dark", "note", 8)
    dialog = window.findChild(QDialog)
    press(dialog, Qt.Key.Key_F12, 3)
    dialog.reject()
    menu = QMenu(window)
    menu.addAction("x")
    menu.popup(QPoint(0, 0))
    press(menu, Qt.Key.Key_F12, 4)
    menu.close()


def test_emergency_button_blanks_on_press(rig, qtbot):
    rig.open()
    button = rig.window.top.stop_beam
    qtbot.mousePress(button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: rig.session.blank_calls == 1)
    qtbot.mouseRelease(button, Qt.MouseButton.LeftButton)


def test_window_closes_blanked_while_the_settings_worker_is_stuck(rig, qtbot):
    rig.open()
    rig.session.hold.clear()
    rig.window.camera.exposure_edited.emit(0.5)
    qtbot.wait(30)
    rig.window.close()
    qtbot.waitUntil(lambda: rig.ended)
    assert rig.session.blank_calls == 1
    assert rig.session.closed


def leave_on(session):
    """Have its beam stay on whatever is tried."""
    text = "THE BEAM COULD NOT BE BLANKED, close the valves: no answer"
    session.blank_now = lambda: session.message.emit("error", text)

    def close():
        session.closed = True
        session._set(running=False, blanked=False)

    session.close = close


def beam_warnings(rig):
    return [box for box in rig.window.findChildren(QMessageBox) if box.isVisible()]


def test_window_stays_until_it_was_read_that_the_beam_is_on(rig, qtbot):
    rig.open()
    leave_on(rig.session)
    rig.window.close()
    qtbot.waitUntil(lambda: len(beam_warnings(rig)) == 1)
    assert rig.session.closed
    assert not rig.ended
    assert rig.window.isVisible()
    assert "COULD NOT BE BLANKED" in rig.window.messages.text.toolTip()
    (warning,) = beam_warnings(rig)
    assert "close the column valves" in warning.text()
    warning.accept()
    qtbot.waitUntil(lambda: rig.ended)


def test_window_of_an_instrument_that_does_not_answer_says_so_at_the_end(rig, qtbot, monkeypatch):
    monkeypatch.setattr(cockpit, "CLOSE_LIMIT_MS", 100)
    rig.open()
    answers = threading.Event()
    rig.session.blank_now = lambda: answers.wait(20)
    rig.window.close()
    qtbot.waitUntil(lambda: len(beam_warnings(rig)) == 1)
    (warning,) = beam_warnings(rig)
    assert "whether the beam is blanked" in warning.text()
    assert not rig.ended
    # It answers after all, and there is nothing left to be read.
    answers.set()
    qtbot.waitUntil(lambda: rig.ended)


def test_window_of_an_instrument_without_blanker_does_not_wait_for_it(rig, qtbot, monkeypatch):
    monkeypatch.setattr(cockpit, "CLOSE_LIMIT_MS", 100)
    rig.open()
    rig.session._set(blanked=None)
    qtbot.waitUntil(lambda: rig.hub.state.blanked is None)
    answers = threading.Event()
    rig.session.close = lambda: answers.wait(20)
    rig.window.close()
    qtbot.waitUntil(lambda: rig.ended)
    assert not beam_warnings(rig)
    answers.set()


def test_keys_pressed_twice_do_not_ask_twice(rig, qtbot, tmp_path):
    rig.open(start=False)
    session, cockpit = rig.session, rig.cockpit
    cockpit.record.set_folder(str(tmp_path))
    session.hold.clear()
    cockpit.toggle_run()
    cockpit.toggle_run()
    cockpit.record.toggle()
    cockpit.record.toggle()
    session.hold.set()
    rig.settled(lambda state: state.running and state.recording is not None)
    assert session.calls.count("start") == 1
    assert len([call for call in session.calls if call.startswith("record")]) == 1


def test_beam_key_pressed_twice_leaves_the_beam_off(rig, qtbot):
    rig.open(start=False)
    rig.session.hold.clear()
    rig.cockpit.toggle_beam()
    rig.cockpit.toggle_beam()
    qtbot.waitUntil(lambda: rig.session.blank_calls >= 1)
    rig.session.hold.set()
    rig.settled(lambda state: state.blanked)


def test_failure_while_drawing_is_told_and_not_thrown(rig, qtbot):
    rig.open()

    def fail():
        raise ValueError("no figures")

    rig.session.stats = fail
    qtbot.waitUntil(rig.window.messages.isVisible)
    assert "internal error, please report it" in rig.window.messages.text.toolTip()
    rig.wait_frames(2)


def test_slow_setter_does_not_block_the_gui(rig, qtbot):
    rig.open()
    rig.session.hold.clear()
    gaps = []
    before = time.monotonic()

    def tick():
        nonlocal before
        now = time.monotonic()
        gaps.append(now - before)
        before = now

    timer = QTimer()
    timer.timeout.connect(tick)
    timer.start(20)
    rig.window.camera.exposure_edited.emit(0.5)
    rig.wait_frames(20)
    assert rig.hub.is_pending("exposure_s")
    timer.stop()
    assert len(gaps) >= 10
    assert max(gaps) < 0.5
    rig.session.hold.set()
    qtbot.waitUntil(lambda: rig.window.camera.exposure.value() == 0.5)
    assert rig.window.camera.exposure.property("pending") is False


def test_only_the_last_of_many_wishes_is_carried_out(rig, qtbot):
    rig.open()
    rig.session.hold.clear()
    rig.window.camera.exposure_edited.emit(0.01)
    qtbot.wait(50)
    for value in (0.02, 0.05, 0.1):
        rig.window.camera.exposure_edited.emit(value)
    rig.session.hold.set()
    qtbot.waitUntil(lambda: not rig.hub.is_pending("exposure_s"))
    applied = [call for call in rig.session.calls if "exposure" in call]
    assert applied == ["apply {'exposure_s': 0.01}", "apply {'exposure_s': 0.1}"]
    assert rig.window.camera.exposure.value() == 0.1


def test_typed_exposure_reaches_the_camera_and_frees_the_keys(rig, qtbot):
    rig.open()
    field = rig.window.camera.exposure
    field.setFocus()
    field.selectAll()
    qtbot.keyClicks(field, "0.5 s")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: rig.session.state.exposure_s == 0.5)
    assert field.text() == "500 ms"
    assert not field.hasFocus()
    field.selectAll()
    qtbot.keyClicks(field, "nonsense")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    assert field.text() == "500 ms"
    qtbot.keyClick(field, Qt.Key.Key_Up)
    qtbot.waitUntil(lambda: rig.session.state.exposure_s == 1.0)


def test_dose_rate_shows_what_the_column_took(rig, qtbot):
    rig.open()
    field = rig.window.beam.dose_rate
    field.selectAll()
    qtbot.keyClicks(field, "42")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: field.text() == "40.0 e⁻/px/s")


def test_hold_key_shows_raw_until_released(rig, qtbot):
    rig.open()
    rig.wait_frames(2)
    window = rig.window
    qtbot.keyPress(window, Qt.Key.Key_R)
    assert rig.cockpit.view.hold_raw
    assert window.header.right.text() == "Raw"
    rig.wait_frames(2)
    assert window.header.right.text() == "Raw"
    qtbot.keyRelease(window, Qt.Key.Key_R)
    assert window.header.right.text() == "Restored"
    qtbot.mousePress(window.restorer.hold, Qt.MouseButton.LeftButton)
    assert rig.cockpit.view.hold_raw
    qtbot.mouseRelease(window.restorer.hold, Qt.MouseButton.LeftButton)
    assert not rig.cockpit.view.hold_raw


def test_keys_do_what_the_help_says(rig, qtbot):
    rig.open()
    window, view = rig.window, rig.cockpit.view
    window.activateWindow()
    for key, switch in (
        ("T", "spectrum"),
        ("L", "profile"),
        ("S", "shared_levels"),
        ("M", "fluence_map"),
        ("N", "rolling_mean"),
    ):
        qtbot.keyClick(window, key)
        assert getattr(view, switch), key
    qtbot.keyClick(window, Qt.Key.Key_F1)
    assert window.help.isVisible()
    qtbot.keyClick(window, Qt.Key.Key_F1)
    assert not window.help.isVisible()
    qtbot.keyClick(window, Qt.Key.Key_F5)
    rig.settled(lambda state: not state.running)
    qtbot.keyClick(window, Qt.Key.Key_F5)
    rig.settled(lambda state: state.running)
    qtbot.keyClick(window, "B", Qt.KeyboardModifier.ControlModifier)
    rig.settled(lambda state: state.blanked)
    qtbot.keyClick(window, "B", Qt.KeyboardModifier.ControlModifier)
    rig.settled(lambda state: not state.blanked)


def test_zoom_and_pan_are_linked(rig, qtbot):
    rig.open()
    rig.wait_frames(2)
    raw, restored = rig.window.raw, rig.window.restored
    raw.show_range((50, 100, 60, 110))
    raw._report_range()
    qtbot.waitUntil(lambda: np.allclose(raw.visible_range(), restored.visible_range()))
    assert raw.zoom == pytest.approx(restored.zoom)
    rig.window.display.fit.click()
    x0, x1, y0, y1 = restored.visible_range()
    assert min(x0, y0) <= 0.01
    assert max(x1, y1) >= 255.99
    rig.window.display.actual.click()
    assert raw.zoom == pytest.approx(1.0, rel=0.02)
    assert restored.zoom == pytest.approx(1.0, rel=0.02)


def test_profile_line_is_one_in_both_panes(rig, qtbot):
    rig.open()
    rig.cockpit.display.toggle("profile")
    rig.wait_frames(3)
    raw, restored = rig.window.raw, rig.window.restored
    raw.line_moved.emit(((10.0, 20.0), (200.0, 120.0)))
    assert np.allclose(raw._line_ends(), ((10, 20), (200, 120)))
    assert np.allclose(restored._line_ends(), ((10, 20), (200, 120)))
    rig.wait_frames(2)
    distance, _ = rig.window.deck.profile._raw.getData()
    assert distance[-1] == pytest.approx(np.hypot(190, 100) * 0.1, rel=1e-3)


def test_histogram_handles_set_the_levels(rig, qtbot):
    rig.open()
    rig.wait_frames(3)
    view = rig.window.raw.histogram
    start = QPoint(int(view._x(view._high)), 30)
    qtbot.mousePress(view, Qt.MouseButton.LeftButton, pos=start)
    qtbot.mouseMove(view, start - QPoint(40, 0))
    qtbot.mouseRelease(view, Qt.MouseButton.LeftButton)
    levels = rig.cockpit.display.raw_levels
    assert not levels.auto
    assert not rig.window.display.auto.isChecked()
    qtbot.mouseDClick(view, Qt.MouseButton.LeftButton, pos=QPoint(5, 5))
    assert levels.auto


def test_lost_camera_raises_the_banner_and_start_tries_again(rig, qtbot):
    rig.open()
    rig.wait_frames(1)
    threading.Thread(target=rig.session.lose).start()
    qtbot.waitUntil(rig.window.banner.isVisible)
    assert rig.window.banner.title.text() == "Camera lost – beam blanked"
    assert "does not answer" in rig.window.banner.detail.toolTip()
    assert not rig.window.messages.isVisible()
    rig.window.banner.button.click()
    rig.settled(lambda state: state.running)
    assert not rig.window.banner.isVisible()
    rig.session.lose("the buffer of 32 frames is full", OverflowedError)
    qtbot.waitUntil(rig.window.banner.isVisible)
    assert rig.window.banner.title.text() == "Raw frames lost – beam blanked"
    rig.session.lose("disk full", RecordingError)
    qtbot.waitUntil(lambda: rig.window.banner.title.text() == "Recording failed – beam blanked")


def test_refused_setting_is_shown_and_dismissed(rig, qtbot):
    rig.open()
    rig.window.camera.exposure_edited.emit(0.0001)
    qtbot.waitUntil(rig.window.messages.isVisible)
    assert "takes no exposure under 1 ms" in rig.window.messages.text.toolTip()
    rig.window.messages.close_button.click()
    assert not rig.window.messages.isVisible()


def test_instrument_that_cannot_be_opened(make_rig, qtbot):
    def refuse(profile, overrides):
        raise NotConnectedError("no camera answers on port 13240; start the server first")

    rig = make_rig(opener=refuse)
    rig.window.show()
    rig.cockpit.open("de-twin")
    qtbot.waitUntil(rig.window.banner.isVisible)
    assert "start the server" in rig.window.messages.text.toolTip()
    assert not rig.window.top.run.isEnabled()


def test_another_profile_closes_the_first_session(make_rig, make_session, qtbot):
    sessions = {"fake": make_session(name="fake"), "sim": make_session(name="sim")}
    rig = make_rig(
        opener=lambda profile, overrides: sessions[profile],
        at_once=lambda session, state: True,
    )
    rig.open()
    rig.wait_frames(1)
    rig.window.top.profile_chosen.emit("sim")
    qtbot.waitUntil(lambda: rig.hub.session is sessions["sim"])
    assert sessions["fake"].closed
    assert sessions["fake"].blank_calls == 1
    rig.session = sessions["sim"]
    rig.wait_frames(1)


def test_profile_given_by_its_path_is_opened_again_by_it(make_rig, make_session, qtbot):
    asked = []

    def opener(profile, overrides):
        asked.append((profile, list(overrides)))
        if len(asked) == 1:
            raise NotConnectedError("no camera")
        return make_session(name="scope")

    rig = make_rig(opener=opener)
    rig.window.show()
    rig.cockpit.open("folder/scope.toml", ["camera.binning=2"])
    qtbot.waitUntil(rig.window.banner.isVisible)
    rig.window.banner.button.click()
    qtbot.waitUntil(lambda: rig.hub.session is not None)
    assert asked == [("folder/scope.toml", ["camera.binning=2"])] * 2
    assert rig.window.top.profile.currentText() == "scope"
    assert not rig.window.banner.isVisible()


def test_recording_from_the_button(make_rig, qtbot, tmp_path):
    store = SettingsStore(tmp_path / "gui.json")
    store.save(GuiSettings(record_folder=str(tmp_path / "recordings")))
    rig = make_rig(store=store).open()
    rig.window.record.button.click()
    rig.settled(lambda state: state.recording is not None)
    qtbot.waitUntil(lambda: rig.window.record.button.property("blink") is True)
    assert rig.window.record.button.text() == " Stop"
    rig.window.record.button.click()
    qtbot.waitUntil(lambda: rig.session.state.recording is None)
    qtbot.waitUntil(rig.window.messages.isVisible)


def test_settings_are_remembered(make_rig, qtbot, tmp_path):
    path = tmp_path / "gui.json"
    path.write_text("{ broken")
    rig = make_rig(store=SettingsStore(path)).open()
    assert "defaults used" in rig.window.messages.text.toolTip()
    rig.cockpit.display.toggle("spectrum")
    rig.window.display.colours_chosen.emit("viridis")
    rig.end()
    saved = json.loads(path.read_text())
    assert saved["spectrum"] is True
    again = make_rig(store=SettingsStore(path)).open()
    assert again.cockpit.view.spectrum
    assert again.cockpit.view.colours == "viridis"


def clipped(window):
    """Visible labels and buttons that have less room than their text needs."""
    bad = []
    for widget in window.findChildren(QWidget):
        if not widget.isVisible() or not isinstance(widget, QLabel | QAbstractButton):
            continue
        hint = widget.minimumSizeHint() if isinstance(widget, QLabel) else widget.sizeHint()
        text = widget.text()
        # Elided labels shorten themselves and have no minimum.
        if type(widget).__name__ == "ElidedLabel" or not text:
            continue
        place = widget.mapTo(window, QPoint(0, 0))
        inside = (
            place.x() >= 0
            and place.y() >= 0
            and place.x() + widget.width() <= window.width()
            and place.y() + widget.height() <= window.height()
        )
        if widget.width() < hint.width() or widget.height() < hint.height() - 2 or not inside:
            bad.append((text, widget.size(), hint, place))
    return bad


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)])
@pytest.mark.parametrize(
    "deck", [(), ("spectrum", "profile"), ("dose",), ("profile", "dose", "fluence_map")]
)
def test_nothing_is_clipped(make_rig, make_session, qtbot, size, deck):
    session = make_session(blanked=True)
    session.budget_e_per_A2 = 12345.0
    session.total = 11000.0
    rig = make_rig(session=session)
    rig.window.resize(*size)
    rig.open()
    for part in deck:
        rig.cockpit.display.toggle(part)
    rig.wait_frames(3)
    qtbot.waitUntil(lambda: rig.window.beam.budget.isVisible())
    qtbot.wait(50)
    assert (rig.window.width(), rig.window.height()) == size
    assert clipped(rig.window) == []
    assert rig.window.column.verticalScrollBar().maximum() == 0
    assert rig.window.column.horizontalScrollBar().maximum() == 0
    fields = (rig.window.camera.exposure, rig.window.beam.dose_rate)
    for field in fields:
        needed = field.fontMetrics().horizontalAdvance(field.text()) + 8
        assert field.lineEdit().width() >= needed


def test_text_is_really_drawn(rig, qtbot):
    rig.open()
    rig.wait_frames(1)
    image = rig.window.top.grab().toImage().convertToFormat(QImage.Format.Format_Grayscale8)
    bright = sum(
        image.pixelColor(x, y).value() > 150 for x in range(46, 120) for y in range(image.height())
    )
    # Without any font on the computer Qt draws nothing at all.
    assert bright > 50


def test_screenshot_mode(qtbot, tmp_path, make_session, capsys):
    session = make_session()
    path = tmp_path / "shot.png"
    assert (
        run_gui("x", screenshot=path, frames=4, opener=lambda p, o: session, size=(1280, 800)) == 0
    )
    image = QImage(str(path))
    assert (image.width(), image.height()) == (1280, 800)
    assert session.closed
    assert session.frame_id >= 4
    assert not (tmp_path / "gui.json").exists()


def test_screenshot_of_an_instrument_that_is_not_there(qtbot, tmp_path, capsys):
    def refuse(profile, overrides):
        raise NotConnectedError("no camera; plug it in")

    assert run_gui("x", screenshot=tmp_path / "a.png", frames=1, opener=refuse) == 3
    assert "no camera; plug it in" in capsys.readouterr().err
    with pytest.raises(InputError, match="does not exist"):
        run_gui("x", screenshot=tmp_path / "none" / "a.png", opener=refuse)


def test_screenshot_ends_when_frames_stop(qtbot, tmp_path, make_session, capsys):
    lost = make_session()
    original = lost.start

    def start(frames=None):
        original()
        lost.newest_on_device = lambda: None
        lost.lose()

    lost.start = start
    assert run_gui("x", screenshot=tmp_path / "a.png", frames=1, opener=lambda p, o: lost) == 3
    assert "does not answer" in capsys.readouterr().err
    silent = make_session()
    silent.newest_on_device = lambda: None
    status = run_gui(
        "x", screenshot=tmp_path / "a.png", frames=1, opener=lambda p, o: silent, limit_s=1.0
    )
    assert status == 3
    assert "only 0 of 1 frames" in capsys.readouterr().err
    assert silent.closed


def test_unattended_end_with_the_beam_on_says_so_and_ends(qtbot, tmp_path, make_session, capsys):
    session = make_session()
    leave_on(session)
    path = tmp_path / "a.png"
    assert run_gui("x", screenshot=path, frames=1, opener=lambda p, o: session) == 3
    assert "COULD NOT BE BLANKED" in capsys.readouterr().err
    assert path.is_file()


def test_screenshot_whose_recording_cannot_begin_takes_no_frames(
    qtbot, tmp_path, make_session, capsys
):
    session = make_session()

    def refuse(path):
        raise InputError(f"there is something at {path} already; give a new name")

    session.record = refuse
    status = run_gui(
        "x",
        screenshot=tmp_path / "a.png",
        frames=1,
        out=tmp_path / "r.zarr",
        opener=lambda p, o: session,
    )
    assert status == 2
    assert "already; give a new name" in capsys.readouterr().err
    assert "start" not in session.calls
    assert session.closed


@pytest.mark.skipif(sys.platform == "win32", reason="Windows delivers no SIGINT to a process")
def test_interrupt_closes_the_session(qtbot, make_session):
    session = make_session()
    before = signal.getsignal(signal.SIGINT)

    def interrupt():
        # Once the window listens; on a busy computer its making takes seconds.
        while signal.getsignal(signal.SIGINT) is before or session.closed:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert run_gui("x", opener=lambda p, o: session) == 0
    assert session.calls[-2:] == ["blank_now", "close"]


def test_interactive_run_records_from_the_start_and_remembers(qtbot, tmp_path, make_session):
    session = make_session()

    def close_once_started():
        if "start" not in session.calls:
            return
        timer.stop()
        window = next(
            w
            for w in QApplication.topLevelWidgets()
            if w.objectName() == "" and hasattr(w, "close_requested") and w.isVisible()
        )
        window.close()

    timer = QTimer()
    timer.timeout.connect(close_once_started)
    timer.start(50)
    assert run_gui("x", out=tmp_path / "r.zarr", opener=lambda p, o: session) == 0
    record = session.calls.index(f"record {tmp_path / 'r.zarr'}")
    assert record < session.calls.index("start")
    assert session.closed
    assert gui_app.settings_path().is_file()


def test_worker_drops_stale_results_and_ends(qtbot):
    worker = Worker("test worker")
    gate = threading.Event()
    seen = []
    worker.submit("a", lambda: gate.wait(5) and "old", seen.append)
    worker.submit("a", lambda: "dropped before it began", seen.append)
    worker.submit("a", lambda: "new", seen.append)
    worker.submit("b", lambda: 1 / 0, None, seen.append)
    assert worker.busy("a")
    gate.set()
    qtbot.waitUntil(lambda: len(seen) == 2)
    assert seen[0] == "new"
    assert isinstance(seen[1], ZeroDivisionError)
    assert not worker.busy("a")
    worker.close(timeout_s=2.0)
    assert not worker._thread.is_alive()
    worker.submit("a", lambda: "too late", seen.append)
    qtbot.wait(20)
    assert len(seen) == 2
