"""The network of the shipped restorers: a small U-Net behind a 4 x 4 pixel unshuffle.

Unshuffling first makes every convolution work on a grid of a sixteenth of the pixels, which is what
makes 512 x 512 frames affordable on two processor cores. The noise of the frame is measured from
the frame itself, in the 15 Walsh-Hadamard bands of its 4 x 4 blocks, so that one set of weights
serves every dose and every camera.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "BLOCK",
    "CLEAN",
    "CONDITIONS",
    "DoseUNet",
    "block_bands",
    "conditions",
    "scaled_bands",
]

BLOCK = 4
"""Side of the blocks that pixel unshuffling turns into channels, in pixels."""

CONDITIONS = BLOCK * BLOCK
"""Length of the vector that tells the network about the noise."""

# E|x| of a unit normal is sqrt(2/pi): mean absolute deviation to standard deviation.
_ABS_TO_SIGMA = math.sqrt(math.pi / 2.0)
# With less contrast than this between signal and noise the mean says nothing about the noise
# (dark frames have a mean near zero), and the logarithm has to stay finite.
_MEAN_FLOOR = 0.02
# Bands of more than this many times the noise are all signal.
_MOST = 50.0
CLEAN = 1000.0
"""Power of a band over that of the noise, minus 1, from which on half of the band is passed on
untouched: far beyond what is trained for, so that nearly noise-free frames are left alone."""


def _hadamard() -> Tensor:
    """Return the orthonormal 16 x 16 Walsh-Hadamard matrix, rows in sequency order per axis."""
    h = torch.tensor(
        [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]], dtype=torch.float32
    )
    return torch.kron(h, h) / BLOCK


def block_bands(blocks: Tensor) -> Tensor:
    """Mean absolute Walsh-Hadamard coefficient of each band, as a standard deviation.

    Parameters
    ----------
    blocks : Tensor
        float32 (N, 16, h, w): a frame after ``pixel_unshuffle(4)``, any unit.

    Returns
    -------
    Tensor
        float32 (N, 15), in the unit of the frame. White Gaussian noise of standard deviation s
        gives s in every band.
    """
    # The constant band is the signal; the other 15 are noise wherever the specimen is smooth.
    weight = _hadamard()[1:].to(blocks.device).reshape(15, 16, 1, 1)
    bands = functional.conv2d(blocks, weight)
    return bands.abs().mean(dim=(2, 3)) * _ABS_TO_SIGMA


def conditions(bands: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Noise level and the vector that describes the noise to the network.

    Parameters
    ----------
    bands : Tensor
        float32 (N, 15), see `block_bands`.
    mean : Tensor
        float32 (N,), mean of the frame in the same unit.

    Returns
    -------
    sigma : Tensor
        float32 (N,), the noise per pixel: the third smallest band. Signal adds to bands and takes
        nothing away, and a lattice or an edge reaches most of them; the very smallest would be an
        underestimate where blur has taken the noise out of the finest band.
    vector : Tensor
        float32 (N, 16): log of sigma over mean, then the log of each band over sigma.
    """
    sigma = bands.sort(dim=1).values[:, 2]
    safe = sigma.clamp_min(1e-20)
    level = torch.log(safe / torch.maximum(mean, _MEAN_FLOOR * safe))
    shape = torch.log((bands / safe[:, None]).clamp(0.5, _MOST))
    return sigma, torch.cat([level[:, None], shape], dim=1)


def scaled_bands(blocks: Tensor, matrix: Tensor) -> Tensor:
    """Multiply blocks (N, 16, h, w) by matrices (N, 16, 16), or by (16, 16) where N is 1."""
    if blocks.shape[0] == 1:
        return functional.conv2d(blocks, matrix.view(BLOCK * BLOCK, BLOCK * BLOCK, 1, 1))
    return torch.einsum("nij,njhw->nihw", matrix, blocks)


