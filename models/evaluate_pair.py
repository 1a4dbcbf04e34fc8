"""Score restorers on two successive real frames, of which nobody knows the truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tem_live.models import scores
from tem_live.models.blurs import SIGMAS_PX, gaussian_blur

__all__ = ["empty_film", "evaluate_pair"]

_Array = npt.NDArray[np.float32]
_Method = Callable[[_Array], _Array]


def evaluate_pair(methods: dict[str, _Method], a: _Array, b: _Array) -> dict[str, dict[str, float]]:
    """Score methods on two successive real frames of the same specimen, both ways, averaged.

    ``error_e2`` is mean((r(a) - b)^2) - mean((a - b)^2) / 2, which estimates the error of r(a) for
    independent noise; ``below_gaussian_e2`` is how far it lies under that of the best Gaussian;
    ``texture`` is the standard deviation of r - Gaussian(r, 8 px) over empty film, over the mean;
    NaN where no film is found. The error has two parts: ``varies_e2``, half the mean of
    (r(a) - r(b))^2, is what the noise of the one frame does; ``common_e2``, the mean of
    (a - r(a)) (b - r(b)), is what both lack, be it detail or a pattern that the camera adds to both
    (``common_se_e2``: its standard error, from blocks of 32 px).
    """
    film = empty_film(a, b)
    common = 0.5 * scores.mse(a, b)

    def figures(restore: _Method) -> dict[str, float]:
        error, texture, bias = [], [], []
        both = [np.asarray(restore(x), dtype=np.float32) for x in (a, b)]
        lacking = (a - both[0]).astype(np.float64) * (b - both[1])
        for x, y, r in ((a, b, both[0]), (b, a, both[1])):
            error.append(scores.mse(y, r) - common)
            detail = r - ndimage.gaussian_filter(r, 8.0)
            texture.append(float(detail[film].std()) / float(x.mean()) if film.any() else math.nan)
            bias.append(float(r.mean() / x.mean()) - 1.0)
        return {
            "error_e2": float(np.mean(error)),
            "texture": float(np.mean(texture)),
            "bias": float(np.mean(bias)),
            "varies_e2": 0.5 * scores.mse(*both),
            "common_e2": float(lacking.mean()),
            "common_se_e2": _standard_error(lacking),
        }

    out: dict[str, dict[str, float]] = {"raw": figures(lambda x: x)}
    out["gaussian"] = min(
        (figures(lambda x, s=s: gaussian_blur(x, s)) for s in SIGMAS_PX),  # type: ignore[misc]
        key=lambda f: f["error_e2"],
    )
    for name, restore in methods.items():
        out[name] = figures(restore)
    for row in out.values():
        row["below_gaussian_e2"] = out["gaussian"]["error_e2"] - row["error_e2"]
    out["raw"]["empty_film_fraction"] = float(film.mean())
    return out


def empty_film(a: _Array, b: _Array) -> npt.NDArray[np.bool_]:
    """Pixels far from any particle: near the film's own level after heavy smoothing."""
    smooth = ndimage.gaussian_filter((a + b) / 2, 5.0)
    level = float(np.percentile(smooth, 60))
    spread = 1.4826 * float(np.median(np.abs(smooth[smooth > level] - level)))
    dark = smooth < level - 4.0 * max(spread, 1e-6)
    mask = ~ndimage.binary_dilation(dark, iterations=16)
    mask[:16] = mask[-16:] = False
    mask[:, :16] = mask[:, -16:] = False
    return np.asarray(mask, dtype=np.bool_)


def _standard_error(image: npt.NDArray[np.float64], block_px: int = 32) -> float:
    """Of an image's mean, from the means of blocks; NaN where there are fewer than two."""
    rows, columns = (side // block_px for side in image.shape)
    whole = image[: rows * block_px, : columns * block_px]
    means = whole.reshape(rows, block_px, columns, block_px).mean(axis=(1, 3)).ravel()
    return float(means.std(ddof=1)) / math.sqrt(means.size) if means.size > 1 else math.nan
