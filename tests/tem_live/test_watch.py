"""Live frames judged beside the pipeline: which, when, and what is said of them."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tem_live import watch as watch_module
from tem_live.errors import InputError, RefusedError
from tem_live.run import run
from tem_live.session import Frame, FrameInfo, open_session
from tem_live.watch import Analyst, Pair, PairPicker, WatchState

SMALL = {
    "camera.sensor_height_px": 128,
    "camera.sensor_width_px": 128,
    "camera.exposure_s": 0.02,
    "restorer.model": "gaussian",
}


def info(frame_id: int, **changes: Any) -> FrameInfo:
    base = FrameInfo(
        frame_id=frame_id,
        sequence=frame_id,
        host_time_s=0.0,
        exposure_s=0.02,
        binning=1,
        pixel_size_nm=0.1,
        counts_per_electron=40.0,
        dose_e_per_px=5.0,
        fluence_e_per_A2=5.0,
        total_fluence_e_per_A2=5.0 * (frame_id + 1),
        dose_rate_e_per_px_s=250.0,
        blanked=False,
        model="gaussian",
    )
    return replace(base, **changes)


def frame(frame_id: int, side: int = 64, restored: bool = True, **changes: Any) -> Frame:
    plane = np.random.default_rng(frame_id).poisson(5.0, (side, side)).astype(np.float32)
    smooth = np.full_like(plane, plane.mean())
    return Frame(
        plane.astype(np.uint16), plane, smooth if restored else None, info(frame_id, **changes)
    )


class Feed:
    """Stands for a session's `subscribe`: hands over what the watch wants."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.ended = 0
        self.told: list[tuple[str, str]] = []

    def subscribe(
        self, receive: Callable[[Frame], None], wants: Callable[[FrameInfo, bool], bool]
    ) -> Callable[[], None]:
        self._receive, self._wants = receive, wants

        def end() -> None:
            self.ended += 1

        return end

    def tell(self, level: str, text: str) -> None:
        self.told.append((level, text))

    def push(self, frame: Frame) -> None:
        if self._wants(frame.meta, frame.restored is not None):
            self.taken.append(frame.meta.frame_id)
            self._receive(frame)


def picked(frames: list[Frame]) -> list[tuple[int, int]]:
    picker, pairs = PairPicker(), []
    for each in frames:
        pair = picker.take(each) if picker.wants(each.meta, each.restored is not None) else None
        if pair is not None:
            pairs.append((pair.first.meta.frame_id, pair.second.meta.frame_id))
    return pairs


def test_pairs_are_disjoint():
    assert picked([frame(i) for i in range(5)]) == [(0, 1), (2, 3)]


def test_the_first_frame_after_a_change_has_some_of_both_and_is_left_out():
    before = [frame(i) for i in range(3)]
    after = [frame(i, dose_rate_e_per_px_s=100.0) for i in range(3, 6)]
    assert picked(before + after) == [(0, 1), (4, 5)]


def test_a_late_frame_of_the_old_settings_is_no_second_change():
    new = {"exposure_s": 0.01}
    frames = [frame(0), frame(2, restored=False, **new), frame(1), frame(3, **new), frame(4, **new)]
    assert picked(frames) == [(3, 4)]


def test_frames_far_apart_or_not_alike_make_no_pair():
    assert picked([frame(0), frame(9), frame(10)]) == [(9, 10)]
    assert picked([frame(0), frame(1, model="fast"), frame(2, model="fast")]) == [(1, 2)]
    assert picked([frame(0), frame(1, dose_e_per_px=6.0)]) == []
    assert picked([frame(0, restored=False), frame(1), frame(2, blanked=True)]) == []


def test_a_shift_that_is_not_sure_is_none():
    still = Pair(frame(0, drift_px=(1.0, 2.0)), frame(1, drift_px=(1.1, 2.1)))
    moved = Pair(frame(0, drift_px=(1.0, 2.0)), frame(1, drift_px=(1.0, 4.0)))
    assert still.shift_px == (0.0, 0.0)
    assert moved.shift_px == (0.0, 2.0)
    assert Pair(frame(0), frame(1, drift_px=(9.0, 9.0))).shift_px == (0.0, 0.0)


