"""Run a `DoseUNet` in 8 bit integers by OpenVINO, where that is installed.

The network is handed over as one graph, so that scaling, bias and ReLU are done where a convolution
writes its result, and Python's lock is free all the while. Weights and what they are applied to
are scaled channel by channel (Xiao et al., arXiv:2211.10438, section 4: both sides bear half of
the difference between channels).

Such a graph has fixed scales. They are chosen by the contrast of the frame, in steps, each of
which is a graph of its own. What goes beyond them comes back with the result: such a frame is
computed again with larger scales, or by the caller's own network, which scales frame by frame.

This module imports torch and OpenVINO; import it lazily.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tem_live.models.int8 import AGREES, trial
from tem_live.models.network import (
    BLOCK,
    CLEAN,
    CONDITIONS,
    DoseUNet,
    block_bands,
    conditions,
    scaled_bands,
)

__all__ = ["OpenvinoNetwork", "openvino_network"]

_log = logging.getLogger(__name__)

Network = Callable[..., Tensor]
"""Called as `DoseUNet.forward`."""
_Array = npt.NDArray[np.float64]

# Contrast of a frame: its largest mean of a 4 x 4 block in units of the noise. That of noise alone;
# from one graph to the next it doubles, and beyond the last one the caller's network is used. The
# first three are enough up to 20 e-/px for anything, and up to 180 for thin specimens.
_LEAST, _STEPS = 1.25, 4
# Contrast, in the same unit, at which the scales are measured.
_MEASURED_AT = 16.0
_SIDE = 192
# The middles of deep blocks depend most on what is seen: there the scales leave room.
_DEEP_MIDDLE = 1.5
_MEAN = torch.full((BLOCK * BLOCK,), 1.0 / BLOCK**2)
# What goes beyond the scales by this factor is cut off at the limit: that of a few pixels.
_SLACK = 1.1
# Frames of up to so many pixels have every graph run before they come: 140 MB in two streams, and
# four times as much at 1024 x 1024, where graphs ask for it when they are needed.
_RUN_PX = 1 << 18
# Shapes whose graphs are kept. The views of `best` have so many.
_SHAPES = 4


@cache
def _core() -> Any:
    """OpenVINO's core, the one of this process.

    On Linux its CPU plugin gives the thread that loads it a stack for signal handlers, and takes it
    away when it is unloaded. With two plugins, unloaded in the order in which they were loaded, a
    stack stays set that is no more, and the next signal (Ctrl-C) ends the process. So one plugin is
    loaded, and it stays.
    """
    import openvino

    return openvino.Core()


def openvino_network(network: DoseUNet, exact: Callable[[], Network]) -> OpenvinoNetwork | None:
    """The network by OpenVINO, or None where that does not give what float32 gives.

    Parameters
    ----------
    network : DoseUNet
        On the CPU, ready to run; stays as it is.
    exact : callable
        Makes the network that computes what does not fit the fixed scales; called when the first
        such frame comes.
    """
    if not all(bool(part.isfinite().all()) for part in network.parameters()):
        _log.warning("OpenVINO is not used: weights of this network are not finite")
        return None
    blocks, vector = trial(1.0)
    waves = torch.zeros_like(blocks) if network.waves else None
    try:
        with torch.inference_mode():
            made = OpenvinoNetwork(network, exact)
            found = made.within_scales(blocks, vector, waves)
            if found is None:
                raise RuntimeError("the trial does not fit its scales")
            distance = float((found - network(blocks, vector, waves)).square().mean().sqrt())
    except (ImportError, AttributeError, RuntimeError, TypeError, ValueError) as problem:
        _log.warning("OpenVINO is not used: %s", (str(problem) or "?").splitlines()[0])
        return None
    if not distance < AGREES:
        _log.warning("OpenVINO is not used: it is off by %.3g of the noise here", distance)
        return None
    return made


class OpenvinoNetwork:
    """A `DoseUNet` in 8 bit integers by OpenVINO; called like one, by several threads at once.

    Parameters
    ----------
    network : DoseUNet
        On the CPU.
    exact : callable
        See `openvino_network`.

    Attributes
    ----------
    engine : str
        OpenVINO and its version.
    """

    def __init__(self, network: DoseUNet, exact: Callable[[], Network]) -> None:
        import openvino

        self.engine = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self._network = network
        self._make_exact = exact
        self._exact: Network | None = None
        self._core = _core()
        self._noise_range, self._range_per_contrast = _measured_ranges(network)
        self._graphs: OrderedDict[tuple[int, ...], dict[int, _Graph]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None) -> Tensor:
        """Restore one frame; arguments and result as in `DoseUNet.forward`, N being 1."""
        found = self.within_scales(blocks, vector, waves)
        if found is not None:
            return found
        return self._exactly()(blocks, vector, waves)

    def prepare(self, height: int, width: int) -> None:
        """Make all that frames of this many blocks can need; each graph takes some tenths of a s.

        What a graph holds it asks for when it runs first. So that the memory of a long run does not
        grow with a rare frame each runs here, where they are small; see `_RUN_PX`.
        """
        blocks = torch.zeros(1, BLOCK * BLOCK, height, width)
        blocks = blocks.contiguous(memory_format=torch.channels_last)
        vector = torch.zeros(1, CONDITIONS)
        waves = [blocks] if self._network.waves else []
        inputs = [_rows_of_channels(blocks), vector.numpy(), *map(_rows_of_channels, waves)]
        small = height * width * BLOCK**2 <= _RUN_PX
        for step in range(_STEPS):
            graph = self._graph(height, width, step)
            if small:
                graph.run_everywhere(inputs)
        if small:
            with torch.inference_mode():
                self._exactly()(blocks, vector, *waves)
        else:
            self._exactly()

    def _exactly(self) -> Network:
        with self._lock:
            if self._exact is None:
                self._exact = self._make_exact()
            return self._exact

    def within_scales(
        self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None
    ) -> Tensor | None:
        """`__call__`, or None for a frame that fits no fixed scale."""
        lying = blocks.permute(0, 2, 3, 1).contiguous()
        contrast = float((lying.view(-1, BLOCK * BLOCK) @ _MEAN).abs_().max())
        if not contrast <= _LEAST * 2.0 ** (_STEPS - 1):  # too large, or no number
            return None
        step = max(0, int(np.ceil(np.log2(max(contrast, 1e-9) / _LEAST))))
        inputs = [lying.numpy(), vector.contiguous().numpy()]
        if waves is not None:
            inputs.append(_rows_of_channels(waves))
        while step < _STEPS:
            graph = self._graph(blocks.shape[-2], blocks.shape[-1], step)
            result, matrix, excess = graph.run(inputs)
            if excess <= _SLACK:
                out = scaled_bands(blocks, torch.from_numpy(matrix))
                return out.add_(torch.from_numpy(result).permute(0, 3, 1, 2))
            # Larger scales help where a little is missing; strong fine detail is many times beyond.
            if excess > 2.0:
                return None
            step += 1
        return None

    def _graph(self, height: int, width: int, step: int) -> _Graph:
        """Graph for blocks of this shape; made when it is needed, the oldest shape forgotten."""
        threads = torch.get_num_threads()
        with self._lock:
            of_shape = self._graphs.setdefault((height, width, threads), {})
            self._graphs.move_to_end((height, width, threads))
            while len(self._graphs) > _SHAPES:
                self._graphs.popitem(last=False)
            graph = of_shape.get(step)
            if graph is None:
                contrast = _LEAST * 2.0**step
                ranges = {
                    place: noise + contrast * self._range_per_contrast[place]
                    for place, noise in self._noise_range.items()
                }
                graph = _Graph(self._core, self._network, height, width, ranges, threads)
                of_shape[step] = graph
        return graph


class _Graph:
    """A compiled graph for one shape and one set of scales."""

    def __init__(
        self,
        core: Any,
        network: DoseUNet,
        height: int,
        width: int,
        ranges: dict[str, _Array],
        threads: int,
    ) -> None:
        import openvino

        built = _Builder(network, height, width, ranges)
        model = built.model()
        self._limits = np.concatenate([built.limits[place] for place in built.watched])
        # Each of the threads that call gets as many processors as torch would take.
        streams = max(1, (os.cpu_count() or 1) // threads)
        self._model = core.compile_model(
            model,
            "CPU",
            {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": streams * threads,
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        self._streams = streams
        self._idle: list[Any] = []
        self._ran_everywhere = False
        self._tensor = openvino.Tensor

    def run_everywhere(self, inputs: list[npt.NDArray[np.float32]]) -> None:
        """Run once in each stream, which has memory of its own and asks for it then.

        Nothing is done where that was done before.
        """
        if self._ran_everywhere:
            return
        self._ran_everywhere = True
        requests = [self._model.create_infer_request() for _ in range(self._streams)]
        for request in requests:
            for number, array in enumerate(inputs):
                request.set_input_tensor(number, self._tensor(array, shared_memory=True))
        # All at once, for a stream that is idle takes the next; once more, for one that was late.
        for _ in range(2):
            for request in requests:
                request.start_async()
            for request in requests:
                request.wait()
        self._idle += requests

    def run(
        self, inputs: list[npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], float]:
        """What the network adds to its linear path, (1, h, w, 16), and the matrix of that.

        And the largest share of its range that a watched place reached.
        """
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        # Not `infer`, whose conveniences take a twentieth of a small frame's time.
        for number, array in enumerate(inputs):
            request.set_input_tensor(number, self._tensor(array, shared_memory=True))
        request.start_async()
        request.wait()
        result, matrix, reached = (request.get_output_tensor(n).data for n in range(3))
        excess = float((reached.ravel() / self._limits).max())
        found = result.copy(), matrix.copy(), excess
        self._idle.append(request)
        return found


class _Builder:
    """Writes a `DoseUNet` as a graph of OpenVINO, of its linear path only the matrix.

    Parameters
    ----------
    network : DoseUNet
        To be written.
    height, width : int
        Of the blocks.
    ranges : dict of str to ndarray
        (channels,), what each input of a convolution reaches; see `_walk` for the keys.
    """

    def __init__(
        self, network: DoseUNet, height: int, width: int, ranges: dict[str, _Array]
    ) -> None:
        from openvino import opset13

        self._op: Any = opset13
        self._network = network
        self._ranges = ranges
        self.limits: dict[str, _Array] = {}
        self.watched: list[str] = []
        self._maxima: list[Any] = []
        parts = 2 if network.waves else 1
        pixels = [1, height, width, BLOCK * BLOCK]
        self._inputs = [opset13.parameter(pixels, np.float32) for _ in range(parts)]
        self._vector = opset13.parameter([1, CONDITIONS], np.float32)

    def model(self) -> Any:
        """The graph: blocks, noise (and waves) in.

        Out come blocks, `DoseUNet.matrix` and what the watched places reach.
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
                op.result(op.concat(self._maxima, 1)),
            ],
            [self._inputs[0], self._vector, *self._inputs[1:]],
        )

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
        hadamard = _numbers(network.hadamard).astype(np.float32)
        scaled = op.multiply(op.constant(hadamard.T), gain)
        return op.matmul(scaled, op.constant(hadamard), False, False)

    def _dense(self, x: Any, layer: Any) -> Any:
        weight, bias = (_numbers(part).astype(np.float32) for part in (layer.weight, layer.bias))
        product = self._op.matmul(x, self._op.constant(weight), False, True)
        return self._op.add(product, self._op.constant(bias[None]))

    def _body(self, x: Any) -> Any:
        network, op = self._network, self._op
        last = len(network.widths) - 1
        skips: list[Any] = []
        for level, stage in enumerate(network.encoders):
            for number, block in enumerate(_blocks_of(stage)):
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
            x, weight = self._integers_of(x, _numbers(up.weight), place, 0)
            x = op.convolution_backprop_data(
                x,
                weight,
                strides=[2, 2],
                pads_begin=[0, 0],
                pads_end=[0, 0],
                dilations=[1, 1],
            )
            x = op.add(op.add(x, self._by_channel(_numbers(up.bias))), skips.pop())
            for number, block in enumerate(_blocks_of(network.decoders[level])):
                x = self._block(x, block, f"up {level}.{number}", level >= 2)
        return x

    def _block(self, x: Any, block: Any, place: str, watched: bool) -> Any:
        """conv3x3, noise bias, ReLU, conv3x3, plus the input; see `network._Block`."""
        op = self._op
        if watched:
            self._watch(x, place)
        weight = op.constant(_numbers(block.noise.weight).astype(np.float32))
        constant = _numbers(block.noise.bias) + _numbers(block.first.bias)
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
        weight = _numbers(layer.weight)
        if place is None:
            weights = self._op.constant(weight.astype(np.float32))
        else:
            x, weights = self._integers_of(x, weight, place, 1)
        pad = list(layer.padding)
        x = self._op.convolution(x, weights, [stride, stride], pad, pad, [1, 1])
        return self._op.add(x, self._by_channel(_numbers(layer.bias)) if bias is None else bias)

    def _integers_of(self, x: Any, weight: _Array, place: str, axis: int) -> tuple[Any, Any]:
        """`x` and the weights it is multiplied by as 8 bit integers; `axis`: x's channels."""
        op = self._op
        reach = np.maximum(self._ranges[place], 1e-3 * self._ranges[place].max() + 1e-9)
        # A channel that reaches a quarter is stretched by two, and its weights are halved.
        limit = np.sqrt(reach * reach.max())
        signed = not place.endswith("middle")
        low, least = (-limit * 128.0 / 127.0, -128.0 / 127.0) if signed else (0.0 * limit, 0.0)
        self.limits[place] = limit
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
        self.watched.append(place)

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


