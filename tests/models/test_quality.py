"""The shipped default does what its card says, on scenes that no training saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tem_live import models
from tem_live.models import evaluate
from tem_live.models.cards import read_card
from tem_live.models.classical import bm3d_restore
from tem_live.models.evaluate_pair import evaluate_pair
from tem_live.models.real_images import load_pair

PAIR = Path(__file__).resolve().parents[3] / "shared" / "data" / "lowdose_pair"


@pytest.fixture(scope="module")
def fast() -> models.Restorer:
    return models.load_restorer(models.default_restorer(), "cpu")


@pytest.mark.parametrize("camera", ["poisson", "cmos"])
@pytest.mark.parametrize("dose", [1.0, 5.0, 20.0])
def test_beats_the_best_gaussian(fast: models.Restorer, dose: float, camera: str) -> None:
    rows = evaluate.evaluate_scenes(
        {"fast": fast.restore}, doses=[dose], camera=camera, size=256, names=["nanoparticles"]
    )
    assert rows[0]["error_ratio"] < 1.0
    assert abs(rows[0]["bias"]) < 1e-3


def test_beats_bm3d(fast: models.Restorer) -> None:
    """Over all scenes; where clean structure repeats BM3D is ahead, see docs/restorers.md."""
    pytest.importorskip("bm3d")
    rows = evaluate.evaluate_scenes(
        {"fast": fast.restore, "bm3d": bm3d_restore}, doses=[5.0], size=160
    )
    mean = {r["method"]: r["error_ratio"] for r in evaluate.summarise(rows)}
    assert mean["fast"] < 0.9 * mean["bm3d"]


@pytest.mark.parametrize("dose", [0.5, 5.0, 50.0])
def test_invents_nothing_on_an_empty_frame(fast: models.Restorer, dose: float) -> None:
    frame = np.random.default_rng(9).poisson(dose, (256, 256)).astype(np.float32)
    result = fast.restore(frame)
    # The best that a Gaussian of 8 px could do is the noise over 2 sqrt(pi) 8.
    assert result.std() < np.sqrt(dose) / 28.0
    spectrum = np.abs(np.fft.rfft2(result - result.mean()))
    spectrum[:9, :9] = spectrum[-8:, :9] = 0
    # No period stands out: a lattice would be one strong peak at a high frequency.
    assert spectrum.max() < 0.35 * np.abs(np.fft.rfft2(frame - frame.mean())).max()


@pytest.mark.skipif(not PAIR.is_dir(), reason="the real frame pair is not here (../shared/data)")
def test_real_pair(fast: models.Restorer) -> None:
    figures = evaluate_pair({"fast": fast.restore}, *load_pair(PAIR))
    assert figures["raw"]["empty_film_fraction"] > 0.2
    assert figures["raw"]["texture"] > 0.7
    assert figures["fast"]["texture"] < 0.03
    assert figures["fast"]["below_gaussian_e2"] > 0.0
    assert abs(figures["fast"]["bias"]) < 1e-3


@pytest.mark.skipif(not PAIR.is_dir(), reason="the real frame pair is not here (../shared/data)")
def test_real_pair_has_no_lattice_and_no_stripe(fast: models.Restorer) -> None:
    a, b = load_pair(PAIR)
    for frame in (a, b):
        result = fast.restore(frame)
        rows = result.mean(axis=1)
        ripple = rows - ndimage.gaussian_filter1d(rows, 6.0)
        raw_rows = frame.mean(axis=1)
        raw_ripple = raw_rows - ndimage.gaussian_filter1d(raw_rows, 6.0)
        assert ripple.std() < 0.5 * raw_ripple.std()


def test_card_scores_are_under_one_at_every_dose() -> None:
    card = read_card(Path(models.__file__).parent / "weights" / "fast.json")
    measured = [s for s in card.scores if s.error_ratio is not None]
    assert {s.dose_e_per_px for s in measured} >= {1.0, 5.0, 20.0}
    assert all(s.error_ratio is not None and s.error_ratio < 1.0 for s in measured)
