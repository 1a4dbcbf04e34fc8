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
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tem_live.models.int8 import AGREES, trial
from tem_live.models.network import BLOCK, CONDITIONS, DoseUNet
from tem_live.models.openvino_graph import GraphWriter
from tem_live.models.openvino_scales import (
    CONTRASTS,
    Ranges,
    Scales,
    contrast_of,
    measured_scales,
)

__all__ = ["OpenvinoNetwork", "openvino_network"]

_Array = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)

Network = Callable[..., Tensor]
"""Called as `DoseUNet.forward`."""

# What goes beyond the scales by this factor is cut off at the limit: that of a few pixels.
_SLACK = 1.1
# Frames of up to so many pixels have every graph run before they come: 140 MB in two streams, and
# four times as much at 1024 x 1024, where graphs ask for it when they are needed.
_RUN_PX = 1 << 18
# Frames of up to so many pixels are computed in the thread that asks for them: to hand them to
# another one and back takes 3 to 7 % of their time. Each such thread needs a graph of its own.
_IN_CALLER_PX = 1 << 16
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


def openvino_network(
    network: DoseUNet, exact: Callable[[], Network], scales: Scales | None = None
) -> OpenvinoNetwork | None:
    """The network by OpenVINO, or None where that does not give what float32 gives.

    Parameters
    ----------
    network : DoseUNet
        On the CPU, ready to run; stays as it is.
    exact : callable
        Makes the network that computes what does not fit the fixed scales; called when the first
        such frame comes.
    scales : Scales, optional
        What its places reach; by default it is measured, which takes some seconds.
    """
    if not all(bool(part.isfinite().all()) for part in network.parameters()):
        _log.warning("OpenVINO is not used: weights of this network are not finite")
        return None
    blocks, vector = trial(1.0)
    waves = torch.zeros_like(blocks) if network.waves else None
    try:
        with torch.inference_mode():
            made = OpenvinoNetwork(network, exact, scales)
            found = made.within_scales(blocks, vector, waves)
            if found is None:
                raise RuntimeError("the trial does not fit its scales")
            distance = float((found - network(blocks, vector, waves)).square().mean().sqrt())
    except (
        ImportError,
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as problem:
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
    exact, scales : optional
        See `openvino_network`.

    Attributes
    ----------
    engine : str
        OpenVINO and its version.
    """

    def __init__(
        self, network: DoseUNet, exact: Callable[[], Network], scales: Scales | None = None
    ) -> None:
        import openvino

        self.engine = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self._network = network
        self._make_exact = exact
        self._exact: Network | None = None
        self._core = _core()
        self._scales = measured_scales(network) if scales is None else scales
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
        small = height * width * BLOCK**2 <= _RUN_PX
        for step in range(len(CONTRASTS)):
            graph = self._graph(height, width, step)
            if small:
                graph.run_everywhere(blocks, vector, *waves)
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
        blocks = blocks.contiguous(memory_format=torch.channels_last)
        contrast = contrast_of(blocks)
        # None at all is large enough for what is no number.
        for step in (step for step, most in enumerate(CONTRASTS) if contrast <= most):
            graph = self._graph(blocks.shape[-2], blocks.shape[-1], step)
            found, excess = graph.run(blocks, vector, waves)
            if found is not None:
                return found
            # Larger scales help where a little is missing; strong fine detail is many times beyond.
            if excess > 2.0:
                break
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
                ranges = self._scales[step]
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
        ranges: Ranges,
        threads: int,
    ) -> None:
        graph = GraphWriter(network, height, width, ranges).model()
        # Each of the threads that call gets as many processors as torch would take.
        self._callers = max(1, (os.cpu_count() or 1) // threads)
        self._model: Callable[[], Any]
        if threads == 1 and height * width * BLOCK**2 <= _IN_CALLER_PX:
            self._model = partial(_compiled, core, graph, 0, 1)
        else:
            shared = _compiled(core, graph, self._callers, threads)
            self._model = lambda: shared
        self._idle: list[_Request] = []
        self._ran_everywhere = False

    def run_everywhere(self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None) -> None:
        """Run once in each stream, which has memory of its own and asks for it then.

        Nothing is done where that was done before.
        """
        if self._ran_everywhere:
            return
        self._ran_everywhere = True
        requests = [_Request(self._model()) for _ in range(self._callers)]
        # All at once, for a stream that is idle takes the next; once more, for one that was late.
        for _ in range(2):
            for request in requests:
                request.start(blocks, vector, waves)
            for request in requests:
                request.wait()
        self._idle += requests

    def run(
        self, blocks: Tensor, vector: Tensor, waves: Tensor | None
    ) -> tuple[Tensor | None, float]:
        """What the network makes of a frame, (1, 16, h, w), and how far it reached.

        That is the largest share of its range that a watched place has; of more than `_SLACK`
        nothing is made.
        """
        try:
            request = self._idle.pop()
        except IndexError:
            request = _Request(self._model())
        request.start(blocks, vector, waves)
        request.wait()
        reach = float(request.reach[0])
        found = None
        if reach <= _SLACK:
            # The linear path, in one product with what is added to it: `scaled_bands`.
            lying = blocks.permute(0, 2, 3, 1)
            rows = torch.addmm(
                torch.from_numpy(request.nonlinear).view(-1, BLOCK * BLOCK),
                lying.reshape(-1, BLOCK * BLOCK),
                torch.from_numpy(request.matrix).T,
            )
            found = rows.view(lying.shape).permute(0, 3, 1, 2)
        self._idle.append(request)
        return found, reach


def _compiled(core: Any, graph: Any, streams: int, threads: int) -> Any:
    """A graph, to be run in so many streams of so many threads, or with 0 in the caller's."""
    return core.compile_model(
        graph,
        "CPU",
        {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": max(streams, 1) * threads,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )


class _Request:
    """A run of a graph, with memory for what goes in and comes out; one at a time.

    Setting a tensor costs a few hundredths of a ms, and asking for one, too.
    """

    def __init__(self, model: Any) -> None:
        import openvino

        self._tensor = openvino.Tensor
        self._request = model.create_infer_request()
        # Arrays, for a tensor that was made in inference mode may not be written to outside of it.
        self._vector = np.empty((1, CONDITIONS), np.float32)
        self._request.set_input_tensor(1, self._shared(self._vector))
        self._inputs: list[_Array] = []
        blocks = tuple(model.output(0).shape)
        self.nonlinear = np.empty(blocks, np.float32)
        """What the network adds to its linear path, (1, h, w, 16)."""
        self.matrix = np.empty((BLOCK * BLOCK, BLOCK * BLOCK), np.float32)
        """That of the linear path."""
        self.reach = np.empty(1, np.float32)
        """Largest share of its range that a watched place has."""
        for number, held in enumerate((self.nonlinear, self.matrix, self.reach)):
            self._request.set_output_tensor(number, self._shared(held))

    def start(self, blocks: Tensor, vector: Tensor, waves: Tensor | None) -> None:
        """Begin; arguments as in `DoseUNet.forward`. `wait` comes next."""
        np.copyto(self._vector, vector.numpy())
        # Kept until the next ones come: what is shared must stay.
        self._inputs = [_rows_of_channels(blocks)]
        self._request.set_input_tensor(0, self._shared(self._inputs[0]))
        if waves is not None:
            self._inputs.append(_rows_of_channels(waves))
            self._request.set_input_tensor(2, self._shared(self._inputs[1]))
        # Not `infer`, whose conveniences take a twentieth of a small frame's time.
        self._request.start_async()

    def wait(self) -> None:
        """Until what comes out is there."""
        self._request.wait()

    def _shared(self, held: _Array) -> Any:
        return self._tensor(held, shared_memory=True)


def _rows_of_channels(blocks: Tensor) -> _Array:
    """(1, C, h, w) as an array (1, h, w, C); no copy where it already lies so."""
    array: _Array = blocks.permute(0, 2, 3, 1).contiguous().numpy()
    return array
