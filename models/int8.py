"""Run a `DoseUNet` in 8 bit integers where the processor multiplies those faster.

Processors with VNNI instructions multiply 8 bit integers four times as fast as float32. Only the
convolutions of the residual blocks are done so, which are nine tenths of the work; what runs from
block to block stays float32, and nothing is trained anew. Weights are scaled channel by channel,
what they are applied to tensor by tensor and frame by frame (Jacob et al., CVPR 2018, section 2),
so that no range has to be known beforehand.

A frame whose strongest pixel lies far outside of the noise would get too coarse a scale: it is
restored in float32. The convolutions are those of oneDNN that torch brings along. Where they are
missing, or do not give what float32 gives, `int8_network` says so and the caller stays with
float32.

This module imports torch; import it lazily.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tem_live.models.network import BLOCK, CONDITIONS, DoseUNet

__all__ = ["AGREES", "Int8UNet", "can_multiply_int8", "int8_network", "trial"]

_log = logging.getLogger(__name__)

# Strongest input of the first block, in units of the noise, that is still scaled to 8 bits.
_LARGEST = 60.0
# What a block has in its middle may be so many times as large as where that was tried out; beyond,
# it is computed once more with a scale of its own.
_MARGIN = 1.5
AGREES = 0.06
"""On `trial` (1.0) a quicker network must agree with float32 within this share of the noise (root
mean square); 0.03 is usual for 8 bits, and a scale that is wrong by a tenth gives 0.08."""
# Elements that are scaled at a time: float32 of this many stay in a core's cache.
_CHUNK = 1 << 16
_ZERO = 128
"""The integer that stands for 0 where values have both signs."""
_ROUND_SIGNED = torch.tensor(_ZERO + 0.5)
_ROUND = torch.tensor(0.5)


def can_multiply_int8() -> bool:
    """Whether this processor multiplies 8 bit integers faster than float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(found.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported is not None and supported())


def int8_network(network: DoseUNet) -> Int8UNet | None:
    """The network in 8 bit integers, or None where that does not pay or does not work.

    Parameters
    ----------
    network : DoseUNet
        On the CPU, ready to run. Stays as it is and is used for the rest of the work.
    """
    if not can_multiply_int8() or not network.blocks[0]:
        return None
    blocks, vector = trial(1.0)
    try:
        with torch.inference_mode():
            waves = torch.zeros_like(blocks) if network.waves else None
            made = Int8UNet(network)
            error = made(blocks, vector, waves) - network(blocks, vector, waves)
            distance = float(error.square().mean().sqrt())
    except (AttributeError, RuntimeError, TypeError, ValueError) as problem:
        _log.warning("no 8 bit convolutions, float32 is used: %s", str(problem).splitlines()[0])
        return None
    if not distance < AGREES:
        _log.warning(
            "8 bit convolutions are off by %.3g of the noise here, float32 is used", distance
        )
        return None
    return made


class _Convolution:
    """A 3 x 3 convolution of 8 bit integers with weights that are scaled channel by channel."""

    def __init__(self, layer: nn.Conv2d) -> None:
        weight = layer.weight.detach()
        self._bias = layer.bias
        self._scales = weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127.0
        integers = (weight / self._scales[:, None, None, None]).round().to(torch.int8)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._weight: Tensor = torch.ops.onednn.qconv_prepack(
            integers.contiguous(), self._scales, 1.0, _ZERO, [1, 1], [1, 1], [1, 1], 1, None
        )

    def relu(
        self,
        x: Tensor,
        scale: float,
        bias: Tensor,
        out_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """ReLU of the convolution of signed `x`, as float32 or as uint8 of `out_scale`."""
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, scale, _ZERO, self._weight, self._scales, self._zeros, bias,
            [1, 1], [1, 1], [1, 1], 1, out_scale, 0, dtype, "relu", [], "",
        )  # fmt: skip
        return out

    def add_to(self, total: Tensor, x: Tensor, scale: float) -> Tensor:
        """`total`, float32, plus the convolution of unsigned `x`."""
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, scale, 0, self._weight, self._scales, self._zeros, self._bias,
            [1, 1], [1, 1], [1, 1], 1, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        # oneDNN could add by itself, but torch copies `total` for that, which takes longer.
        return out.add_(total)


