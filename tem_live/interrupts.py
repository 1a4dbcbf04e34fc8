"""Signals by which a program is told to end: all of them mean what Ctrl+C means."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def ended_in_order(
    end: Callable[[int, Any], Any] = signal.default_int_handler,
) -> Iterator[None]:
    """Have Ctrl+C, a kill by the program's id and a terminal that is closed end it in order.

    Windows has no SIGHUP; what it tells when a console is closed arrives as SIGBREAK. Under
    ``nohup`` a closed terminal is meant to end nothing.

    Parameters
    ----------
    end : callable of (signal number, frame)
        What they do; by default they raise KeyboardInterrupt. Only the main thread can hear them:
        in another nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