def _blocks_of(stage: Any) -> list[Any]:
    return list(stage)


def _rows_of_channels(blocks: Tensor) -> npt.NDArray[np.float32]:
    """(1, C, h, w) as an array (1, h, w, C); no copy where it already lies so."""
    array: npt.NDArray[np.float32] = blocks.permute(0, 2, 3, 1).contiguous().numpy()
    return array


def _numbers(tensor: Any) -> _Array:
    array: _Array = tensor.detach().numpy().astype(np.float64)
    return array


def _walk(network: DoseUNet, x: Tensor, vector: Tensor, see: Callable[[str, Tensor], None]) -> None:
    """Compute the U-Net's body and show `see` what goes into each convolution."""

    def through(block: Any, x: Tensor, place: str) -> Tensor:
        see(place, x)
        middle = functional.relu(block.first(x) + block.noise(vector)[:, :, None, None])
        see(f"{place} middle", middle)
        out: Tensor = block.second(middle) + x
        return out

    last = len(network.widths) - 1
    skips: list[Tensor] = []
    for level, stage in enumerate(network.encoders):
        for number, block in enumerate(_blocks_of(stage)):
            x = through(block, x, f"down {level}.{number}")
        if level < last:
            skips.append(x)
            see(f"step down {level}", x)
            x = network.down[level](x)
    for level in range(last - 1, -1, -1):
        see(f"step up {level}", x)
        x = network.up[level](x) + skips.pop()
        for number, block in enumerate(_blocks_of(network.decoders[level])):
            x = through(block, x, f"up {level}.{number}")


