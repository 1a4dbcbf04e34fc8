"""The command line as a script sees it: exit status, one line of error, JSON as the last line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tem_live import cli

Invoke = Callable[..., tuple[int, str, str]]

QUICK = ["--set", "camera.sensor_height_px=64", "--set", "camera.sensor_width_px=96"]


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


def assert_one_line(err: str, *words: str) -> None:
    assert err.startswith("tem-live: error: ")
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "command",
    ["", "gui", "run", "restore", "recover", "profiles", "doctor", "bench", "train", "models list",
     "models show", "calibrate dark", "calibrate gain", "calibrate magnification"],
)  # fmt: skip
def test_every_command_has_help(invoke: Invoke, command: str):
    status, out, _ = invoke(*command.split(), "--help")
    assert status == 0
    assert "Usage:" in out


def test_version(invoke: Invoke):
    assert invoke("--version")[1].startswith("tem-live ")


def test_help_loads_nothing_heavy():
    code = (
        "import sys; import tem_live.cli; "
        "print([m for m in ('torch', 'PySide6', 'zarr', 'scipy', 'pydantic') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_run_prints_the_keys_that_scripts_rely_on(invoke: Invoke):
    status, out, _ = invoke(
        "run", "--frames", "12", "--model", "none", "--json", *QUICK,
        "--set", "camera.exposure_s=0.02",
    )  # fmt: skip
    assert status == 0
    figures = last_json(out)
    assert figures["frames"] == 12
    assert figures["stop_reason"] == "frames"
    assert figures["blanked"] is True
    assert figures["recording"] is None
    keys = {
        "frames", "fps", "latency_ms_p50", "latency_ms_p99", "dropped_raw", "restore_skipped",
        "display_skipped", "exposure_s", "dose_e_per_px", "fluence_e_per_A2", "blanked",
        "stop_reason", "model", "precision", "restore_binning", "device", "recording",
        "psnr_raw_db", "psnr_restored_db", "psnr_gaussian_db",
    }  # fmt: skip
    assert keys <= figures.keys()


def test_run_records_and_numbers_its_recordings(invoke: Invoke, tmp_path: Path):
    import zarr

    for number in ("001", "002"):
        status, out, _ = invoke(
            "run", "--frames", "5", "--model", "none", "--out", str(tmp_path / "rec"), "--json",
            *QUICK,
        )  # fmt: skip
        assert status == 0
        path = Path(last_json(out)["recording"])
        assert path.name == f"sim_{number}.zarr"
        group = zarr.open_group(path, mode="r")
        assert group["raw/0"].shape == (5, 64, 96)


def test_doubling_dose_rate_or_exposure_doubles_the_electrons_in_the_file_too(
    invoke: Invoke, tmp_path: Path
):
    import zarr

    def electrons(name: str, exposure_s: float, rate: float) -> tuple[float, float]:
        status, out, _ = invoke(
            "run", "--frames", "10", "--model", "none", "--out", str(tmp_path / name), "--json",
            "--set", "camera.scene=vacuum", *QUICK,
            "--set", f"camera.exposure_s={exposure_s}",
            "--set", f"column.dose_rate_e_per_px_s={rate}",
        )  # fmt: skip
        assert status == 0
        figures = last_json(out)
        group = zarr.open_group(figures["recording"], mode="r")
        raw = np.asarray(group["raw/0"], dtype=float)
        offset = float(group.attrs["offset_counts"])  # type: ignore[arg-type]
        gain = float(group.attrs["counts_per_electron"])  # type: ignore[arg-type]
        return figures["dose_e_per_px"], float((raw.mean() - offset) / gain)

    once = electrons("once", 0.02, 250)
    longer = electrons("longer", 0.04, 250)
    brighter = electrons("brighter", 0.02, 500)
    assert once == pytest.approx((5, 5), rel=0.02)
    assert longer == pytest.approx((10, 10), rel=0.02)
    assert brighter == pytest.approx((10, 10), rel=0.02)


def test_budget_ends_a_run_with_status_0(invoke: Invoke):
    status, out, _ = invoke(
        "run", "--frames", "1000", "--model", "none", "--budget", "10", "--json", *QUICK
    )
    figures = last_json(out)
    assert status == 0
    assert figures["stop_reason"] == "budget"
    assert 8 < figures["fluence_e_per_A2"] <= 10
    assert figures["blanked"] is True


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run"], 2, ["--frames"]),
        (["run", "--frames", "0"], 2, ["--frames 0"]),
        (["run", "--seconds", "-1"], 2, ["--seconds"]),
        (["run", "--frames", "x"], 2, ["--frames"]),
        (["run", "--frames", "1", "--profile", "smi"], 2, ["no profile named 'smi'", "sim"]),
        (["run", "--frames", "1", "--set", "camera.expsure_s=1"], 2, ["exposure_s"]),
        (["run", "--frames", "1", "--set", "camera.exposure_s=-1"], 2, ["camera.exposure_s"]),
        (["run", "--frames", "1", "--set", "camera.exposure_s=50 ms"], 2, ["seconds"]),
        (["run", "--frames", "1", "--set", "camera.driver=nikon"], 2, ["nikon", "sim"]),
        (["run", "--frames", "1", "--model", "nope"], 2, ["nope"]),
        (["run", "--frames", "1", "--model", "none", "--set", "camera.exposure_s=1e6"], 3, []),
        (["run", "--frames", "1", "--profile", "replay"], 2, ["camera.path"]),
        (
            ["run", "--frames", "1", "--profile", "replay", "--set", "camera.path=/no/such"],
            2,
            ["/no/such"],
        ),
        (["run", "--frames", "1", "--budget", "-4"], 2, ["dose.budget_e_per_A2"]),
        (["restore", "none.tif", "--out", "x.tif"], 2, ["none.tif"]),
        (["restore", "none.tif", "--out", "x.tif", "--counts-per-electron", "-2"], 2, []),
        (["models", "show", "nope"], 2, ["nope"]),
        (["recover", "nothing-here"], 2, ["nothing-here"]),
        (["bench", "--size", "1"], 2, ["--size"]),
        (["bench", "-m", "fast", "-m", "best", "--sizes", "64"], 2, ["one --model"]),
        (["bench", "-m", "none", "-m", "nope"], 2, ["nope"]),
        (["calibrate", "dark", "--frames", "1"], 2, ["2"]),
        (["frobnicate"], 2, ["frobnicate"]),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    invoke: Invoke, arguments: list[str], status: int, words: list[str]
):
    found, _, err = invoke(*arguments)
    assert_one_line(err, *words)
    assert found == status


def test_an_absent_camera_is_status_3(invoke: Invoke):
    status, _, err = invoke(
        "run", "--frames", "1", "--model", "none", "--profile", "de-twin",
        "--set", "camera.port=9",
    )  # fmt: skip
    assert_one_line(err)
    assert status == 3


def test_profiles_models_and_doctor_are_lists_of_named_objects(invoke: Invoke):
    profiles = last_json(invoke("profiles", "--json")[1])
    assert {"sim", "sim-lattice", "sim-damage", "replay", "mm-demo", "de-twin"} <= {
        row["name"] for row in profiles
    }
    models = last_json(invoke("models", "list", "--json")[1])
    assert sum(row["default"] for row in models) == 1
    doctor = last_json(invoke("doctor", "--json")[1])
    families = {
        "micro-manager", "pycromanager", "direct-electron", "dectris", "merlin", "genicam",
        "gatan", "tvips", "thermo", "jeol", "asi", "hamamatsu", "andor", "pco",
    }  # fmt: skip
    assert {row["name"] for row in doctor} == families
    assert {"family", "installed", "reachable", "tested_against", "mend"} <= doctor[0].keys()
    for command in (["profiles"], ["models", "list"], ["doctor"]):
        assert invoke(*command)[0] == 0


def test_what_doctor_says_can_be_pasted(invoke: Invoke, monkeypatch: pytest.MonkeyPatch):
    mend = 'pip install "tem-live[mm]"  # ' + "a remark that is longer than a terminal is wide " * 5
    row = {"name": "new", "installed": False, "reachable": None, "missing": "a [b]", "mend": mend}
    monkeypatch.setattr("tem_live.doctor.examine", lambda: [row, {**row, "mend": None}])
    status, out, _ = invoke("doctor")
    assert status == 0
    assert f"new: {mend}" in out.splitlines()
    assert out.count("a [b]") == 2


def test_calibrate_dark_is_used_by_the_next_run(invoke: Invoke):
    status, out, _ = invoke("calibrate", "dark", "--frames", "8", "--json", *QUICK)
    assert status == 0
    assert Path(last_json(out)["path"]).is_file()
    status, out, _ = invoke(
        "run", "--frames", "5", "--model", "none", "--json", "--set", "camera.scene=vacuum", *QUICK
    )
    assert status == 0
    assert last_json(out)["dose_e_per_px"] == pytest.approx(5, rel=0.03)


def test_bench_measures_every_stage_and_the_peers(invoke: Invoke, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tem_live.bench_trials.TRIAL_S", 0.3)
    monkeypatch.setattr("tem_live.bench.RESTORE_S", 0.3)
    result = last_json(invoke("bench", "--size", "64", "--json")[1])
    assert set(result["stages_ms"]) == {
        "driver", "upload", "calibrate", "restore", "analyse", "download", "display",
        "record",
    }  # fmt: skip
    assert set(result["restore_fps"]) == {"fast", "unet_resnet18", "cgrdn"}
    assert all(ratio > 0 for ratio in result["peer_ratio"].values())
    assert result["ceiling_fraction"] > 0
    assert result["roofline_fraction"] > 0
    assert result["memory_MB"]["recorded"] > 0
    assert result["machine"]["cores"] >= 1
