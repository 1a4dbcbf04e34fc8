"""Own data: what is read from it, and what going on training with it says and leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from scipy import ndimage

from tem_live.errors import InputError
from tem_live.models import blurs, finetune, load_restorer, pairs, scores
from tem_live.models.data_device import DeviceBatches
from tem_live.models.data_own import NoiseByExample, OwnBatches
from tem_live.models.pairs import Example, OwnData
from tem_live.models.training import DataRecipe, OwnRecipe
from tem_live.models.trim import network_of

pytestmark = pytest.mark.usefixtures("one_thread")

Array = npt.NDArray[np.float32]


def specimen(size: int = 160, seed: int = 0) -> Array:
    """Smooth blobs, mean about 1."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((size, size)), 4.0)
    return np.asarray(1.0 + 0.3 * np.tanh(field / field.std()), dtype=np.float32)


def blur(frame: Array) -> Array:
    return blurs.gaussian_blur(frame, 2.0)


def poisson(seed: int, expected: Array) -> Array:
    return np.random.default_rng(seed).poisson(np.maximum(expected, 0.0)).astype(np.float32)


# -- reduction and registration --------------------------------------------------------------


def test_reduction_keeps_electrons_and_does_not_alias() -> None:
    x = np.tile(np.arange(96), (96, 1))
    slow = np.cos(2 * np.pi * x / 32.0)
    # A period of 3 px is beyond the new Nyquist frequency of 8 px; plain steps of 4 px would
    # show it as 12 px, and means of 4 x 4 as a third of it.
    fine = np.cos(np.pi * (x + 0.5) * 64 / 96)
    image = 5.0 + slow + fine
    small = pairs.reduced(image, 4)
    assert small.shape == (24, 24)
    assert small.mean() == pytest.approx(16.0 * 5.0, rel=1e-4)
    without = pairs.reduced(5.0 + slow, 4)
    np.testing.assert_allclose(small, without, atol=1e-2)
    middle = np.s_[6:-6, 6:-6]
    shifted = 5.0 + np.cos(2 * np.pi * (np.arange(24) * 4 + 1.5) / 32.0)
    np.testing.assert_allclose(without[middle] / 16.0, np.tile(shifted, (24, 1))[middle], atol=0.03)


def test_reduced_noise_stays_white_with_the_variance_of_summed_electrons() -> None:
    small = pairs.reduced(poisson(0, np.full((512, 512), 5.0)), 4)
    assert small.var() == pytest.approx(80.0, rel=0.06)
    z = small - small.mean()
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 0.03 * small.var()


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -5.0), (1.4, 0.7), (-11.3, 8.6)])
def test_shifts_are_found(shift: tuple[float, float]) -> None:
    large = specimen(224)
    fixed = large[32:-32, 32:-32]
    moving = pairs.moved(large, *shift)[32:-32, 32:-32]
    found = pairs.shift_between(blur(poisson(1, 8.0 * fixed)), blur(poisson(2, 8.0 * moving)))
    assert found is not None
    # The noise alone makes 0.3 px; without any, a hundredth is reached.
    np.testing.assert_allclose(found, shift, atol=0.5)
    exact = pairs.shift_between(fixed, moving)
    assert exact is not None
    np.testing.assert_allclose(exact, shift, atol=0.02)


def test_nothing_in_common_is_no_shift() -> None:
    assert pairs.shift_between(specimen(96, 1), np.ones((96, 96), dtype=np.float32)) is None


# -- folders ---------------------------------------------------------------------------------


