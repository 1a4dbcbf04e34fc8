"""What several generators of scenes are put together from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["Array", "Rng", "smooth"]

Array = npt.NDArray[np.float32]
Rng = np.random.Generator


def smooth(rng: Rng, size: int, length_px: float) -> Array:
    """Gaussian random field of this correlation length and unit variance, periodic."""
    white = rng.standard_normal((size, size), dtype=np.float32)
    field = ndimage.gaussian_filter(white, length_px, mode="wrap")
    return np.asarray(field / max(float(field.std()), 1e-6), dtype=np.float32)
