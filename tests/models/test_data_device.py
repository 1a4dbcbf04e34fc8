"""Batches made in torch against those made in NumPy: the same physics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tem_live.models import cameras, data_device, scenes
from tem_live.models.cameras import Camera
from tem_live.models.data_scan import ScanBatches, least_blur_error
from tem_live.models.training import DataRecipe
from tests.models.test_training import scene_bank

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
CAMERAS = {
    "poisson": Camera(),
    "excess and read noise": Camera(excess=1.5, read_e=1.2),
    "blur": Camera(excess=0.5, blur_px=0.7),
    "clipped": Camera(excess=1.5, read_e=2.0, clip=True),
    "clip without noise": Camera(clip=True),
    "rows": Camera(read_e=1.0, streak=0.5, streak_px=12.0),
    "whole rows": Camera(read_e=1.0, streak=0.4, streak_px=500.0),
    "columns": Camera(read_e=1.0, streak=0.5, streak_px=12.0, streak_columns=True),
    "column offsets": Camera(read_e=1.0, column_offset=0.4, gain_residue=0.03),
    "defects": Camera(defects=0.01, xrays=800.0),
}


def scene() -> npt.NDArray[np.float32]:
    """Half dark, half bright, a soft edge."""
    x = np.arange(SIZE, dtype=np.float32)
    return np.tile(1.0 + 0.6 * np.tanh((x - SIZE / 2) / 4.0), (SIZE, 1)).astype(np.float32)


def both(camera: Camera, count: int = 160, dose: float = 4.0) -> tuple[list, list]:  # type: ignore[type-arg]
    """Frames, targets and noise levels of the two, each (count, S, S) or (count,)."""
    rng = np.random.default_rng(1)
    numpy = [cameras.expose(rng, scene(), dose, camera) for _ in range(count)]
    generator = torch.Generator().manual_seed(2)
    stack = torch.from_numpy(scene()).expand(count, SIZE, SIZE)
    frames, targets, sigma = data_device.expose(
        stack, [dose] * count, [camera] * count, rng, generator
    )
    return (
        [np.array([item[i] for item in numpy]) for i in range(3)],
        [frames.numpy(), targets.numpy(), sigma.numpy()],
    )


def autocorrelation(noise: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Along rows and columns, lags 0 to 3, and along rows at 20 px; normalised."""
    z = noise - noise.mean(axis=0)
    lags = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0), (0, 20), (20, 0)]
    found = [float(np.mean(z[:, : SIZE - dy, : SIZE - dx] * z[:, dy:, dx:])) for dy, dx in lags]
    return np.array(found) / found[0]


