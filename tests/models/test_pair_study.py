"""What the study of a real pair finds on pairs whose truth is known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tem_live.models import blurs, scores
from tools import pair_study

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 128


def scene() -> np.ndarray:
    smooth = blurs.gaussian_blur(np.random.default_rng(9).standard_normal((SIDE, SIDE)), 8.0)
    return 5.0 + smooth / smooth.std() * 0.5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in (1, 2):
        frame = rng.poisson(scene()).astype(np.float32)
        tifffile.imwrite(tmp_path / f"frame_{number}.tif", frame)
    return tmp_path


def test_wiener_filter_of_the_frame_itself() -> None:
    truth = scene()
    frame = np.random.default_rng(1).poisson(truth).astype(np.float32)
    filtered = pair_study.own_wiener(frame)
    assert filtered.mean() == pytest.approx(frame.mean(), rel=1e-5)
    assert scores.mse(truth, filtered) < 0.2 * scores.mse(truth, frame)


def test_a_blur_that_is_too_narrow_can_be_bettered(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Scenes of 8 px under a blur of 2 px: a wider one gains, and one half tells so for the other.
    arguments = [str(folder), "--counts-per-electron", "1", "--model", "gaussian"]
    assert pair_study.main(arguments) == 0
    out = capsys.readouterr().out
    first = re.search(r"gaussian: ([\d.]+) e-\^2", out)
    fallen = re.search(r"applied to the other: falls by ([-\d.]+)", out)
    assert first is not None
    assert fallen is not None
    assert 0.3 * float(first[1]) < float(fallen[1]) < float(first[1])


def test_detail_that_both_lack_is_found_in_the_noise() -> None:
    rng = np.random.default_rng(3)
    detail = 0.3 * np.sqrt(2.0) * np.sin(np.arange(SIDE) * np.pi / 2.0)
    a, b = (rng.standard_normal((SIDE, SIDE)) + detail for _ in range(2))
    found, error, noise = pair_study.lacking_detail(a, b, finest_px=6.0)
    assert abs(found - 0.09) < 4.0 * error
    assert error < 0.02
    # The disc of longer periods is left out.
    assert noise == pytest.approx(1.0 - np.pi / 36.0 + 0.09, rel=0.03)


def test_no_pair_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pair_study.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
