"""Bragg peaks come back, noise does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from tem_live import models
from tem_live.models import cameras, scores, testscenes
from tem_live.models.cameras import Camera, expose
from tem_live.models.network import BLOCK, block_bands, conditions
from tem_live.models.spectrum import bragg_part, lattice_part
from tem_live.models.testscenes import reference_scene


def lattice(height: int, width: int, period: float = 7.3) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    wave = np.cos(2 * np.pi * (0.8 * x + 0.6 * y) / period)
    return (wave + np.cos(2 * np.pi * (0.6 * x - 0.8 * y) / period)).astype(np.float32)


def test_white_noise_passes_nothing() -> None:
    passed = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).standard_normal((256, 200), dtype=np.float32)
        passed += bragg_part(torch.from_numpy(noise)) is not None
    assert passed <= 1


def test_noise_of_large_frames_passes_no_more() -> None:
    # They have more coefficients: of these frames five have one beyond 16 times the mean.
    passed = 0
    for seed in range(13, 37):
        noise = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(seed))
        passed += bragg_part(noise) is not None
    assert passed <= 1


def test_noise_that_a_detector_blurred_passes_nothing() -> None:
    # Its power falls with the frequency: the mean over all is no floor for the low ones.
    passed = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).standard_normal((256, 256))
        noise = ndimage.gaussian_filter(noise, 0.7, mode="wrap")
        noise = (noise / noise.std()).astype(np.float32)
        passed += bragg_part(torch.from_numpy(noise)) is not None
    assert passed <= 1


@pytest.mark.parametrize("columns", [False, True])
def test_streaks_pass_nothing(columns: bool) -> None:
    camera = cameras.Camera(read_e=1.0, streak=0.4, streak_px=30.0, streak_columns=columns)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noise, _, sigma = cameras.expose(rng, np.zeros((256, 256)), 1.0, camera)
        part = bragg_part(torch.from_numpy(noise / sigma))
        assert part is None or float(part.std()) < 0.02


@pytest.mark.parametrize("shape", [(256, 256), (201, 333)])
@pytest.mark.parametrize("amplitude", [0.2, 0.5, 2.0])
def test_a_lattice_is_kept_within_a_fifth(shape: tuple[int, int], amplitude: float) -> None:
    truth = amplitude * lattice(*shape)
    noise = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    part = bragg_part(torch.from_numpy(truth + noise))
    assert part is not None
    kept = float((part.numpy() * truth).sum() / (truth * truth).sum())
    assert kept == pytest.approx(1.0, abs=0.2)
    assert float(((part.numpy() - truth) ** 2).mean()) < 0.3 * float((truth**2).mean())


@pytest.mark.parametrize("seed", range(8))
def test_a_small_crystal_does_not_run_into_the_vacuum(seed: int) -> None:
    truth = 0.5 * lattice(256, 256)
    truth[:, 110:] = 0.0
    noise = np.random.default_rng(seed).standard_normal(truth.shape, dtype=np.float32)
    part = bragg_part(torch.from_numpy(truth + noise))
    assert part is not None
    assert float(part[:, 160:].std()) < 0.05 * float(truth[:, :90].std())
    assert float(part[:, :90].std()) > 0.8 * float(truth[:, :90].std())


@pytest.mark.parametrize("shape", [(240, 311), (201, 333)])
def test_a_lattice_does_not_break_off_at_the_edges(shape: tuple[int, int]) -> None:
    # No whole number of periods fits: a transform of the frame alone leaves over 0.15 there.
    truth = lattice(*shape)
    noise = np.random.default_rng(3).standard_normal(truth.shape, dtype=np.float32)
    part = lattice_part(torch.from_numpy(truth + noise))
    assert part is not None
    errors = np.square(part.numpy() - truth)
    edges = np.ones(shape, dtype=bool)
    edges[12:-12, 12:-12] = False
    assert float(errors[edges].mean()) < 0.04
    assert float(errors.mean()) < 0.01


@pytest.mark.parametrize("period", [16.0, 5.2])
def test_fringes_along_the_rows_count_once(period: float) -> None:
    # The first column of the half spectrum has no other half.
    shape = (200, 230)
    truth = np.tile(np.cos(2 * np.pi * np.arange(shape[0]) / period)[:, None], (1, shape[1]))
    truth = truth.astype(np.float32)
    noise = np.random.default_rng(5).standard_normal(shape, dtype=np.float32)
    part = bragg_part(torch.from_numpy(truth + noise))
    assert part is not None
    assert float(((part.numpy() - truth) ** 2).mean()) < 0.03 * float((truth**2).mean())


@pytest.mark.parametrize("shape", [(256, 256), (201, 333)])
@pytest.mark.parametrize("columns", [False, True])
def test_fringes_along_rows_or_columns_are_kept_amid_streaks(shape, columns) -> None:
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    truth = 0.3 * np.cos(2 * np.pi * (x if columns else y) / 9.7)
    random = np.random.default_rng(3)
    streaks = random.standard_normal((1, shape[1]) if columns else (shape[0], 1))
    frame = truth + random.standard_normal(shape) + 0.2 * streaks
    part = bragg_part(torch.from_numpy(frame.astype(np.float32)))
    assert part is not None
    kept = float((part.numpy() * truth).sum() / (truth * truth).sum())
    assert kept == pytest.approx(1.0, abs=0.25)


def test_faults_along_columns_are_not_kept() -> None:
    faults = np.zeros((256, 256), np.float32)
    faults[:, 97] = 5.0  # a dead column
    faults[:, 128:] += 0.5  # halves of the sensor, each with an amplifier of its own
    faults[:, ::4] += 0.5  # four amplifiers that take turns
    frame = faults + np.random.default_rng(5).standard_normal((256, 256), dtype=np.float32)
    part = bragg_part(torch.from_numpy(frame))
    assert part is None or float(part.std()) < 0.05


@pytest.mark.parametrize("shape", [(256, 256), (201, 333)])
def test_a_lattice_is_taken_out_of_a_frame(shape: tuple[int, int]) -> None:
    truth = 0.8 * lattice(*shape)
    noise = np.random.default_rng(6).standard_normal(shape, dtype=np.float32)
    part = lattice_part(torch.from_numpy(truth + noise))
    assert part is not None
    assert float(((part.numpy() - truth) ** 2).mean()) < 0.3 * float((truth**2).mean())


def test_edges_gratings_and_noise_are_no_lattice() -> None:
    y, x = np.mgrid[0:512, 0:512]
    random = np.random.default_rng(7)
    noise = random.standard_normal((512, 512))
    bar = 3.0 * (np.abs(x + 0.05 * y - 200) < 40)
    holes = 0.7 * (np.hypot(x % 58 - 29, y % 58 - 29) < 19)
    for scene in (0.0, bar, holes, bar + holes):
        assert lattice_part(torch.from_numpy((scene + noise).astype(np.float32))) is None


def test_the_shipped_restorer_makes_more_of_a_lattice_than_blurring() -> None:
    fast = models.load_restorer("fast", "cpu")
    truth = 5.0 * testscenes.reference_scene("boundary", 384, seed=4)
    frame = np.random.default_rng(8).poisson(truth).astype(np.float32)
    assert scores.error_ratio(truth, frame, fast.restore(frame)) < 0.45


def test_small_and_silent_residuals() -> None:
    assert bragg_part(torch.randn(20, 300)) is None
    assert bragg_part(torch.zeros(128, 128)) is None


@pytest.mark.parametrize("dose", [2.0, 20.0])
def test_the_shipped_restorer_keeps_bragg_peaks(dose: float) -> None:
    fast = models.load_restorer("fast", "cpu")
    scene = 1.0 + 0.15 * lattice(256, 256)
    frame = np.random.default_rng(4).poisson(dose * scene).astype(np.float32)
    result = fast.restore(frame) / dose - 1.0
    wanted = scene - 1.0
    kept = float((result * wanted).sum() / (wanted * wanted).sum())
    assert kept == pytest.approx(1.0, abs=0.2)


def test_weak_waves_are_judged_with_the_rest() -> None:
    # A crystal in vacuum and carbon. What is left of it without its weak waves has more beside it.
    scene = reference_scene("crystal", 256, 1)
    camera = Camera(excess=1.5, read_e=1.2, blur_px=0.3)
    exposed, _, _ = expose(np.random.default_rng([256, 20]), scene, 20.0, camera)
    frame = torch.from_numpy(exposed.astype(np.float32))
    frame -= frame.mean()
    blocks = torch.nn.functional.pixel_unshuffle(frame[None, None], BLOCK)
    sigma, _ = conditions(block_bands(blocks), torch.tensor([20.0]))
    assert lattice_part(frame / sigma) is not None
