"""Methods that learned nothing, to compare restorers with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError

__all__ = ["bm3d_restore", "nlm_restore"]

_Array = npt.NDArray[np.float32]


def _stabilised(frame: _Array, denoise: Callable[[npt.NDArray[np.float64]], Any]) -> _Array:
    """Remove Poisson noise with a method for noise of standard deviation 1.

    The noise is made so by Anscombe's transform. Makitalo & Foi's closed-form approximation of the
    exact unbiased inverse is used (IEEE Trans. Image Process. 20, 2697, 2011); the algebraic
    inverse is biased at low doses.
    """
    stable = 2.0 * np.sqrt(np.maximum(np.asarray(frame, dtype=np.float64), 0.0) + 0.375)
    d = np.maximum(np.asarray(denoise(stable), dtype=np.float64), 2.0 * np.sqrt(0.375))
    inverse = (
        0.25 * d**2 + 0.25 * np.sqrt(1.5) / d - 1.375 / d**2 + 0.625 * np.sqrt(1.5) / d**3 - 0.125
    )
    return np.asarray(inverse, dtype=np.float32)


def bm3d_restore(frame: _Array) -> _Array:
    """BM3D after Anscombe's transform, for Poisson frames in electrons."""
    try:
        import bm3d
    except ImportError as error:
        raise InputError("BM3D is not installed; pip install 'tem-live[bm3d]'") from error

    def denoise(stable: npt.NDArray[np.float64]) -> Any:
        low, high = float(stable.min()), float(stable.max())
        span = max(high - low, 1e-6)
        return bm3d.bm3d((stable - low) / span, 1.0 / span) * span + low

    return _stabilised(frame, denoise)


def nlm_restore(frame: _Array) -> _Array:
    """Non-local means after Anscombe's transform, for Poisson frames in electrons.

    Buades, Coll & Morel, CVPR 2005; patches of 7 px within 11 px, h = 0.8 sigma.
    """
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise InputError("scikit-image is not installed; pip install scikit-image") from error
    return _stabilised(frame, lambda stable: denoise_nl_means(stable, h=0.8, sigma=1.0))
