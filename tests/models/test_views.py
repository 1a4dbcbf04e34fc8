"""`best`: the mean over turned, mirrored and moved views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tem_live.models import ModelCard, load_restorer
from tem_live.models.restorers import Restorer
from tem_live.models.scores import best_gaussian, mse
from tem_live.models.testscenes import reference_scene
from tem_live.models.views import VIEWS, ViewsRestorer


class Keeps(Restorer):
    """Gives back what it gets, and remembers the shapes."""

    def __init__(self) -> None:
        super().__init__(ModelCard(name="keeps", title="for tests"), "cpu")
        self.shapes: list[tuple[int, ...]] = []

    def _restore_finite(self, frame: torch.Tensor, mean: float, out: torch.Tensor) -> None:
        self.shapes.append(tuple(frame.shape))
        out.copy_(frame)


@pytest.mark.parametrize("shape", [(40, 64), (33, 70), (5, 3), (1, 1)])
def test_every_view_is_brought_back_to_its_place(shape):
    frame = np.random.default_rng(1).random(shape, dtype=np.float32)
    single = Keeps()
    views = ViewsRestorer(ModelCard(name="views", title="for tests"), single)
    assert np.allclose(views.restore(frame), frame, atol=1e-6)
    assert len(single.shapes) == len(VIEWS) == len(set(VIEWS))
    assert (shape[1] + 2, shape[0] + 1) in single.shapes


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
