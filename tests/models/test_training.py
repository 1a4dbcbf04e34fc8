"""What training is made of: scenes, cameras, recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tem_live.errors import InputError
from tem_live.models import cameras, scenes, training

RECIPE = """
name = "tiny"
seed = 3
[network]
widths = [8, 16]
blocks = [1, 1]
[data]
scenes = 4
scene_px = 64
crops_px = [32, 64]
batch_px = 8192
[optim]
max_minutes = 10
max_steps = 3
warmup_steps = 1
threads = 1
"""


def scene_bank(count: int, size: int, seed: int) -> npt.NDArray[np.float16]:
    """Scenes one after the other: what a bank holds, however it is made."""
    made = [scenes.random_scene(np.random.default_rng([seed, i]), size) for i in range(count)]
    return np.asarray(made, dtype=np.float16)


@pytest.mark.parametrize("kind", list(scenes.GENERATORS))
def test_scene_generators(kind: str) -> None:
    for seed in range(4):
        image = scenes.GENERATORS[kind][0](np.random.default_rng(seed), 64)
        again = scenes.GENERATORS[kind][0](np.random.default_rng(seed), 64)
        assert image.shape == (64, 64)
        assert np.isfinite(image).all()
        np.testing.assert_array_equal(image, again)


def test_scenes_have_unit_mean_and_are_reproducible() -> None:
    bank = scene_bank(12, 64, 5)
    assert bank.dtype == np.float16
    np.testing.assert_allclose(bank.astype(np.float64).mean((1, 2)), 1.0, atol=0.01)
    assert (bank >= 0).all()
    np.testing.assert_array_equal(bank, scene_bank(12, 64, 5))


@pytest.mark.parametrize(
    ("camera", "variance_over_mean"),
    [
        (cameras.Camera(), 1.0),
        (cameras.Camera(excess=1.5), 2.5),
        (cameras.Camera(read_e=3.0), 1.0 + 9.0 / 20.0),
        (cameras.Camera(streak=0.5, streak_px=10.0), 1.25),
    ],
)
def test_cameras_have_the_noise_they_name(
    camera: cameras.Camera, variance_over_mean: float
) -> None:
    flat = np.ones((400, 400), np.float32)
    frame, target, sigma = cameras.expose(np.random.default_rng(0), flat, 20.0, camera)
    assert frame.mean() == pytest.approx(20.0, rel=0.01)
    assert target.mean() == pytest.approx(20.0, rel=1e-5)
    assert frame.var() / 20.0 == pytest.approx(variance_over_mean, rel=0.03)
    assert sigma**2 == pytest.approx(frame.var(), rel=0.03)


def test_target_of_a_clipped_frame_is_its_expectation() -> None:
    flat = np.ones((600, 600), np.float32)
    camera = cameras.Camera(excess=1.0, read_e=2.0, clip=True)
    frame, target, _ = cameras.expose(np.random.default_rng(0), flat, 4.0, camera)
    assert frame.min() == 0.0
    assert target.mean() > 4.05
    assert frame.mean() == pytest.approx(float(target.mean()), rel=0.01)


def test_defects_are_not_part_of_the_target() -> None:
    flat = np.ones((200, 200), np.float32)
    camera = cameras.Camera(defects=1e-3, xrays=200.0)
    frame, target, _ = cameras.expose(np.random.default_rng(0), flat, 10.0, camera)
    assert frame.max() > 40.0
    assert target.max() == pytest.approx(10.0)


def test_expected_gaussian_error_is_near_the_measured_one() -> None:
    from tem_live.models import blurs, scores

    rng = np.random.default_rng(4)
    scene = blurs.gaussian_blur(rng.random((160, 160)), 4.0)
    scene = 1 + (scene - scene.mean()) / scene.std() * 0.2
    frame, target, sigma = cameras.expose(rng, scene, 5.0, cameras.Camera())
    blurred, _ = blurs.best_gaussian(target, frame)
    expected = cameras.gaussian_error(target, sigma)
    assert expected == pytest.approx(scores.mse(target, blurred), rel=0.3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "TOML"),
        ("seed = 1", "name"),
        ('name = "x"\nsurprise = 2', "surprise"),
        ('name = "x"\n[data]\nscenes = 0', r"data\.scenes"),
        ('name = "x"\n[data]\nscenes = true', r"data\.scenes"),
        ('name = "x"\n[data]\ncrops_px = []', r"data\.crops_px"),
        ('name = "x"\n[data]\ncrops_px = [100]', "multiples of 32 px"),
        ('name = "x"\n[data]\ncrops_px = [320]', "scenes have 256 px"),
        ('name = "x"\n[data]\ndose_range = [5, 1]', r"data\.dose_range: .*lower dose first"),
        ('name = "x"\n[data]\ndose_core = [0, 1]', r"data\.dose_core"),
        ('name = "x"\n[network]\nwidths = []', r"network\.widths"),
        ('name = "x"\n[network]\nwidths = [8, 16]', "2 widths and 4 blocks"),
        ('name = "x"\n[network]\nwidths = [0]\nblocks = [1]', r"network\.widths\.0"),
        ('name = "x"\n[optim]\nlearning_rate = inf', r"optim\.learning_rate"),
        ('name = "x"\nseed = -1', "seed"),
        ('name = "x"\n[loss]\nname = "l1"\nteacher = "best"', "loss: a teacher goes with"),
        ('name = "x"\n[loss]\ntaught = 1.5', r"loss\.taught"),
        ('name = "../x"', "name: .*letters"),
    ],
)
def test_wrong_recipes_say_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says) as raised:
        training.load_recipe(path)
    assert "\n" not in str(raised.value)


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        training.load_recipe(tmp_path)
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="TOML"):
        training.load_recipe(path)


def test_the_recipe_knows_the_networks_step() -> None:
    from tem_live.models.network import DoseUNet

    for widths, blocks in (((8,), (1,)), ((8, 16, 24), (1, 1, 1))):
        told = training.NetworkRecipe(widths=widths, blocks=blocks).multiple_px
        assert told == DoseUNet(widths, blocks).multiple


def test_the_rate_warms_up_and_falls_with_the_time_or_the_steps() -> None:
    optim = training.OptimRecipe(max_minutes=1.0, max_steps=100, warmup_steps=9)
    assert optim.rate(0, 0.0) == pytest.approx(0.1 * optim.learning_rate)
    assert optim.rate(50, 0.0) == pytest.approx(0.505 * optim.learning_rate)
    assert optim.rate(50, 30.0) == optim.rate(50, 0.0)
    assert optim.rate(50, 60.0) == pytest.approx(optim.final_fraction * optim.learning_rate)
    assert optim.finished(100, 0.0)
    assert optim.finished(0, 60.0)
    assert not optim.finished(99, 59.0)
