"""Scenes that a recipe asks for by name, and that earlier recipes know nothing of."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tem_live.errors import InputError
from tem_live.models import data_scenes, scenes, scenes_extra, scenes_polycrystal, training
from tests.models.test_training import RECIPE, scene_bank


@pytest.mark.parametrize("seed", range(6))
def test_cells_are_scenes(seed: int) -> None:
    image = scenes_extra.cells(np.random.default_rng(seed), 96)
    assert image.shape == (96, 96)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() > 0.0
    assert 0.01 < image.std() / image.mean() < 1.0
    np.testing.assert_array_equal(image, scenes_extra.cells(np.random.default_rng(seed), 96))


def test_multislice_is_a_crystal() -> None:
    """Needs abTEM, which is an extra: ``pip install 'tem-live[multislice]'``."""
    pytest.importorskip("abtem")
    image = scenes_extra.multislice(np.random.default_rng(2), 64)
    assert image.shape == (64, 64)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0.0
    assert 0.02 < image.std() / image.mean() < 1.0
    np.testing.assert_array_equal(image, scenes_extra.multislice(np.random.default_rng(2), 64))


def test_multislice_without_abtem_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "abtem", None)
    with pytest.raises(InputError, match=r"tem-live\[multislice\]"):
        scenes_extra.multislice(np.random.default_rng(0), 64)


def test_perforated_films_are_scenes() -> None:
    images = [scenes_extra.perforated(np.random.default_rng(seed), 96) for seed in range(30)]
    for seed, image in enumerate(images):
        assert image.shape == (96, 96)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= 0.0
        again = scenes_extra.perforated(np.random.default_rng(seed), 96)
        np.testing.assert_array_equal(image, again)
    contrasts = [float(image.std() / image.mean()) for image in images]
    assert np.median(contrasts) > 0.1
    # Holes in rows: most of the power of such a film lies in a few waves.
    # (A tear may take the whole frame.)
    shares = [_largest_waves(image) for image in images if image.std() > 0.0]
    assert len(shares) > 25
    assert np.median(shares) > 0.5


def test_spheres_are_scenes() -> None:
    images = [scenes_extra.spheres(np.random.default_rng(seed), 96) for seed in range(40)]
    for seed, image in enumerate(images):
        assert image.shape == (96, 96)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= 0.0
        again = scenes_extra.spheres(np.random.default_rng(seed), 96)
        np.testing.assert_array_equal(image, again)
    # Weak contrast is what they are for: half of them vary by a few percent only.
    contrasts = [float(image.std() / image.mean()) for image in images]
    assert 0.005 < np.median(contrasts) < 0.15
    # They absorb: what stands out is dark.
    depths = [float(np.median(image) - image.min()) for image in images]
    heights = [float(image.max() - np.median(image)) for image in images]
    assert np.mean(np.array(depths) > np.array(heights)) > 0.7


def test_polycrystals_are_scenes() -> None:
    images = [scenes_polycrystal.polycrystal(np.random.default_rng(k), 96) for k in range(24)]
    for seed, image in enumerate(images):
        assert image.shape == (96, 96)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() > 0.0
        again = scenes_polycrystal.polycrystal(np.random.default_rng(seed), 96)
        np.testing.assert_array_equal(image, again)
    assert np.median([float(image.std() / image.mean()) for image in images]) > 0.05
    # Lattices, though of several grains.
    assert np.median([_largest_waves(image) for image in images]) > 0.3


def test_columns_of_a_polycrystal_are_whole() -> None:
    """Those of one grain are alike: none is cut where its grain ends."""
    rng = np.random.default_rng(1)
    crystal = scenes_polycrystal._Crystal(
        12.0, np.pi / 2, 1.0, ((0.0, 0.0, 1.0),), 1.5,
        gap=0.0, missing=0.0, scatter=0.0, doped=0.0, dopant=1.0,
    )  # fmt: skip
    owner = np.zeros((128, 128), np.int64)
    owner[:, 61:] = 1
    border = np.full((128, 128), 3.0, np.float32)
    near, found = scenes_polycrystal._grain(rng, crystal, owner, border, 0)
    image = np.zeros((128, 128))
    image[near] = found
    peaks = (image == ndimage.maximum_filter(image, 9)) & (image > 0.1)
    rows, columns = np.nonzero(peaks[12:116, 12:])
    assert 25 < len(rows) < 60
    assert columns.max() < 61 - 12 + 1
    # 7 x 7 px around a peak hold 2 pi sigma^2, but for what lies farther out than 2.3 sigma.
    sums = [image[r + 9 : r + 16, c + 9 : c + 16].sum() for r, c in zip(rows, columns, strict=True)]
    np.testing.assert_allclose(np.array(sums) / sums[0], 1.0, rtol=0.04)


def _largest_waves(image: np.ndarray) -> float:
    """Share of the variance that the 40 largest of the 9216 coefficients hold."""
    window = np.hanning(len(image))[:, None] * np.hanning(len(image))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)).ravel() ** 2
    return float(np.sort(power)[-40:].sum() / power.sum())


def test_without_the_key_nothing_changes() -> None:
    ours = scenes_extra.recipe_scene(np.random.default_rng([5, 3]), 64, {})
    np.testing.assert_array_equal(ours, scenes.random_scene(np.random.default_rng([5, 3]), 64))
    assert scenes_extra.bank_name(5, 9, 64, {}) == "scenes-5-9-64.npy"


def test_shares_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {"cells": 0, "multislice": 0, "others": 0}

    def count(name: str) -> object:
        def generator(rng: np.random.Generator, size: int) -> np.ndarray:
            drawn[name] += 1
            return np.full((size, size), 3.0, np.float32)

        return generator

    for name in ("cells", "multislice"):
        monkeypatch.setitem(scenes_extra.EXTRA_GENERATORS, name, count(name))
    monkeypatch.setattr(scenes_extra, "random_scene", count("others"))
    for i in range(400):
        share = {"cells": 0.3, "multislice": 0.1}
        image = scenes_extra.recipe_scene(np.random.default_rng(i), 8, share)
        assert image.mean() in (1.0, 3.0)
    assert drawn["cells"] == pytest.approx(120, abs=40)
    assert drawn["multislice"] == pytest.approx(40, abs=25)
    assert drawn["others"] == pytest.approx(240, abs=50)


def recipe(tmp_path: Path, line: str) -> training.Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("scenes = 4", f"scenes = 4\n{line}"), encoding="utf-8")
    return training.load_recipe(path)


def test_recipe_with_cells(tmp_path: Path) -> None:
    mine = recipe(tmp_path, "extra_scenes = { cells = 1.0 }")
    path = data_scenes.scene_file(mine, tmp_path, processes=1)
    bank = np.load(path)
    assert path.name == "scenes-3-4-64-cells1.npy"
    expected = scenes_extra.recipe_scene(np.random.default_rng([3, 2]), 64, {"cells": 1.0})
    np.testing.assert_array_equal(bank[2], expected.astype(np.float16))
    plain = np.load(data_scenes.scene_file(recipe(tmp_path, ""), tmp_path, processes=1))
    np.testing.assert_array_equal(plain, scene_bank(4, 64, 3))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("extra_scenes = { cats = 0.1 }", "'cats'"),
        ("extra_scenes = { cells = 0.7, multislice = 0.6 }", "more than 1"),
        ("extra_scenes = { cells = -0.1 }", "greater than or equal"),
    ],
)
def test_wrong_shares_are_refused(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        recipe(tmp_path, line)
    assert "\n" not in str(caught.value)
