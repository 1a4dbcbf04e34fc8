"""Show a network the frame from several sides and take the mean: `best`.

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

from tem_live.models.macs import Work
from tem_live.models.network_restorer import NetworkRestorer, hits_in

__all__ = ["VIEWS", "ViewsRestorer"]

# Quarter turns, mirrored or not, and rows and columns put before the frame: a block has 4 x 4
# pixels.
VIEWS: tuple[tuple[int, bool, int, int], ...] = (
    (0, False, 0, 0),
    (1, False, 2, 1),
    (2, False, 1, 3),
    (3, False, 3, 2),
    (0, True, 2, 2),
    (1, True, 0, 1),
)
"""How the frame is shown, one entry a view; the first is the frame itself."""

# All others are continued at the lower and right edges, too, so that they are of one size: what an
# engine makes ready for frames of a size is made once.
_MOVED_PX = max(px for _, _, top, left in VIEWS for px in (top, left))


class ViewsRestorer(NetworkRestorer):
    """Runs a `DoseUNet` on turned, mirrored and moved copies of the frame.

    What is done to a frame before and after the network is done once, to the frame as it is.
    """

    def work(self, shape: tuple[int, int]) -> Work | None:
        """See `Restorer.work`: that of the network, once a view."""
        once = super().work(shape)
        return None if once is None else once.times(len(VIEWS))

    def prepare(self, shape: tuple[int, int]) -> None:
        """See `Restorer.prepare`."""
        height, width = (side + _MOVED_PX for side in shape)
        for view in dict.fromkeys((shape, (height, width), (width, height))):
            super().prepare(view)

    def _specimen(self, rest: Tensor, level: float, blocks: Tensor, vector: Tensor) -> Tensor:
        frame = shown = rest.clone()
        total = first = super()._specimen(rest, level, blocks, vector)
        count = 1
        hits = hits_in(rest, first, level)
        if hits is not None:
            # What the network makes of the pixels around a hit of hundreds of times the noise is
            # wrong, too. This view has found the hits, the others are shown none.
            shown = torch.where(hits, first, frame)
            total, count = torch.zeros_like(first), 0
        for turns, mirrored, top, left in VIEWS[1:]:
            view = torch.rot90(shown.flip(1) if mirrored else shown, turns)
            height, width = view.shape
            view = _continued(view, top, left)
            blocks, sigma, vector = self._blocks_and_noise(self._fit(view), level)
            if sigma == 0.0:
                # A frame that is almost without noise, and in this view quite.
                continue
            seen = super()._specimen(view.div_(sigma), level / sigma, blocks.div_(sigma), vector)
            seen = torch.rot90(seen[top : top + height, left : left + width], -turns)
            total.add_(seen.flip(1) if mirrored else seen, alpha=sigma)
            count += 1
        if not count:
            total, count = first, 1
        torch.sub(frame, total.div_(count), out=rest)
        return total


def _continued(frame: Tensor, top: int, left: int) -> Tensor:
    """The frame with mirrored rows and columns before and after it, `_MOVED_PX` in all."""
    height, width = frame.shape
    rows, columns = (_mirrored(*line, frame.device) for line in ((top, height), (left, width)))
    return frame[rows][:, columns]


def _mirrored(before: int, side: int, device: torch.device) -> Tensor:
    """Numbers of the lines of a continued frame; of a small one the last is repeated."""
    lines = torch.arange(-before, side + _MOVED_PX - before, device=device).abs_()
    return torch.minimum(lines, 2 * (side - 1) - lines).clamp_(0, side - 1)
