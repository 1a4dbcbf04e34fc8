"""Keep what large areas hold: a level that a restorer missed is given back.

The mean of the residual (raw - restored) over some hundred pixels has little noise. Where it is
beyond what noise explains, the restored area is too bright or too dark, as beside an opaque bar.
There the difference is added, so that areas keep their electrons as the whole frame does.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.planes import Enlarged, cell_sums, line_sums, strips

__all__ = ["area_part", "area_sums"]

# Side of an area in pixels; fewer of them than this tell nothing about their noise.
_AREA_PX = 32
_FEWEST = 16
# In standard errors: smaller differences are noise, larger ones lose their share of noise.
_SURE = 3.0
# Median of |x| of a unit normal.
_MEDIAN = 0.6745


def area_sums(residual: Tensor) -> Tensor:
    """Sums of a residual (H, W) and of its squares over the rows of areas, (2, ceil(H / 32), W)."""
    return line_sums([(residual, None), (residual, residual)], _AREA_PX)


def area_part(residual: Tensor, sums: Tensor | None = None) -> Tensor | None:
    """Differences of level between areas of 32 x 32 pixels that cannot be noise.

    Parameters
    ----------
    residual : Tensor
        float32 (H, W), raw - restored, any unit, without defects.
    sums : Tensor, optional
        Its `area_sums`, where they are known.

    Returns
    -------
    Tensor or None
        float32 (H, W), to be added to the restored frame; None where there is nothing.

    Notes
    -----
    The standard error of an area is that of its own pixels, times how much more the means of all
    areas scatter than white noise would: a detector's blur ties neighbours together. Shrinkage is
    Breiman's non-negative garrote (Technometrics 37 (1995) 373).
    """
    height, width = residual.shape
    rows, columns = height // _AREA_PX, width // _AREA_PX
    if rows * columns < _FEWEST:
        return None
    pixels = float(_AREA_PX**2)
    sums = cell_sums(area_sums(residual) if sums is None else sums, _AREA_PX)
    mean, square = sums[:, :rows, :columns] / pixels
    variance = square.sub_(mean.square()).div_(pixels).clamp_min_(1e-12)
    deviation = mean.square().div_(variance)
    tied = (deviation.median() / _MEDIAN**2).clamp_min_(1.0)
    sure = (1.0 - _SURE**2 * tied / deviation.clamp_min_(1e-9)).clamp_min_(0.0)
    if not bool((sure > 0.0).any()):
        return None
    # Less than an area at the lower and right border has the level beside it.
    mean = functional.pad(mean.mul_(sure)[None, None], (0, 1, 0, 1), mode="replicate")[0, 0]
    level = Enlarged(mean[None], _AREA_PX, width)
    part = torch.empty((height, width), device=residual.device)
    for strip in strips(height, width, residual.device, _AREA_PX):
        part[strip] = level.rows(strip)[0]
    return part
