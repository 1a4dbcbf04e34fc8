"""The ledger on disk: what is booked, what survives, what is exported."""

from __future__ import annotations

import csv
import io
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tem_live import ledger as ledgers
from tem_live import ledger_reading
from tem_live.errors import InputError, RecordingError
from tem_live.ledger import Ledger
from tem_live.ledger_reading import areas, entries, export_csv, summarise


def session(area: str | None, folder: Path, *totals: float, off: bool = True) -> Ledger:
    """A session of frames with these totals."""
    book = Ledger(area, "sim", folder=folder)
    book.beam(True, 0.0, "incident", 100.0)
    for frame_id, total in enumerate(totals):
        book.frame(frame_id, total, "incident")
    if off:
        book.beam(False, totals[-1] + 0.5, "incident", 100.0)
        book.rest(totals[-1] + 0.5, "incident")
    book.close()
    return book


def test_nothing_booked_leaves_nothing(tmp_path: Path):
    book = Ledger("grid3-square5", "sim", folder=tmp_path)
    book.close()
    book.close()
    assert book.before_e_per_A2 == 0
    assert not list(tmp_path.iterdir())
    assert summarise("grid3-square5", tmp_path).sessions == 0


def test_what_earlier_sessions_booked_counts_on(tmp_path: Path):
    session("square", tmp_path, 1.0, 2.0)
    session("other", tmp_path, 7.0)
    session("square", tmp_path, 3.0)
    assert Ledger("square", "sim", folder=tmp_path).before_e_per_A2 == pytest.approx(6.0)
    summary = summarise("square", tmp_path)
    assert (summary.sessions, summary.frames) == (2, 3)
    assert summary.fluence_e_per_A2 == pytest.approx(6.0)
    assert summary.open_since is None
    assert areas(tmp_path) == ["other", "square"]


def test_sessions_without_an_area_are_kept_and_not_added_up(tmp_path: Path):
    session(None, tmp_path, 1.0)
    session(None, tmp_path, 1.0)
    assert Ledger(None, "sim", folder=tmp_path).before_e_per_A2 == 0
    assert summarise(None, tmp_path).sessions == 2
    assert areas(tmp_path) == []


def test_bookings_add_up_to_the_total_whatever_the_order_of_frame_and_blanking(tmp_path: Path):
    book = Ledger("a", "sim", folder=tmp_path)
    book.beam(True, 0.0, "incident", 10.0)
    book.frame(0, 1.0, "incident")
    # The beam is off before the last frame is booked.
    book.beam(False, 2.5, "incident", 10.0)
    book.frame(1, 2.0, "incident")
    book.rest(2.5, "incident")
    book.rest(2.5, "incident")
    book.close()
    booked = [entry["e_per_A2"] for entry in entries("a", tmp_path)]
    assert booked == [None, 1.0, None, 1.0, 0.5]
    assert summarise("a", tmp_path).fluence_e_per_A2 == 2.5


def test_a_session_that_did_not_say_that_the_beam_went_off_is_told(tmp_path: Path):
    session("a", tmp_path, 1.0, off=False)
    assert summarise("a", tmp_path).open_since is not None
    session("a", tmp_path, 1.0)
    assert summarise("a", tmp_path).open_since is None


def test_totals_are_found_behind_more_than_the_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ledger_reading, "_TAIL_BYTES", 500)
    session("a", tmp_path, *[0.1 * n for n in range(1, 101)], off=False)
    summary = summarise("a", tmp_path)
    assert summary.fluence_e_per_A2 == pytest.approx(10.0)
    assert summary.frames == 100
    assert summary.open_since is not None


@pytest.mark.parametrize("cut", [1, 5, 30, 60])
def test_a_line_cut_short_is_ignored(tmp_path: Path, cut: int):
    path = session("a", tmp_path, 1.0, 2.0, 3.0, off=False).path
    assert path is not None
    path.write_bytes(path.read_bytes()[:-cut])
    assert summarise("a", tmp_path).fluence_e_per_A2 == (3.0 if cut == 1 else 2.0)


