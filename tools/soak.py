"""Half an hour at full rate: whether frames are lost, memory grows, or restoring becomes slower.

    python tools/soak.py --minutes 30

Takes and restores frames of a profile without a window and without a recording, after a warm-up of
20 s that does not count, and prints a line a minute. The last lines compare the first minute with
the last one. Exit status 1: a raw frame was lost, memory grew or shrank by over 2 %, or the
latency's 99th percentile rose or fell by over 10 %. Run it on a machine that does nothing else.
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

from tem_live.errors import TemLiveError
from tem_live.session import Session, open_session
from tem_live.state import FrameInfo
from tem_live.threads import let_threads_sleep, switch_quickly

_WARM_UP_S = 20.0
_MEMORY, _LATENCY = 0.02, 0.10


@dataclass(frozen=True)
class Minute:
    """What one minute gave."""

    fps: float
    restored_fps: float
    latency_ms_p50: float
    latency_ms_p99: float
    dropped_raw: int
    memory_MB: float | None


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


def memory_MB() -> float | None:
    """Memory of this process that is in RAM; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * 4096 / 2**20


def soak(session: Session, minutes: int) -> list[Minute]:
    """Run a session for so many minutes."""
    latencies = _Latencies()
    end = session.subscribe(lambda frame: None, latencies.wants)
    session.start()
    done: list[Minute] = []
    try:
        time.sleep(_WARM_UP_S)
        latencies.take()
        before, began_s = session.stats(), time.monotonic()
        for number in range(1, minutes + 1):
            time.sleep(max(0.0, began_s + 60.0 * number - time.monotonic()))
            after, taken = session.stats(), latencies.take()
            if after.stop_reason is not None:
                raise SystemExit(f"the run ended after {number - 1} minutes: {after.stop_reason}")
            done.append(
                Minute(
                    fps=(after.frames - before.frames) / 60.0,
                    restored_fps=len(taken) / 60.0,
                    latency_ms_p50=float(np.percentile(taken, 50)) if taken else float("nan"),
                    latency_ms_p99=float(np.percentile(taken, 99)) if taken else float("nan"),
                    dropped_raw=after.dropped_raw,
                    memory_MB=memory_MB(),
                )
            )
            before = after
            it = done[-1]
            print(
                f"{number:4d} min: {it.fps:.2f} frames/s, {it.restored_fps:.2f} restored, latency "
                f"{it.latency_ms_p50:.0f} / {it.latency_ms_p99:.0f} ms (50 / 99 %), "
                f"{it.dropped_raw} dropped, {it.memory_MB or float('nan'):.1f} MB",
                flush=True,
            )
    finally:
        session.stop()
        session.wait()
        end()
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--profile", default="sim")
    parser.add_argument("--json", action="store_true", help="each minute as JSON, last line")
    options = parser.parse_args(argv)
    if options.minutes < 2:
        parser.error("--minutes must be 2 or more: the first is compared with the last")
    let_threads_sleep()
    switch_quickly()
    try:
        with open_session(options.profile) as session:
            done = soak(session, options.minutes)
    except TemLiveError as error:
        print(f"soak.py: error: {error}", file=sys.stderr)
        return error.exit_code
    first, last = done[0], done[-1]
    slower = last.latency_ms_p99 / first.latency_ms_p99 - 1.0
    print(f"dropped raw frames: {last.dropped_raw}")
    print(f"latency, 99th percentile: {slower:+.1%} from the first minute to the last")
    flat = True
    if first.memory_MB is not None and last.memory_MB is not None:
        change = last.memory_MB / first.memory_MB - 1.0
        flat = abs(change) <= _MEMORY
        print(f"memory: {change:+.1%}")
    if options.json:
        print(json.dumps([asdict(minute) for minute in done]))
    return 0 if last.dropped_raw == 0 and flat and abs(slower) <= _LATENCY else 1


if __name__ == "__main__":
    sys.exit(main())