class Int8UNet:
    """A `DoseUNet` whose residual blocks are computed in 8 bit integers; called like one.

    Several threads may call it at the same time.

    Parameters
    ----------
    network : DoseUNet
        On the CPU; does what is not done in integers.
    """

    def __init__(self, network: DoseUNet) -> None:
        self._network = network
        stages: list[Any] = [*network.encoders, *network.decoders]
        blocks: list[Any] = [block for stage in stages for block in stage]
        self._blocks = [[blocks.index(block) for block in stage] for stage in stages]
        self._first = [_Convolution(block.first) for block in blocks]
        self._second = [_Convolution(block.second) for block in blocks]
        # The noise enters each block as a bias; all of them are one small product.
        self._noise = torch.cat([block.noise.weight for block in blocks])
        self._bias = torch.cat([block.noise.bias + block.first.bias for block in blocks])
        self._widths = [len(block.noise.weight) for block in blocks]
        self._local = threading.local()
        self._spans = [0.0] * len(blocks)
        self._spans = self._measured_spans()

    def __call__(self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None) -> Tensor:
        """Restore one frame; arguments and result as in `DoseUNet.forward`, N being 1."""
        network = self._network
        last = len(network.widths) - 1
        biases = torch.split(torch.addmv(self._bias, self._noise, vector[0]), self._widths)
        x = network.head(torch.cat([blocks, waves], dim=1) if waves is not None else blocks)
        integers, step = self._scaled(x)
        if step * 127.0 > _LARGEST:
            whole: Tensor = network(blocks, vector, waves)
            return whole
        skips: list[Tensor] = []
        for level in range(last + 1):
            for block in self._blocks[level]:
                if block:  # that of the first is known
                    integers, step = self._scaled(x)
                x = self._block(block, x, biases[block], integers, step)
            if level < last:
                skips.append(x)
                x = network.down[level](x)
        for level in range(last - 1, -1, -1):
            x = network.up[level](x).add_(skips.pop())
            for block in self._blocks[last + 1 + level]:
                x = self._block(block, x, biases[block], *self._scaled(x))
        out = network.from_features(x, waves)
        return out.add_(network.linear(blocks, vector))

    def _block(self, block: int, x: Tensor, bias: Tensor, integers: Tensor, scale: float) -> Tensor:
        """conv3x3, noise bias, ReLU, conv3x3, plus the input; see `network._Block`."""
        span = self._spans[block]
        # What is in the middle is at most about `span` times as large as what goes in: its scale
        # is known before it is, and it need never be float32.
        middle_scale = span * scale * 127.0 / 255.0
        middle = None
        if span > 0.0:
            middle = self._first[block].relu(integers, scale, bias, middle_scale, torch.uint8)
            if int(_flat(middle).amax()) == 255:
                middle = None
        if middle is None:
            exact = self._first[block].relu(integers, scale, bias)
            largest = max(float(exact.amax()), 1e-6)
            middle_scale = largest / 255.0
            middle = torch.add(_ROUND, exact, alpha=1.0 / middle_scale).to(torch.uint8)
            if span <= 0.0:
                self._seen[block] = max(self._seen[block], largest / (scale * 127.0))
        return self._second[block].add_to(x, middle, middle_scale)

    def _scaled(self, x: Tensor) -> tuple[Tensor, float]:
        """(x as integers around `_ZERO`, what one step is)."""
        flat = _flat(x)
        low, high = torch.aminmax(flat)
        scale = max(-low.item(), high.item(), 1e-6) / 127.0
        integers = torch.empty(flat.shape, dtype=torch.uint8)
        work = self._work()
        for source, target in zip(
            torch.split(flat, _CHUNK), torch.split(integers, _CHUNK), strict=True
        ):
            # Truncation of what is positive and half a step too large is rounding.
            part = torch.add(_ROUND_SIGNED, source, alpha=1.0 / scale, out=work[: len(source)])
            target.copy_(part)
        count, channels, height, width = x.shape
        return integers.view(count, height, width, channels).permute(0, 3, 1, 2), scale

    def _work(self) -> Tensor:
        try:
            work: Tensor = self._local.work
        except AttributeError:
            work = self._local.work = torch.empty(_CHUNK)
        return work

    def _measured_spans(self) -> list[float]:
        """Largest value in the middle of each block over that of its input, with a margin."""
        self._seen = [1e-3] * len(self._spans)
        with torch.inference_mode():
            for amplitude in (0.0, 0.5, 1.0, 2.0):
                blocks, vector = trial(amplitude)
                self(blocks, vector, torch.zeros_like(blocks) if self._network.waves else None)
        return [_MARGIN * seen for seen in self._seen]


def _flat(x: Tensor) -> Tensor:
    """All elements in the order in which they lie in memory (channels last)."""
    return x.permute(0, 2, 3, 1).reshape(-1)


def trial(amplitude: float) -> tuple[Tensor, Tensor]:
    """Unit noise on structure of every size, as the network takes it: blocks, conditions."""
    side = 192
    random = torch.Generator().manual_seed(7)
    frame = torch.randn(1, 1, side, side, generator=random)
    for cells in (4, 16, 48):
        coarse = torch.randn(1, 1, cells, cells, generator=random) * amplitude
        frame += functional.interpolate(coarse, size=(side, side), mode="bicubic")
    # A lattice, and a particle with a hard edge.
    places = torch.arange(side, dtype=torch.float32)
    frame[..., : side // 2, :] += amplitude * torch.sin(
        0.9 * places + 0.5 * places[: side // 2, None]
    )
    frame[..., 120:160, 120:160] -= 3.0 * amplitude
    blocks = functional.pixel_unshuffle(frame - frame.mean(), BLOCK)
    vector = torch.zeros(1, CONDITIONS)
    vector[0, 0] = -0.8
    return blocks.contiguous(memory_format=torch.channels_last), vector
