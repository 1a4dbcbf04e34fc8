"""Half an hour at full rate: whether frames are lost, memory grows, or restoring becomes slower.

    python tools/soak.py --minutes 30
    python tools/soak.py --minutes 30 --record /data/soak.zarr

Takes and restores frames of a profile without a window, prints a line a minute, and compares the
first minute with the last one in a table:

- no raw frame is lost from the beginning on, the warm-up included;
- memory, the mean of what is in RAM each second, is the same within 2 %;
- the 99th percentile of the latency is the same within 10 %.

Before the first minute there is a warm-up, by default of 20 s: with the first frames the engine of
the restorer compiles its network, which takes seconds, and the frames that waited meanwhile are
caught up with. What memory did in it is printed and in the JSON, so that nothing hides there;
``--warm-up-s 0`` leaves it out.

Where the machine is not all one's own, single minutes differ by more than that. The medians of the
minutes in the first and in the last third of the run are printed beside the verdicts: they tell
whether it becomes slower, and have no verdict of their own. Under Linux each line says, too, which
share of the processors' time was stolen: given to others by the host of a virtual machine.

Exit status 0: all three hold. 1: one does not, or the run ended early. Run it on a machine that
does nothing else. A recording of `sim` takes 1 MB a frame, with its restored plane.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tem_live.bench_limits import resident_MB
from tem_live.errors import TemLiveError
from tem_live.session import Session, open_session
from tem_live.state import FrameInfo
from tem_live.threads import let_threads_sleep, switch_quickly

MEMORY = 0.02
"""Change of the memory that counts as none."""

LATENCY = 0.10
"""The same of the latency's 99th percentile."""

WARM_UP_S = 20.0

_Ticks = tuple[float, float]


@dataclass(frozen=True)
class Minute:
    """What one minute gave; what was not measured is None."""

    fps: float
    restored_fps: float
    latency_ms_p50: float | None
    latency_ms_p99: float | None
    dropped_raw: int
    """Since the run began."""
    memory_MB: float | None
    """Mean of what was in RAM each second."""
    memory_most_MB: float | None
    stolen: float | None = None
    """Share of the processors' time that the host of this virtual machine gave to others."""


@dataclass(frozen=True)
class Soaked:
    """A whole run."""

    memory_opened_MB: float
    """Before the first frame."""
    memory_warm_MB: float
    """At the end of the warm-up."""
    minutes: list[Minute]


@dataclass(frozen=True)
class Check:
    """One comparison of the first minute with the last one.

    Attributes
    ----------
    first, last, change, bound : float or None
        ``change`` is that from first to last as a part of first, or of frames their number, and
        may be as much as ``bound`` to either side. None where it was not measured.
    passes : bool or None
        None where it was not measured.
    """

    name: str
    first: float | None
    last: float | None
    change: float | None
    bound: float
    passes: bool | None


class _Latencies:
    """Latency of every restored frame since the last look; no frame is copied for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ms: list[float] = []

    def wants(self, info: FrameInfo, restored: bool) -> bool:
        """Note the latency; the frame itself is not wanted."""
        if restored and info.latency_ms is not None:
            with self._lock:
                self._ms.append(info.latency_ms)
        return False

    def take(self) -> list[float]:
        """Those since the last look."""
        with self._lock:
            taken, self._ms = self._ms, []
        return taken


def processor_ticks() -> _Ticks | None:
    """Time of all processors since they began, and what of it the host of the machine gave away.

    In ticks of the kernel's clock (proc_stat(5)); None where the system has no /proc.
    """
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    # What guests had, the last two, is in the first two already.
    ticks = [float(number) for number in line.split()[1:9]]
    return sum(ticks), ticks[7]


def stolen_share(before: _Ticks | None, after: _Ticks | None) -> float | None:
    """Share of the processors' time that the host gave to others; of two `processor_ticks`."""
    if before is None or after is None or after[0] <= before[0]:
        return None
    return (after[1] - before[1]) / (after[0] - before[0])


def soak(session: Session, minutes: int, warm_up_s: float) -> Soaked:
    """Run a session for so many minutes after the warm-up. Raises SystemExit if it ends early."""
    latencies = _Latencies()
    end = session.subscribe(lambda frame: None, latencies.wants)
    opened = resident_MB()
    session.start()
    done: list[Minute] = []
    try:
        _watch(session, time.monotonic() + warm_up_s)
        warm = resident_MB()
        print(f"warm-up of {warm_up_s:g} s: {_text(opened)} to {_text(warm)} MB", flush=True)
        latencies.take()
        before, began_s, ticks = session.stats(), time.monotonic(), processor_ticks()
        for number in range(1, minutes + 1):
            memory = _watch(session, began_s + 60.0 * number)
            after, taken, ticks_after = session.stats(), latencies.take(), processor_ticks()
            done.append(
                Minute(
                    fps=(after.frames - before.frames) / 60.0,
                    restored_fps=len(taken) / 60.0,
                    latency_ms_p50=float(np.percentile(taken, 50)) if taken else None,
                    latency_ms_p99=float(np.percentile(taken, 99)) if taken else None,
                    dropped_raw=after.dropped_raw,
                    memory_MB=float(np.mean(memory)) if memory else None,
                    memory_most_MB=max(memory, default=None),
                    stolen=stolen_share(ticks, ticks_after),
                )
            )
            before, ticks = after, ticks_after
            it = done[-1]
            print(
                f"{number:4d} min: {it.fps:.2f} frames/s, {it.restored_fps:.2f} restored, latency "
                f"{_text(it.latency_ms_p50)} / {_text(it.latency_ms_p99)} ms (50 / 99 %), "
                f"{it.dropped_raw} lost, {_text(it.memory_MB)} MB, "
                f"{_text(it.memory_most_MB)} at the most{_stolen_text(it.stolen)}",
                flush=True,
            )
    finally:
        session.stop()
        session.wait()
        end()
    return Soaked(opened, warm, done)


