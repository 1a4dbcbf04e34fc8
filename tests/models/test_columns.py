"""Atom columns: the bound, the fit that reaches it, and what a restorer can do wrong to them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tem_live import cli
from tem_live.models import evaluate_columns as ec
from tem_live.models.testscenes import ColumnScene, atom_columns, gaussian_columns

SIDE, DOSE = 160, 20.0


@pytest.fixture(scope="module")
def scene() -> ColumnScene:
    return atom_columns(SIDE, 0)


def image_of(scene: ColumnScene, volumes: np.ndarray) -> np.ndarray:
    args = (SIDE, scene.background, scene.sigma_px, scene.places_px, volumes)
    return (DOSE * gaussian_columns(*args)).astype(np.float32)


def one(method) -> dict:
    rows = ec.evaluate_columns({"method": method}, doses=(DOSE,), size=SIDE)
    return {row["method"]: row for row in rows}["method"]


def test_scene_is_what_it_says(scene: ColumnScene) -> None:
    assert scene.image.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(image_of(scene, scene.volumes), DOSE * scene.image, rtol=1e-5)
    assert scene.dopants.sum() >= 3
    assert len(scene.vacancies_px) >= 1
    np.testing.assert_array_equal(scene.volumes[~scene.dopants], scene.hosts[~scene.dopants])
    # Beyond the surface is vacuum.
    assert scene.image[:, -8:].max() == pytest.approx(scene.background, rel=1e-3)


def test_bound_of_a_lone_column() -> None:
    """Without background a position has the variance sigma^2 / N, and a sum of N counts N."""
    column = ec.Columns(np.array([[31.3, 32.6]]), np.array([900.0]), 1e-6, 2.5)
    places, volumes = ec.cramer_rao((64, 64), column)
    np.testing.assert_allclose(places, 2.5**2 / 900.0, rtol=1e-2)
    assert volumes[0] == pytest.approx(900.0, rel=1e-2)
    with_background = ec.Columns(column.places_px, column.volumes_e, 10.0, 2.5)
    assert ec.cramer_rao((64, 64), with_background)[1][0] > 1.5 * volumes[0]


def test_two_columns_at_one_place_have_no_bound() -> None:
    twice = ec.Columns(np.full((2, 2), 20.0), np.full(2, 500.0), 1.0, 2.0)
    with pytest.raises(ValueError, match="one place"):
        ec.cramer_rao((40, 40), twice)


def test_fit_of_the_truth_is_the_truth(scene: ColumnScene) -> None:
    row = one(lambda frame: image_of(scene, scene.volumes))
    assert (row["lost"], row["invented"]) == (0, 0)
    assert row["position_ratio"] < 0.1
    assert row["intensity_ratio"] < 0.1
    assert row["slope"] == pytest.approx(1.0, abs=0.01)
    assert row["dopant_slope"] == pytest.approx(1.0, abs=0.01)
    assert row["vacancy_filled"] == pytest.approx(0.0, abs=0.02)
    assert row["sigma_px"] == pytest.approx(scene.sigma_px, rel=0.01)


def test_fit_of_raw_counts_reaches_the_bound() -> None:
    rows = ec.evaluate_columns({}, doses=(DOSE,), size=SIDE, seeds=(0, 1, 2))
    (row,) = rows
    assert row["method"] == "raw"
    assert row["columns"] > 150
    assert (row["lost"], row["invented"]) == (0, 0)
    # Some 300 columns: the ratios have a standard error of 3 to 4 %.
    assert 0.88 < row["position_ratio"] < 1.12
    assert 0.85 < row["intensity_ratio"] < 1.15
    assert abs(row["intensity_bias"]) < 0.01
    assert row["dopant_slope"] == pytest.approx(1.0, abs=4 * row["dopant_slope_error"])


def test_pulling_every_column_towards_the_host_is_told(scene: ColumnScene) -> None:
    """What a restorer does that believes in a perfect crystal."""
    places = np.concatenate([scene.places_px, scene.vacancies_px])
    hosts = np.concatenate([scene.hosts, scene.vacancy_hosts])
    perfect = gaussian_columns(SIDE, scene.background, scene.sigma_px, places, hosts)
    row = one(lambda frame: 0.85 * DOSE * scene.image + 0.15 * DOSE * perfect)
    assert row["dopant_slope"] == pytest.approx(0.85, abs=0.02)
    assert row["vacancy_filled"] == pytest.approx(0.15, abs=0.03)
    assert row["invented"] == 0
    row = one(lambda frame: 0.6 * DOSE * scene.image + 0.4 * DOSE * perfect)
    assert row["invented"] >= 1


def test_a_column_that_is_missing_and_one_too_many(scene: ColumnScene) -> None:
    middle = int(np.argmin(np.hypot(*(scene.places_px - SIDE / 2).T)))
    volumes = scene.volumes.copy()
    volumes[middle] = 0.0
    assert one(lambda frame: image_of(scene, volumes))["lost"] == 1
    vacuum = np.array([[SIDE / 2, SIDE - 18.0]])
    extra = gaussian_columns(SIDE, 0.0, scene.sigma_px, vacuum, scene.hosts[:1])
    row = one(lambda frame: DOSE * (scene.image + extra))
    assert (row["lost"], row["invented"]) == (0, 1)


def test_moved_and_weakened_columns(scene: ColumnScene) -> None:
    def moved(frame):
        places = scene.places_px + np.array([0.3, 0.0])
        args = (SIDE, scene.background, scene.sigma_px, places, 0.9 * scene.volumes)
        return DOSE * gaussian_columns(*args)

    row = one(moved)
    assert row["position_rms_px"] == pytest.approx(0.3 / np.sqrt(2.0), rel=0.02)
    assert row["intensity_bias"] == pytest.approx(-0.1, abs=0.003)
    assert row["slope"] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 20.0])
def test_frame_without_columns(value: float) -> None:
    row = one(lambda frame: np.full_like(frame, value))
    assert row["lost"] == row["columns"]
    assert row["invented"] == 0
    assert row["position_ratio"] is None
    assert ec.table([row])[0]["/ bound"] == "–"


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "-m", "gaussian", "--columns", "--size", "96", "--doses", "20"]
    for extra in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["tem-live", *arguments, *extra])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
        out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert [row["method"] for row in report["columns"]] == ["raw", "gaussian-2px"]
    assert report["rows"] == []
