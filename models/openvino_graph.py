"""Write a `DoseUNet` as a graph of OpenVINO, what is multiplied in 8 bit integers.

This module imports torch; import it lazily.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.models.network import BLOCK, CLEAN, CONDITIONS, DoseUNet
from tem_live.models.openvino_scales import Ranges, blocks_in, numbers_of

__all__ = ["GraphWriter"]

_Array = npt.NDArray[np.float64]


class GraphWriter:
    """Writes a `DoseUNet` as a graph of OpenVINO, of its linear path only the matrix.

    Parameters
    ----------
    network : DoseUNet
        To be written.
    height, width : int
        Of the blocks.
    ranges : dict of str to ndarray
        (channels,), what each input of a convolution reaches; see `measured_scales`.
    """

    def __init__(self, network: DoseUNet, height: int, width: int, ranges: Ranges) -> None:
        from openvino import opset13

        self._op: Any = opset13
        self._network = network
        self._ranges = ranges
        self._limits: Ranges = {}
        self._watched: list[str] = []
        self._maxima: list[Any] = []
        parts = 2 if network.waves else 1
        pixels = [1, height, width, BLOCK * BLOCK]
        self._inputs = [opset13.parameter(pixels, np.float32) for _ in range(parts)]
        self._vector = opset13.parameter([1, CONDITIONS], np.float32)

    def model(self) -> Any:
        """The graph: blocks, noise (and waves) in.

        Out come blocks, `DoseUNet.matrix` and the largest share of its range that a watched place
        reaches, of one element.
        """
        import openvino

        op = self._op
        inputs = [self._transposed(x, 0, 3, 1, 2) for x in self._inputs]
        x = self._convolution(
            inputs[0] if len(inputs) == 1 else op.concat(inputs, 1), self._network.head
        )
        x = self._body(x)
        x = self._convolution(x, self._network.tail)
        if self._network.waves:
            x, believed = op.split(x, self._integers(1), 2).outputs()
            x = op.add(x, op.multiply(op.sigmoid(believed), inputs[1]))
        return openvino.Model(
            [
                op.result(self._transposed(x, 0, 2, 3, 1)),
                op.result(self._matrix()),
                op.result(self._reach()),
            ],
            [self._inputs[0], self._vector, *self._inputs[1:]],
        )

    def _reach(self) -> Any:
        limits = np.concatenate([self._limits[place] for place in self._watched])
        op = self._op
        shares = op.multiply(op.concat(self._maxima, 1), self._by_channel(1.0 / limits))
        return op.reduce_max(op.reshape(shares, self._row(-1), False), self._row(0), True)

    def _matrix(self) -> Any:
        """`DoseUNet.matrix`: some twenty steps on a few numbers, each of which costs torch more."""
        op, network = self._op, self._network
        first, _, last = network.gain
        bands = op.gather(self._vector, self._row(*range(1, CONDITIONS)), self._integers(1))
        power = op.exp(op.multiply(bands, self._number(2.0)))
        excess = op.relu(op.subtract(power, self._number(1.0)))
        clean = op.divide(excess, op.add(excess, self._number(CLEAN)))
        means = (op.gather(clean, self._row(band), self._integers(1)) for band in (0, 3))
        clean = op.concat([op.maximum(*means), clean], 1)
        gain = op.sigmoid(self._dense(op.relu(self._dense(self._vector, first)), last))
        gain = op.add(gain, op.multiply(op.subtract(self._number(1.0), gain), clean))
        hadamard = numbers_of(network.hadamard).astype(np.float32)
        scaled = op.multiply(op.constant(hadamard.T), gain)
        return op.matmul(scaled, op.constant(hadamard), False, False)

    def _dense(self, x: Any, layer: Any) -> Any:
        weight, bias = (numbers_of(part).astype(np.float32) for part in (layer.weight, layer.bias))
        product = self._op.matmul(x, self._op.constant(weight), False, True)
        return self._op.add(product, self._op.constant(bias[None]))

    def _body(self, x: Any) -> Any:
        network, op = self._network, self._op
        last = len(network.widths) - 1
        skips: list[Any] = []
        for level, stage in enumerate(network.encoders):
            for number, block in enumerate(blocks_in(stage)):
                # The first of all, and those on small planes, cost little to watch.
                x = self._block(x, block, f"down {level}.{number}", level in (0, 2, last))
            if level < last:
                skips.append(x)
                x = self._convolution(x, network.down[level], f"step down {level}", stride=2)
        for level in range(last - 1, -1, -1):
            up: Any = network.up[level]
            place = f"step up {level}"
            if level > 0:
                self._watch(x, place)
            x, weight = self._integers_of(x, numbers_of(up.weight), place, 0)
            x = op.convolution_backprop_data(
                x,
                weight,
                strides=[2, 2],
                pads_begin=[0, 0],
                pads_end=[0, 0],
                dilations=[1, 1],
            )
            x = op.add(op.add(x, self._by_channel(numbers_of(up.bias))), skips.pop())
            for number, block in enumerate(blocks_in(network.decoders[level])):
                x = self._block(x, block, f"up {level}.{number}", level >= 2)
        return x

    def _block(self, x: Any, block: Any, place: str, watched: bool) -> Any:
        """conv3x3, noise bias, ReLU, conv3x3, plus the input; see `network._Block`."""
        op = self._op
        if watched:
            self._watch(x, place)
        weight = op.constant(numbers_of(block.noise.weight).astype(np.float32))
        constant = numbers_of(block.noise.bias) + numbers_of(block.first.bias)
        bias = op.add(
            op.matmul(self._vector, weight, False, True),
            op.constant(constant[None].astype(np.float32)),
        )
        bias = op.reshape(bias, self._integers(1, -1, 1, 1), False)
        middle = op.relu(self._convolution(x, block.first, place, bias=bias))
        return op.add(self._convolution(middle, block.second, f"{place} middle"), x)

    def _convolution(
        self, x: Any, layer: Any, place: str | None = None, stride: int = 1, bias: Any = None
    ) -> Any:
        """A convolution, in integers where it has a `place`."""
        weight = numbers_of(layer.weight)
        if place is None:
            weights = self._op.constant(weight.astype(np.float32))
        else:
            x, weights = self._integers_of(x, weight, place, 1)
        pad = list(layer.padding)
        x = self._op.convolution(x, weights, [stride, stride], pad, pad, [1, 1])
        return self._op.add(x, self._by_channel(numbers_of(layer.bias)) if bias is None else bias)

    def _integers_of(self, x: Any, weight: _Array, place: str, axis: int) -> tuple[Any, Any]:
        """`x` and the weights it is multiplied by as 8 bit integers; `axis`: x's channels."""
        op = self._op
        reach = np.maximum(self._ranges[place], 1e-3 * self._ranges[place].max() + 1e-9)
        # A channel that reaches a quarter is stretched by two, and its weights are halved.
        limit = np.sqrt(reach * reach.max())
        signed = not place.endswith("middle")
        low, least = (-limit * 128.0 / 127.0, -128.0 / 127.0) if signed else (0.0 * limit, 0.0)
        self._limits[place] = limit
        scaled = op.fake_quantize(
            x, *(self._by_channel(v) for v in (low, limit, [least], [1.0])), 256
        )
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        weight = weight * limit.reshape(shape)
        others = tuple(i for i in range(4) if i != 1 - axis)
        steps = np.maximum(np.abs(weight).max(axis=others, keepdims=True), 1e-12) / 127.0
        integers = op.constant(np.round(weight / steps).astype(np.int8))
        weights = op.multiply(
            op.convert(integers, np.float32), op.constant(steps.astype(np.float32))
        )
        return scaled, weights

    def _watch(self, x: Any, place: str) -> None:
        op = self._op
        self._maxima.append(op.reduce_max(op.abs(x), self._integers(2, 3), True))
        self._watched.append(place)

    def _by_channel(self, values: npt.ArrayLike) -> Any:
        return self._op.constant(np.asarray(values, np.float32).reshape(1, -1, 1, 1))

    def _number(self, value: float) -> Any:
        return self._op.constant(np.asarray(value, np.float32))

    def _row(self, *values: int) -> Any:
        return self._op.constant(np.asarray(values, np.int64))

    def _integers(self, *values: int) -> Any:
        numbers = values[0] if len(values) == 1 else list(values)
        return self._op.constant(np.asarray(numbers, np.int64))

    def _transposed(self, x: Any, *order: int) -> Any:
        return self._op.transpose(x, self._integers(*order))
