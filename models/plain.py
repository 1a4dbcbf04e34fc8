"""Restorers without a network, to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tem_live.models.cards import ModelCard
from tem_live.models.restorer import Restorer, padded

if TYPE_CHECKING:
    import torch

__all__ = ["GAUSSIAN", "NONE", "GaussianRestorer", "NoneRestorer"]

NONE = ModelCard(
    name="none",
    title="No restoration: the raw frame",
    kind="none",
    noise="any",
    limits=("Changes nothing; non-finite pixels are replaced by the mean around them.",),
)
GAUSSIAN = ModelCard(
    name="gaussian",
    title="Gaussian blur, sigma 2 px: the honest baseline",
    kind="gaussian",
    noise="any",
    limits=(
        "Blurs everything alike: detail under about 5 px is lost at every dose.",
        "The best sigma depends on the scene and the dose; 2 px is a middle choice.",
    ),
)
_GAUSSIAN_SIGMA_PX = 2.0


class NoneRestorer(Restorer):
    """Gives back the frame."""

    def _restore_finite(self, frame: torch.Tensor, mean: float, out: torch.Tensor) -> None:
        out.copy_(frame)


class GaussianRestorer(Restorer):
    """Blurs the frame."""

    def _restore_finite(self, frame: torch.Tensor, mean: float, out: torch.Tensor) -> None:
        import torch
        from torch.nn import functional

        reach = int(np.ceil(4 * _GAUSSIAN_SIGMA_PX))
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _GAUSSIAN_SIGMA_PX) ** 2)
        kernel = torch.tensor(taps / taps.sum(), dtype=torch.float32, device=frame.device)
        height, width = frame.shape
        blurred = padded(frame[None, None], reach, reach, reach, reach)
        blurred = functional.conv2d(blurred, kernel[None, None, None, :])
        blurred = functional.conv2d(blurred, kernel[None, None, :, None])[0, 0, :height, :width]
        torch.add(blurred, mean - blurred.mean(), out=out)
