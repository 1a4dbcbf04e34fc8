"""Whatever the scripts are given, they say in one line what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["window_rate.py", "--seconds", "-1"], "--seconds: '-1' must be a number above 0"),
        (["sim_cost.py", "--frames", "0"], "--frames: '0' must be a whole number above 0"),
        (["sim_cost.py", "--profile", "nowhere"], "error: no profile named 'nowhere'"),
        (["sim_cost.py", "--profile", "sim-stem"], "error: profile 'sim-stem' has no simulated"),
        (["around_network.py", "--sides", "512,x"], "--sides: 'x' must be a whole number above 0"),
        (["around_network.py", "--sides", "5"], "--sides: '5': frames have 64 pixels a side"),
        (["minimise_study.py", "--model", "nobody"], "error: no restorer is called 'nobody'"),
        (["minimise_study.py", "--out", "."], "is not a file; give the path of one"),
        (["pair_study.py", "nowhere"], "error: "),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert said in done.stderr.splitlines()[-1]