class DoseUNet(nn.Module):
    """U-Net on 4 x 4 blocks; noise in, specimen out, both in units of the noise.

    Parameters
    ----------
    widths : sequence of int
        Channels at 1/4, 1/8, 1/16, ... of the resolution.
    blocks : sequence of int
        Residual blocks on the way down at each level (the last: at the bottom).
    waves : bool
        Whether the network is also given the waves of the frame (`tem_live.models.waves`). It says
        pixel by pixel how much of them is believed, beside what it restores itself.
    middles : sequence of int, optional
        Channels between the two convolutions of each residual block, down and then up, from the
        finest level on each way; by default as many as outside.

    Notes
    -----
    Beside the U-Net runs a linear path, `linear`, that scales the bands of each block by gains
    found from the noise alone. It lets strong fine detail (an atomic lattice at high dose)
    through without the U-Net having to rebuild it.

    There is no normalisation layer: statistics of a frame would couple far regions. The noise
    enters as a bias of the first convolution of each block, which with ReLU is a threshold: the
    learned counterpart of shrinkage at the noise level.
    """

    def __init__(
        self,
        widths: Sequence[int] = (48, 96, 128, 192),
        blocks: Sequence[int] = (1, 1, 1, 2),
        waves: bool = False,
        middles: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.hadamard: Tensor
        self.waves = waves
        parts = 2 if waves else 1
        self.widths = tuple(widths)
        self.blocks = tuple(blocks)
        self.register_buffer("hadamard", _hadamard(), persistent=False)
        self.head = nn.Conv2d(parts * BLOCK * BLOCK, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        stages = [*zip(widths, blocks, strict=True), *zip(widths[:-1], blocks[:-1], strict=True)]
        self.middles = tuple(middles) or tuple(w for w, n in stages for _ in range(n))
        if len(self.middles) != sum(blocks) + sum(blocks[:-1]):
            raise ValueError(
                f"{len(self.middles)} middles for {sum(blocks) + sum(blocks[:-1])} blocks"
            )
        made = iter(self.middles)
        built = [nn.ModuleList(_Block(w, next(made)) for _ in range(n)) for w, n in stages]
        self.encoders = nn.ModuleList(built[: len(widths)])
        self.decoders = nn.ModuleList(built[len(widths) :])
        last = nn.Linear(32, BLOCK * BLOCK)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -4.0)
        self.gain = nn.Sequential(nn.Linear(CONDITIONS, 32), nn.ReLU(), last)
        self.tail = nn.Conv2d(widths[0], parts * BLOCK * BLOCK, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)
        with torch.no_grad():
            # The waves come in little by little.
            self.tail.bias[BLOCK * BLOCK :] = -3.0

    @property
    def multiple(self) -> int:
        """Frames must be a multiple of this many pixels in height and width."""
        return int(BLOCK * 2 ** (len(self.widths) - 1))

    def forward(self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None) -> Tensor:
        """Restore frames.

        Parameters
        ----------
        blocks : Tensor
            float32 (N, 16, h, w): (frame - mean) / sigma after ``pixel_unshuffle(4)``.
        vector : Tensor
            float32 (N, 16), see `conditions`.
        waves : Tensor, optional
            float32 (N, 16, h, w): `tem_live.models.waves.lattice_waves` of the frame in the same
            unit, after ``pixel_unshuffle(4)``; needed where the network was built with them.

        Returns
        -------
        Tensor
            float32 (N, 16, h, w), the specimen in the same unit.
        """
        out = self.nonlinear(blocks, vector, waves)
        return out.add_(self.linear(blocks, vector))

    def nonlinear(self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None) -> Tensor:
        """`forward` without its linear path."""
        x = self.head(torch.cat([blocks, waves], dim=1) if waves is not None else blocks)
        skips: list[Tensor] = []
        last = len(self.widths) - 1
        for level, stage in enumerate(self.encoders):
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, vector)
            if level < last:
                skips.append(x)
                x = self.down[level](x)
        for level in range(last - 1, -1, -1):
            x = self.up[level](x).add_(skips[level])
            for block in self.decoders[level]:  # type: ignore[attr-defined]
                x = block(x, vector)
        return self.from_features(x, waves)

    def from_features(self, features: Tensor, waves: Tensor | None) -> Tensor:
        """What `nonlinear` does with the U-Net's last features (N, widths[0], h, w)."""
        out: Tensor = self.tail(features)
        if waves is not None:
            out, believed = torch.split(out, BLOCK * BLOCK, dim=1)
            out = out + torch.sigmoid(believed) * waves
        return out

    def linear(self, blocks: Tensor, vector: Tensor) -> Tensor:
        """Scale the Walsh-Hadamard bands of each block; arguments and result as in `forward`."""
        return scaled_bands(blocks, self.matrix(vector))

    def matrix(self, vector: Tensor) -> Tensor:
        """What `linear` multiplies each block by, float32 (N, 16, 16), from (N, 16)."""
        excess = torch.expm1(2.0 * vector[:, 1:]).clamp_min(0.0)
        clean = excess / (excess + CLEAN)
        # Of the block means the noise alone is known; images have no less power there than in
        # the coarsest bands, rows 1 and 4 of the transform.
        clean = torch.cat([torch.maximum(clean[:, :1], clean[:, 3:4]), clean], dim=1)
        gain = torch.sigmoid(self.gain(vector))
        gain = gain + (1.0 - gain) * clean
        hadamard = self.hadamard
        return hadamard.T @ (gain[:, :, None] * hadamard)


class _Block(nn.Module):
    """conv3x3, noise bias, ReLU, conv3x3, plus the input."""

    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, middle, 3, padding=1)
        self.noise = nn.Linear(CONDITIONS, middle)
        self.second = nn.Conv2d(middle, width, 3, padding=1)
        # Starting as the identity keeps a deep network without normalisation trainable.
        with torch.no_grad():
            self.second.weight.mul_(0.2)
            self.noise.weight.mul_(0.2)
            self.noise.bias.zero_()

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        bias = self.noise(vector)
        if x.shape[0] == 1 and not torch.is_grad_enabled():
            # One frame: the noise goes into the convolution's own bias and costs nothing.
            assert self.first.bias is not None
            h = functional.conv2d(x, self.first.weight, self.first.bias + bias[0], padding=1)
        else:
            h = self.first(x) + bias[:, :, None, None]
        # In place: on a processor a fresh buffer of this size costs as much as a convolution.
        out: Tensor = self.second(functional.relu(h, inplace=True))
        return out.add_(x)
