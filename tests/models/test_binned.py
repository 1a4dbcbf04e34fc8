"""Frames that are binned before they are restored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tem_live import models
from tem_live.models.binned import BinnedRestorer, restored_binned

pytestmark = pytest.mark.usefixtures("one_thread")


class Seen(models.Restorer):
    """Gives frames back, and remembers what it was given."""

    concurrent = True
    engine = "none"

    def __init__(self) -> None:
        super().__init__(
            models.ModelCard(name="seen", title="", kind="network", noise="any"), "cpu"
        )
        self.frames: list[torch.Tensor] = []
        self.prepared: list[tuple[int, int]] = []

    def prepare(self, shape: tuple[int, int]) -> None:
        self.prepared.append(shape)

    def _restore_finite(self, frame: torch.Tensor, mean: float, out: torch.Tensor) -> None:
        self.frames.append(frame.clone())
        out.copy_(frame)


@pytest.fixture(scope="module")
def fast() -> models.Restorer:
    return models.load_restorer("fast", "cpu")


def poisson(shape: tuple[int, ...], dose: float = 5.0) -> np.ndarray:
    return np.random.default_rng(0).poisson(dose, shape).astype(np.float32)


def test_the_restorer_gets_the_electrons_of_large_pixels():
    seen = Seen()
    frame = poisson((256, 512))
    restored = BinnedRestorer(seen, 4).restore(frame)
    sums = frame.reshape(64, 4, 128, 4).sum(axis=(1, 3))
    np.testing.assert_allclose(seen.frames[0].numpy(), sums, rtol=1e-5)
    assert restored.shape == frame.shape
    assert restored.dtype == np.float32
    # Linear between the centres of the large pixels: of four in a row the middle of two of them.
    middle = restored[4:-4, 4:-4].reshape(62, 4, 126, 4).mean(axis=(1, 3))
    assert np.corrcoef(middle.ravel(), sums[1:-1, 1:-1].ravel())[0, 1] > 0.9
    assert restored.mean(dtype=np.float64) == pytest.approx(frame.mean(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("binning", [2, 4, 8])
@pytest.mark.parametrize("shape", [(521, 777), (512, 515), (2, 600, 530)])
def test_any_size_and_stacks(fast, shape, binning):
    frame = poisson(shape)
    restored = BinnedRestorer(fast, binning).restore(frame)
    assert restored.shape == frame.shape
    assert np.isfinite(restored).all()
    assert restored.std() < 0.1 * frame.std()
    assert restored.mean(dtype=np.float64) == pytest.approx(frame.mean(dtype=np.float64), rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "left"), [((255, 512), (64, 128)), ((40, 40), (10, 10)), ((1, 900), (1, 225))]
)
def test_small_frames_are_binned_as_large_ones_are(shape, left):
    seen = Seen()
    binned = BinnedRestorer(seen, 4)
    binned.prepare(shape)
    binned.restore(poisson(shape))
    assert tuple(seen.frames[0].shape) == left
    assert seen.prepared == [left]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 900), (17, 64)])
def test_a_frame_of_a_few_large_pixels_keeps_its_mean(fast, shape):
    frame = poisson(shape)
    restored = BinnedRestorer(fast, 8).restore(frame)
    assert restored.shape == frame.shape
    assert restored.mean(dtype=np.float64) == pytest.approx(frame.mean(dtype=np.float64), rel=1e-5)


def test_defects_and_hits_belong_to_no_other_pixel(fast):
    frame = poisson((512, 512))
    expected = BinnedRestorer(fast, 2).restore(frame)
    frame[100, 100], frame[300:302, 40] = np.nan, np.inf
    frame[200, 200] = 4000.0
    restored = BinnedRestorer(fast, 2).restore(frame)
    assert np.isfinite(restored).all()
    assert restored[200, 200] == pytest.approx(5.0, abs=1.0)
    assert restored.mean(dtype=np.float64) == pytest.approx(
        expected.mean(dtype=np.float64), rel=0.005
    )


def test_the_frame_may_be_overwritten(fast):
    frame = poisson((512, 512))
    binned = BinnedRestorer(fast, 2)
    expected = binned.restore(frame)
    np.testing.assert_array_equal(binned.restore(frame, out=frame), expected)


def test_what_is_told_of_it_is_that_of_its_restorer(fast):
    binned = BinnedRestorer(fast, 4)
    assert (binned.name, binned.card) == (fast.name, fast.card)
    assert binned.precision == fast.precision
    assert binned.engine == fast.engine
    assert binned.concurrent == fast.concurrent
    assert (fast.binning, binned.binning) == (1, 4)
    assert binned.gmac((2048, 2048)) == pytest.approx(fast.gmac((512, 512)))


def test_a_constant_frame_is_given_back():
    plane = torch.full((130, 131), 3.0)
    out = torch.empty_like(plane)
    restored_binned(plane, 2, torch.clone, out)
    torch.testing.assert_close(out, plane)
