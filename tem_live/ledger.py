"""The dose ledger: what each specimen area has taken, on disk, across sessions.

One folder an area, one file a session, one JSON object a line, in the order in which it happened:

- ``{"ledger": 1, "area": ..., "profile": ..., "began": ..., "before_e_per_A2": ...}`` first;
- ``{"exposure": N, ...}``: a run of N frames (null: without end), with its cost before it is taken;
- ``{"beam": "on" | "off", ...}``: the beam came on, or went off the specimen;
- ``{"frame": id, ...}``: a frame was finished, and is booked with the time since the one before;
- ``{"rest": true, ...}``: what came in after the last frame is booked;
- ``{"place": {...}, "since": id}``: from here on, or from that frame on (null: from here), this
  part of the specimen is lit; see `tem_live.fluence_map`.

All but the first have ``time_s`` (``time.time()``); the last three have ``total_e_per_A2`` of the
session and ``source``, ``incident`` or ``detected``; the last two have ``e_per_A2``, which add up
to the total. Lines are only ever added. A thread of the ledger hands each to the operating system
at once, and whoever books a frame waits for that, so that a program that is killed loses none; but
no longer than `PATIENCE_S`, so that a disk that hangs holds up neither frames nor blanking. What
waits meanwhile is written when the disk answers again; that it does not is told after `SILENT_S`.
Another thread forces the lines onto the disk within `SYNC_S`, so that a host that stops loses no
more than that. A line that was cut short is the last one and is ignored.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tem_live.errors import RecordingError
from tem_live.ledger_reading import area_folder, summarise

if TYPE_CHECKING:
    from tem_live.fluence_map import Place

DoseSource = Literal["incident", "detected"]

SYNC_S = 1.0
"""Longest time between a line and its being forced onto the disk, in seconds."""

PATIENCE_S = 0.05
"""Longest wait for a line to be written, in seconds, and once only while the disk hangs."""

SILENT_S = 5.0
"""A disk that takes so long over one line, in seconds, is told as an error."""

CLOSING_S = 5.0
"""Longest wait for what is left to be written when a ledger is closed, in seconds."""


class Ledger:
    """The ledger of one session on one area. Any thread may book.

    Parameters
    ----------
    area : str or None
        Name of the specimen area; what earlier sessions booked on it counts on. None: a file of
        its own that no other session adds to.
    profile : str
        Name of the instrument's profile.
    on_error : callable of RecordingError
        Called on a thread of the ledger when it cannot be written, once, after which bookings go
        on in memory; and once when the disk does not answer.
    folder : Path, optional
        Where ledgers are; by default the user's data folder.

    Raises
    ------
    InputError
        The name cannot be that of a folder.
    RecordingError
        Earlier sessions on this area cannot be read.
    """

    def __init__(
        self,
        area: str | None,
        profile: str,
        on_error: Callable[[RecordingError], None] = lambda error: None,
        folder: Path | None = None,
    ) -> None:
        self.area = area
        self._profile = profile
        self._on_error = on_error
        self._folder = area_folder(area, folder)
        earlier = summarise(area, folder) if area is not None else None
        self.before_e_per_A2 = earlier.fluence_e_per_A2 if earlier else 0.0
        """What earlier sessions booked on this area, in e-/A^2."""
        self.open_since = earlier.open_since if earlier else None
        """See `ledger_reading.AreaSummary.open_since`."""
        self.path: Path | None = None
        """File of this session, once something was booked."""
        self._total = 0.0
        self._file: io.FileIO | None = None
        self._broken = False
        self._closed = False
        self._begun = False
        self._place: dict[str, Any] | None = None
        self._waiting: deque[dict[str, Any]] = deque()
        self._lines = 0
        self._hangs = False
        self._writing_since: float | None = None
        self._told_silent = False
        # Never held while a file is written or anybody is told.
        self._changed = threading.Condition(threading.RLock())
        self._dirty = threading.Event()
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def total_e_per_A2(self) -> float:
        """What was booked in this session, in e-/A^2."""
        return self._total

    def exposure(
        self,
        frames: int | None,
        exposure_s: float,
        cost_e_per_A2: float | None,
        left_e_per_A2: float | None,
    ) -> None:
        """Write down a run before it is taken: its length and what it will cost, if known."""
        line = self._write(
            {
                "exposure": frames,
                "time_s": time.time(),
                "exposure_s": exposure_s,
                "cost_e_per_A2": cost_e_per_A2,
                "left_e_per_A2": left_e_per_A2,
            }
        )
        self._begin_places()
        self._await(line)

    def beam(
        self,
        on: bool,
        total_e_per_A2: float,
        source: DoseSource,
        dose_rate_e_per_A2_s: float | None,
    ) -> None:
        """Write down that the beam came on, or went off; never waits."""
        self._write(
            {
                "beam": "on" if on else "off",
                "time_s": time.time(),
                "total_e_per_A2": _digits(total_e_per_A2),
                "source": source,
                "dose_rate_e_per_A2_s": dose_rate_e_per_A2_s,
            }
        )
        self._begin_places()

    def place(self, place: Place, since: int | None = None) -> None:
        """Write down which part of the specimen is lit from now on; never waits.

        ``since`` is the id of a frame from which on it was so, of which it was found out later.
        Nothing is written before anything else is.
        """
        entry = {"place": place.as_dict(), "since": since}
        with self._changed:
            self._place = entry
            if self._begun:
                self._write({**entry, "time_s": time.time()})

    def _begin_places(self) -> None:
        with self._changed:
            if not self._begun:
                self._begun = True
                if self._place is not None:
                    self._write({**self._place, "since": None, "time_s": time.time()})

    def frame(self, frame_id: int, total_e_per_A2: float, source: DoseSource) -> None:
        """Book all up to the end of a frame; returns when it is written, or the disk hangs.

        Parameters
        ----------
        frame_id : int
            The frame's id in the session.
        total_e_per_A2 : float
            Fluence of the session until then, in e-/A^2.
        source : {"incident", "detected"}
            Whether it is what came in, or what the camera saw of it.
        """
        self._await(self._book({"frame": frame_id}, total_e_per_A2, source))

    def rest(self, total_e_per_A2: float, source: DoseSource) -> None:
        """Book what came in since the last frame, if anything did; never waits."""
        if total_e_per_A2 > self._total:
            self._book({"rest": True}, total_e_per_A2, source)

    def close(self) -> None:
        """Write what waits, force it onto the disk and close the file; idempotent.

        A disk that does not answer is waited for `CLOSING_S`, and left to its threads then.
        """
        with self._changed:
            self._closed = True
            threads, self._threads = self._threads, []
            self._changed.notify_all()
        deadline = time.monotonic() + CLOSING_S
        for thread in threads:
            # Whoever was told of an error, on such a thread, may be who closes.
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.0))
        with self._changed:
            left = len(self._waiting)
        if threads and left:
            self._on_error(
                RecordingError(
                    f"the dose ledger {self.path or self._folder} lacks its last {left} lines: the "
                    "disk does not answer"
                )
            )

    @property
    def broken(self) -> bool:
        """Whether it could not be written, so that lines are missing from there on."""
        return self._broken

    def _book(self, what: dict[str, Any], total: float, source: DoseSource) -> int:
        with self._changed:
            booked = max(total - self._total, 0.0)
            self._total = max(total, self._total)
            return self._write(
                {
                    **what,
                    "time_s": time.time(),
                    "e_per_A2": _digits(booked),
                    "total_e_per_A2": _digits(self._total),
                    "source": source,
                }
            )

    def _write(self, entry: dict[str, Any]) -> int:
        """Have a line written; returns its number."""
        with self._changed:
            if self._broken or self._closed:
                return 0
            self._lines += 1
            self._waiting.append(entry)
            self._changed.notify_all()
            if not self._threads:
                for work, name in ((self._run, "tem-live ledger"), (self._sync, "tem-live sync")):
                    self._begin_thread(work, name)
            self._look_whether_silent()
            return self._lines

    def _await(self, line: int) -> None:
        """Wait until a line is written, unless the disk hangs and was waited for before."""
        with self._changed:
            if not self._hangs:
                self._hangs = not self._changed.wait_for(
                    lambda: self._broken or self._lines - len(self._waiting) >= line, PATIENCE_S
                )

    def _look_whether_silent(self) -> None:
        since = self._writing_since
        if since is None or self._told_silent or time.monotonic() - since < SILENT_S:
            return
        self._told_silent = True
        told = RecordingError(
            f"the dose ledger {self.path or self._folder} has not been written for {SILENT_S:g} s: "
            "the disk does not answer; until it does the dose is counted in memory alone"
        )
        # Not on the thread that books: whoever is told blanks the beam, and that may take a while.
        self._begin_thread(lambda: self._on_error(told), "tem-live ledger is silent")

    def _begin_thread(self, work: Callable[[], None], name: str) -> None:
        self._threads.append(threading.Thread(target=work, name=name, daemon=True))
        self._threads[-1].start()

    # -- on the ledger's own threads

    def _run(self) -> None:
        failure: OSError | None = None
        try:
            while (entry := self._next()) is not None:
                if self._file is None:
                    self._file = self._begin()
                _put_line(self._file, entry)
                with self._changed:
                    self._waiting.popleft()
                    self._writing_since = None
                    self._hangs = self._hangs and bool(self._waiting)
                    self._changed.notify_all()
                self._dirty.set()
        except OSError as error:
            failure = error
        finally:
            self._ending.set()
            self._dirty.set()
        if failure is not None:
            self._give_up(failure)

    def _next(self) -> dict[str, Any] | None:
        """The line to write, once there is one; None when the ledger is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            self._writing_since = time.monotonic()
            return self._waiting[0]

    def _give_up(self, error: OSError) -> None:
        told = RecordingError(
            f"the dose ledger {self.path or self._folder} cannot be written: "
            f"{error.strerror or error}; from here on the dose is counted in memory alone"
        )
        with self._changed:
            self._broken = True
            self._waiting.clear()
            self._writing_since = None
            self._changed.notify_all()
        # With no lock held: whoever is told blanks the beam, which is booked here again.
        self._on_error(told)

    def _sync(self) -> None:
        # Not on the thread that writes: forcing a line onto the disk takes longer than a frame,
        # and a program that is killed meanwhile would lose those that wait.
        while not self._ending.is_set():
            self._dirty.wait()
            self._dirty.clear()
            self._force()
            self._ending.wait(SYNC_S)
        self._force()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _force(self) -> None:
        file = self._file
        if file is not None:
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())

    def _begin(self) -> io.FileIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        began = datetime.now()
        stem = f"{began:%Y%m%dT%H%M%S}-{os.getpid()}"
        for number in range(1000):
            path = self._folder / (f"{stem}-{number}.jsonl" if number else f"{stem}.jsonl")
            with contextlib.suppress(FileExistsError):
                file = path.open("xb", buffering=0)
                break
        else:
            raise FileExistsError(f"there are a thousand ledgers of {stem}")
        self.path = path
        self._file = file
        _put_line(
            file,
            {
                "ledger": 1,
                "area": self.area,
                "profile": self._profile,
                "began": began.isoformat(timespec="seconds"),
                "before_e_per_A2": _digits(self.before_e_per_A2),
            },
        )
        return file


def _put_line(file: io.FileIO, entry: dict[str, Any]) -> None:
    line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _digits(value: float) -> float:
    return float(f"{value:.9g}")
