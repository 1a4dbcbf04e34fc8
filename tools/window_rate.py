"""How many frames are restored with the window open and a recording running.

    QT_QPA_PLATFORM=offscreen python tools/window_rate.py [--profile sim] [--seconds 20]

Opens the cockpit as ``tem-live gui --out FILE`` does, waits until it has run for some seconds, and
counts frames taken, restored and shown.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import positive

from tem_live.errors import TemLiveError
from tem_live.threads import let_threads_sleep, switch_quickly

_FIRST_FRAME_S = 60.0
_COUNTED = ("frames", "restored", "restore_skipped", "display_skipped")


def measure(profile: str, overrides: Sequence[str], after_s: float, seconds: float) -> str:
    """Run the window; one line with what happened a second."""
    from tem_live.gui.app import open_for_gui, run_gui

    opened = threading.Event()
    sessions: list[Any] = []
    said: list[str] = []

    def opener(*arguments: Any, **more: Any) -> Any:
        try:
            sessions.append(open_for_gui(*arguments, **more))
        except TemLiveError as error:
            said.append(f"error: {error}")
            raise
        finally:
            opened.set()
        return sessions[0]

    def watch() -> None:
        try:
            opened.wait()
            if not sessions:
                return
            # On a busy machine the first frame comes long after the instrument is open.
            deadline = time.monotonic() + _FIRST_FRAME_S
            while not sessions[0].stats().frames and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(after_s)
            first, began = sessions[0].stats(), time.monotonic()
            time.sleep(seconds)
            last, took = sessions[0].stats(), time.monotonic() - began
            rates = (
                f"{(getattr(last, key) - getattr(first, key)) / took:.2f} {key}" for key in _COUNTED
            )
            said.append(f"a second, over {took:.1f} s: {', '.join(rates)}; "
                        f"{last.dropped_raw} raw frames dropped")  # fmt: skip
        finally:
            signal.raise_signal(signal.SIGINT)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        threading.Thread(target=watch, daemon=True).start()
        run_gui(profile, overrides=overrides, out=Path(folder) / "window.zarr", opener=opener)
    return said[0] if said else "error: the window was closed before the time was over"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--profile", default="sim")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--after-s", type=positive, default=8.0)
    parser.add_argument("--seconds", type=positive, default=20.0)
    options = parser.parse_args(argv)
    let_threads_sleep()
    switch_quickly()
    try:
        said = measure(options.profile, options.set, options.after_s, options.seconds)
    except TemLiveError as error:
        said = f"error: {error}"
    (sys.stderr if said.startswith("error") else sys.stdout).write(said + "\n")
    return int(said.startswith("error"))


if __name__ == "__main__":
    sys.exit(main())
