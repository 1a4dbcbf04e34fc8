"""The ledger on disk: what is booked, what survives, what is exported."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tem_live import ledger as ledgers
from tem_live.errors import InputError, RecordingError
from tem_live.ledger import Ledger, areas, export_csv, summarise


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
    booked = [entry["e_per_A2"] for entry in ledgers.entries("a", tmp_path)]
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
    monkeypatch.setattr(ledgers, "_TAIL_BYTES", 500)
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
