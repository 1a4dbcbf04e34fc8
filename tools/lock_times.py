"""How long a session's locks are held while it runs at full rate, records and is looked at.

    python tools/lock_times.py [--profile sim] [--seconds 20] [--set camera.sensor_height_px=2048]

Each lock that the program makes is timed: for every place in the code where one is made, how often
a second it was taken, how long it was held, and how long a thread waited for it, in ms. Beside the
session a thread asks for the newest frame, the rolling mean and the figures thirty times a second,
as the window does. A lock that a thread lets go of while it waits for news (a condition) is not
held meanwhile. Holding includes what the system takes the core away for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from arguments import positive
from printing import print_lines

from tem_live.threads import let_threads_sleep, switch_quickly

_LOOKS_PER_S = 30.0


@dataclass
class Place:
    """What was timed of the locks that one line of the program makes."""

    held_s: list[float] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)


class TimedLock:
    """A lock, or one that its thread may take again, that notes its times."""

    def __init__(self, lock: Any, place: Place) -> None:
        self._lock = lock
        self._place = place
        self._depth = 0
        self._since = 0.0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As that of `threading`."""
        asked = time.perf_counter()
        if not self._lock.acquire(blocking, timeout):
            return False
        self._depth += 1
        if self._depth == 1:
            self._since = time.perf_counter()
            self._place.waited_s.append(self._since - asked)
        return True

    def release(self) -> None:
        """As that of `threading`."""
        self._depth -= 1
        if self._depth == 0:
            self._place.held_s.append(time.perf_counter() - self._since)
        self._lock.release()

    def locked(self) -> bool:
        """As that of `threading`."""
        return self._depth > 0

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    # What a condition needs of a lock that may be taken twice.

    def _is_owned(self) -> bool:
        if hasattr(self._lock, "_is_owned"):
            return bool(self._lock._is_owned())
        return self._depth > 0

    def _release_save(self) -> int:
        depth, self._depth = self._depth, 1
        for _ in range(depth - 1):
            self._lock.release()
        self.release()
        return depth

    def _acquire_restore(self, depth: int) -> None:
        self.acquire()
        for _ in range(depth - 1):
            self._lock.acquire()
        self._depth = depth


@contextmanager
def timed_locks() -> Iterator[dict[str, Place]]:
    """Locks that the program makes meanwhile are timed; by the place where they are made."""
    places: dict[str, Place] = defaultdict(Place)
    package = _package()

    def timed(make: Callable[[], Any]) -> Callable[[], Any]:
        def made() -> Any:
            frame = sys._getframe(1)
            while frame.f_back is not None and frame.f_code.co_filename == threading.__file__:
                frame = frame.f_back
            path = Path(frame.f_code.co_filename).resolve()
            if not any(path.is_relative_to(folder) for folder in package):
                return make()
            name = "/".join(path.parts[-2:])
            return TimedLock(make(), places[f"{name}:{frame.f_lineno}"])

        return made

    before = threading.Lock, threading.RLock
    threading.Lock, threading.RLock = timed(before[0]), timed(before[1])  # type: ignore[assignment]
    try:
        yield places
    finally:
        threading.Lock, threading.RLock = before


def _package() -> list[Path]:
    import tem_live
    import tem_live.drivers
    import tem_live.gui
    import tem_live.models

    found = (tem_live, tem_live.drivers, tem_live.gui, tem_live.models)
    return [Path(module.__file__).resolve().parent for module in found if module.__file__]


def measure(profile: str, overrides: Sequence[str], seconds: float) -> Iterator[str]:
    """Run a session; a line for each place, those held longest first."""
    with timed_locks() as places, tempfile.TemporaryDirectory() as folder:
        from tem_live.session import open_session

        over = threading.Event()
        with open_session(profile, overrides) as session:

            def look() -> None:
                while not over.wait(1.0 / _LOOKS_PER_S):
                    session.newest_on_device()
                    session.rolling_mean_on_device()
                    session.stats()

            watcher = threading.Thread(target=look)
            session.record(Path(folder) / "locks.zarr")
            session.start()
            watcher.start()
            try:
                time.sleep(2.0)
                for place in places.values():
                    place.held_s.clear()
                    place.waited_s.clear()
                time.sleep(seconds)
                told = {name: _figures(place, seconds) for name, place in places.items()}
                stats = session.stats()
            finally:
                over.set()
                watcher.join()
                session.stop()
    yield f"{'made at':40} a second   held: median   99 %  longest | waited: longest (ms)"
    for name, figures in sorted(told.items(), key=lambda item: -item[1][3]):
        rate, median, p99, longest, waited = figures
        if rate:
            held = f"{median:14.3f} {p99:6.2f} {longest:8.2f}"
            yield f"{name:40} {rate:8.1f} {held} | {waited:8.2f}"
    yield f"{stats.fps:.1f} frames/s, {stats.restore_fps:.1f} restored, recording"


def _figures(place: Place, seconds: float) -> tuple[float, float, float, float, float]:
    held, waited = list(place.held_s), list(place.waited_s)
    if not held:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    median, p99 = (1e3 * float(np.percentile(held, q)) for q in (50, 99))
    return len(held) / seconds, median, p99, 1e3 * max(held), 1e3 * max(waited, default=0.0)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--profile", default="sim")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=positive, default=20.0)
    options = parser.parse_args(argv)
    let_threads_sleep()
    switch_quickly()
    return print_lines(measure(options.profile, options.set, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
