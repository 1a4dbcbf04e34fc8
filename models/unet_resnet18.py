"""U-Net with a ResNet-18 encoder: the network of Katsuno et al., and the restorer around it.

Source: H. Katsuno, Y. Kimura, T. Yamazaki, I. Takigawa, "Fast improvement of TEM images with
low-dose electrons by deep learning", arXiv:2106.01718 (2021), who take ``Unet("resnet18")`` of
segmentation-models-pytorch with one channel. Written from the published architecture (ResNet-18:
arXiv:1512.03385; U-Net: arXiv:1505.04597) with that package's names of parameters, so that state
dicts of theirs load.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tem_live.models.cards import ModelCard
from tem_live.models.restorer import Restorer
from tem_live.models.tiles import run_tiled

__all__ = ["UnetResNet18", "UnetResNet18Restorer", "stretch_limits"]

_ENCODER = (64, 64, 128, 256, 512)
_DECODER = (256, 128, 64, 32, 16)
_PERCENTILES = (1.0, 80.0)

_TILE_PX = 2048
_HALO_PX = 256


class UnetResNet18(nn.Module):
    """U-Net of five levels, its encoder a ResNet-18; 14.3 million parameters, 21.2 GMAC at 512².

    Parameters
    ----------
    sigmoid : bool
        End in a sigmoid, as their network of 2023 for liquid cells (arXiv:2310.20279) does.
    """

    multiple = 32

    def __init__(self, sigmoid: bool = False) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        self.encoder = _Encoder()
        self.decoder = _Decoder()
        self.segmentation_head = nn.Sequential(nn.Conv2d(_DECODER[-1], 1, 3, padding=1))

    def forward(self, frames: Tensor) -> Tensor:
        """Restore stretched frames.

        Parameters
        ----------
        frames : Tensor
            float32 (N, 1, H, W), 0 to 1 by `stretch_limits`; H and W multiples of 32.

        Returns
        -------
        Tensor
            float32 (N, 1, H, W): the long exposure, 0 at its minimum and 1 at its maximum.
        """
        out: Tensor = self.segmentation_head(self.decoder(self.encoder(frames)))
        return torch.sigmoid(out) if self.sigmoid else out


class _Encoder(nn.Module):
    """ResNet-18 without its classifier; gives the maps at 1/2, 1/4, 1/8, 1/16 and 1/32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, _ENCODER[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(_ENCODER[0])
        self.layer1 = _stage(_ENCODER[0], _ENCODER[1], 1)
        self.layer2 = _stage(_ENCODER[1], _ENCODER[2], 2)
        self.layer3 = _stage(_ENCODER[2], _ENCODER[3], 2)
        self.layer4 = _stage(_ENCODER[3], _ENCODER[4], 2)

    def forward(self, frames: Tensor) -> list[Tensor]:
        x = functional.relu(self.bn1(self.conv1(frames)), inplace=True)
        maps = [x]
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def _stage(before: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_BasicBlock(before, width, stride), _BasicBlock(width, width, 1))


class _BasicBlock(nn.Module):
    """conv3x3, ReLU, conv3x3, plus the input (through a conv1x1 where the shape changes), ReLU."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        out: Tensor = self.bn2(self.conv2(h)) + self.downsample(x)
        return functional.relu(out, inplace=True)


class _Decoder(nn.Module):
    """Doubles the resolution five times; the encoder's map of that resolution joins in."""

    def __init__(self) -> None:
        super().__init__()
        before = (_ENCODER[-1], *_DECODER[:-1])
        skips = (*_ENCODER[-2::-1], 0)
        self.blocks = nn.ModuleList(
            _DecoderBlock(a + skip, b) for a, skip, b in zip(before, skips, _DECODER, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *skips, x = maps
        for block in self.blocks:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skips.pop()], dim=1) if skips else x)
        return x


class _DecoderBlock(nn.Module):
    """Twice conv3x3, normalisation and ReLU."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(before, width)
        self.conv2 = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


def _convolution(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def stretch_limits(frame: Tensor) -> tuple[float, float]:
    """Intensities that become 0 and 1 in the network's input, as their code has it.

    Parameters
    ----------
    frame : Tensor
        float32, any shape, finite.

    Returns
    -------
    low, high : float
        The 1st and the 80th percentile (nearest rank below). Where they are equal, as in a frame
        with few electrons, `high` is the maximum.
    """
    values = frame.flatten()
    ranks = [int(p / 100.0 * (values.numel() - 1)) + 1 for p in _PERCENTILES]
    low, high = (float(values.kthvalue(rank).values) for rank in ranks)
    return low, high if high > low else float(values.max())


class UnetResNet18Restorer(Restorer):
    """Runs a `UnetResNet18` and gives its output the scale of the frame.

    Notes
    -----
    Their input saturates: whatever is brighter than four fifths of the frame becomes 1. Their
    output is the long exposure on a scale of its own, 0 at its minimum and 1 at its maximum. No
    electrons follow from either. The restorer takes the straight line that brings the output
    closest to the raw frame in the mean square. The noise of the frame has no part in it as long as
    the output does not contain that noise, and the mean is kept exactly. Contrast within the
    brightest fifth stays as uncertain as the stretch has made it.
    """

    def __init__(self, card: ModelCard, device: str, network: UnetResNet18) -> None:
        super().__init__(card, device)
        network = network.eval().requires_grad_(False).to(torch.device(device))
        placed = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network: UnetResNet18 = placed
        # Nothing of it changes with a frame. On a GPU one frame fills the device.
        self.concurrent = self.device == "cpu"

    def _restore_finite(self, frame: Tensor, mean: float, out: Tensor) -> None:
        low, high = stretch_limits(frame)
        if not high > low:
            out.copy_(frame)
            return
        restored = run_tiled(
            self._network,
            ((frame - low) / (high - low)).clamp_(0.0, 1.0),
            multiple=UnetResNet18.multiple,
            tile_px=_TILE_PX,
            halo_px=_HALO_PX,
        )
        slope, level = _line(restored, frame)
        shift = mean - slope * level
        torch.add(torch.tensor(shift, device=out.device), restored, alpha=slope, out=out)


def _line(restored: Tensor, frame: Tensor) -> tuple[float, float]:
    """Slope of the least-squares line from `restored` to `frame`, and the mean of `restored`."""
    x, y = restored.double().flatten(), frame.double().flatten()
    level = x.mean()
    x = x - level
    power = float(torch.dot(x, x))
    slope = float(torch.dot(x, y - y.mean())) / power if power > 0.0 else 0.0
    return slope, float(level)
