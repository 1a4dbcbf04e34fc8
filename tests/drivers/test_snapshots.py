"""A thread that owns a connection, and exposures that are asked for on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from tem_live.drivers.snapshots import Image, Snapshots
from tem_live.drivers.worker import Worker


class Connections:
    def __init__(self) -> None:
        self.made = 0

    def connect(self) -> int:
        self.made += 1
        return self.made


@pytest.fixture
def connections() -> Connections:
    return Connections()


@pytest.fixture
def worker(connections: Connections) -> Iterator[Worker[int]]:
    worker = Worker("a test's", connections.connect)
    yield worker
    worker.close()


def fail(connection: int) -> None:
    raise OSError("gone")


def test_tasks_are_done_in_order_on_one_thread(worker: Worker[int]) -> None:
    done: list[tuple[int, str]] = []
    answers = [
        worker.submit(lambda _, n=n: done.append((n, threading.current_thread().name)))  # type: ignore[misc]
        for n in range(5)
    ]
    for answer in answers:
        answer.result(5)
    assert done == [(n, "a test's") for n in range(5)]


def test_a_connection_that_failed_is_made_again(
    worker: Worker[int], connections: Connections
) -> None:
    assert worker.call(lambda connection: connection, 5) == 1
    with pytest.raises(OSError, match="gone"):
        worker.call(fail, 5)
    assert worker.call(lambda connection: connection, 5) == 2
    assert connections.made == 2


def test_what_was_given_up_before_it_began_is_never_done(worker: Worker[int]) -> None:
    gate = threading.Event()
    worker.submit(lambda _: gate.wait(10))
    done = threading.Event()
    with pytest.raises(TimeoutError):
        worker.call(lambda _: done.set(), 0.02)
    gate.set()
    worker.call(lambda _: None, 5)
    assert not done.is_set()


def test_a_tasks_own_timeout_is_told(worker: Worker[int]) -> None:
    def late(_: int) -> None:
        raise TimeoutError("the socket's")

    with pytest.raises(TimeoutError, match="the socket's"):
        worker.call(late, 5)


def test_closing_ends_the_thread() -> None:
    before = set(threading.enumerate())
    worker = Worker("a test's", lambda: None)
    worker.submit(lambda _: None)
    worker.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert set(threading.enumerate()) <= before


class Camera:
    """Counts what it is asked for; each exposure ends when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Future[Image]] = []

    def expose(self) -> Future[Image]:
        self.asked.append(Future())
        return self.asked[-1]


def image(number: int) -> Image:
    return np.full((2, 3), number)


def test_a_series_asks_for_its_exposures_and_no_more() -> None:
    camera = Camera()
    series = Snapshots(camera.expose)
    series.start(3)
    for number in range(3):
        assert len(camera.asked) == number + 1
        assert series.next(0.0) is None
        camera.asked[-1].set_result(image(number))
        taken = series.next(0.0)
        assert taken is not None
        assert taken[0, 0] == number
    assert series.next(0.0) is None
    assert len(camera.asked) == 3


def test_a_failed_exposure_is_replaced_when_somebody_asks() -> None:
    camera = Camera()
    series = Snapshots(camera.expose)
    series.start(1)
    camera.asked[0].set_exception(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        series.next(0.0)
    assert len(camera.asked) == 1
    assert series.next(0.0) is None
    assert len(camera.asked) == 2
    camera.asked[1].set_result(image(7))
    assert series.next(0.0) is not None
    assert series.next(0.0) is None
    assert len(camera.asked) == 2


def test_a_stop_takes_back_what_has_not_begun() -> None:
    camera = Camera()
    series = Snapshots(camera.expose)
    series.start(None)
    series.stop()
    with pytest.raises(CancelledError):
        camera.asked[0].result(0)
    assert series.next(0.0) is None
    assert len(camera.asked) == 1


def test_a_series_of_none_asks_for_nothing() -> None:
    camera = Camera()
    Snapshots(camera.expose).start(0)
    assert camera.asked == []
