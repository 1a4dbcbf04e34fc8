"""How steady a machine is: one and the same frame, restored twenty times a second by itself.

    python tools/steadiness.py [--minutes 10] [--model fast] [--side 512] [--per-second 20]

There is no camera, no session and no other frame: what differs from minute to minute is the
machine's doing. What `tools/soak.py` shows of a whole session is to be held against it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from arguments import count, positive
from printing import print_lines
from soak import processor_ticks, stolen_share

from tem_live.threads import keep_memory, let_threads_sleep, set_arithmetic_threads


def steadiness(
    model: str, side: int, per_second: float, minutes: int, each_s: float
) -> Iterator[str]:
    """Lines of text: times in ms, median and 99th percentile of each minute, and their range.

    A minute has ``each_s`` seconds.
    """
    from tem_live.models import load_restorer

    # As a session has it where two frames are restored at once.
    set_arithmetic_threads(1)
    restorer = load_restorer(model, device="cpu")
    frame = np.random.default_rng(0).poisson(5.0, (side, side)).astype(np.float32)
    for _ in range(5):
        restorer.restore(frame)
    tails, ticks = [], processor_ticks()
    due_s = time.monotonic()
    for number in range(1, minutes + 1):
        taken = []
        for _ in range(max(1, round(each_s * per_second))):
            due_s = max(due_s + 1.0 / per_second, time.monotonic())
            time.sleep(max(0.0, due_s - time.monotonic()))
            began_s = time.perf_counter()
            restorer.restore(frame)
            taken.append(1e3 * (time.perf_counter() - began_s))
        after = processor_ticks()
        share = stolen_share(ticks, after)
        ticks = after
        stolen = "" if share is None else f", {share:.2%} stolen"
        tails.append(float(np.percentile(taken, 99)))
        yield f"{number:4d} min: {np.median(taken):.1f} / {tails[-1]:.1f} ms (50 / 99 %){stolen}"
    yield (
        f"99 % of the minutes: {min(tails):.1f} to {max(tails):.1f} ms, "
        f"median {np.median(tails):.1f}, from first to last {tails[-1] / tails[0] - 1.0:+.1%}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=count, default=10)
    parser.add_argument("--model", default="fast", help="default: %(default)s")
    parser.add_argument("--side", type=count, default=512, metavar="PX")
    parser.add_argument("--per-second", type=positive, default=20.0)
    parser.add_argument("--each-s", type=positive, default=60.0, help="seconds of a minute")
    options = parser.parse_args(argv)
    let_threads_sleep()
    keep_memory()
    lines = steadiness(
        options.model, options.side, options.per_second, options.minutes, options.each_s
    )
    return print_lines(lines)


if __name__ == "__main__":
    sys.exit(main())
