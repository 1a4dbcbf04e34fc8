"""The dose card: its history, its words, its controller."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from PySide6.QtCore import Qt

from tem_live.account import Cost
from tem_live.gui.controllers.dose import DoseController
from tem_live.gui.models.dose_history import MOST_POINTS, DoseHistory, dose_figures, lasts
from tem_live.gui.models.view_state import ViewState
from tem_live.gui.views.dose import DoseCard
from tem_live.state import RunStats
from tem_live.watch import WatchState

from .test_controllers import Inline, hub, session, settings_runner  # noqa: F401

FIDELITY = SimpleNamespace(verdict="good", frc_nm=0.42, equivalent_dose_e_per_px=240.0)
DAMAGE = SimpleNamespace(
    known=True,
    critical_fluence_e_per_A2=300.0,
    interval_e_per_A2=(267.0, 341.0),
    text="",
)


def test_history_keeps_its_ends_and_its_bounds():
    history = DoseHistory()
    for second in range(5000):
        history.take(float(second), 2.0 * second, True, None)
    assert len(history.times_s) <= MOST_POINTS
    assert (history.times_s[0], history.times_s[-1]) == (0.0, 4999.0)
    assert history.times_s == sorted(history.times_s)
    assert history.fluences_e_per_A2 == [2.0 * time_s for time_s in history.times_s]


def test_another_area_is_another_exposure():
    history = DoseHistory()
    for time_s, fluence, area in (
        (0.0, 0.0, "a"),
        (1.0, 900.0, "a"),
        (2.0, 3.0, "b"),
        (3.0, 5.0, "b"),
    ):
        history.take(time_s, fluence, True, area)
    assert [(e.fluence_e_per_A2, e.total_e_per_A2) for e in history.exposures] == [
        (900.0, 900.0),
        (2.0, 5.0),
    ]


def test_level_stretches_need_two_points():
    history = DoseHistory()
    for second in range(100):
        history.take(float(second), 7.0, False, None)
    assert history.times_s == [0.0, 99.0]
    assert history.exposures == []


def test_exposures_are_the_times_with_the_beam_on():
    history = DoseHistory()
    seen = [
        (0, 0, False),
        (1, 0, True),
        (2, 5, True),
        (3, 10, False),
        (4, 10, False),
        (5, 10, True),
    ]
    for time_s, fluence, on in seen:
        history.take(100.0 + time_s, float(fluence), on, None)
    first, second = history.exposures
    assert (first.began_s, first.lasted_s, first.fluence_e_per_A2, first.total_e_per_A2) == (
        101.0,
        2.0,
        10.0,
        10.0,
    )
    assert (second.began_s, second.lasted_s, second.fluence_e_per_A2) == (105.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("left", "rate", "text"),
    [(None, 5.0, "–"), (10.0, None, "–"), (10.0, 5.0, "2.00 s"), (3000.0, 5.0, "10:00")],
)
def test_how_long_the_rest_lasts(left, rate, text):
    assert lasts(left, rate) == text


def test_words_for_what_is_known(session):  # noqa: F811
    stats = RunStats(budget_e_per_A2=100.0, left_e_per_A2=15.0, dose_source="incident")
    watch = WatchState(FIDELITY, DAMAGE, 3)
    figures = dose_figures(stats, Cost(6.0, 15.0, "incident"), session.state, watch)
    assert figures.next_frame == "6.00 e⁻/Å²"
    assert figures.left == "15.0 e⁻/Å²"
    assert figures.left_alert
    assert figures.restored == "good · true to 0.420 nm · as 240 e⁻/px"
    assert not figures.restored_alert
    assert figures.specimen == "1/e at 300 (267–341) e⁻/Å²"
    assert (figures.budget_e_per_A2, figures.critical_e_per_A2) == (100.0, 300.0)


def test_words_for_what_is_not_known(session):  # noqa: F811
    state = replace(session.state, dose_rate_e_per_px_s=None)
    figures = dose_figures(RunStats(), None, state, None)
    assert figures.next_frame == figures.lasts == "–"
    assert figures.left == "no budget"
    assert figures.source.startswith("detected")
    assert figures.restored == figures.specimen == "not watched"
    assert figures.critical_e_per_A2 is None


def test_with_the_beam_on_a_frame_costs_its_interval(session):  # noqa: F811
    state = replace(session.state, running=True, blanked=False)
    # 25 e-/px/s at 0.1 nm/px are 25 e-/A2/s; a frame every 50 ms.
    figures = dose_figures(RunStats(), Cost(6.0, None, "incident"), state, None)
    assert figures.next_frame == "1.25 e⁻/Å²"


def test_invented_structure_is_marked(session):  # noqa: F811
    bad = SimpleNamespace(verdict="invented structure", frc_nm=None, equivalent_dose_e_per_px=None)
    figures = dose_figures(RunStats(), None, session.state, WatchState(bad, None, 1))
    assert figures.restored == "invented structure"
    assert figures.restored_alert


@pytest.fixture
def card():
    return MagicMock(spec=DoseCard)


@pytest.fixture
def controller(card, hub):  # noqa: F811
    made = DoseController(card, hub, ViewState(dose=True), Inline(), now=lambda: 10.0)
    hub.open("fake")
    return made


def test_figures_are_asked_for_and_shown(controller, card, session):  # noqa: F811
    session.budget_e_per_A2, session.total = 200.0, 80.0
    controller.tick()
    assert card.show_figures.call_args.args[0].left == "120 e⁻/Å²"
    assert card.show_curve.call_args.args == ([0.0], [80.0])


def test_watch_begins_and_ends(controller, card, session):  # noqa: F811
    controller.set_watch(True)
    assert session.watching == 1
    session.watch_state = WatchState(FIDELITY, None, 1)
    controller.set_watch(True)
    assert session.watching == 1
    controller.tick()
    assert card.show_figures.call_args.args[0].restored.startswith("good")
    controller.set_watch(False)
    assert session.watching == 0
    assert card.show_watch.call_args.args == (False, False, True)


def test_loop_begins_shows_what_it_does_and_ends(controller, card, session):  # noqa: F811
    controller.set_watch(True)
    controller.set_loop(True, 0.8)
    assert session.loop_nm == 0.8
    assert session.watching == 1
    assert card.show_watch.call_args.args == (True, True, True)
    controller.tick()
    assert card.show_figures.call_args.args[0].loop == "holds 0.8 nm"
    controller.set_loop(False, 0.8)
    assert session.loop_nm is None
    assert card.show_watch.call_args.args == (False, False, True)


def test_loop_that_ended_by_itself_is_not_shown_as_on(controller, card, session):  # noqa: F811
    controller.set_loop(True, 0.8)
    loop = controller._loop
    loop.state = replace(loop.state, active=False, text="off: changed by hand")
    controller.tick()
    assert card.show_watch.call_args.args == (False, False, True)
    assert card.show_figures.call_args.args[0].loop == "off: changed by hand"


def test_loop_that_is_refused_is_not_shown_as_on(controller, card, hub, session):  # noqa: F811
    session.state = replace(session.state, model="none")
    controller.set_loop(True, 0.8)
    assert card.show_watch.call_args.args == (False, False, True)
    assert any("choose a model" in text for _, text in hub.messages)


def test_a_loop_that_is_refused_leaves_the_watch_on(controller, card, session):  # noqa: F811
    session.watch_state = WatchState(FIDELITY, None, 1)
    controller.set_watch(True)
    session.state = replace(session.state, model="none")
    controller.set_loop(True, 0.8)
    assert session.watching == 1
    assert card.show_watch.call_args.args == (True, False, True)
    controller.tick()
    assert card.show_figures.call_args.args[0].restored.startswith("good")


def test_budget_is_set_taken_away_and_taken_from_the_damage(controller, session):  # noqa: F811
    controller.set_budget(50.0)
    assert session.budget_e_per_A2 == 50.0
    controller.set_budget(0.0)
    assert session.budget_e_per_A2 is None
    controller.take_critical()
    assert session.budget_e_per_A2 == 267.0


def test_unseen_card_is_not_drawn_but_history_goes_on(card, hub, session):  # noqa: F811
    view = ViewState(dose=False)
    made = DoseController(card, hub, view, Inline(), now=lambda: 10.0)
    hub.open("fake")
    made.tick()
    card.show_figures.assert_not_called()
    view.dose = True
    session.total = 5.0
    made.tick()
    assert card.show_curve.call_args.args[1] == [0.0, 5.0]


def test_card_shows_what_it_is_given(qtbot):
    card = DoseCard()
    qtbot.addWidget(card)
    history = DoseHistory()
    history.take(1000.0, 0.0, True, None)
    history.take(1002.0, 12.5, False, None)
    card.show_exposures(history.exposures)
    assert card.table.rowCount() == 1
    assert card.table.item(0, 2).text() == "12.5"
    wanted = []
    card.budget_edited.connect(wanted.append)
    card.budget.lineEdit().setText("40")
    qtbot.keyClick(card.budget, Qt.Key.Key_Return)
    assert wanted == [40.0]
    assert card.budget.text() == "40.0 e⁻/Å²"


def test_key_shows_and_hides_the_card(rig, qtbot):
    rig.open()
    assert not rig.window.dose.isVisible()
    qtbot.keyClick(rig.window, Qt.Key.Key_D)
    assert rig.window.dose.isVisible()
    qtbot.waitUntil(lambda: rig.window.dose.table.rowCount() == 1)
    assert rig.window.dose.values["next_frame"].text() == "1.25 e⁻/Å²"
    qtbot.keyClick(rig.window, Qt.Key.Key_D)
    assert not rig.window.dose.isVisible()
