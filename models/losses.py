"""What training minimises, as modules: ours, Katsuno's and Lobato's.

All take ``(restored, target, scale)``: float32 (N, 1, H, W) in electrons twice, and (N,) in e-^2,
the error that the best Gaussian blur leaves; all return one number. `make_loss` builds one by its
name in a recipe. The adversarial part needs a second network and is apart: `PatchGan` and
`relativistic_losses`.

Sources: Katsuno et al., arXiv:2106.01718 (L1) and arXiv:2310.20279 (1 - SSIM); Lobato, Friedrich
and Van Aert, npj Comput. Mater. 10 (2024) 10, arXiv:2303.17025. Their code was not looked at.
Weights between the parts of a sum are ours where no other source is given.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tem_live.errors import InputError

__all__ = [
    "LOSSES",
    "ErrorRatioLoss",
    "LobatoLoss",
    "MeanLoss",
    "NoisyTargetLoss",
    "OneMinusSsim",
    "PatchGan",
    "PixelLoss",
    "SpectralLoss",
    "StdLoss",
    "TaughtLoss",
    "WhiteningLoss",
    "make_loss",
    "relativistic_losses",
    "unit_contrast",
]

# Far below any contrast of interest on images of unit standard deviation; keeps gradients finite.
_TINY = 1e-6
# Lobato's floor of the standard deviation that images are divided by.
_LEAST_STD = 0.1


def unit_contrast(restored: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both images less the target's mean, over its standard deviation (at least 0.1)."""
    std, mean = torch.std_mean(target, dim=(1, 2, 3), keepdim=True, correction=0)
    unit = std.clamp_min(_LEAST_STD)
    return (restored - mean) / unit, (target - mean) / unit


class ErrorRatioLoss(nn.Module):
    """Root of the squared error over that of the best Gaussian blur, averaged over the frames.

    All scenes and doses count alike. The root tempers scenes that are far worse than blurring;
    restorers are judged by the geometric mean.
    """

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return mean(sqrt(mse / scale + 0.001))."""
        ratio = (restored - target).square().mean(dim=(1, 2, 3)) / scale
        return torch.sqrt(ratio + 1e-3).mean()


class TaughtLoss(nn.Module):
    """`ErrorRatioLoss` with a part of the truth replaced by what a teacher makes of the frame.

    Frames weigh what the root of their error gives them there, and each is drawn to
    (1 - `share`) truth + `share` teacher. A teacher that is the mean of all truths that the frame
    may show changes nothing but the chance in each step, see `tem_live.models.teacher`.

    Parameters
    ----------
    share : float
        The teacher's, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor, taught: Tensor) -> Tensor:
        """Return the mean over the frames; `taught` is like `restored`, of the teacher."""
        with torch.no_grad():
            ratio = (restored - target).square().mean(dim=(1, 2, 3)) / scale
            weight = 0.5 / (torch.sqrt(ratio + 1e-3) * scale)
            drawn_to = torch.lerp(target, taught, self.share)
        return (weight * (restored - drawn_to).square().mean(dim=(1, 2, 3))).mean()


class NoisyTargetLoss(nn.Module):
    """Squared error over that of the best Gaussian blur: for targets that are noisy themselves.

    Among losses only the squared error has its minimum at the mean of noisy targets, whatever
    their noise (Lehtinen et al., Noise2Noise, arXiv:1803.04189). Clipping and fixed pattern are
    part of that mean.
    """

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return mean(mse / scale)."""
        return ((restored - target).square().mean(dim=(1, 2, 3)) / scale).mean()


class PixelLoss(nn.Module):
    """Mean absolute difference (L1), in units of the target's contrast."""

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return mean(|x - y|) of images of unit contrast."""
        x, y = unit_contrast(restored, target)
        return (x - y).abs().mean()


class OneMinusSsim(nn.Module):
    """1 - SSIM with the Gaussian window and the constants of `tem_live.models.scores.ssim`.

    Wang et al., IEEE Trans. Image Process. 13 (2004) 600: standard deviation 1.5 px, 11 px wide,
    K1 = 0.01, K2 = 0.03; the data range is that of the target.
    """

    def __init__(self) -> None:
        super().__init__()
        axis = torch.arange(-5, 6, dtype=torch.float32)
        taps = torch.exp(-0.5 * (axis / 1.5) ** 2)
        self.taps: Tensor
        self.register_buffer("taps", taps / taps.sum(), persistent=False)

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return 1 - mean SSIM over the windows that lie within the image."""
        # Moments of squares lose their digits where the mean is large against the contrast.
        centre = target.mean(dim=(1, 2, 3), keepdim=True)
        x, y = restored - centre, target - centre
        span = y.amax(dim=(1, 2, 3), keepdim=True) - y.amin(dim=(1, 2, 3), keepdim=True)
        span = span.clamp_min(_TINY)
        mx, my = self._blur(x), self._blur(y)
        vx = self._blur(x * x) - mx * mx
        vy = self._blur(y * y) - my * my
        cov = self._blur(x * y) - mx * my
        mx, my = mx + centre, my + centre
        c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
        luminance = (2.0 * mx * my + c1) / (mx * mx + my * my + c1)
        return 1.0 - (luminance * (2.0 * cov + c2) / (vx + vy + c2)).mean()

    def _blur(self, image: Tensor) -> Tensor:
        taps = self.taps
        rows = functional.conv2d(image, taps[None, None, :, None])
        return functional.conv2d(rows, taps[None, None, None, :])