def _watch(session: Session, until_s: float) -> list[float]:
    """Wait; returns the memory in MB of each second."""
    seen = []
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(1.0, left_s))
        stats = session.stats()
        if stats.stop_reason is not None:
            early = f"soak.py: the run ended after {stats.frames} frames: {stats.stop_reason}"
            raise SystemExit(early)
        seen.append(resident_MB())
    return seen


def checks(minutes: Sequence[Minute]) -> list[Check]:
    """The verdicts on a run: first minute against last minute."""
    first, last = minutes[0], minutes[-1]
    lost = last.dropped_raw
    return [
        Check("raw frames lost", first.dropped_raw, lost, lost, 0, lost == 0),
        _compared("memory, MB", first.memory_MB, last.memory_MB, MEMORY),
        _compared("latency, 99 %, ms", first.latency_ms_p99, last.latency_ms_p99, LATENCY),
    ]


def thirds(minutes: Sequence[Minute]) -> tuple[float, float] | None:
    """Latency at the 99th percentile in ms: median minute of the first and of the last third."""
    count = max(1, len(minutes) // 3)
    first, last = (
        [m.latency_ms_p99 for m in part if m.latency_ms_p99 is not None]
        for part in (minutes[:count], minutes[-count:])
    )
    if not first or not last:
        return None
    return float(np.median(first)), float(np.median(last))


def _compared(name: str, first: float | None, last: float | None, bound: float) -> Check:
    if not first or last is None:
        return Check(name, first, last, None, bound, None)
    change = last / first - 1.0
    return Check(name, first, last, change, bound, abs(change) <= bound)


def table(found: Sequence[Check]) -> str:
    """The verdicts as lines of text."""
    lines = [f"{'':20}{'first minute':>14}{'last minute':>14}{'change':>9}{'bound':>8}  verdict"]
    for check in found:
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[check.passes]
        first, last = _text(check.first), _text(check.last)
        change = "-" if check.change is None else f"{check.change:+.1%}"
        bound = f"{check.bound:.0%}"
        if check.bound == 0:
            first, last = _text(check.first, 0), _text(check.last, 0)
            change, bound = f"{check.change:+g}", "0"
        lines.append(f"{check.name:20}{first:>14}{last:>14}{change:>9}{bound:>8}  {verdict}")
    return "\n".join(lines)


def _stolen_text(share: float | None) -> str:
    return "" if share is None else f", {share:.1%} stolen"


def _text(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--warm-up-s", type=float, default=WARM_UP_S, help="default: %(default)s")
    parser.add_argument("--profile", default="sim")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--record", type=Path, metavar="PATH", help="record to this folder, too")
    parser.add_argument("--json", action="store_true", help="all of it as JSON in the last line")
    options = parser.parse_args(argv)
    if options.minutes < 2:
        parser.error("--minutes must be 2 or more: the first is compared with the last")
    if not 0 <= options.warm_up_s <= 600:
        parser.error("--warm-up-s must be 0 to 600")
    let_threads_sleep()
    switch_quickly()
    try:
        with open_session(options.profile, options.set) as session:
            if options.record is not None:
                session.record(options.record)
            state = session.state
            run = soak(session, options.minutes, options.warm_up_s)
    except TemLiveError as error:
        print(f"soak.py: error: {error}", file=sys.stderr)
        return error.exit_code
    found = checks(run.minutes)
    passes = all(check.passes is not False for check in found)
    print(table(found))
    medians = thirds(run.minutes)
    if medians is not None:
        before, after = medians
        print(
            f"latency, 99 %, median minute of the first and of the last third: {before:.1f} and "
            f"{after:.1f} ms ({after / before - 1.0:+.1%})"
        )
    if options.json:
        facts = {
            "profile": options.profile,
            "set": options.set,
            "recorded": options.record is not None,
            "model": state.model,
            "precision": state.precision,
            "frame_shape": state.frame_shape,
            "warm_up_s": options.warm_up_s,
            "passes": passes,
            "latency_ms_p99_thirds": medians,
            "checks": [asdict(check) for check in found],
            **asdict(run),
        }
        print(json.dumps(facts))
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