def test_judges_pairs_and_misses_frames_while_it_works(monkeypatch):
    gate, working = threading.Event(), threading.Event()
    take = watch_module._Judge.take

    def slow(self: Any, frames: tuple[Frame, ...]) -> Any:
        working.set()
        assert gate.wait(20)
        return take(self, frames)

    monkeypatch.setattr(watch_module._Judge, "take", slow)
    feed, judged = Feed(), []
    watch = Analyst(feed.subscribe, feed.tell, share=1.0).watch()
    assert watch is not None
    with watch:
        watch.judged.connect(lambda pair, figures: judged.append((pair, figures)))
        for i in range(2):
            feed.push(frame(i))
        assert working.wait(20)
        for i in range(2, 8):
            # Never waits, and copies nothing.
            feed.push(frame(i))
        assert feed.taken == [0, 1]
        gate.set()
        assert watch.wait_for(lambda state: state.pairs == 1, 20)
    assert feed.ended == 1
    state = watch.state
    assert state.fidelity is not None
    assert state.fidelity.verdict == "doubtful"
    assert state.damage is not None
    assert state.damage.frames == 2
    assert not state.damage.known
    ((pair, figures),) = judged
    assert (pair.first.meta.frame_id, pair.second.meta.frame_id) == (0, 1)
    assert figures.dose_e_per_px == pytest.approx(5.0, rel=0.05)
    watch.close()


def test_another_dose_is_another_judgement_and_another_frame_size_another_specimen():
    judge = watch_module._Judge(fidelity=True, damage=True)
    for start, kinds in ((0, {}), (2, {})):
        judge.take((frame(start, **kinds), frame(start + 1, **kinds)))
    fidelity, damage = judge.state().fidelity, judge.state().damage
    assert fidelity is not None
    assert damage is not None
    assert (fidelity.frames, damage.frames) == (2, 4)
    weak = [frame(i) for i in (4, 5)]
    weak = [replace(f, electrons=0.5 * f.electrons) for f in weak]
    judge.take((weak[0], weak[1]))
    fidelity, damage = judge.state().fidelity, judge.state().damage
    assert fidelity is not None
    assert damage is not None
    assert (fidelity.frames, damage.frames) == (1, 6)
    judge.take((frame(6, side=96), frame(7, side=96)))
    damage = judge.state().damage
    assert damage is not None
    assert damage.frames == 2
    assert judge.state().pairs == 4


def test_says_why_there_is_nothing_to_judge():
    judge = watch_module._Judge(fidelity=True, damage=True)
    judge.take((frame(0, side=32), frame(1, side=32)))
    assert judge.state().fidelity is None
    assert "at least 64 px" in judge.state().note
    judge.take((frame(2, fluence_e_per_A2=None), frame(3, fluence_e_per_A2=None)))
    assert "fluence is unknown" in judge.state().note


def test_a_failure_ends_the_judging_and_is_told(monkeypatch):
    def broken(self: Any, frames: tuple[Frame, ...]) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(watch_module._Judge, "take", broken)
    feed, failed = Feed(), []
    analyst = Analyst(feed.subscribe, feed.tell)
    watch = analyst.watch()
    assert watch is not None
    with watch:
        watch.failed.connect(failed.append)
        for i in range(2):
            feed.push(frame(i))
        analyst._thread.join(20)
        feed.push(frame(2))
        assert feed.taken == [0, 1]
        assert analyst.watch() is None
    assert feed.ended == 1
    assert feed.told == [("error", "live analysis failed and is off: out of memory")]
    assert failed == ["live analysis failed and is off: out of memory"]