KILLED = """
import sys, time
from pathlib import Path
from tem_live.ledger import Ledger
book = Ledger("a", "sim", folder=Path(sys.argv[1]))
book.beam(True, 0.0, "incident", 10.0)
for n in range(10_000):
    book.frame(n, 0.5 * (n + 1), "incident")
    print(n, flush=True)
"""


def test_a_killed_program_loses_no_frame(tmp_path: Path):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout as said:
        for line in said:
            if int(line) == 200:
                child.kill()
                break
        # It went on until the signal came.
        finished = max([200, *(int(line) for line in said if line.endswith("\n"))])
    child.wait(10)
    summary = summarise("a", tmp_path)
    assert summary.frames in (finished + 1, finished + 2)
    assert summary.fluence_e_per_A2 == pytest.approx(0.5 * summary.frames)
    assert summary.open_since is not None


def test_two_sessions_of_one_second_do_not_share_a_file(tmp_path: Path):
    first = Ledger("a", "sim", folder=tmp_path)
    second = Ledger("a", "sim", folder=tmp_path)
    first.frame(0, 1.0, "detected")
    second.frame(0, 2.0, "detected")
    first.close()
    second.close()
    assert first.path != second.path
    assert summarise("a", tmp_path).fluence_e_per_A2 == 3.0


def test_every_line_is_json_and_the_first_says_whose_it_is(tmp_path: Path):
    session("a", tmp_path, 1.0)
    book = Ledger("a", "sim", folder=tmp_path)
    book.exposure(5, 0.1, 2.5, None)
    book.close()
    assert book.path is not None
    first, second = (json.loads(line) for line in book.path.read_text().splitlines())
    assert first["ledger"] == 1
    assert (first["area"], first["profile"], first["before_e_per_A2"]) == ("a", "sim", 1.5)
    assert (second["exposure"], second["cost_e_per_A2"]) == (5, 2.5)


def test_export_is_a_table_with_a_row_for_each_event(tmp_path: Path):
    session("a", tmp_path, 1.0, 2.0)
    out = tmp_path / "a.csv"
    assert export_csv(out, "a", tmp_path) == 5
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["event"] for row in rows] == ["beam on", "frame", "frame", "beam off", "rest"]
    assert [row["e_per_A2"] for row in rows] == ["", "1.0", "1.0", "", "0.5"]
    assert rows[1]["profile"] == "sim"
    with pytest.raises(InputError, match="exists"):
        export_csv(out, "a", tmp_path)
    with pytest.raises(InputError, match="there are a"):
        export_csv(tmp_path / "b.csv", "b", tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "-a", "a.", "x" * 65, "a b", "nul\0"])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match="cannot name a specimen area"):
        Ledger(name, "sim", folder=tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_once_and_the_rest_counted_in_memory(tmp_path: Path):
    errors: list[RecordingError] = []
    book = Ledger("a", "sim", errors.append, tmp_path)
    book.frame(0, 1.0, "incident")
    assert book._file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, book._file.fileno())
    os.close(full)
    book.frame(1, 2.0, "incident")
    book.frame(2, 3.0, "incident")
    book.close()
    assert len(errors) == 1
    assert "cannot be written" in str(errors[0])
    assert book.total_e_per_A2 == 3.0


# -------------------------------------------------------------------------- a disk that hangs


class Hanging:
    """A file whose disk does not answer until it is told to."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.answers = threading.Event()
        self.asked = threading.Event()

    def write(self, data: bytes) -> int:
        self.asked.set()
        assert self.answers.wait(30)
        return self.file.write(data) or 0

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@pytest.fixture
def hangs() -> Iterator[Callable[[Ledger], Hanging]]:
    """Have a ledger's disk hang, once it has a file."""
    made: list[Hanging] = []

    def hang(book: Ledger) -> Hanging:
        assert book._file is not None
        made.append(Hanging(book._file))
        book._file = made[-1]  # type: ignore[assignment]
        return made[-1]

    yield hang
    for disk in made:
        disk.answers.set()