def _measured_ranges(network: DoseUNet) -> tuple[dict[str, _Array], dict[str, _Array]]:
    """What each input of a convolution reaches, channel by channel.

    Returns
    -------
    noise : dict of str to ndarray
        From noise alone.
    per_contrast : dict of str to ndarray
        What is added, for each unit of contrast (largest mean of a block, in units of the noise).
    """
    random = torch.Generator().manual_seed(7)
    noise = torch.randn(1, 1, _SIDE, _SIDE, generator=random)
    with torch.inference_mode():
        alone = _reached(network, noise, (0.3, 2.0, 10.0))
        seen = {place: torch.zeros_like(value) for place, value in alone.items()}
        for kind in _structures(random):
            frame = noise + kind * (
                _MEASURED_AT / float(functional.avg_pool2d(kind, BLOCK).abs().max())
            )
            for place, value in _reached(network, frame, (2.0, 40.0)).items():
                seen[place] = torch.maximum(seen[place], value)
    for place in alone:
        if place.endswith("middle") and " 0." not in place:
            alone[place] *= _DEEP_MIDDLE
            seen[place] *= _DEEP_MIDDLE
    added = {place: (seen[place] - alone[place]).clamp_min(0.0) / _MEASURED_AT for place in alone}
    return (
        {place: _numbers(value) for place, value in alone.items()},
        {place: _numbers(value) for place, value in added.items()},
    )


