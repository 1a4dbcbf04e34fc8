"""The window's rates are those of a session that really ran."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "tools" / "window_rate.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PATH), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
    )


def test_frames_are_taken_and_restored_beside_the_window() -> None:
    done = run(
        "--after-s", "1", "--seconds", "1.5", "--set", "restorer.model=gaussian",
        "--set", "camera.roi=[0,0,64,64]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.search(r"([\d.]+) frames, ([\d.]+) restored.* 0 raw frames dropped", done.stdout)
    assert found is not None, done.stdout
    assert all(float(rate) > 0.0 for rate in found.groups())


def test_a_profile_that_is_not_there_is_one_line() -> None:
    done = run("--profile", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no profile named 'nowhere'")
    assert len(done.stderr.splitlines()) == 1
