"""Locks are timed for the place that made them, and work as they did."""

from __future__ import annotations

import re
import threading
import time

import pytest

from tools import lock_times


def test_a_lock_notes_how_long_it_was_held_and_waited_for() -> None:
    place = lock_times.Place()
    lock = lock_times.TimedLock(threading.Lock(), place)
    with lock:
        assert lock.locked()
        assert not lock.acquire(blocking=False)
        waiting = threading.Thread(target=lambda: lock.acquire() and lock.release())
        waiting.start()
        time.sleep(0.3)
    waiting.join()
    assert not lock.locked()
    assert place.held_s[0] >= 0.3
    assert max(place.waited_s) >= 0.03
    assert len(place.held_s) == len(place.waited_s) == 2


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_a_lock_is_not_held_while_its_thread_waits_for_news(make) -> None:
    place = lock_times.Place()
    changed = threading.Condition(lock_times.TimedLock(make(), place))
    ready = threading.Event()
    seen = []

    def wait() -> None:
        with changed:
            ready.set()
            seen.append(changed.wait(10.0))

    waiting = threading.Thread(target=wait)
    waiting.start()
    ready.wait(10.0)
    time.sleep(0.5)
    with changed:
        changed.notify_all()
    waiting.join()
    assert seen == [True]
    assert max(place.held_s) < 0.5


def test_a_lock_that_may_be_taken_again_is_held_once() -> None:
    place = lock_times.Place()
    changed = threading.Condition(lock_times.TimedLock(threading.RLock(), place))
    with changed, changed:
        assert not changed.wait(0.01)
    assert len(place.held_s) == 2


def test_each_lock_of_a_session_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.Lock, threading.RLock
    small = ["--set", "camera.sensor_height_px=64", "--set", "camera.sensor_width_px=64"]
    assert lock_times.main([*small, "--set", "restorer.model=gaussian", "--seconds", "0.5"]) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert "longest" in head
    assert any(line.startswith("pipeline/processing.py:") for line in lines)
    longest = [float(re.split(r"\s+", line)[4]) for line in lines]
    assert longest == sorted(longest, reverse=True)
    assert "frames/s" in last
    assert (threading.Lock, threading.RLock) == before


def test_a_profile_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert lock_times.main(["--profile", "nowhere"]) != 0
    assert capsys.readouterr().err.startswith("error: no profile named 'nowhere'")
