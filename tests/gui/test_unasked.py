"""What nobody asked for: the beam does not come on by it, and no setting changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from tem_live.errors import DisconnectedError, NotConnectedError, RefusedError


def always(session, state):
    return True


def turn_wheel(widget):
    """One notch upwards over the middle of a widget, without a click."""
    middle = QPointF(widget.rect().center())
    event = QWheelEvent(
        middle,
        QPointF(widget.mapToGlobal(widget.rect().center())),
        QPoint(0, 0),
        QPoint(0, 120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(widget, event)


def test_an_instrument_that_is_chosen_later_does_not_start(make_rig, make_session, qtbot):
    real = make_session(name="sim")
    sessions = {"fake": make_session(), "sim": real}
    rig = make_rig(opener=lambda profile, overrides: sessions[profile])
    # As for one that records from the start: this one is to start at once, and no other.
    rig.open(start=True)
    rig.window.top.profile_chosen.emit("sim")
    qtbot.waitUntil(lambda: rig.hub.session is real)
    rig.session = real
    qtbot.wait(100)
    assert "start" not in real.calls
    assert real.state.blanked


def test_trying_again_records_what_was_to_be_recorded(make_rig, make_session, qtbot, tmp_path):
    tries = []
    session = make_session()

    def opener(profile, overrides):
        tries.append(profile)
        if len(tries) == 1:
            raise NotConnectedError("no camera")
        return session

    rig = make_rig(opener=opener, session=session)
    rig.window.show()
    rig.cockpit.open("fake", autostart=always, on_ready=lambda s: s.record(tmp_path / "out.zarr"))
    qtbot.waitUntil(rig.window.banner.isVisible)
    rig.window.banner.button.click()
    rig.settled(lambda state: state is not None and state.running)
    assert session.calls[:2] == [f"record {tmp_path / 'out.zarr'}", "start"]


@pytest.mark.parametrize("field", ["dose_rate", "exposure", "binning", "model", "profile"])
def test_a_wheel_that_turns_over_a_control_changes_nothing(rig, qtbot, field):
    rig.open(start=False)
    window = rig.window
    where = {
        "dose_rate": window.beam.dose_rate,
        "exposure": window.camera.exposure,
        "binning": window.camera.binning,
        "model": window.restorer.model,
        "profile": window.top.profile,
    }[field]
    before = list(rig.session.calls)
    turn_wheel(where)
    qtbot.wait(100)
    assert rig.session.calls == before
    assert not rig.session.closed


def test_a_wheel_steps_the_field_that_one_is_in(rig, qtbot):
    rig.open(start=False)
    rig.window.activateWindow()
    field = rig.window.camera.exposure
    field.setFocus()
    qtbot.waitUntil(field.hasFocus)
    turn_wheel(field)
    qtbot.waitUntil(lambda: rig.session.calls[-1:] == ["apply {'exposure_s': 0.5}"])


def test_the_key_for_raw_is_a_letter_in_a_field(rig, qtbot):
    rig.open(start=False)
    window = rig.window
    window.activateWindow()
    window.beam.area.setFocus()
    qtbot.waitUntil(window.beam.area.hasFocus)
    # Through the window system: the window is handed each key before its field is.
    QTest.keyClick(window.windowHandle(), Qt.Key.Key_R)
    assert window.beam.area.text() == "r"
    QTest.keyPress(window.windowHandle(), Qt.Key.Key_R)
    assert not rig.cockpit.view.hold_raw
    QTest.keyRelease(window.windowHandle(), Qt.Key.Key_R)
    window.beam.area.clearFocus()
    QTest.keyPress(window.windowHandle(), Qt.Key.Key_R)
    assert rig.cockpit.view.hold_raw
    QTest.keyRelease(window.windowHandle(), Qt.Key.Key_R)
    assert not rig.cockpit.view.hold_raw


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (DisconnectedError, "Camera lost – beam blanked"),
        (RefusedError, "Run stopped – beam blanked"),
    ],
)
def test_the_banner_tells_how_the_beam_is_left(rig, qtbot, error, title):
    rig.open()
    rig.session.lose("it went away", error)
    qtbot.waitUntil(rig.window.banner.isVisible)
    assert rig.window.banner.title.text() == title


@pytest.mark.parametrize("text", ["-200", "10,000", "abc"])
def test_a_budget_that_is_no_number_takes_no_limit_away(rig, qtbot, text):
    rig.session.budget_e_per_A2 = 500.0
    rig.open(start=False)
    rig.cockpit.display.toggle("dose")
    field = rig.window.dose.budget
    qtbot.waitUntil(lambda: field.value() == 500.0)
    rig.window.activateWindow()
    field.setFocus()
    field.selectAll()
    QTest.keyClicks(field, text)
    QTest.keyClick(field, Qt.Key.Key_Return)
    qtbot.wait(100)
    assert rig.session.budget_e_per_A2 == 500.0
    assert field.text() == "500 e⁻/Å²"


def test_a_budget_with_spaces_between_thousands_is_meant_so(rig, qtbot):
    rig.session.budget_e_per_A2 = 500.0
    rig.open(start=False)
    rig.cockpit.display.toggle("dose")
    field = rig.window.dose.budget
    qtbot.waitUntil(lambda: field.value() == 500.0)
    rig.window.activateWindow()
    field.setFocus()
    field.selectAll()
    QTest.keyClicks(field, "12 000")
    QTest.keyClick(field, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: rig.session.budget_e_per_A2 == 12000.0)


def test_a_budget_that_waits_stays_as_it_was_asked_for(rig, qtbot):
    rig.session.budget_e_per_A2 = 500.0
    rig.open(start=False)
    rig.cockpit.display.toggle("dose")
    field = rig.window.dose.budget
    qtbot.waitUntil(lambda: field.value() == 500.0)
    rig.session.hold.clear()
    rig.hub.change("exposure_s", lambda session: session.apply(exposure_s=0.1))
    field.setValue(900.0)
    qtbot.wait(600)
    # The worker stands behind a slow camera: what was asked for is neither lost nor shown as taken.
    assert field.value() == 900.0
    assert field.property("pending")
    rig.session.hold.set()
    qtbot.waitUntil(lambda: rig.session.budget_e_per_A2 == 900.0)
    qtbot.waitUntil(lambda: not field.property("pending"))


def test_without_a_budget_nothing_warns_of_it(rig, qtbot):
    panel = rig.window.beam
    panel.show_total(95.0, 100.0, 5.0)
    assert panel.total.property("alert")
    panel.show_total(95.0, None, None)
    assert not panel.total.property("alert")


def test_of_an_instrument_that_is_gone_nothing_is_shown(make_rig, make_session, qtbot):
    session = make_session()

    def opener(profile, overrides):
        if profile == "fake":
            return session
        raise NotConnectedError("no camera")

    rig = make_rig(opener=opener, session=session)
    rig.open()
    rig.wait_frames(1)
    window = rig.window
    assert window.beam.chip.text() == "BEAM ON"
    window.top.profile_chosen.emit("sim")
    qtbot.waitUntil(window.banner.isVisible)
    assert window.beam.chip.text() == "NO SESSION"
    for panel in (window.beam, window.camera, window.restorer):
        assert not panel.isEnabled()
    assert not window.beam.dose_rate.isVisible()
    assert window.beam.frame_dose.text() == "–"


def test_a_camera_is_not_offered_the_binning_of_another(make_rig, make_session, qtbot):
    first, second = make_session(binning=4), make_session(name="sim")
    second.capabilities = replace(second.capabilities, binnings=(1, 2))
    sessions = {"fake": first, "sim": second}
    rig = make_rig(opener=lambda profile, overrides: sessions[profile])
    rig.open(start=False)
    box = rig.window.camera.binning
    assert box.currentData() == 4
    rig.window.top.profile_chosen.emit("sim")
    qtbot.waitUntil(lambda: rig.hub.session is second)
    rig.session = second
    assert [box.itemData(i) for i in range(box.count())] == [1, 2]
    assert box.currentData() == 1


def test_a_rate_that_nothing_steers_cannot_be_edited(make_rig, make_session):
    session = make_session()
    session.can_set_dose_rate = False
    rig = make_rig(session=session)
    rig.open(start=False)
    assert rig.window.beam.dose_rate.isReadOnly()


def test_another_folder_is_for_the_next_recording(rig, qtbot, tmp_path):
    rig.open(start=False)
    rig.cockpit.record.toggle()
    rig.settled(lambda state: state.recording is not None)
    target = rig.window.record.target.toolTip()
    rig.cockpit.record.set_folder(str(tmp_path))
    assert rig.window.record.target.toolTip() == target
    rig.cockpit.record.toggle()
    rig.settled(lambda state: state.recording is None)
    assert str(tmp_path) in rig.window.record.target.toolTip()


@pytest.mark.parametrize("size", [(1280, 800), (1024, 640)])
def test_the_fields_of_the_dose_card_are_whole_under_a_message(rig, qtbot, size):
    rig.window.resize(*size)
    rig.open(start=False)
    rig.cockpit.display.toggle("dose")
    rig.session.message.emit("warning", "the gain is unknown: 1 count is taken for 1 electron")
    field = rig.window.dose.budget
    qtbot.waitUntil(field.isVisible)
    qtbot.wait(300)
    assert field.visibleRegion().boundingRect().height() == field.height()