def test_a_disk_that_hangs_holds_up_one_frame_and_what_waited_is_written_after_it(
    tmp_path: Path, hangs: Callable[[Ledger], Hanging], monkeypatch: pytest.MonkeyPatch
):
    # A frame that waited each time would run into the test's time limit.
    monkeypatch.setattr(ledgers, "PATIENCE_S", 1.0)
    book = Ledger("a", "sim", folder=tmp_path)
    book.frame(0, 1.0, "incident")
    disk = hangs(book)
    for frame_id in range(1, 101):
        book.frame(frame_id, 1.0 + frame_id, "incident")
    book.beam(False, 101.5, "incident", 10.0)
    book.rest(101.5, "incident")
    assert book.total_e_per_A2 == 101.5
    assert summarise("a", tmp_path).frames == 1
    disk.answers.set()
    book.close()
    summary = summarise("a", tmp_path)
    assert (summary.frames, summary.fluence_e_per_A2) == (101, 101.5)
    assert summary.open_since is None


def test_after_a_hanging_disk_each_frame_is_on_it_again_when_it_is_booked(
    tmp_path: Path, hangs: Callable[[Ledger], Hanging], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ledgers, "PATIENCE_S", 0.05)
    book = Ledger("a", "sim", folder=tmp_path)
    book.frame(0, 1.0, "incident")
    disk = hangs(book)
    book.frame(1, 2.0, "incident")
    monkeypatch.setattr(ledgers, "PATIENCE_S", 30.0)
    disk.answers.set()
    with book._changed:
        assert book._changed.wait_for(lambda: not book._waiting, 10)
    for frame_id in range(2, 50):
        book.frame(frame_id, frame_id + 1.0, "incident")
        assert summarise("a", tmp_path).frames == frame_id + 1
    book.close()


def test_a_disk_that_does_not_answer_is_told_once(
    tmp_path: Path, hangs: Callable[[Ledger], Hanging], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ledgers, "SILENT_S", 0.05)
    told: queue.SimpleQueue[RecordingError] = queue.SimpleQueue()
    book = Ledger("a", "sim", told.put, tmp_path)
    book.frame(0, 1.0, "incident")
    disk = hangs(book)
    book.frame(1, 2.0, "incident")
    assert disk.asked.wait(10)
    deadline = time.monotonic() + 10
    while told.empty() and time.monotonic() < deadline:
        book.beam(True, 2.0, "incident", 10.0)
        time.sleep(0.01)
    book.beam(True, 2.0, "incident", 10.0)
    disk.answers.set()
    book.close()
    assert "has not been written for" in str(told.get(timeout=0))
    assert told.empty()
    assert summarise("a", tmp_path).frames == 2


def test_a_ledger_closes_though_its_disk_hangs(
    tmp_path: Path, hangs: Callable[[Ledger], Hanging], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ledgers, "CLOSING_S", 0.1)
    told: list[RecordingError] = []
    book = Ledger("a", "sim", told.append, tmp_path)
    book.frame(0, 1.0, "incident")
    disk = hangs(book)
    book.frame(1, 2.0, "incident")
    book.beam(False, 2.0, "incident", 10.0)
    threads = list(book._threads)
    book.close()
    book.close()
    assert ["lacks its last 2 lines" in str(error) for error in told] == [True]
    # Its threads end by themselves, and what waited is there.
    disk.answers.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert summarise("a", tmp_path).frames == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_whoever_is_told_of_an_error_may_book_and_close(tmp_path: Path):
    answered = threading.Event()

    def on_error(error: RecordingError) -> None:
        book.beam(False, 2.0, "incident", 10.0)
        book.close()
        answered.set()

    book = Ledger("a", "sim", on_error, tmp_path)
    book.frame(0, 1.0, "incident")
    assert book._file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, book._file.fileno())
    os.close(full)
    book.frame(1, 2.0, "incident")
    assert answered.wait(10)
    book.close()
    assert book.total_e_per_A2 == 2.0
