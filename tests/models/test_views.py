"""`best`: the mean over turned, mirrored and moved views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tem_live.models import ModelCard, load_restorer
from tem_live.models.blurs import best_gaussian
from tem_live.models.network import DoseUNet
from tem_live.models.scores import mse
from tem_live.models.testscenes import reference_scene
from tem_live.models.views import VIEWS, ViewsRestorer


class Keeps:
    """A network that gives back what it gets, and remembers the shapes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.prepared: list[tuple[int, ...]] = []

    def __call__(self, blocks: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(blocks.shape[-2:]))
        return blocks.clone()

    def prepare(self, height: int, width: int) -> None:
        self.prepared.append((height, width))


@pytest.fixture
def keeps() -> Keeps:
    return Keeps()


@pytest.fixture
def views(keeps: Keeps) -> ViewsRestorer:
    made = ViewsRestorer(
        ModelCard(name="views", title="for tests"), "cpu", DoseUNet((8, 16), (1, 1))
    )
    made._run = keeps  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("shape", [(40, 64), (64, 64), (33, 70), (5, 3)])
def test_every_view_is_brought_back_to_its_place(
    shape: tuple[int, int], views: ViewsRestorer, keeps: Keeps
) -> None:
    frame = np.random.default_rng(1).random(shape, dtype=np.float32)
    assert np.allclose(views.restore(frame), frame, atol=1e-5)
    assert len(keeps.shapes) == len(VIEWS) == len(set(VIEWS))


@pytest.mark.parametrize("shape", [(40, 64), (64, 64)])
def test_it_is_made_ready_for_every_view(
    shape: tuple[int, int], views: ViewsRestorer, keeps: Keeps
) -> None:
    views.prepare(shape)
    views.restore(np.random.default_rng(1).random(shape, dtype=np.float32))
    # The frame itself, and the others as they lie and turned: of a square both are the same.
    assert len(keeps.prepared) == len(set(keeps.prepared)) == 3 - (shape[0] == shape[1])
    assert set(keeps.shapes) == set(keeps.prepared)


def test_a_view_without_noise_is_left_out(views: ViewsRestorer, keeps: Keeps) -> None:
    # A corner has every band of the block it cuts; moved to the corner of a block it has none.
    frame = np.zeros((32, 32), dtype=np.float32)
    frame[13:, 17:] = 1.0
    assert np.allclose(views.restore(frame), frame, atol=1e-4)
    assert 1 < len(keeps.shapes) < len(VIEWS)


def test_a_frame_of_hits_alone_is_left_to_the_first_view(views: ViewsRestorer) -> None:
    views._run = lambda blocks, vector: torch.zeros_like(blocks)
    frame = np.full((64, 64), 5.0, dtype=np.float32)
    frame[3::12, 5::12] = 50.0
    # Without them there is no noise in any other view.
    assert np.allclose(views.restore(frame), 5.0)


def test_a_hit_does_not_change_what_is_around_it() -> None:
    y, x = np.mgrid[0:192, 0:192]
    scene = 20 * (1 + 0.2 * np.sin(x / 17) * np.cos(y / 23))
    frame = np.random.default_rng(1).poisson(scene).astype(np.float32)
    hit = frame.copy()
    hit[90:93, 100:102] = 4000.0
    best = load_restorer("best", "cpu")
    change = best.restore(hit) - best.restore(frame)
    around = np.hypot(y - 91, x - 100) > 6
    # Shown to all views it changes 0.13 e-.
    assert change[around].std() < 0.04
    assert abs(change[64:128, 64:128][around[64:128, 64:128]].mean()) < 0.02


def test_best_has_less_error_than_the_default():
    best, fast = load_restorer("best", "cpu"), load_restorer("fast", "cpu")
    ratios = []
    for scene in ("section", "boundary"):
        truth = 10 * reference_scene(scene, 192, seed=3)
        frame = np.random.default_rng(2).poisson(truth).astype(np.float32)
        errors = [mse(truth, restorer.restore(frame)) for restorer in (best, fast)]
        ratios.append(errors[0] / errors[1])
        assert errors[0] < mse(truth, best_gaussian(truth, frame)[0])
    assert np.prod(ratios) ** 0.5 < 0.99


def test_what_best_costs_is_told():
    best = load_restorer("best", "cpu")
    assert best.gmac((512, 512)) == pytest.approx(best.card.gmac_512, abs=0.2)
    assert best.card.gmac_512 < 60
