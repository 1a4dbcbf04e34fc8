"""Controllers on views that only remember how they were called."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from tem_live.errors import DeviceError, RefusedError
from tem_live.gui.app import colour_table, starts_at_once
from tem_live.gui.controllers.display import DisplayController
from tem_live.gui.controllers.hub import SessionHub, one_line
from tem_live.gui.controllers.messages import MessageController
from tem_live.gui.controllers.panels import (
    BeamController,
    CameraController,
    RecordController,
    RestorerController,
)
from tem_live.gui.models.render import Extent
from tem_live.gui.models.settings import GuiSettings
from tem_live.gui.models.view_state import ViewState
from tem_live.gui.views.bars import MessageBar, PaneHeader
from tem_live.gui.views.deck import Deck
from tem_live.gui.views.image_pane import ImagePane
from tem_live.gui.views.panels import (
    BeamPanel,
    CameraPanel,
    DisplayPanel,
    RecordPanel,
    RestorerPanel,
)
from tem_live.state import RunStats


class Inline:
    """Runs jobs in place, or keeps them until told."""

    def __init__(self, wait=False):
        self.wait = wait
        self.jobs = []

    def submit(self, key, work, done=None, failed=None):
        self.jobs = [job for job in self.jobs if job[0] != key]
        self.jobs.append((key, work, done, failed))
        if not self.wait:
            self.run()

    def busy(self, key):
        return any(job[0] == key for job in self.jobs)

    def run(self):
        while self.jobs:
            _, work, done, failed = self.jobs.pop(0)
            try:
                result = work()
            except Exception as error:
                if failed is None:
                    raise
                failed(error)
            else:
                if done is not None:
                    done(result)


@pytest.fixture
def session(make_session):
    return make_session(shape=(64, 64))


@pytest.fixture
def settings_runner():
    return Inline()


@pytest.fixture
def hub(qapp, session, settings_runner):
    made = SessionHub(lambda profile, overrides: session, settings_runner, Inline())
    made.messages = []
    made.message.connect(lambda level, text: made.messages.append((level, text)))
    return made


def last(mock):
    return mock.call_args.args


def test_dose_rate_is_read_back_and_not_what_was_asked(hub):
    view = MagicMock(spec=BeamPanel)
    controller = BeamController(view, hub)
    hub.open("fake")
    controller.set_dose_rate(23.0)
    # The column takes steps of 5 only; pixels of 0.1 nm are one square angstrom.
    assert last(view.show_dose_rate) == (25.0, pytest.approx(25.0))


def test_pending_from_the_wish_to_the_answer(hub, settings_runner):
    view = MagicMock(spec=BeamPanel)
    controller = BeamController(view, hub)
    hub.open("fake")
    settings_runner.wait = True
    view.reset_mock()
    controller.set_dose_rate(50.0)
    view.show_rate_pending.assert_called_once_with(True)
    # News of something else must not overwrite what the user has just asked for.
    controller.show_state(hub.state)
    view.show_dose_rate.assert_not_called()
    settings_runner.run()
    assert last(view.show_rate_pending) == (False,)
    assert last(view.show_dose_rate)[0] == 50.0


def test_refused_setting_is_told_and_goes_back(hub):
    view = MagicMock(spec=CameraPanel)
    controller = CameraController(view, hub, MagicMock(), MagicMock(), GuiSettings())
    hub.open("fake")
    controller.set_exposure(0.0001)
    assert hub.messages == [("error", "the camera takes no exposure under 1 ms; ask for more")]
    assert last(view.show_exposure) == (0.2,)
    assert last(view.show_exposure_pending) == (False,)


def test_exposure_binning_and_region(hub, session):
    view = MagicMock(spec=CameraPanel)
    shown = []
    controller = CameraController(
        view,
        hub,
        lambda: ((0.0, 32.0, 16.0, 48.0), shown[-1]) if shown else None,
        MagicMock(),
        GuiSettings(),
    )
    hub.open("fake")
    assert last(view.show_capabilities) == (True, (0.001, 10.0), (1, 2, 4), True)
    controller.set_exposure(0.5)
    assert last(view.show_exposure) == (0.5,)
    controller.set_binning(2)
    assert last(view.show_binning) == (2,)
    controller.set_binning(1)
    controller.set_roi_from_view()
    assert session.state.roi == (0, 0, 64, 64)
    assert "no frame is shown" in hub.messages[-1][1]
    shown.append(session.make_frame().meta)
    controller.set_roi_from_view()
    assert session.state.roi == (16, 0, 32, 32)
    # The same picture is still on the screen: asked again, it is the same place.
    controller.set_roi_from_view()
    assert session.state.roi == (16, 0, 32, 32)
    controller.set_binning(2)
    controller.set_roi_from_view()
    assert session.state.roi == (16, 0, 32, 32)
    controller.set_roi_full()
    assert session.state.roi == (0, 0, 64, 64)


def test_reference_is_asked_for_first(hub, session):
    ask = MagicMock()
    settings = GuiSettings(reference_frames=16)
    view = MagicMock(spec=CameraPanel)
    controller = CameraController(view, hub, MagicMock(), ask, settings)
    controller.ask_for_reference("dark")
    ask.assert_not_called()
    hub.open("fake")
    controller.ask_for_reference("dark")
    kind, note, frames = last(ask)
    assert (kind, frames) == ("dark", 16)
    assert "blanked" in note
    controller.ask_for_reference("gain")
    assert "evenly spread" in last(ask)[1]
    session._set(blanked=None)
    hub._take_state(session.state)
    controller.ask_for_reference("dark")
    assert "by hand" in last(ask)[1]
    controller.take_reference("dark", 8)
    assert "reference dark 8" in session.calls
    assert settings.reference_frames == 8
    assert [call.args for call in view.show_reference_running.call_args_list] == [(True,), (False,)]


def test_no_reference_while_recording(hub, session, qapp):
    view = CameraPanel()
    controller = CameraController(view, hub, MagicMock(), MagicMock(), GuiSettings())
    hub.open("fake")
    assert view.dark.isEnabled()
    assert view.gain.isEnabled()
    session._set(recording=Path("run.temrec"))
    controller.show_state(session.state)
    assert not view.dark.isEnabled()
    assert not view.gain.isEnabled()
    assert "Stop the recording first" in view.dark.toolTip()
    view.show_reference_running(False)
    assert not view.gain.isEnabled()
    session._set(recording=None)
    controller.show_state(session.state)
    assert view.dark.isEnabled()
    assert view.gain.isEnabled()
    assert "beam blanked" in view.dark.toolTip()


def test_model(hub):
    view = MagicMock(spec=RestorerPanel)
    controller = RestorerController(view, hub)
    hub.open("fake")
    assert last(view.show_model) == ("fast", "cpu")
    controller.set_model("gaussian")
    assert last(view.show_model) == ("gaussian", "cpu")
    assert last(view.show_binning) == (1,)
    controller.set_binning(4)
    assert last(view.show_binning) == (4,)
    assert [call.args for call in view.show_binning_pending.call_args_list] == [(True,), (False,)]
    controller.show_models([("fast", "U-Net")])
    view.show_models.assert_called_once_with([("fast", "U-Net")])


def test_blanking_goes_the_short_way_and_unblanking_in_its_turn(hub, session):
    view = MagicMock(spec=BeamPanel)
    controller = BeamController(view, hub)
    hub.open("fake")
    controller.set_blanked(False)
    assert last(view.show_beam) == (False, False)
    controller.set_blanked(True)
    assert session.blank_calls == 1
    assert last(view.show_beam) == (True, False)


def test_emergency_has_the_last_word_over_what_was_asked_before(hub, session, settings_runner):
    view = MagicMock(spec=BeamPanel)
    controller = BeamController(view, hub)
    hub.open("fake")
    settings_runner.wait = True
    controller.set_blanked(False)
    hub.change("run", lambda opened: opened.start(), unblanks=True)
    hub.blank_now()
    settings_runner.run()
    assert session.state.blanked is True
    assert "start" not in session.calls
    assert not any("blanked" in call for call in session.calls if call.startswith("apply"))
    # What is asked for afterwards is done.
    controller.set_blanked(False)
    settings_runner.run()
    assert session.state.blanked is False


def test_emergency_during_a_start_blanks_again_after_it(hub, session):
    hub.open("fake")

    def start(opened):
        hub.blank_now()
        opened.start()

    hub.change("run", start, unblanks=True)
    assert session.state.blanked is True
    assert session.blank_calls == 2


def test_recording(hub, session, tmp_path):
    view = MagicMock(spec=RecordPanel)
    times = iter([datetime(2025, 1, 2, 3, 4, second) for second in range(5, 30, 5)])
    settings = GuiSettings(record_folder=str(tmp_path / "new"))
    controller = RecordController(view, hub, settings, MagicMock(), lambda: next(times))
    hub.open("fake")
    controller.toggle()
    assert session.state.recording == tmp_path / "new" / "fake_20250102-030405.zarr"
    assert (tmp_path / "new").is_dir()
    assert last(view.show_recording) == (True, False)
    controller.blink()
    assert last(view.show_blink) == (True,)
    controller.blink()
    assert last(view.show_blink) == (False,)
    controller.show_stats(RunStats(recorded=1234))
    assert last(view.show_progress) == ("1\u2009234 frames · 00:05",)
    controller.toggle()
    assert session.state.recording is None
    assert last(view.show_progress) == ("not recording",)
    assert hub.messages[-1][1].startswith("recording closed: ")
    controller.set_folder("elsewhere")
    assert settings.record_folder == "elsewhere"
    assert last(view.show_target) == ("elsewhere",)


def test_without_session_nothing_is_changed(hub):
    view = MagicMock(spec=BeamPanel)
    BeamController(view, hub).set_dose_rate(5.0)
    hub.blank_now()
    assert [level for level, _ in hub.messages] == ["warning", "warning"]


def test_late_answer_of_a_closed_session_is_dropped(qapp, make_session):
    first, second = make_session(name="first"), make_session(name="second", exposure_s=0.7)
    sessions = {"first": first, "second": second}
    runner = Inline()
    hub = SessionHub(lambda profile, overrides: sessions[profile], runner, Inline())
    states = []
    hub.open("first")
    runner.wait = True
    hub.change("exposure_s", lambda session: session.apply(exposure_s=0.9))
    hub.open("second")
    hub.state_changed.connect(states.append)
    runner.run()
    assert hub.session is second
    assert [state.exposure_s for state in states] == [0.7]
    assert first.closed
    assert first.blank_calls == 1


def test_session_that_opens_too_late_is_closed(qapp, make_session):
    first, second = make_session(name="first"), make_session(name="second")
    sessions = {"first": first, "second": second}
    runner = Inline()
    hub = SessionHub(lambda profile, overrides: sessions[profile], runner, Inline())
    runner.wait = True
    hub.open("first")
    _, work, done, _ = runner.jobs.pop()
    answer = work()
    hub.open("second")
    done(answer)
    runner.run()
    assert first.closed
    assert hub.session is second


def test_shutdown_while_opening_closes_what_was_opened(hub, session, settings_runner):
    ends = []
    hub.finished.connect(lambda: ends.append(session.closed))
    settings_runner.wait = True
    hub.open("fake")
    _, work, done, _ = settings_runner.jobs.pop()
    answer = work()
    hub.shutdown()
    assert ends == []
    done(answer)
    assert ends == [True]


def test_shutdown_before_opening_began_opens_nothing(hub, session, settings_runner):
    ends = []
    hub.finished.connect(lambda: ends.append(True))
    settings_runner.wait = True
    hub.open("fake")
    hub.shutdown()
    settings_runner.run()
    assert ends == [True]
    assert hub.session is None
    assert session.calls == []


def test_the_newest_state_is_shown_however_late_an_older_one_comes(hub, session, settings_runner):
    hub.open("fake")
    settings_runner.wait = True
    hub.change("blanked", lambda opened: opened.apply(blanked=False))
    _, work, done, _ = settings_runner.jobs.pop()
    answer = work()
    session.blank_now()
    done(answer)
    assert hub.state.blanked is True


def test_what_a_session_says_while_it_is_closed_is_heard(qapp, make_session):
    first, second = make_session(name="first"), make_session(name="second")
    first.blank_now = lambda: first.message.emit("error", "THE BEAM COULD NOT BE BLANKED")
    sessions = {"first": first, "second": second}
    hub = SessionHub(lambda profile, overrides: sessions[profile], Inline(), Inline())
    heard = []
    hub.message.connect(lambda *message: heard.append(message))
    hub.open("first")
    hub.open("second")
    qapp.processEvents()
    assert heard == [("error", "THE BEAM COULD NOT BE BLANKED")]


def test_closing_that_fails_is_told(qapp, make_session):
    first, second = make_session(name="first"), make_session(name="second")
    sessions = {"first": first, "second": second}

    def fails():
        raise DeviceError("the camera does not let go")

    first.close = fails
    hub = SessionHub(lambda profile, overrides: sessions[profile], Inline(), Inline())
    heard = []
    hub.message.connect(lambda *message: heard.append(message))
    hub.open("first")
    hub.open("second")
    assert heard == [("error", "the camera does not let go")]
    assert hub.session is second


@pytest.mark.parametrize("blanked", [True, False, None])
def test_beam_left_on_is_known_at_the_end(hub, session, blanked):
    ends = []
    hub.finished.connect(lambda: ends.append(hub.beam_left_on))
    hub.open("fake")
    session.blank_now = lambda: None
    session.close = lambda: session._set(blanked=blanked)
    hub.shutdown()
    assert ends == [blanked is False]


def test_error_text():
    assert one_line(RefusedError("no")) == "no"
    assert one_line(KeyError("x")).startswith("internal error, please report it: KeyError")


def test_messages_worst_and_newest_first(qapp):
    view = MagicMock(spec=MessageBar)
    messages = MessageController(view)
    messages.add("info", "a")
    messages.add("error", "b")
    assert last(view.show_message) == ("error", "b", 1)
    messages.add("warning", "c")
    assert last(view.show_message) == ("error", "b", 2)
    messages.add("warning", "c")
    assert last(view.show_message) == ("error", "b", 2)
    messages.dismiss()
    assert last(view.show_message) == ("warning", "c", 1)
    messages.dismiss()
    messages.dismiss()
    view.show_nothing.assert_called_once_with()
    messages.dismiss()


def test_only_harmless_instruments_start_by_themselves(make_session):
    session = make_session()
    assert starts_at_once(session, session.state)
    session.exposes_nothing = False
    assert not starts_at_once(session, session.state)


def test_colour_tables():
    assert colour_table("grey") is None
    for name in ("viridis", "inferno", "cividis"):
        assert colour_table(name).shape == (256, 3)


class Display:
    """Display controller on mocked views."""

    def __init__(self, hub, runner):
        self.raw = MagicMock(spec=ImagePane)
        self.restored = MagicMock(spec=ImagePane)
        for pane in (self.raw, self.restored):
            pane.zoom = 2.0
            pane.devicePixelRatioF.return_value = 1.0
            pane.visible_range.return_value = (0.0, 64.0, 0.0, 64.0)
        self.header = MagicMock(spec=PaneHeader)
        self.deck = MagicMock(spec=Deck)
        self.panel = MagicMock(spec=DisplayPanel)
        self.view = ViewState()
        self.controller = DisplayController(
            self.raw,
            self.restored,
            self.header,
            self.deck,
            self.panel,
            self.view,
            hub,
            runner,
            lambda name: None,
        )
        self.ids = []
        self.controller.shown.connect(lambda meta, restored: self.ids.append(meta.frame_id))


@pytest.fixture
def runner():
    return Inline()


@pytest.fixture
def display(hub, session, runner):
    made = Display(hub, runner)
    hub.open("fake")
    session.start()
    return made


def test_both_panes_show_the_same_frame(display, session):
    frames = []
    make = session.make_frame
    session.make_frame = lambda: frames.append(make()) or frames[-1]
    for _ in range(3):
        display.controller.tick()
    assert display.ids == [0, 1, 2]
    pair = display.controller._pair
    np.testing.assert_array_equal(pair.raw.plane.part(), frames[-1].electrons)
    np.testing.assert_array_equal(pair.restored.plane.part(), frames[-1].restored)
    assert last(display.header.show_frame) == ("Frame 2",)
    assert last(display.raw.show_image)[0] is pair.raw.image
    assert last(display.restored.show_image)[0] is pair.restored.image


def test_no_frame_is_taken_while_one_is_prepared(display, session, runner):
    runner.wait = True
    for _ in range(5):
        display.controller.tick()
    # Not even taken on the GUI thread: taking copies the frame.
    assert session.frame_id == 0
    runner.run()
    assert session.frame_id == 1
    assert display.ids == [0]


def test_frame_of_a_session_that_is_gone_is_dropped(display, hub, runner):
    runner.wait = True
    display.controller.tick()
    hub.open("other")
    display.raw.reset_mock()
    runner.run()
    assert display.ids == []
    display.raw.show_image.assert_not_called()


def test_hold_shows_raw_and_comes_back(display):
    display.controller.tick()
    pair = display.controller._pair
    display.controller.hold_raw(True)
    assert last(display.restored.show_image)[0] is pair.raw.image
    assert last(display.header.show_right) == ("Raw", "held")
    assert last(display.restored.show_badge) == ("showing raw",)
    display.controller.hold_raw(False)
    assert last(display.restored.show_image)[0] is pair.restored.image
    assert last(display.header.show_right) == ("Restored", "fast")
    assert last(display.restored.show_badge) == ("",)


def test_a_frame_that_was_restored_binned_says_so(display, session):
    plain = session.make_frame()
    session.make_frame = lambda: replace(plain, meta=replace(plain.meta, restore_binning=2))
    display.controller.tick()
    assert last(display.header.show_right) == ("Restored", "fast · binned 2 × 2")


def test_frame_without_restored_plane_never_stands_beside_an_older_one(display, session):
    display.controller.tick()
    session._set(model="none")
    display.restored.reset_mock()
    display.controller.tick()
    display.restored.show_image.assert_not_called()
    display.restored.show_nothing.assert_called_with("no restorer chosen")


def test_levels_by_hand_per_pane_and_shared(display):
    controller = display.controller
    drag = display.raw.levels_dragged.connect.call_args.args[0]
    drag(2.0, 8.0)
    assert (controller.raw_levels.auto, controller.restored_levels.auto) == (False, True)
    assert display.panel.show_switches.call_args.kwargs["auto"] is False
    controller.tick()
    assert controller._pair.raw.levels == (2.0, 8.0)
    display.view.shared_levels = True
    drag(3.0, 9.0)
    controller.tick()
    assert controller._pair.raw.levels == controller._pair.restored.levels == (3.0, 9.0)
    display.raw.auto_requested.connect.call_args.args[0]()
    assert controller.raw_levels.auto
    assert controller.restored_levels.auto


def test_answer_on_its_way_does_not_overwrite_levels_by_hand(display, runner):
    runner.wait = True
    display.controller.tick()
    display.raw.levels_dragged.connect.call_args.args[0](2.0, 8.0)
    runner.run()
    levels = display.controller.raw_levels
    assert (levels.low, levels.high, levels.auto) == (2.0, 8.0, False)
    assert last(display.raw.show_levels)[1:] == (2.0, 8.0, False)


def test_scale_bar_follows_the_pixel_size_of_the_frame(display, session):
    display.controller.tick()
    bar, note = last(display.raw.show_scale_bar)
    assert (bar.text, note) == ("5 nm", "")
    session._set(pixel_size_nm=0.2)
    display.controller.tick()
    assert last(display.raw.show_scale_bar)[0].text == "10 nm"
    session._set(pixel_size_nm=None)
    display.controller.tick()
    assert last(display.raw.show_scale_bar) == (None, "no calibration")


def test_spectrum_and_profile_only_when_wanted(display):
    display.controller.tick()
    display.deck.show_spectra.assert_not_called()
    display.view.spectrum = True
    display.view.profile = True
    assert last(display.deck.show_parts) == (True, True, False)
    display.controller.tick()
    assert last(display.deck.show_spectra)[2:] == (pytest.approx(5.0), False)
    distance, raw, restored, unit = last(display.deck.show_profile)
    assert unit == "nm"
    assert distance.shape == raw.shape == restored.shape
    assert display.view.line == ((12.8, 32.0), (51.2, 32.0))
    assert last(display.raw.show_line) == (display.view.line,)


def test_stopped_frame_is_drawn_again_when_the_view_changes(display, session):
    display.controller.tick()
    session._set(running=False)
    display.controller.tick()
    assert display.ids == [0]
    display.view.profile = True
    display.controller.tick()
    assert display.ids == [0, 0]
    display.controller._on_line_moved(((1.0, 1.0), (9.0, 9.0)))
    display.controller.tick()
    assert display.controller._pair.profile_nm.size == 13


def test_large_frames_are_shrunk_to_the_screen(display):
    display.raw.zoom = 0.2
    display.controller.tick()
    pair = display.controller._pair
    assert pair.raw.image.shape == (16, 16)
    assert last(display.raw.show_image)[1:] == (Extent(0, 0, 64, 64), (64, 64))
    display.raw.zoom = 3.0
    display.raw.zoom_changed.connect.call_args.args[0](3.0)
    display.controller.tick()
    assert display.controller._pair.raw.image.shape == (64, 64)


def test_a_frame_smaller_than_a_pixel_of_the_screen_is_drawn_once(display, session):
    display.raw.zoom = 0.001
    display.controller.tick()
    assert display.controller._pair.raw.image.shape == (1, 1)
    session._set(running=False)
    display.controller.tick()
    assert display.ids == [0]


def test_only_what_either_pane_shows_is_drawn(display, session):
    display.controller.tick()
    session._set(running=False)
    display.raw.visible_range.return_value = (20.0, 28.0, 32.0, 40.0)
    display.restored.visible_range.return_value = (20.0, 24.0, 32.0, 44.0)
    display.controller.tick()
    # Nothing of it is missing on the screen.
    assert display.ids == [0]
    session._set(running=True)
    display.controller.tick()
    pair = display.controller._pair
    assert pair.raw.extent == pair.restored.extent == Extent(29, 18, 18, 12)
    assert last(display.raw.show_image) == (pair.raw.image, pair.raw.extent, (64, 64))
    assert pair.raw.image.shape == (18, 12)
    # The line of the profile, the pointer and the levels are those of the frame.
    display.controller._on_pointer(63.0, 1.0)
    assert last(display.raw.show_readout)[0].startswith("x 63  y 1   ")
    seen = list(display.ids)
    session._set(running=False)
    for pane in (display.raw, display.restored):
        pane.visible_range.return_value = (21.0, 29.0, 32.0, 40.0)
    display.controller.tick()
    assert display.ids == seen
    for pane in (display.raw, display.restored):
        pane.visible_range.return_value = (24.0, 32.0, 32.0, 40.0)
    display.controller.tick()
    assert display.ids == [*seen, seen[-1]]
    assert display.controller._pair.raw.extent == Extent(30, 22, 12, 12)


def test_a_frame_of_another_shape_is_drawn_as_a_whole(display, session):
    display.controller.tick()
    for pane in (display.raw, display.restored):
        pane.visible_range.return_value = (20.0, 28.0, 32.0, 40.0)
    plain = session.make_frame()
    small = replace(plain, electrons=plain.electrons[:32], restored=plain.restored[:32])
    session.make_frame = lambda: small
    display.controller.tick()
    assert display.controller._pair.raw.extent == Extent(0, 0, 32, 64)


def test_rolling_mean_is_named(display):
    display.view.rolling_mean = True
    display.controller.tick()
    assert last(display.header.show_left)[0] == "Rolling mean"


def test_value_under_the_pointer_in_both_panes(display):
    display.controller.tick()
    display.controller._on_pointer(10.7, 20.2)
    value = display.controller._pair.raw.plane.at(20, 10)
    assert last(display.raw.show_readout)[0].startswith("x 10  y 20   ")
    assert f"{value:.0f}"[0] in last(display.raw.show_readout)[0]
    assert last(display.restored.show_readout)[0].endswith("e⁻/px")
    display.controller._on_pointer(float("nan"), float("nan"))
    assert last(display.raw.show_readout) == ("",)


def test_keys_toggle(display):
    display.controller.toggle("spectrum")
    assert display.view.spectrum
    display.controller.toggle("auto")
    assert not display.controller.raw_levels.auto
    display.controller.toggle("auto")
    assert display.controller.raw_levels.auto


def test_stats_are_fetched_beside_the_gui(display, session, runner):
    seen = []
    display.controller.stats_changed.connect(seen.append)
    runner.wait = True
    display.controller.poll_stats()
    display.controller.poll_stats()
    assert len(runner.jobs) == 1
    runner.run()
    assert seen[0].fps == 19.8


def test_recording_controller_survives_a_lost_session(hub, session, tmp_path):
    view = MagicMock(spec=RecordPanel)
    settings = GuiSettings(record_folder=str(tmp_path))
    controller = RecordController(view, hub, settings, MagicMock())
    hub.open("fake")
    controller.begin(lambda opened: opened.record(Path("given.zarr")))
    assert last(view.show_target) == ("given.zarr",)
    hub.open("fake")
    assert last(view.show_recording) == (False, False)