class WhiteningLoss(nn.Module):
    """L1 of a multi-local whitening transform (Lobato).

    Each image is whitened, (x - local mean) / local standard deviation, over boxes of 2, 4, 8 and
    16 px; the absolute differences are averaged with the weights 1, 1.33, 1.66 and 2 over their
    sum. A floor of `floor` on the standard deviation (on images of unit contrast) keeps empty
    areas from being blown up; the floor is ours.
    """

    BOXES_PX = (2, 4, 8, 16)
    WEIGHTS = (1.0, 1.33, 1.66, 2.0)

    def __init__(self, floor: float = 0.05) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return the weighted mean over the boxes."""
        x, y = unit_contrast(restored, target)
        total = x.new_zeros(())
        for box, weight in zip(self.BOXES_PX, self.WEIGHTS, strict=True):
            difference = self.whitened(x, box) - self.whitened(y, box)
            total = total + weight * difference.abs().mean()
        return total / sum(self.WEIGHTS)

    def whitened(self, image: Tensor, box_px: int) -> Tensor:
        """Whiten (N, 1, H, W) over boxes of this side; the borders are mirrored."""
        before, after = (box_px - 1) // 2, box_px // 2
        padded = functional.pad(image, (before, after, before, after), mode="reflect")
        mean = functional.avg_pool2d(padded, box_px, stride=1)
        square = functional.avg_pool2d(padded * padded, box_px, stride=1)
        variance = (square - mean * mean).clamp_min(0.0)
        return (image - mean) / torch.sqrt(variance + self.floor**2)


class SpectralLoss(nn.Module):
    """Mean of |F(x - y)|^0.125 with F the orthonormal `rfft2` (Lobato).

    The small exponent weighs all coefficients about alike, weak ones as much as strong ones.
    """

    EXPONENT = 0.125

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return the mean over the half plane of `rfft2`."""
        x, y = unit_contrast(restored, target)
        wave = torch.fft.rfft2(x - y, norm="ortho")
        power = wave.real.square() + wave.imag.square()
        magnitude: Tensor = (power + _TINY).pow(0.5 * self.EXPONENT)
        return magnitude.mean()


class MeanLoss(nn.Module):
    """Absolute difference of the images' means, in units of the target's contrast (Lobato)."""

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return mean(|mean x - mean y|) over the frames."""
        x, y = unit_contrast(restored, target)
        return (x.mean(dim=(1, 2, 3)) - y.mean(dim=(1, 2, 3))).abs().mean()


class StdLoss(nn.Module):
    """Absolute difference of the images' standard deviations, likewise (Lobato)."""

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return mean(|std x - std y|) over the frames."""
        x, y = unit_contrast(restored, target)
        spread = (
            torch.sqrt(torch.var(image, dim=(1, 2, 3), correction=0) + _TINY**2) for image in (x, y)
        )
        return (next(spread) - next(spread)).abs().mean()


class LobatoLoss(nn.Module):
    """Weighted sum of `PixelLoss`, `WhiteningLoss`, `SpectralLoss`, `MeanLoss` and `StdLoss`.

    Parameters
    ----------
    pixel, whitening, spectral, mean, std : float
        Weights. The defaults are ours: they make the parts about equal on a network that restores
        fairly; the spectral part hardly depends on the scale of the error and gets a tenth.
    """

    def __init__(
        self,
        pixel: float = 1.0,
        whitening: float = 1.0,
        spectral: float = 0.1,
        mean: float = 1.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [PixelLoss(), WhiteningLoss(), SpectralLoss(), MeanLoss(), StdLoss()]
        )
        self.weights = (pixel, whitening, spectral, mean, std)

    def forward(self, restored: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Return the sum."""
        total = restored.new_zeros(())
        for part, weight in zip(self.parts, self.weights, strict=True):
            if weight:
                total = total + weight * part(restored, target, scale)
        return total


class PatchGan(nn.Module):
    """Discriminator that judges patches: a map of numbers, larger for what looks like a target.

    Isola et al., arXiv:1611.07004: 4 x 4 convolutions of stride 2, leaky ReLU; a patch of 70 px
    with three of them. No normalisation layers: batches are small here.

    Parameters
    ----------
    width : int
        Channels of the first layer; each stage doubles them, up to eightfold.
    stages : int
        Convolutions of stride 2.
    """

    def __init__(self, width: int = 32, stages: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for stage in range(1, stages + 1):
            wider = width * min(2**stage, 8)
            stride = 2 if stage < stages else 1
            layers += [nn.Conv2d(channels, wider, 4, stride, 1), nn.LeakyReLU(0.2)]
            channels = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Judge (N, 1, H, W) of unit contrast; H and W at least 32."""
        out: Tensor = self.layers(images)
        return out


def relativistic_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the discriminator and of the restorer, relativistic average GAN.

    Jolicoeur-Martineau, arXiv:1807.00734, eq. 8 and 9, with the logistic loss: how much more real
    a target looks than restored images do on average, and the other way round.

    Parameters
    ----------
    real, fake : Tensor
        The discriminator's judgement of targets and of restored images.

    Returns
    -------
    discriminator, restorer : Tensor
        To be minimised by each.
    """
    more, less = real - fake.mean(), fake - real.mean()
    # softplus(-x) = -log sigmoid(x)
    discriminator = functional.softplus(-more).mean() + functional.softplus(less).mean()
    restorer = functional.softplus(more).mean() + functional.softplus(-less).mean()
    return discriminator, restorer


LOSSES: dict[str, type[nn.Module]] = {
    "error-ratio": ErrorRatioLoss,
    "noisy-target": NoisyTargetLoss,
    "l1": PixelLoss,
    "one-minus-ssim": OneMinusSsim,
    "lobato": LobatoLoss,
}
"""Losses by their name in a recipe."""


def make_loss(name: str) -> nn.Module:
    """Build a loss by its name in a recipe; `InputError` names those there are."""
    if name not in LOSSES:
        raise InputError(f"no loss is called {name!r}; use {', '.join(LOSSES)}")
    return LOSSES[name]()