@pytest.mark.parametrize("name", list(CAMERAS))
def test_distributions_are_those_of_numpy(name: str) -> None:
    camera = CAMERAS[name]
    (frames, targets, sigmas), (t_frames, t_targets, t_sigmas) = both(camera)
    # What is no noise is equal to rounding.
    np.testing.assert_allclose(t_targets[0], targets[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(t_sigmas[0], sigmas[0], rtol=2e-5)
    count = len(frames)
    if camera.defects:
        # A few bright pixels carry nearly all of the variance: compare how many and how bright.
        for low in (30.0, 100.0, 300.0):
            a, b = (int((f > low).sum()) for f in (frames, t_frames))
            assert abs(a - b) < 5.0 * np.sqrt(a + b + 1.0) * 1.8  # an X-ray spans a few pixels
        a, b = (int((f == 0.0).sum()) for f in (frames, t_frames))
        assert abs(a - b) < 5.0 * np.sqrt(a + b)
        return
    for half in (np.s_[:, :, : SIZE // 2 - 8], np.s_[:, :, SIZE // 2 + 8 :]):
        a, b = frames[half].astype(np.float64), t_frames[half].astype(np.float64)
        # Streaks are common to a line: as many independent values as lines is the least.
        per_frame = a.mean(axis=(1, 2)).std()
        assert abs(a.mean() - b.mean()) < 5.0 * per_frame * np.sqrt(2.0 / count)
        assert b.var() == pytest.approx(a.var(), rel=0.04)
        # Skewness tells Poisson from normal; 12 of each make an octile.
        cuts = np.quantile(a, [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(
            [(b <= c).mean() for c in cuts], [(a <= c).mean() for c in cuts], atol=0.012
        )
    np.testing.assert_allclose(autocorrelation(t_frames), autocorrelation(frames), atol=0.02)


def test_samples_of_a_batch_have_cameras_of_their_own() -> None:
    chosen = [CAMERAS["poisson"], CAMERAS["whole rows"], CAMERAS["columns"], CAMERAS["blur"]]
    doses = [1.0, 10.0, 5.0, 20.0]
    flat = torch.ones(4, 256, 256)
    frames, targets, sigma = data_device.expose(
        flat, doses, chosen, np.random.default_rng(0), torch.Generator().manual_seed(0)
    )
    np.testing.assert_allclose(targets.mean(dim=(1, 2)), doses, rtol=1e-5)
    np.testing.assert_allclose(frames.mean(dim=(1, 2)), doses, rtol=0.05)
    # Of the rows' and columns' means only those of the streaks scatter by more than 1/16 of sigma.
    rows = frames.mean(dim=2).std(dim=1) / sigma * 16.0
    columns = frames.mean(dim=1).std(dim=1) / sigma * 16.0
    assert rows[1] > 3.0
    assert columns[2] > 1.5
    assert rows[0] < 1.2
    assert columns[0] < 1.2
    assert columns[1] < 1.2
    assert rows[2] < 1.2


def test_gaussian_error_equals_that_of_numpy() -> None:
    rng = np.random.default_rng(3)
    images = np.stack([scenes.random_scene(rng, 64) * 5.0 for _ in range(6)])
    sigmas = np.array([0.3, 1.0, 2.0, 3.0, 5.0, 9.0])
    expected = [cameras.gaussian_error(i, float(s)) for i, s in zip(images, sigmas, strict=True)]
    given = data_device.gaussian_error(torch.from_numpy(images), torch.from_numpy(sigmas).float())
    np.testing.assert_allclose(given, expected, rtol=2e-4)


@pytest.fixture(scope="module")
def bank() -> npt.NDArray[np.float16]:
    return scene_bank(6, 96, 1)


RECIPE = DataRecipe(scenes=6, scene_px=96, crops_px=(32, 64), batch_px=16384)


def test_a_batch_is_a_function_of_seed_step_and_rank(bank: npt.NDArray[np.float16]) -> None:
    batches = data_device.DeviceBatches(RECIPE, 5, bank, "cpu")
    one, again = batches.make(3), batches.make(3)
    assert one.frames.shape == (4, 1, 64, 64)
    assert batches.make(4).frames.shape == (16, 1, 32, 32)
    torch.testing.assert_close(one.frames, again.frames, rtol=0, atol=0)
    for other in (
        batches.make(5),
        batches.make(3, rank=1),
        data_device.DeviceBatches(RECIPE, 6, bank, "cpu").make(3),
    ):
        assert not torch.equal(one.frames, other.frames)
    assert (one.scale > 0.0).all()
    assert torch.isfinite(one.frames).all()


def test_the_error_of_the_unit_is_that_of_a_real_blur(bank: npt.NDArray[np.float16]) -> None:
    """The scale of ideal cameras is what the best blur of these very frames leaves."""
    recipe = RECIPE.model_copy(update={"poisson": 1.0, "batch_px": 96 * 96 * 6, "crops_px": (96,)})
    batch = data_device.DeviceBatches(recipe, 5, bank, "cpu").make(0)
    measured = [
        least_blur_error(f, t)
        for f, t in zip(batch.frames[:, 0].numpy(), batch.targets[:, 0].numpy(), strict=True)
    ]
    np.testing.assert_allclose(batch.scale, measured, rtol=0.35)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(bank: npt.NDArray[np.float16]) -> None:
    batch = data_device.DeviceBatches(RECIPE, 5, bank, "cuda").make(3)
    assert batch.frames.device.type == "cuda"
    on_cpu = data_device.DeviceBatches(RECIPE, 5, bank, "cpu").make(3)
    # Generators differ from device to device; doses, cameras and crops do not.
    ratio = batch.targets.mean(dim=(1, 2, 3)).cpu() / on_cpu.targets.mean(dim=(1, 2, 3))
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-3)


@pytest.mark.parametrize("family", ["stem", "sem"])
def test_scans(bank: npt.NDArray[np.float16], family: str) -> None:
    recipe = RECIPE.model_copy(update={"family": family, "poisson": 0.25})
    batches = ScanBatches(recipe, 5, bank)
    one = batches.make(3)
    torch.testing.assert_close(one.frames, batches.make(3).frames, rtol=0, atol=0)
    assert not torch.equal(one.frames, batches.make(3, rank=1).frames)
    assert one.frames.shape == one.targets.shape == (4, 1, 64, 64)
    assert torch.isfinite(one.frames).all()
    assert (one.scale > 0.0).all()


def test_scans_are_distorted_as_their_chains_do() -> None:
    """Detectors trail along lines, so that neighbours in a line are alike, those above are not."""
    flat = np.ones((2, 64, 64), dtype=np.float16)
    along, across = {}, {}
    for poisson in (0.0, 1.0):
        recipe = RECIPE.model_copy(
            update={"family": "sem", "poisson": poisson, "crops_px": (64,), "batch_px": 64**2 * 24}
        )
        batch = ScanBatches(recipe, 5, flat).make(0)
        z = (batch.frames - batch.frames.mean(dim=(2, 3), keepdim=True))[:, 0]
        # Not the mean: few samples have displaced lines or streaks that are much stronger.
        power = z.square().mean(dim=(1, 2))
        along[poisson] = float(((z[:, :, 1:] * z[:, :, :-1]).mean(dim=(1, 2)) / power).median())
        across[poisson] = float(((z[:, 1:] * z[:, :-1]).mean(dim=(1, 2)) / power).median())
    assert abs(along[1.0]) < 0.03
    assert abs(across[1.0]) < 0.03
    assert along[0.0] > 0.2
    assert along[0.0] > across[0.0] + 0.1
