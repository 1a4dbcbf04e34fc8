"""Restore a frame from several sides and take the mean: `best`.

What a network makes of a frame depends a little on how the frame lies on its grid of blocks.
Turned, mirrored and moved by fractions of a block, the same frame gives other errors, and their
mean is smaller than each (self-ensemble: Timofte et al., CVPR 2016, "Seven ways to improve
example-based single image super resolution"; moved grids: Coifman and Donoho, 1995,
"Translation-invariant de-noising").

This module imports torch; import it lazily.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tem_live.models.cards import ModelCard
from tem_live.models.restorer import Restorer

__all__ = ["VIEWS", "ViewsRestorer"]

# Quarter turns, mirrored or not, and rows and columns put before the frame: a block has 4 x 4
# pixels, a window of waves is moved by half of its side.
VIEWS: tuple[tuple[int, bool, int, int], ...] = (
    (0, False, 0, 0),
    (1, False, 2, 1),
    (2, False, 1, 3),
    (3, False, 3, 2),
    (0, True, 2, 2),
    (1, True, 0, 1),
    (2, True, 1, 0),
    (3, True, 3, 3),
    (0, False, 18, 17),
    (1, True, 17, 19),
    (2, False, 19, 16),
    (3, True, 16, 18),
)
"""How the frame is shown, one entry a view."""


class ViewsRestorer(Restorer):
    """Mean of a restorer's results on turned, mirrored and moved copies of the frame.

    Parameters
    ----------
    card : ModelCard
        What it is.
    single : Restorer
        Restores each view.
    """

    def __init__(self, card: ModelCard, single: Restorer) -> None:
        super().__init__(card, single.device)
        self._single = single
        self.precision = single.precision
        self.engine = single.engine

    def gmac(self, shape: tuple[int, int]) -> float | None:
        """See `Restorer.gmac`: that of the single restorer, once a view."""
        once = self._single.gmac(shape)
        return None if once is None else len(VIEWS) * once

    def _restore_finite(self, frame: Tensor, mean: float, out: Tensor) -> None:
        total = torch.zeros_like(frame)
        for turns, mirrored, top, left in VIEWS:
            view = frame.flip(1) if mirrored else frame
            view = torch.rot90(view, turns)
            view = _continued(view, top, left)
            restored = torch.rot90(self._single.restore(view)[top:, left:], -turns)
            total += restored.flip(1) if mirrored else restored
            if (turns, mirrored, top, left) == VIEWS[0]:
                # The frame itself; hits that the restorer found in it are not in this mean.
                mean = float(restored.mean())
        total /= len(VIEWS)
        torch.add(total, mean - float(total.mean()), out=out)


def _continued(frame: Tensor, top: int, left: int) -> Tensor:
    """The frame with mirrored rows and columns before it, as many as it has at the most."""
    rows = torch.arange(-top, frame.shape[0], device=frame.device).abs_()
    columns = torch.arange(-left, frame.shape[1], device=frame.device).abs_()
    rows.clamp_(max=frame.shape[0] - 1)
    columns.clamp_(max=frame.shape[1] - 1)
    return frame[rows][:, columns]