def write_pairs(folder: Path, count: int = 4, told: bool = True, drift: float = 2.0) -> None:
    for kind in ("short", "long"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        scene = specimen(224, i)
        short, long = (
            poisson(10 * i + n, d * pairs.moved(scene, n * drift, 0.0)[32:-32, 32:-32])
            for n, d in ((0, 6.0), (1, 120.0))
        )
        tifffile.imwrite(folder / "short" / f"{i}.tif", short * 40.0)
        tifffile.imwrite(folder / "long" / f"{i}.tif", long * 40.0)
    if told:
        (folder / "pairs.json").write_text('{"short_s": 0.05, "long_s": 1.0}', encoding="utf-8")


@pytest.mark.parametrize("told", [True, False])
def test_pairs_are_registered_and_keep_their_intensity(tmp_path: Path, told: bool) -> None:
    write_pairs(tmp_path, told=told)
    own = OwnRecipe(folder=str(tmp_path), counts_per_electron=40.0)
    data = pairs.load_own(own, blur)
    assert data.kind == "pairs"
    assert len(data.examples) == 4
    assert bool(data.warnings) is not told
    for example in data.examples:
        assert example.target is not None
        assert example.target.mean() == pytest.approx(example.frame.mean(), rel=0.02)
        # In place they differ by the noise of both; 4 px off the specimen would add to it.
        moved = np.roll(example.target, 4, axis=0)
        at_home = scores.mse(example.frame, example.target)
        assert at_home == pytest.approx(6.0 + 6.0 / 20.0, rel=0.08)
        assert scores.mse(example.frame[4:-4], moved[4:-4]) > at_home + 0.5


def series(folder: Path, frames: list[Array]) -> OwnRecipe:
    folder.mkdir(exist_ok=True)
    for i, frame in enumerate(frames):
        tifffile.imwrite(folder / f"{i:03d}.tif", frame)
    return OwnRecipe(folder=str(folder), counts_per_electron=1.0)


def drifting(count: int, pattern: float = 0.0, step: float = 1.5) -> list[Array]:
    scene = specimen(224)
    fixed = pattern * np.random.default_rng(99).standard_normal((160, 160)).astype(np.float32)
    return [
        poisson(i, 6.0 * pairs.moved(scene, 0.0, step * i)[32:-32, 32:-32]) + fixed
        for i in range(count)
    ]


def test_a_series_pairs_successive_frames(tmp_path: Path) -> None:
    data = pairs.load_own(series(tmp_path, drifting(6)), blur)
    assert data.kind == "series"
    assert data.warnings == ()
    assert len(data.examples) == 5
    for example in data.examples:
        assert example.target is not None
        # Twice the noise and nothing of the specimen's motion.
        assert scores.mse(example.frame, example.target) == pytest.approx(12.0, rel=0.05)


def test_a_fixed_pattern_is_told(tmp_path: Path) -> None:
    clean, dirty = drifting(6), drifting(6, pattern=1.0)
    assert abs(pairs.fixed_pattern(clean, blur)) < 0.005
    # 1 of 6 + 1 parts of the variance.
    assert pairs.fixed_pattern(dirty, blur) == pytest.approx(1.0 / 7.0, abs=0.02)
    data = pairs.load_own(series(tmp_path / "dirty", dirty), blur)
    assert any("fixed pattern" in warning for warning in data.warnings)
    still = pairs.load_own(series(tmp_path / "still", drifting(6, step=0.0)), blur)
    assert any("hardly moves" in warning for warning in still.warnings)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: f / "none", "no folder"),
        (lambda f: f, "no file|no files"),
    ],
)
def test_empty_folders(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(InputError, match=says):
        pairs.load_own(OwnRecipe(folder=str(make(tmp_path))), blur)


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    small = series(tmp_path / "small", [np.ones((32, 32), np.float32)] * 5)
    with pytest.raises(InputError, match="too small"):
        pairs.load_own(small, blur)
    dark = series(tmp_path / "dark", [np.zeros((96, 96), np.float32)] * 5)
    with pytest.raises(InputError, match="dark"):
        pairs.load_own(dark, blur)
    few = series(tmp_path / "few", drifting(2))
    with pytest.raises(InputError, match="at least 4"):
        pairs.load_own(few.model_copy(update={"kind": "series"}), blur)
    with pytest.raises(InputError, match="short and long"):
        pairs.load_own(few.model_copy(update={"kind": "pairs"}), blur)
    write_pairs(tmp_path / "p", count=2)
    (tmp_path / "p" / "pairs.json").write_text('{"short_s": 0}', encoding="utf-8")
    with pytest.raises(InputError, match="short_s and long_s"):
        pairs.load_own(OwnRecipe(folder=str(tmp_path / "p")), blur)
    (tmp_path / "p" / "long" / "1.tif").unlink()
    with pytest.raises(InputError, match="make no pairs"):
        pairs.load_own(OwnRecipe(folder=str(tmp_path / "p")), blur)


# -- noise by example ------------------------------------------------------------------------


def test_noise_by_example_has_the_form_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    scene = 4.0 * specimen(256)
    rows = np.repeat(rng.standard_normal((256, 32)), 8, axis=1).astype(np.float32)
    frame = np.maximum(poisson(1, scene) + 1.2 * rows, 0.0)
    mean = ndimage.gaussian_filter(frame, 3.0)
    made = NoiseByExample(frame, mean).expose(np.random.default_rng(2), mean)
    assert (made == 0.0).mean() == pytest.approx((frame == 0.0).mean(), abs=0.03)
    old, new = frame - mean, made - mean
    for lag in ((0, 1), (0, 3), (1, 0)):
        a, b = (
            float((z[: 256 - lag[0], : 256 - lag[1]] * z[lag[0] :, lag[1] :]).mean() / z.var())
            for z in (old, new)
        )
        assert b == pytest.approx(a, abs=0.06)
    for part in (mean < np.quantile(mean, 0.2), mean > np.quantile(mean, 0.8)):
        assert new[part].std() == pytest.approx(old[part].std(), rel=0.08)
        assert abs(new[part].mean()) < 0.05


def test_batches_mirror_frame_and_target_together() -> None:
    frame = specimen(128)
    batches = OwnBatches(
        [Example(frame, 2.0 * frame)], blur, None, share=0.5, batch_px=65536, crop_px=64, seed=1
    )
    batch = batches.make(0)
    assert batch.frames.shape == (16, 1, 64, 64)
    np.testing.assert_array_equal(2.0 * batch.frames, batch.targets)
    np.testing.assert_array_equal(batches.make(0).frames, batch.frames)
    assert not np.array_equal(batches.make(1).frames, batch.frames)
    assert (batch.scale > 0.0).all()


def test_a_lattice_is_taken_out_of_frame_and_target() -> None:
    y, x = np.indices((128, 128))
    turns = 2.0 * np.pi / 128.0
    waves = np.cos(turns * (21 * x + 6 * y)) + np.cos(turns * (21 * y - 6 * x))
    scene = (10.0 + 2.0 * waves).astype(np.float32)
    frame, target = poisson(1, scene), poisson(2, scene)
    batches = OwnBatches(
        [Example(frame, target)], blur, None, share=0.5, batch_px=65536, crop_px=128, seed=1
    )
    batch = batches.make(0)
    # Noise is left, of the variance of the mean.
    for images in (batch.frames, batch.targets):
        assert images.var().item() == pytest.approx(10.0, rel=0.1)
        assert images.mean().item() == pytest.approx(10.0, rel=0.01)


def test_simulated_samples_that_are_smaller_are_continued() -> None:
    frame = 6.0 * specimen(96)
    bank = np.stack([specimen(48, seed) for seed in range(3)]).astype(np.float16)
    simulated = DeviceBatches(
        DataRecipe(scenes=3, scene_px=48, crops_px=(32,), batch_px=4096), 1, bank, "cpu"
    )
    batches = OwnBatches(
        [Example(poisson(1, frame), poisson(2, frame))], blur, simulated, share=1.0, batch_px=8192,
        crop_px=64, seed=1,
    )  # fmt: skip
    batch, made = batches.make(0), simulated.make(0)
    assert batch.frames.shape == (2, 1, 64, 64)
    for whole, part in ((batch.frames, made.frames), (batch.targets, made.targets)):
        np.testing.assert_array_equal(whole[:, :, :32, :32], part[:2])
        np.testing.assert_array_equal(whole[0, 0, 32:, :32], part[0, 0, -1:].expand(32, 32))
    np.testing.assert_array_equal(batch.scale, made.scale[:2])


# -- what was gained -------------------------------------------------------------------------


def test_the_gain_is_that_of_the_errors() -> None:
    scene = 6.0 * specimen(256)
    example = Example(poisson(1, scene), poisson(2, scene))
    truth = (scores.mse(scene, blur(example.frame)), scores.mse(scene, example.frame))
    gain = finetune.held_out_gain(lambda f: f, blur, [example])
    assert gain.better
    assert gain.gain_e2 == pytest.approx(truth[1] - truth[0], abs=3 * gain.standard_error_e2)
    assert gain.error_before_e2 == pytest.approx(truth[1], rel=0.05)
    worse = finetune.held_out_gain(blur, lambda f: f, [example])
    assert not worse.better
    assert worse.gain_e2 == -gain.gain_e2
    same = finetune.held_out_gain(blur, blur, [example])
    assert not same.better
    long = Example(example.frame, scene + 0.1 * (example.target - scene))  # type: ignore[operator]
    assert finetune.held_out_gain(lambda f: f, blur, [long]).error_before_e2 is None


def test_split_keeps_series_apart() -> None:
    frames = [np.full((64, 64), float(i), dtype=np.float32) for i in range(11)]
    data = OwnData("series", tuple(Example(a, b) for a, b in pairwise(frames)))
    training, held_out = finetune.split(data, 0.2)
    seen = {float(x.mean()) for e in training for x in (e.frame, e.target) if x is not None}
    kept = {float(x.mean()) for e in held_out for x in (e.frame, e.target) if x is not None}
    assert not seen & kept
    assert len(held_out) == 2


# -- the whole -------------------------------------------------------------------------------


def quick(folder: Path, **given: object) -> finetune.Recipe:
    recipe = finetune.own_recipe("fast", folder, name="mine", counts_per_electron=1.0)
    return recipe.model_copy(
        update={
            "optim": recipe.optim.model_copy(update={"max_steps": 2, "threads": 1, **given}),
            "data": recipe.data.model_copy(
                update={"batch_px": 8192, "crops_px": (64,), "scenes": 2, "scene_px": 64}
            ),
        }
    )


def test_a_training_may_start_from_the_network_of_best() -> None:
    """Its views are no part of the network; for one's own data it is refused, see below."""
    weights = finetune.weights_of("best")
    network = network_of(load_restorer("best", "cpu", "float32"))
    assert weights.keys() == network.state_dict().keys()
    assert torch.equal(weights["head.weight"], network.head.weight)
    with pytest.raises(InputError, match="use fast"):
        finetune.weights_of("gaussian")


@pytest.mark.timeout(300)  # the first to import Lightning
def test_what_is_better_is_published_with_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    series(tmp_path / "data", drifting(6))
    sure = finetune.Gain(0.5, 0.4, 0.1, 0.01)
    monkeypatch.setattr(finetune, "held_out_gain", lambda *_: sure)
    outcome = finetune.finetune(quick(tmp_path / "data"), tmp_path / "run", device="cpu")
    assert outcome.path is not None
    assert "published as mine" in outcome.message()
    assert "+20%" in outcome.message()
    restorer = load_restorer("mine", "cpu")
    assert restorer.card.scores[0].extra["gain_e2"] == 0.1
    assert not restorer.card.default
    assert restorer.restore(drifting(1)[0]).shape == (160, 160)
    assert json.loads(json.dumps(outcome.as_dict()))["published"] is True


def test_what_is_worse_is_not_published(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    series(tmp_path / "data", drifting(6))
    # A rate that ruins the network.
    outcome = finetune.finetune(
        quick(tmp_path / "data", learning_rate=0.3, warmup_steps=0), tmp_path / "run", device="cpu"
    )
    assert outcome.gain is not None
    assert outcome.gain.gain_e2 < 0.0
    assert outcome.path is None
    assert "not published" in outcome.message()
    assert outcome.weights.is_file()
    assert not (tmp_path / "run" / "trial").exists()


def test_a_single_frame_needs_another_to_check(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    a, b = drifting(2, step=0.0)
    series(tmp_path / "a", [a])
    series(tmp_path / "b", [b])
    recipe = quick(tmp_path / "a")
    assert recipe.own is not None
    own = recipe.own.model_copy(update={"check": str(tmp_path / "b")})
    checked = finetune.finetune(
        recipe.model_copy(update={"own": own}), tmp_path / "run2", device="cpu"
    )
    assert checked.kind == "frame"
    assert checked.gain is not None
    assert replace(checked, gain=None).message().startswith("nothing tells")
    assert finetune.split(OwnData("frame", (Example(a),)), 0.2)[1] == []
    assert math.isfinite(checked.gain.standard_error_e2)


@pytest.mark.parametrize(
    ("start", "name", "says"),
    [
        ("fast", "fast", "ships"),
        ("gaussian", "mine", "no network"),
        ("best", "mine", "use fast"),
        ("nobody", "mine", "nobody"),
    ],
)
def test_wrong_names(tmp_path: Path, start: str, name: str, says: str) -> None:
    series(tmp_path / "data", drifting(4))
    recipe = finetune.own_recipe(start, tmp_path / "data", name=name)
    from tem_live.errors import TemLiveError

    with pytest.raises(TemLiveError, match=says):
        finetune.finetune(recipe, tmp_path / "run", device="cpu")
