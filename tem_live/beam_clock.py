"""Incident fluence: the dose rate at the specimen, integrated while the beam is on it.

What a detector sees misses what the specimen scatters out of its way and all that comes while no
frame is taken. `BeamClock` counts what comes in instead: it is told when the beam goes on and off
and when its dose rate changes, and knows the fluence at any time. Where it is in doubt it counts
too much: the session says "on" before it unblanks, and "off" after the blanker has answered, plus
the blanker's latency.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable

_KEPT = 20_000
"""Changes of the beam that are remembered; frames are booked within a few of them."""


class BeamClock:
    """Integrates the dose rate over the time that the beam was on. Thread-safe.

    Parameters
    ----------
    clock : callable
        Monotonic time in seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._on = False
        self._off_at = -math.inf
        self._rate: float | None = None
        self._known = False
        # From each time on, until the next: the dose rate, and the fluence at its beginning.
        self._times = [clock()]
        self._rates = [0.0]
        self._fluences = [0.0]

    def now(self) -> float:
        """Time in seconds, as it is to be given to the other methods."""
        return self._clock()

    @property
    def on(self) -> bool:
        """Whether the beam was last said to be on the specimen."""
        return self._on

    @property
    def rate_e_per_A2_s(self) -> float | None:
        """Incident dose rate with the beam on in e-/A^2/s; None where nobody knows it."""
        return self._rate

    @property
    def fluence_e_per_A2(self) -> float | None:
        """Incident fluence until now in e-/A^2; None if no rate was ever known."""
        return self.fluence_at(self._clock()) if self._known else None

    def set_rate(self, rate_e_per_A2_s: float | None, since_s: float | None = None) -> None:
        """From now on the dose rate is this one, beam on or off.

        Parameters
        ----------
        rate_e_per_A2_s : float or None
            In e-/A^2/s; None where it is unknown.
        since_s : float, optional
            Time of the clock from which on it may have been so: where it is higher than before,
            it is counted from there.
        """
        with self._lock:
            now = self._clock()
            self._rate = rate_e_per_A2_s
            self._known = self._known or rate_e_per_A2_s is not None
            self._note(now)
            if since_s is not None:
                # Before the last entry, which is of now, the one before it held.
                more = self._rates[-1] - self._rates[-2]
                doubtful_s = self._times[-1] - max(since_s, self._times[-2])
                self._fluences[-1] += max(more, 0.0) * max(doubtful_s, 0.0)

    def turn_on(self) -> None:
        """The beam is on from now."""
        with self._lock:
            now = self._clock()
            self._settle(now)
            self._on = True
            self._note(now)

    def turn_off(self, at_s: float | None = None) -> None:
        """The beam goes off at a time of the clock, which may lie ahead; by default now.

        Where it was off already nothing changes.
        """
        with self._lock:
            now = self._clock()
            if self._on:
                self._off_at = now if at_s is None else at_s
            self._on = False
            self._note(min(now, self._off_at))

    def fluence_at(self, time_s: float) -> float:
        """Incident fluence in e-/A^2 at a time of the clock, not after now."""
        with self._lock:
            self._settle(self._clock())
            last = max(bisect_right(self._times, time_s) - 1, 0)
            since_s = max(time_s - self._times[last], 0.0)
            return self._fluences[last] + since_s * self._rates[last]

    def seconds_until(self, fluence_e_per_A2: float) -> float:
        """Seconds until the fluence is reached if all stays as it is; infinite with no beam."""
        with self._lock:
            now = self._clock()
            self._settle(now)
            rate = self._rates[-1]
            missing = fluence_e_per_A2 - self._fluences[-1] - (now - self._times[-1]) * rate
        if missing <= 0:
            return 0.0
        return missing / rate if rate > 0 else math.inf

    def _note(self, now: float) -> None:
        self._settle(now)
        flows = self._on or now < self._off_at
        self._append(now, (self._rate or 0.0) if flows else 0.0)

    def _settle(self, now: float) -> None:
        """Write down that a late blanker has taken the beam off, if it has by now."""
        if not self._on and self._rates[-1] and now >= self._off_at:
            self._append(self._off_at, 0.0)

    def _append(self, time_s: float, rate_e_per_A2_s: float) -> None:
        # Two threads may note the same change in the other order: time does not go back.
        time_s = max(time_s, self._times[-1])
        self._fluences.append(self._fluences[-1] + (time_s - self._times[-1]) * self._rates[-1])
        self._times.append(time_s)
        self._rates.append(rate_e_per_A2_s)
        if len(self._times) > _KEPT:
            for history in (self._times, self._rates, self._fluences):
                del history[: _KEPT // 2]


class FrameTimes:
    """When frames ended, from when they arrived and how long they are apart.

    A frame can wait in the camera's buffer before it is fetched, but never arrives early: what it
    arrives after its turn, counted in frame intervals, is no less than the true delay. The least
    of the last `WINDOW` frames is taken for it, so that a burst of late frames is told apart from
    a camera whose clock runs slower than it says.

    Parameters
    ----------
    interval_s : float
        Time from one frame to the next in seconds.
    """

    WINDOW = 64

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._delays: list[float] = []
        self._dates: list[tuple[int, float, float]] = []
        self.last_s = -math.inf
        """Time at which the last frame ended."""

    def ended(self, sequence: int, arrival_s: float) -> float:
        """Time at which the frame of that number ended; no earlier than the one before it."""
        turn_s = (sequence + 1) * self.interval_s
        self._delays.append(arrival_s - turn_s)
        del self._delays[: -self.WINDOW]
        self.last_s = max(self.last_s, min(turn_s + min(self._delays), arrival_s))
        return self.last_s

    def dated(self, sequence: int, arrival_s: float, device_time_s: float | None) -> None:
        """Take note of the device's own date of a frame, where it gives one."""
        if device_time_s is None:
            return
        self._dates.append((sequence, device_time_s, arrival_s - device_time_s))
        # The first one stays: the longer the way, the better the interval is known.
        del self._dates[1 : -self.WINDOW]

    def will_end(self, sequence: int) -> float | None:
        """Time by which a frame to come has ended; None where that is not known for sure.

        By arrivals alone a camera that is slow cannot be told from one that is fetched slowly, so
        this takes a camera that dates its frames, at about the interval that it says.
        """
        if len(self._dates) < 2:
            return None
        (first, first_s, _), (last, last_s, _) = self._dates[0], self._dates[-1]
        interval_s = (last_s - first_s) / max(last - first, 1)
        if not 0.9 * self.interval_s <= interval_s <= 1.5 * self.interval_s:
            return None
        delay_s = min(delay for _, _, delay in self._dates)
        ahead = sequence - last + 0.5
        return last_s + delay_s + ahead * max(interval_s, self.interval_s)
