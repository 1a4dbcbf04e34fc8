"""Whoever ends the program ends it in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from tem_live.interrupts import ended_in_order

NAMES = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def unheard(number, frame):
    """What was there before."""


@pytest.mark.parametrize("name", NAMES)
def test_each_means_what_an_interrupt_means(name):
    number = getattr(signal, name)
    # The tests themselves may run under nohup, whose SIGHUP is left alone.
    at_first = signal.signal(number, unheard)
    try:
        with pytest.raises(KeyboardInterrupt), ended_in_order():
            signal.raise_signal(number)
        assert signal.getsignal(number) is unheard
    finally:
        signal.signal(number, at_first)


def test_something_else_may_be_done_about_it():
    ended = []
    with ended_in_order(lambda number, frame: ended.append(number)):
        signal.raise_signal(signal.SIGTERM)
    assert ended == [signal.SIGTERM]


def test_in_another_thread_nothing_is_changed():
    seen = []

    def look():
        with ended_in_order():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_ends_nothing_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_in_order():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows kills by the id at once")
@pytest.mark.timeout(120)
def test_a_calibration_that_is_killed_by_its_id_ends_blanked(tmp_path):
    # A program of its own: the blanker's last word is written where the test can read it.
    told = tmp_path / "blanker.txt"
    program = f"""
import sys
from tem_live.cli.program import main
from tem_live.drivers.sim_beam_column import BeamColumn
log = open({str(told)!r}, "w", buffering=1)
def tell(self, blanked, set_blanked=BeamColumn.set_blanked):
    set_blanked(self, blanked)
    print("blanked" if blanked else "on", file=log)
BeamColumn.set_blanked = tell
sys.argv = ["tem-live", "calibrate", "gain", "--frames", "100000"]
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (told.exists() and "on" in told.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.strip().endswith("interrupted")
    assert told.read_text().splitlines()[-1] == "blanked"
