"""Whatever a camera delivers, every restorer that ships gives a frame back that can be trusted.

Each restorer that `list_restorers` names joins by itself.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tem_live import models
from tem_live.models import network_restorer, restorers

pytestmark = pytest.mark.usefixtures("one_thread")

IMPORTED = set(restorers._imported())
NAMES = [card.name for card in models.list_restorers() if card.name not in IMPORTED]
DENOISERS = [name for name in NAMES if name != "none"]
SHAPE = (72, 90)


@pytest.fixture(scope="module")
def loaded() -> dict[str, models.Restorer]:
    return {}


@pytest.fixture(params=NAMES)
def restorer(request: pytest.FixtureRequest, loaded: dict) -> models.Restorer:
    return fresh(request.param, loaded)


@pytest.fixture(params=DENOISERS)
def denoiser(request: pytest.FixtureRequest, loaded: dict) -> models.Restorer:
    return fresh(request.param, loaded)


def fresh(name: str, loaded: dict) -> models.Restorer:
    """Loaded once, without a memory of other tests."""
    if name not in loaded:
        loaded[name] = models.load_restorer(name, "cpu")
    getattr(loaded[name], "reset", lambda: None)()
    return loaded[name]


def poisson(shape: tuple[int, ...] = SHAPE, dose: float = 5.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(dose, shape).astype(np.float32)


def particle(dose: float = 5.0, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[0:96, 0:96]
    scene = dose * np.where(np.hypot(y - 44, x - 52) < 16, 0.3, 1.0)
    return np.random.default_rng(seed).poisson(scene).astype(np.float32)


def mean(frame: np.ndarray) -> float:
    return float(frame.mean(dtype=np.float64))


def assert_sound(result: np.ndarray, frame: np.ndarray) -> None:
    """Finite, of the same shape, and with the mean of the finite pixels."""
    assert result.shape == frame.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    finite = frame[np.isfinite(frame)].astype(np.float64)
    level = float(finite.mean()) if finite.size else 0.0
    spread = float(np.abs(finite).mean()) if finite.size else 0.0
    assert mean(result) == pytest.approx(level, abs=2e-3 * spread + 1e-30)


def test_those_that_ship_are_here() -> None:
    assert {"fast", "video", "gaussian", "none"} <= set(NAMES)


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 7), (9, 1), (2, 300), (300, 3), (63, 64), (64, 64), (65, 97), (40, 200)],
)  # fmt: skip
def test_any_size(restorer: models.Restorer, shape: tuple[int, int]) -> None:
    frame = poisson(shape)
    assert_sound(restorer.restore(frame), frame)
    assert_sound(restorer.restore(frame), frame)


@pytest.mark.parametrize("value", [0.0, 3.7, -2.0, 1e6, 1e20, 3e38, -3e38])
def test_constant_frames_come_back(restorer: models.Restorer, value: float) -> None:
    frame = np.full(SHAPE, value, np.float32)
    for _ in range(2):
        np.testing.assert_allclose(restorer.restore(frame), frame, rtol=1e-5)


@pytest.mark.parametrize(
    "values", ["all zero", "nan", "inf", "-inf", "nan and inf", "half", "most", "one is finite"]
)
def test_missing_pixels(restorer: models.Restorer, values: str) -> None:
    frame = poisson()
    if values == "all zero":
        frame[:] = 0.0
    elif values in ("nan", "inf", "-inf"):
        frame[20:30, 40:47] = float(values)
    elif values == "nan and inf":
        frame[3, 4], frame[50, 60], frame[50, 61] = np.nan, np.inf, -np.inf
    elif values == "half":
        frame[::2] = np.nan
    elif values == "most":
        frame[:66] = np.inf
    else:
        frame[:] = np.nan
        frame[4, 4] = 7.0
    result = restorer.restore(frame)
    assert np.isfinite(result).all()
    finite = np.isfinite(frame)
    # What the missing pixels are replaced by is of the pixels around.
    assert mean(result) == pytest.approx(mean(frame[finite]), rel=5e-3)
    assert result.max() <= 1.5 * frame[finite].max()


def test_frame_without_a_finite_pixel_is_zero_and_is_forgotten(denoiser: models.Restorer) -> None:
    first, second = particle(seed=1), particle(seed=2)
    alone = denoiser.restore(second)
    getattr(denoiser, "reset", lambda: None)()
    denoiser.restore(first)
    lost = denoiser.restore(np.full_like(first, np.nan))
    np.testing.assert_array_equal(lost, np.zeros_like(first))
    after = denoiser.restore(second)
    np.testing.assert_allclose(after, alone, atol=0.3)


def test_one_electron(denoiser: models.Restorer) -> None:
    frame = np.zeros(SHAPE, np.float32)
    frame[40, 50] = 1.0
    result = denoiser.restore(frame)
    assert float(result.sum(dtype=np.float64)) == pytest.approx(1.0, rel=1e-3)
    assert result.max() < 0.2
    assert result.min() > -1e-2


@pytest.mark.parametrize("value", [1e6, 1e12, 1e20, 1e30, 3e38])
def test_one_huge_pixel(restorer: models.Restorer, value: float) -> None:
    frame = poisson()
    frame[40, 50] = value
    result = restorer.restore(frame)
    assert result.shape == frame.shape
    assert np.isfinite(result).all()
    if restorer.card.kind in ("none", "gaussian"):
        # They know no hits. What networks make of them: see below.
        assert_sound(result, frame)


@pytest.mark.parametrize("name", ["fast", "best", "video"])
@pytest.mark.parametrize("value", [60.0, 400.0, 2000.0])
def test_what_a_hit_holds_belongs_to_no_other_pixel(loaded: dict, name: str, value: float) -> None:
    restorer = fresh(name, loaded)
    frame = poisson((128, 128))
    for _ in range(2):  # the second time with a past
        hit = frame.copy()
        hit[70, 50] = value
        result = restorer.restore(hit)
    assert result[70, 50] == pytest.approx(5.0, abs=1.0)
    frame[54:87, 34:67] = result[54:87, 34:67] = 5.0
    assert mean(result) == pytest.approx(mean(frame), rel=0.005)


@pytest.mark.parametrize("scale", [1e-20, 1e8, 1e16, 1e30, 1e36])
def test_scale_does_not_matter(denoiser: models.Restorer, scale: float) -> None:
    """Frames that are in no unit that makes sense are restored as those that are."""
    frame = particle(20.0)
    expected = denoiser.restore(frame)
    getattr(denoiser, "reset", lambda: None)()
    result = denoiser.restore((frame * np.float64(scale)).astype(np.float32))
    # Below the smallest dose frames are binned first, so that they are smoother.
    if scale >= 1.0:
        np.testing.assert_allclose(result / np.float64(scale), expected, atol=0.05)
    assert_sound(result / np.float32(scale), frame)


@pytest.mark.parametrize("offset", [-8.0, -5.0, -1000.0, 1e4])
def test_negative_means_and_offsets(denoiser: models.Restorer, offset: float) -> None:
    """Dark frames after a wrong dark reference: noise still goes, the mean stays."""
    frame = poisson(dose=5.0) + np.float32(offset)
    result = denoiser.restore(frame)
    assert_sound(result, frame)
    assert result.std() < 0.5 * frame.std()


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_huge_values_of_both_signs(restorer: models.Restorer, scale: float) -> None:
    frame = (np.random.default_rng(0).normal(0.0, 1.0, SHAPE) * scale).astype(np.float32)
    assert_sound(restorer.restore(frame), frame)


def test_a_series_with_everything_in_it(restorer: models.Restorer) -> None:
    """A broken frame leaves nothing behind in the next one."""
    good = particle(seed=1)
    broken = [
        np.zeros_like(good), np.full_like(good, np.nan), good * np.float32(1e30), -good,
        np.full_like(good, 3e38), np.where(good > 4, np.inf, good), good[:64, :65],
    ]  # fmt: skip
    for other in broken:
        assert np.isfinite(restorer.restore(other)).all()
        result = restorer.restore(good)
        assert_sound(result, good)
        assert np.abs(result - good).max() < 4.0 * good.max()


def test_tiles_leave_no_seam(denoiser: models.Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[0:200, 0:100]
    scene = 5.0 + 2.0 * np.sin(x / 9.0) * np.cos(y / 14.0)
    frame = np.random.default_rng(5).poisson(scene).astype(np.float32)
    whole = denoiser.restore(frame)
    getattr(denoiser, "reset", lambda: None)()
    monkeypatch.setattr(network_restorer, "_TILE_PX", 96)
    monkeypatch.setattr(network_restorer, "_HALO_PX", 32)
    tiled = denoiser.restore(frame)
    assert np.abs(tiled - whole).max() < 0.02 * whole.mean()
    # A seam would be a step between neighbouring rows, at the same place all along.
    steps = np.abs(np.diff((tiled - whole).mean(axis=1)))
    assert steps.max() < 2e-3 * whole.mean()


def test_gradients_and_other_types_do_not_come_in(restorer: models.Restorer) -> None:
    tensor = torch.from_numpy(poisson()).requires_grad_()
    result = restorer.restore(tensor)
    assert not result.requires_grad
    for dtype in (torch.float64, torch.bfloat16, torch.uint8):
        assert restorer.restore(tensor.detach().to(dtype)).dtype == torch.float32
