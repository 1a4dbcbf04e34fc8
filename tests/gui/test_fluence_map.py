"""The fluence map in the window, and the controls of low-dose modes and of the area."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QImage

from tem_live.errors import RecordingError
from tem_live.fluence_map import FluenceMap, Place
from tem_live.gui.app import colour_table
from tem_live.gui.controllers.fluence_map import MapController
from tem_live.gui.controllers.panels import BeamController, ModeController
from tem_live.gui.models.dose_history import coincidence
from tem_live.gui.models.fluence_map import MapPictures, here_text, map_pictures
from tem_live.gui.models.view_state import ViewState
from tem_live.gui.views.bars import TopBar
from tem_live.gui.views.dose import DoseCard
from tem_live.gui.views.image_pane import ImagePane
from tem_live.gui.views.map_overview import MapOverview
from tem_live.gui.views.panels import BeamPanel
from tem_live.state import RunStats

from .test_controllers import Inline, hub, last, session, settings_runner  # noqa: F401

TABLE = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
FIELD = Place(0.0, 0.0, 64.0, 64.0)


def read(*added, unplaced=0.0, cell_nm=1.0):
    made = FluenceMap(cell_nm) if added else None
    for place, fluence in added:
        made.add(place, fluence)
    return SimpleNamespace(map=made, unplaced_e_per_A2=unplaced)


# ------------------------------------------------------------------------------------ pictures


def test_the_overlay_covers_the_field_in_its_colours():
    left_half = Place(-32.0, 0.0, 64.0, 64.0)
    pictures = map_pictures(read((FIELD, 10.0), (left_half, 30.0)), FIELD, TABLE)
    overlay = pictures.overlay
    height, width = overlay.shape[:2]
    assert (pictures.here_e_per_A2, pictures.highest_e_per_A2) == (40.0, 40.0)
    assert np.all(overlay[:, : width // 2 - 1, 0] == 255)
    assert np.all(overlay[:, width // 2 + 1 :, 0] == round(255 / 4))
    assert np.all(overlay[..., 3] > 0)
    assert max(height, width) <= 256


def test_what_took_nothing_is_not_painted():
    pictures = map_pictures(read((Place(64.0, 0.0, 64.0, 64.0), 5.0)), FIELD, TABLE)
    assert pictures.here_e_per_A2 == 0.0
    assert pictures.highest_e_per_A2 == 5.0
    assert not pictures.overlay[..., 3].any()
    assert pictures.overview_nm == (32.0, -32.0, 64.0, 64.0)
    assert pictures.field_nm == (-32.0, -32.0, 64.0, 64.0)


def test_without_bookings_there_is_nothing_to_paint():
    pictures = map_pictures(read(), FIELD, TABLE)
    assert pictures.overlay is None
    assert pictures.overview is None


def test_the_overview_is_small_however_large_the_map_is():
    far = Place(1e6, 0.0, 64.0, 64.0)
    pictures = map_pictures(read((FIELD, 10.0), (far, 30.0)), FIELD, TABLE)
    assert max(pictures.overview.shape) <= 256
    # Means over larger cells do not lower the scale.
    assert pictures.highest_e_per_A2 == 30.0


@pytest.mark.parametrize(
    ("here", "unplaced", "budget", "text", "alert"),
    [
        (12.0, 0.0, None, "at most 12.0 e⁻/Å²", False),
        (12.0, 5.0, 100.0, "at most 12.0 e⁻/Å² · 5.00 unplaced", False),
        (81.0, 0.0, 100.0, "at most 81.0 e⁻/Å²", True),
    ],
)
def test_the_field_in_words(here, unplaced, budget, text, alert):
    rect = (0.0, 0.0, 1.0, 1.0)
    pictures = MapPictures(here, here, unplaced, None, None, rect, rect)
    assert here_text(pictures, budget) == (text, alert)
    assert here_text(None, budget) == ("unknown: no pixel size", False)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (None, "–"),
        (0.0, "under 0.1 % not counted"),
        (0.032, "3.2 % not counted"),
        (1.0, "100.0 % not counted"),
    ],
)
def test_coincidence_in_words(loss, text):
    assert coincidence(loss) == text


# ----------------------------------------------------------------------------------- controller


@pytest.fixture
def views():
    pane, card = MagicMock(spec=ImagePane), MagicMock(spec=DoseCard)
    card.overview = MagicMock(spec=MapOverview)
    return pane, card


@pytest.fixture
def view():
    return ViewState(fluence_map=True)


@pytest.fixture
def controller(views, view, hub, session):  # noqa: F811
    made = MapController(*views, hub, view, Inline(), colour_table, lambda: None)
    hub.open("fake")
    session.map.add(session.place, 20.0)
    return made


def test_the_map_is_shown_with_its_scale_and_the_field(controller, views, session):  # noqa: F811
    pane, card = views
    controller.tick()
    picture, shape, _, highest = last(pane.show_map)
    assert picture.shape[2] == 4
    assert shape == session.state.frame_shape
    assert highest == "20.0 e⁻/Å²"
    assert last(card.show_here) == ("at most 20.0 e⁻/Å²", False)
    assert last(card.overview.show_map)[2] == (-12.8, -12.8, 25.6, 25.6)


def test_the_field_is_marked_where_it_took_the_budget(controller, views, session):  # noqa: F811
    session.budget_e_per_A2 = 21.0
    controller.tick()
    assert last(views[1].show_here) == ("at most 20.0 e⁻/Å²", True)


def test_nothing_is_read_while_neither_map_nor_card_is_shown(controller, views, view, session):  # noqa: F811
    view.fluence_map = False
    assert last(views[0].show_map)[0] is None
    assert last(views[1].show_overview) == (False,)
    session.fluence_map = MagicMock(side_effect=AssertionError)
    controller.tick()
    view.dose = True
    session.fluence_map = MagicMock(return_value=SimpleNamespace(map=None, unplaced_e_per_A2=0.0))
    views[0].show_map.reset_mock()
    controller.tick()
    session.fluence_map.assert_called_once()
    views[0].show_map.assert_not_called()


def test_without_a_pixel_size_there_is_no_map(controller, views, session):  # noqa: F811
    session.place = None
    controller.tick()
    assert last(views[0].show_map)[0] is None
    assert "no pixel size" in last(views[1].show_here)[0]


@pytest.mark.parametrize("changed", ["roi", "pixel_size_nm"])
def test_a_frame_of_another_field_is_not_laid_over(views, view, hub, session, changed):  # noqa: F811
    frame = session.make_frame().meta
    seen = (0.0, 1.0, 0.0, 1.0), frame
    made = MapController(*views, hub, view, Inline(), colour_table, lambda: seen, lambda: 0.0)
    hub.open("fake")
    session.map.add(session.place, 20.0)
    made.tick()
    assert last(views[0].show_map)[0] is not None
    # Set anew, with the last frame still on the screen.
    new = {"roi": (0, 0, 32, 32), "pixel_size_nm": 0.2}
    hub.change(changed, lambda session: session._set(**{changed: new[changed]}))
    made.tick()
    assert last(views[0].show_map)[0] is None


def test_a_look_that_takes_long_is_followed_by_a_rest(views, view, hub, session):  # noqa: F811
    clock = [100.0]
    made = MapController(*views, hub, view, Inline(), colour_table, lambda: None, lambda: clock[0])
    hub.open("fake")
    looks = []

    def fluence_map(most_bytes):
        looks.append(clock[0])
        clock[0] += 0.2
        return SimpleNamespace(map=None, unplaced_e_per_A2=0.0)

    session.fluence_map = fluence_map
    for _ in range(12):
        made.tick()
        clock[0] += 0.25
    assert len(looks) == 3


def test_a_ledger_that_cannot_be_read_is_told_once(controller, hub, session):  # noqa: F811
    session.fluence_map = MagicMock(side_effect=RecordingError("the dose ledger is gone"))
    for _ in range(3):
        controller.tick()
    assert hub.messages.count(("warning", "the dose ledger is gone")) == 1


def test_the_next_session_begins_without(controller, views, hub):  # noqa: F811
    controller.tick()
    hub.open("fake")
    assert last(views[0].show_map)[0] is None
    views[1].overview.show_nothing.assert_called()


def test_modes_are_offered_chosen_and_shown(hub, session, settings_runner):  # noqa: F811
    bar = MagicMock(spec=TopBar)
    controller = ModeController(bar, hub)
    hub.open("fake")
    assert last(bar.show_modes) == (("search", "record"),)
    assert last(bar.show_mode) == (None, None)
    settings_runner.wait = True
    controller.use_mode("record")
    assert last(bar.show_mode) == (None, "record")
    settings_runner.run()
    assert session.calls[-1] == "mode record"
    assert last(bar.show_mode) == ("record", None)


def test_a_blank_while_a_mode_waits_has_the_last_word(hub, session, settings_runner):  # noqa: F811
    controller = ModeController(MagicMock(spec=TopBar), hub)
    hub.open("fake")
    settings_runner.wait = True
    controller.use_mode("record")
    hub.blank_now()
    settings_runner.run()
    assert "mode record" not in session.calls
    assert session.state.blanked


def test_the_area_is_set_and_a_bad_name_is_refused(hub, session):  # noqa: F811
    panel = MagicMock(spec=BeamPanel)
    controller = BeamController(panel, hub)
    hub.open("fake")
    controller.set_area("grid3-square5")
    assert session.area == "grid3-square5"
    assert last(panel.show_area) == ("grid3-square5", False)
    controller.set_area("no/slash")
    assert session.area == "grid3-square5"
    assert last(panel.show_area) == ("grid3-square5", False)
    assert any("cannot name a specimen area" in text for _, text in hub.messages)
    controller.set_area("")
    assert session.area is None


def test_the_total_is_that_of_the_area(hub, session):  # noqa: F811
    panel = MagicMock(spec=BeamPanel)
    controller = BeamController(panel, hub)
    stats = RunStats(
        fluence_e_per_A2=5.0, area_fluence_e_per_A2=80.0, budget_e_per_A2=100.0, left_e_per_A2=20.0
    )
    controller.show_stats(stats)
    assert last(panel.show_total) == (80.0, 100.0, 20.0)


# ----------------------------------------------------------------------------------- the window


def test_key_and_button_show_and_hide_the_map(rig, qtbot):
    rig.session.map.add(rig.session.place, 20.0)
    rig.open()
    rig.wait_frames(2)
    window = rig.window
    qtbot.keyClick(window, Qt.Key.Key_M)
    assert window.display.map.isChecked()
    qtbot.waitUntil(window.raw._map.isVisible)
    assert window.raw._overlay.map_highest == "20.0 e⁻/Å²"
    # It covers the frame and no more, whatever the size of its cells.
    rect = window.raw._map.mapRectToParent(window.raw._map.boundingRect())
    assert (rect.x(), rect.y(), rect.width(), rect.height()) == pytest.approx((0, 0, 256, 256))
    qtbot.keyClick(window, Qt.Key.Key_D)
    assert window.dose.overview.isVisible()
    window.display.map.click()
    assert not window.raw._map.isVisible()
    assert not window.dose.overview.isVisible()
    assert not window.restored._map.isVisible()


def test_the_overview_paints_map_field_and_scale(qtbot):
    view = MapOverview()
    qtbot.addWidget(view)
    view.resize(160, 160)

    def grab():
        return view.grab().toImage().convertToFormat(QImage.Format.Format_RGB888)

    empty = grab()
    picture = np.zeros((10, 10, 4), np.uint8)
    picture[...] = (250, 10, 10, 255)
    view.show_map(picture, (0.0, 0.0, 100.0, 100.0), (150.0, 0.0, 50.0, 100.0))
    shown = grab()
    assert shown != empty
    middle = shown.height() // 2
    assert shown.pixelColor(30, middle).red() > 200
    # The field is outside of the map and seen all the same: its outline, and nothing in it.
    whites = [x for x in range(80, 160) if shown.pixelColor(x, middle).lightness() > 150]
    assert len(whites) >= 2
    assert shown.pixelColor((whites[0] + whites[-1]) // 2, middle).lightness() < 40
    view.show_nothing()
    assert grab() == empty


def test_a_card_with_little_room_keeps_its_figures(qtbot):
    card = DoseCard()
    qtbot.addWidget(card)
    card.show()
    for width, on, seen in (
        (960, False, (False, True, True)),
        (960, True, (True, True, True)),
        (720, True, (True, True, False)),
        (540, True, (True, False, False)),
        (380, True, (False, False, False)),
        (520, False, (False, True, False)),
    ):
        card.show_overview(on)
        card.resize(width, 200)
        qtbot.waitUntil(lambda width=width: card.width() == width)
        parts = (card.overview, card.plot, card.table)
        assert tuple(part.isVisible() for part in parts) == seen, (width, on)


def test_buttons_of_modes_and_the_field_of_the_area(rig, qtbot):
    rig.session.budget_e_per_A2 = 12345.0
    rig.open()
    window = rig.window
    assert list(window.top.modes) == ["search", "record"]
    window.top.modes["record"].click()
    qtbot.waitUntil(lambda: rig.hub.state.mode == "record")
    qtbot.waitUntil(window.top.modes["record"].isChecked)
    assert not window.top.modes["search"].isChecked()
    field = window.beam.area
    qtbot.mouseClick(field, Qt.MouseButton.LeftButton)
    # M is a letter here and no shortcut.
    qtbot.keyClicks(field, "gridM")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: rig.hub.state.area == "gridM")
    assert not rig.cockpit.view.fluence_map
    assert not field.hasFocus()
    qtbot.waitUntil(lambda: window.beam.left.text().endswith(" left"))
    assert window.beam.left.isVisible()


def test_a_profile_without_modes_has_no_buttons(rig, qtbot):
    rig.session.modes = ()
    rig.open()
    assert rig.window.top.modes == {}
