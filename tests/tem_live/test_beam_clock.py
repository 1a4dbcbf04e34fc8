from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from tem_live.beam_clock import BeamClock, FrameTimes


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_is_known_before_a_rate_is(clock: Clock):
    beam = BeamClock(clock)
    beam.turn_on()
    clock.now += 1
    assert beam.fluence_e_per_A2 is None
    beam.set_rate(10.0)
    clock.now += 1
    assert beam.fluence_e_per_A2 == pytest.approx(10.0)
    beam.set_rate(None)
    clock.now += 1
    assert beam.fluence_e_per_A2 == pytest.approx(10.0)


def test_fluence_is_rate_times_unblanked_time(clock: Clock):
    beam = BeamClock(clock)
    began = clock.now
    for rate, on, seconds in ((100, True, 2), (100, False, 5), (30, False, 1), (30, True, 4)):
        beam.set_rate(rate)
        if on:
            beam.turn_on()
        else:
            beam.turn_off()
        clock.now += seconds
    assert beam.fluence_e_per_A2 == pytest.approx(320.0)
    for after, taken in ((-1, 0), (1, 100), (2, 200), (6, 200), (9, 230)):
        assert beam.fluence_at(began + after) == pytest.approx(taken)


def test_a_late_blanker_counts_until_it_has_moved(clock: Clock):
    beam = BeamClock(clock)
    beam.set_rate(100.0)
    beam.turn_on()
    clock.now += 1
    beam.turn_off(clock.now + 0.25)
    # To say it again is no second latency.
    clock.now += 0.1
    beam.turn_off(clock.now + 0.25)
    beam.set_rate(200.0)
    clock.now += 5
    assert beam.fluence_e_per_A2 == pytest.approx(100 + 10 + 30)
    assert beam.seconds_until(150) == math.inf
    # Nobody looks while it is off.
    beam.turn_on()
    beam.turn_off(clock.now + 0.25)
    clock.now += 10
    beam.turn_on()
    assert beam.fluence_e_per_A2 == pytest.approx(140 + 50)
    beam.turn_off()
    # On again before it had moved: it was never off.
    beam.turn_on()
    clock.now += 1
    beam.turn_off(clock.now + 0.25)
    clock.now += 0.1
    beam.turn_on()
    clock.now += 1
    assert beam.fluence_e_per_A2 == pytest.approx(190 + 200 * 2.1)


def test_off_in_the_past_takes_back_what_the_answer_took(clock: Clock):
    beam = BeamClock(clock)
    beam.set_rate(100.0)
    beam.turn_on()
    clock.now += 1
    returned = clock.now
    clock.now += 0.5  # reading back is slow
    beam.turn_off(returned)
    clock.now += 1
    assert beam.fluence_e_per_A2 == pytest.approx(100.0)


def test_a_rate_that_may_have_risen_before_counts_from_there(clock: Clock):
    beam = BeamClock(clock)
    beam.set_rate(10.0)
    beam.turn_on()
    clock.now += 5
    asked = clock.now
    clock.now += 1
    beam.set_rate(100.0, asked)
    assert beam.fluence_e_per_A2 == pytest.approx(50 + 100)
    # A fall is believed from when it was read back.
    asked = clock.now
    clock.now += 1
    beam.set_rate(10.0, asked)
    assert beam.fluence_e_per_A2 == pytest.approx(250)
    # No beam, nothing to count.
    beam.turn_off()
    asked = clock.now
    clock.now += 1
    beam.set_rate(100.0, asked)
    assert beam.fluence_e_per_A2 == pytest.approx(250)


def test_when_a_budget_is_reached(clock: Clock):
    beam = BeamClock(clock)
    assert beam.seconds_until(0.0) == 0
    assert beam.seconds_until(1.0) == math.inf
    beam.set_rate(10.0)
    beam.turn_on()
    clock.now += 1
    assert beam.seconds_until(25.0) == pytest.approx(1.5)


def test_a_long_history_is_thinned_and_its_sum_kept(clock: Clock):
    beam = BeamClock(clock)
    beam.set_rate(1.0)
    for _ in range(30_000):
        beam.turn_on()
        clock.now += 1
        beam.turn_off()
        clock.now += 1
    assert beam.fluence_e_per_A2 == pytest.approx(30_000)
    assert len(beam._times) <= 20_001


def test_threads_do_not_lose_fluence():
    beam = BeamClock()
    beam.set_rate(1.0)
    began = beam.now()
    beam.turn_on()

    def tell() -> None:
        for _ in range(2000):
            beam.set_rate(1.0)

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = beam.now()
    assert beam.fluence_at(ended) == pytest.approx(ended - began, abs=1e-3)


def test_frames_fetched_late_ended_when_it_was_their_turn():
    times = FrameTimes(0.1)
    arrivals = np.array([5.1, 5.2, 5.3, 5.9, 5.9, 5.9, 5.9, 5.9, 6.0])
    ended = [times.ended(n, arrival) for n, arrival in enumerate(arrivals)]
    assert ended == pytest.approx(5.1 + 0.1 * np.arange(9))


def test_a_camera_slower_than_it_says_is_followed():
    times = FrameTimes(0.1)
    ended = [times.ended(n, 5 + 0.101 * (n + 1)) for n in range(1000)]
    assert ended[-1] == pytest.approx(5 + 101.0, abs=0.1)
    assert np.all(np.diff(ended) >= 0)


def test_a_camera_faster_than_it_says_is_followed():
    times = FrameTimes(0.1)
    ended = [times.ended(n, 5 + 0.099 * (n + 1)) for n in range(1000)]
    assert ended[-1] == pytest.approx(5 + 99.0)


def test_the_end_of_a_series_is_known_from_a_camera_that_dates_its_frames():
    times = FrameTimes(0.1)
    assert times.will_end(99) is None
    for n, late in enumerate([0.0, 0.05, 0.3, 0.2]):
        # The device's clock began at 1000 when ours was 5, and dates the end of an exposure.
        times.dated(n, 5.1 + 0.1 * n + late, 1000.1 + 0.1 * n)
    assert times.will_end(99) == pytest.approx(5 + 10.0 + 0.05)


def test_a_slower_camera_is_waited_for():
    times = FrameTimes(0.1)
    for n in range(200):
        times.dated(n, 5 + 0.11 * (n + 1), 0.11 * n)
    assert times.will_end(299) == pytest.approx(5 + 0.11 * 300.5)


@pytest.mark.parametrize("dates", [[None, None], [0.0, 0.0], [5.0, 4.0], [0.0, 100.0]])
def test_no_end_is_known_without_sound_dates(dates: list[float | None]):
    times = FrameTimes(0.1)
    for n, date in enumerate(dates):
        times.dated(n, 5 + 0.1 * (n + 1), date)
    assert times.will_end(9) is None
