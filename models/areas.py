"""Keep what large areas hold: a level that a restorer missed is given back.

The mean of the residual (raw - restored) over some hundred pixels has little noise. Where it is
beyond what noise explains, the restored area is too bright or too dark, as beside an opaque bar.
There the difference is added, so that areas keep their electrons as the whole frame does.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["area_part"]

# Side of an area in pixels; fewer of them than this tell nothing about their noise.
_AREA_PX = 32
_FEWEST = 16
# In standard errors: smaller differences are noise, larger ones lose their share of noise.
_SURE = 3.0
# Median of |x| of a unit normal.
_MEDIAN = 0.6745


def area_part(residual: Tensor) -> Tensor | None:
    """Differences of level between areas of 32 x 32 pixels that cannot be noise.

    Parameters
    ----------
    residual : Tensor
        float32 (H, W), raw - restored, any unit, without defects.

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
    if (height // _AREA_PX) * (width // _AREA_PX) < _FEWEST:
        return None
    image = residual[None, None]
    mean = functional.avg_pool2d(image, _AREA_PX)
    square = functional.avg_pool2d(image.square(), _AREA_PX)
    variance = (square - mean.square()).div_(_AREA_PX**2).clamp_min_(1e-12)
    deviation = mean.square().div_(variance)
    tied = max(1.0, float(deviation.median()) / _MEDIAN**2)
    sure = (1.0 - _SURE**2 * tied / deviation.clamp_min_(1e-9)).clamp_min_(0.0)
    if not bool((sure > 0.0).any()):
        return None
    side = (mean.shape[-2] * _AREA_PX, mean.shape[-1] * _AREA_PX)
    part = functional.interpolate(mean.mul_(sure), size=side, mode="bilinear", align_corners=False)
    # Less than an area at the lower and right border has the level beside it.
    bottom, right = height - side[0], width - side[1]
    return functional.pad(part, (0, right, 0, bottom), mode="replicate")[0, 0]
