"""What the table of fidelity says is near the truth that stands beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "tools" / "fidelity_study.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PATH), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_error_that_is_told_is_near_the_true_one() -> None:
    done = run("--model", "gaussian", "--sections", "counted", "camera")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"\| (-?[\d.]+) ± ([\d.]+) \| ([\d.]+) \|", done.stdout)
    rows += re.findall(r": (-?[\d.]+) ± ([\d.]+) e-² \(true ([\d.]+)\)", done.stdout)
    assert len(rows) == 6 + 3
    for told, error, true in rows:
        assert abs(float(told) - float(true)) < 4.0 * float(error) + 0.1 * float(true)


def test_a_model_that_is_not_there_is_one_line() -> None:
    done = run("--model", "nowhere")
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
