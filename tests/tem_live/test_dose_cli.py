"""`tem-live ledger`, `calibrate dose` and the dose figures of `run`, as a script sees them."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tem_live import cli, ledger_reading
from tem_live.beam import Beam
from tem_live.ledger_reading import area_folder, summarise
from tem_live.recording import read_recording
from tem_live.session import Session

Invoke = Callable[..., tuple[int, str, str]]

GAUSS = [
    *("--set", "camera.sensor_height_px=64", "--set", "camera.sensor_width_px=64"),
    *("--set", "restorer.model=gaussian"),
]
QUICK = [
    *("--set", "camera.sensor_height_px=64", "--set", "camera.sensor_width_px=64"),
    *("--set", "camera.exposure_s=0.005", "--set", "restorer.model=none"),
]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tem-live", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call


def last_json(out: str) -> Any:
    return json.loads(out.strip().splitlines()[-1])


def test_a_run_says_what_it_booked_and_the_ledger_keeps_it(invoke: Invoke, tmp_path: Path):
    area = ("--area", "grid3-square5", "--budget", "1000")
    status, out, _ = invoke("run", "--frames", "5", *area, *QUICK, "--json")
    assert status == 0
    figures = last_json(out)
    assert figures["dose_source"] == "incident"
    assert figures["area"] == "grid3-square5"
    assert figures["left_e_per_A2"] == pytest.approx(1000 - figures["fluence_e_per_A2"])
    again = last_json(invoke("run", "--frames", "5", *area, *QUICK, "--json")[1])
    both = figures["fluence_e_per_A2"] + again["fluence_e_per_A2"]
    assert again["area_fluence_e_per_A2"] == pytest.approx(both)
    (row,) = last_json(invoke("ledger", "show", "--json")[1])
    assert (row["area"], row["sessions"], row["frames"]) == ("grid3-square5", 2, 10)
    assert row["fluence_e_per_A2"] == pytest.approx(both)
    assert row["open_since"] is None
    table = tmp_path / "ledger.csv"
    exported = last_json(
        invoke("ledger", "export", "grid3-square5", "--out", str(table), "--json")[1]
    )
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert exported["rows"] == len(rows)
    assert sum(row["event"] == "frame" for row in rows) == 10
    assert sum(float(row["e_per_A2"] or 0) for row in rows) == pytest.approx(both)


def test_a_run_says_what_it_costs_before_the_beam_comes_on(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
):
    at_start: list[float] = []
    start = Session.start

    def noted(session: Session, *length: Any) -> None:
        sys.stderr.write("BEAM\n")
        at_start.append(session.true_fluence_e_per_A2 or 0.0)
        start(session, *length)

    monkeypatch.setattr(Session, "start", noted)
    # 25 e-/A^2 in a second: 10 frames of 5 ms, or 0.05 s of them.
    dear = ("run", "--budget", "50", *QUICK)
    for length in (("--frames", "10"), ("--seconds", "0.05")):
        _, _, said = invoke(*dear, *length)
        assert "e-/Å² (incident), 50 left\nBEAM" in said
        assert float(said.split("cost: ")[1].split()[0]) == pytest.approx(1.25, rel=0.1)
    _, _, said = invoke("run", "--budget", "0.5", "--frames", "40", *QUICK)
    assert "5 e-/Å² (incident), 0.5 left: it ends where the budget does" in said
    figures = last_json(invoke(*dear, "--frames", "10", "--json")[1])
    assert figures["cost_e_per_A2"] == pytest.approx(1.25, rel=0.1)
    assert len(at_start) == 4


def test_a_killed_run_is_in_the_ledger_up_to_its_last_frame(tmp_path: Path):
    command = [sys.executable, "-m", "tem_live", "run", "--seconds", "60", "--area", "a", *QUICK]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while summarise("a").frames < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait(10)
    summary = summarise("a")
    assert summary.frames >= 20
    # 100 e-/px/s of 4 A^2, 5 ms a frame
    assert summary.fluence_e_per_A2 >= 0.125 * (summary.frames - 1)
    assert summary.open_since is not None
    (path,) = area_folder("a").glob("*.jsonl")
    *lines, _ = path.read_bytes().split(b"\n")
    assert sum("frame" in json.loads(line) for line in lines) == summary.frames


def test_dose_is_calibrated_kept_and_used(invoke: Invoke):
    status, out, _ = invoke(
        *("calibrate", "dose", "--vacuum", "--json", *QUICK),
        *("--set", "camera.sensor_height_px=256", "--set", "camera.sensor_width_px=256"),
        *("--set", "camera.scene=vacuum", "--set", "column.dose_rate_e_per_px_s=1000"),
        *("--set", "beam_monitor.driver=keithley", "--set", "beam_monitor.port=sim"),
    )
    assert status == 0
    found = last_json(out)
    assert found["counts_per_electron"] == pytest.approx(40, rel=0.05)
    for source in ("column", "current", "vacuum"):
        assert found["rates_e_per_A2_s"][source] == pytest.approx(250, rel=0.05)
    assert Path(found["path"]).is_file()
    figures = last_json(invoke("run", "--frames", "1", *QUICK, "--json")[1])
    assert figures["counts_per_electron"] == found["counts_per_electron"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ledger", "show", "nowhere"), "no ledger of 'nowhere'"),
        (("ledger", "show", "a/b"), "cannot name a specimen area"),
        (("ledger", "export", "nowhere"), "no ledger of area 'nowhere'"),
        (("run", "--frames", "1", "--area", ".."), "cannot name a specimen area"),
        (("calibrate", "dose", "--use", "hope"), "one of column, current, vacuum"),
        (("calibrate", "dose", "--beam-area-nm2", "-1"), "positive area"),
        (("calibrate", "dose", "--beam-area-nm2", "inf"), "positive area"),
        (("calibrate", "dose", "--excess-noise", "0.5", *QUICK), "excess noise 0.5 is impossible"),
        (("calibrate", "dose", "--excess-noise", "nan", *QUICK), "excess noise nan is impossible"),
        (("calibrate", "dose", "--use", "vacuum", *QUICK), "no dose rate from 'vacuum'"),
        (("calibrate", "dose", "--use", "current", *QUICK), "no dose rate from 'current'"),
        (("calibrate", "dose", "--out", "."), "is not a file"),
        (("calibrate", "dark", "--out", ".", *QUICK), "is not a file"),
        (("run", "--frames", "1", "--budget", "nan"), "budget_e_per_A2"),
        (("run", "--frames", "1", "--budget", "-5"), "budget_e_per_A2"),
        (("run", "--frames", "1", "--budget", "5 e-"), "should be a valid number"),
        (("run", "--frames", "1", "--target-resolution", "0"), "give a positive figure"),
        (("run", "--frames", "1", "--target-resolution", "inf", *GAUSS), "give a positive figure"),
        (("run", "--frames", "1", "--mode", "nap", *QUICK), "there is no mode 'nap'"),
        (("run", "--seconds", "inf"), "positive number of seconds"),
        (("run", "--frames", "1", "--area", "ä/ö"), "cannot name a specimen area"),
        (("run", "--frames", "1", "--profile", "x" * 300), "no profile named"),
        (("run", "--frames", "1", "--out", "x" * 300, *QUICK), "name too long"),
        (("run", "--frames", "1", "--set", "name=../x"), "'name' ="),
        (("run", "--frames", "1", "--set", "camera.pixel_size_nm=1e308"), "camera.pixel_size_nm"),
        (("gui", "--screenshot", "x.png", "--frames", "0"), "1 frame or more"),
        (("bench", "--sizes", ","), "whole numbers"),
        (("bench", "--sizes", "16,nan"), "whole numbers"),
        (("bench", "--sizes", "16,100000000"), "give 16 to"),
        (("bench", "--sizes", "16", "--model", "gaussian", "--plot", "."), "is not a file"),
    ],
)
def test_wrong_input_is_one_line_and_no_beam(
    invoke: Invoke, arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
):
    def lit(*_: Any) -> None:
        raise AssertionError("the specimen pays for wrong input")

    monkeypatch.setattr(Beam, "let_through", lit)
    status, _, err = invoke(*arguments)
    # A device that is asked for what it has not refuses with 3.
    assert status == (3 if "mode" in words else 2)
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert "Traceback" not in err


def test_a_disk_that_fails_where_nobody_looked_is_one_line(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
):
    def broken() -> list[str]:
        raise OSError(errno.EIO, "Input/output error", "/there/ledger")

    monkeypatch.setattr(ledger_reading, "areas", broken)
    status, _, err = invoke("ledger", "show")
    assert (status, err) == (3, "tem-live: error: /there/ledger: Input/output error\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such signal")
def test_a_run_that_is_asked_to_end_ends_in_order(tmp_path: Path):
    command = [sys.executable, "-m", "tem_live", "run", "--seconds", "60", "--area", "a", *QUICK]
    command += ["--out", str(tmp_path / "run.zarr"), "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while summarise("a").frames < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.terminate()
        out, err = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait(10)
    assert (child.returncode, err) == (0, "")
    figures = last_json(out)
    assert (figures["stop_reason"], figures["blanked"]) == ("user", True)
    summary = summarise("a")
    assert summary.open_since is None
    assert summary.fluence_e_per_A2 == pytest.approx(figures["fluence_e_per_A2"], rel=1e-6)
    recording = read_recording(tmp_path / "run.zarr")
    assert recording.complete
    assert recording.attributes["frames"] == summary.frames == figures["frames"]


@pytest.mark.parametrize("command", ["calibrate dose", "ledger show", "ledger export"])
def test_every_command_has_help(invoke: Invoke, command: str):
    status, out, _ = invoke(*command.split(), "--help")
    assert status == 0
    assert "Usage:" in out