def test_another_part_of_the_specimen_is_judged_by_its_own_frames():
    feed, judged = Feed(), []
    analyst = Analyst(feed.subscribe, feed.tell, share=1.0)
    watch = analyst.watch()
    assert watch is not None
    with watch:
        watch.judged.connect(lambda pair, figures: judged.append(pair.first.meta.frame_id))
        for i in range(2):
            feed.push(frame(i))
        assert watch.wait_for(lambda state: state.pairs == 1, 20)
        assert watch.state.damage is not None
        analyst.begin_anew()
        # At once, not with the next frame: that may be long in coming.
        assert watch.wait_for(lambda state: state.damage is None, 20)
        assert watch.state.fidelity is None
        deadline = time.monotonic() + 20
        for number in range(20, 2000):
            feed.push(frame(number))
            time.sleep(0.005)
            if watch.state.pairs > 1 or time.monotonic() > deadline:
                break
        assert watch.wait_for(lambda state: state.pairs == 2, 20)
        assert watch.state.fidelity is not None
        assert watch.state.fidelity.frames == 1
        # 5 e-/A² a frame: what other places took is not counted.
        assert watch.state.damage is not None
        assert watch.state.damage.frames == 2
        assert watch.state.damage.fluence_e_per_A2 == pytest.approx(7.5)


def test_a_frame_from_before_a_move_makes_no_pair():
    picker = PairPicker()
    for i in range(3):
        assert picker.wants(info(i), True)
        pair = picker.take(frame(i)) if i != 1 else None
        assert pair is None or i == 2
    picker.begin_anew()
    # Late, but of what was in view.
    assert not picker.wants(info(2), True)
    assert picker.wants(info(3), True)
    assert picker.take(frame(3)) is None


@pytest.mark.parametrize("how", ["stage", "area"])
def test_moving_on_begins_the_judging_anew(how):
    with open_session("sim-damage", SMALL) as session:
        watch = session.watch()
        session.start()
        assert watch.wait_for(lambda state: state.damage is not None, 30)
        before = []
        watch.changed.connect(lambda state: before.append(state.damage is None))
        if how == "stage":
            session.move_stage(1.0, 0.5)
        else:
            session.area = "grid1-square2"
        assert watch.wait_for(lambda state: any(before), 30)
        assert watch.wait_for(lambda state: state.damage is not None, 30)
        # The same name again is the same area.
        before.clear()
        session.area = session.area
        seen = watch.state.pairs
        assert watch.wait_for(lambda state: state.pairs > seen, 30)
        assert not any(before)


def test_a_loop_ends_where_its_judge_fails(monkeypatch):
    def broken(self: Any, frames: tuple[Frame, ...]) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(watch_module._Judge, "take", broken)
    with open_session("sim-damage", SMALL) as session:
        loop = session.minimise(1.0)
        session.start()
        deadline = time.monotonic() + 30
        while loop.state.active and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not loop.state.active
        assert "live analysis failed" in loop.state.text


def test_no_share_of_a_core_is_refused():
    with pytest.raises(InputError, match="of a core"):
        Analyst(Feed().subscribe, Feed().tell, share=0.0)


def test_several_watches_share_the_work_until_the_last_is_closed():
    feed = Feed()
    analyst = Analyst(feed.subscribe, feed.tell, share=1.0)
    first, second = analyst.watch(), analyst.watch()
    assert first is not None
    assert second is not None
    for i in range(2):
        feed.push(frame(i))
    for each in (first, second):
        assert each.wait_for(lambda state: state.pairs == 1, 20)
    first.close()
    first.close()
    assert feed.ended == 0
    deadline = time.monotonic() + 20
    number = 2
    while second.state.pairs == 1 and time.monotonic() < deadline:
        # It rests between two pairs.
        feed.push(frame(number))
        number += 1
        time.sleep(0.005)
    assert (first.state.pairs, second.state.pairs) == (1, 2)
    third = analyst.watch()
    assert third is not None
    assert third.state.pairs == 2
    second.close()
    third.close()
    assert feed.ended == 1
    assert not analyst._thread.is_alive()


def test_of_a_watch_that_has_ended_only_what_it_knew_is_kept(monkeypatch):
    meters: list[weakref.ref[object]] = []
    made = watch_module.DamageMeter

    def remembered(pixel_size_nm: float | None) -> Any:
        meter = made(pixel_size_nm)
        meters.append(weakref.ref(meter))
        return meter

    monkeypatch.setattr(watch_module, "DamageMeter", remembered)
    feed = Feed()
    analyst = Analyst(feed.subscribe, feed.tell, share=1.0)
    watch = analyst.watch()
    assert watch is not None
    for i in range(2):
        feed.push(frame(i))
    assert watch.wait_for(lambda state: state.pairs == 1, 20)
    assert watch.live
    watch.close()
    assert not watch.live
    feed.push(frame(2))
    gc.collect()
    assert [meter() for meter in meters] == [None]
    assert watch.state.pairs == 1