def _reached(network: DoseUNet, frame: Tensor, means: tuple[float, ...]) -> dict[str, Tensor]:
    """Largest values, channel by channel, where the frame's mean is one of these."""
    found: dict[str, Tensor] = {}

    def see(place: str, x: Tensor) -> None:
        largest = x.abs().amax(dim=(0, 2, 3))
        found[place] = torch.maximum(found[place], largest) if place in found else largest

    blocks = functional.pixel_unshuffle(frame - frame.mean(), BLOCK)
    bands = block_bands(blocks)
    for mean in means:
        sigma, vector = conditions(bands, torch.tensor([mean]))
        scaled = blocks / sigma
        inputs = torch.cat([scaled, torch.zeros_like(scaled)], 1) if network.waves else scaled
        _walk(network, network.head(inputs), vector, see)
    return found


def _structures(random: torch.Generator) -> list[Tensor]:
    """Specimens of many sizes, with soft and hard edges, (1, 1, side, side), mean near 0."""
    kinds = []
    for cells in (4, 16, 48):
        coarse = torch.randn(1, 1, cells, cells, generator=random)
        kinds.append(functional.interpolate(coarse, size=(_SIDE, _SIDE), mode="bicubic"))
    places = torch.arange(_SIDE, dtype=torch.float32)
    squares = torch.zeros(_SIDE, _SIDE)
    squares[40:90, 40:90] = -3.0
    squares[120:150, 100:150] = 2.0
    squares[60:70, 120:130] = -5.0
    disc = (torch.hypot(places - 96.0, places[:, None] - 96.0) < 60.0).float()
    edge = (places > 96.0).float().expand(_SIDE, _SIDE)
    kinds += [part[None, None] for part in (squares, disc, -disc, edge, -edge)]
    kinds.append(sum(kinds[:4], torch.zeros(1, 1, _SIDE, _SIDE)))
    return kinds