def test_a_session_keeps_no_watches_that_have_ended():
    with open_session("sim-damage", SMALL) as session:
        session.start()
        for _ in range(4):
            with session.watch() as watch:
                assert watch.wait_for(lambda state: state.damage is not None, 20)
        known = session._judging._damage_seen()
        session.watch().close()
        assert len(session._judging._watches) == 1
        # What an ended one found stays true.
        assert known is not None
        assert session._judging._damage_seen() == known
        last = session.watch()
    assert not last.live


def test_a_watch_and_a_loop_of_one_session_analyse_once():
    with open_session("sim-damage", SMALL) as session:
        with session.watch(), session.watch(fidelity=False):
            loop = session.minimise(1.0)
            names = [t.name for t in threading.enumerate() if t.name == "tem-live watch"]
            assert len(names) == 2
        # The loop goes on being told.
        session.start()
        assert loop.watch.wait_for(lambda state: state.pairs > 0, 30)


def test_run_tells_fidelity_and_damage_when_asked():
    from tem_live.profiles import load_profile

    profile = load_profile("sim-damage", SMALL)
    figures = run(profile, frames=40, fidelity=True)
    assert figures["stop_reason"] == "frames"
    fidelity = figures["fidelity"]
    assert fidelity["verdict"] in ("good", "doubtful", "invented structure")
    assert {"frc_nm", "equivalent_dose_e_per_px", "pairs"} < set(fidelity)
    assert fidelity["pairs"] >= 1
    assert "critical fluence" in figures["damage"]["text"]
    without = run(profile, frames=2)
    assert without["fidelity"] is None
    assert without["damage"] is None


def test_critical_fluence_within_20_percent_live_and_as_the_budget():
    changes = {
        **SMALL,
        "camera.sensor_height_px": 256,
        "camera.sensor_width_px": 256,
        # Slow enough that a busy machine sees the specimen while it lasts.
        "camera.exposure_s": 0.1,
        "column.dose_rate_e_per_px_s": 60.0,
        "restorer.model": "none",
    }
    with open_session("sim-damage", changes) as session:
        with pytest.raises(RefusedError, match="nothing watches"):
            session.take_critical_fluence_as_budget()
        watch = session.watch()
        session.start()
        assert watch.wait_for(lambda state: state.damage is not None, 60)
        narrow = lambda state: state.damage.known and _half_width(state) < 0.15  # noqa: E731
        assert watch.wait_for(narrow, 60), watch.state
        budget = session.take_critical_fluence_as_budget()
        # More is spent than that by now, or soon.
        assert session.wait(60)
        assert session.stats().stop_reason == "budget"
        assert session.blanked
    damage = watch.state.damage
    assert damage is not None
    assert damage.critical_fluence_e_per_A2 == pytest.approx(300, rel=0.2)
    told = [text for level, text in session.messages if "critical fluence" in text]
    assert len(told) == 1
    # The lower end of an interval that was still wider.
    assert 150 < budget < 1.2 * 300
    assert session.budget_e_per_A2 == budget


def _half_width(state: WatchState) -> float:
    damage = state.damage
    if damage is None or damage.interval_e_per_A2 is None:
        return np.inf
    low, high = damage.interval_e_per_A2
    return (high - low) / 2 / (damage.critical_fluence_e_per_A2 or np.nan)


def test_a_budget_must_be_a_figure():
    with open_session("sim-damage", {**SMALL, "restorer.model": "none"}) as session:
        with pytest.raises(InputError, match="budget"):
            session.budget_e_per_A2 = -1.0
        session.budget_e_per_A2 = None
        session.watch(fidelity=False)
        with pytest.raises(RefusedError, match="no critical fluence"):
            session.take_critical_fluence_as_budget()
