"""Run a `DoseUNet` on a GPU as one recorded graph, in float32 or in half precision.

A frame of 512 x 512 is little work for a GPU: the time goes into starting some sixty small kernels.
A CUDA graph starts them all at once. It is recorded for each shape when that is first seen.

What is done in half precision is tested on the processor; the graph needs a GPU, and its speed has
not been measured. This module imports torch; import it lazily.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from tem_live.models.int8 import AGREES, trial
from tem_live.models.network import DoseUNet

__all__ = ["GraphedUNet", "HalfUNet", "cuda_network"]

_log = logging.getLogger(__name__)

# Shapes whose graphs are kept; each holds the planes of its network.
_MOST_SHAPES = 4
_WARM_UPS = 3


class HalfUNet:
    """A `DoseUNet` in half precision; float32 goes in and comes out.

    Half precision ends at 65504. A frame whose features reach beyond is computed in float32.

    Parameters
    ----------
    network : DoseUNet
        Stays as it is.
    """

    def __init__(self, network: DoseUNet) -> None:
        self._network = network
        self._half = copy.deepcopy(network).half()

    def __call__(self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None) -> Tensor:
        """Restore frames; arguments and result as in `DoseUNet.forward`."""
        out = self.unchecked(blocks, vector, waves)
        if not bool(torch.isfinite(out).all()):
            out = self._network(blocks, vector, waves)
        return out

    def unchecked(self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None) -> Tensor:
        """The same without a look at the result, so that nothing waits for the GPU."""
        # The linear path gives strong detail back as it is: it stays exact.
        linear = self._network.linear(blocks, vector)
        halves = None if waves is None else waves.half()
        out: Tensor = self._half.nonlinear(blocks.half(), vector.half(), halves).float()
        return out.add_(linear)


class GraphedUNet:
    """A network on a GPU that is recorded once for each shape and played back from then on.

    Several threads may call it: they take turns, and what they get is theirs.

    Parameters
    ----------
    network : DoseUNet
        On the GPU.
    half : bool
        Whether to compute in half precision.
    """

    def __init__(self, network: DoseUNet, half: bool) -> None:
        self._network = network
        self._half = half
        self._run = HalfUNet(network).unchecked if half else network.__call__
        self._recorded: OrderedDict[tuple[int, ...], tuple[Any, list[Tensor], Tensor]]
        self._recorded = OrderedDict()
        self._lock = threading.Lock()
        self._device = network.hadamard.device
        self._read: Any = None
        """The last result has been copied: what it was made of may be written again."""

    def __call__(self, blocks: Tensor, vector: Tensor, waves: Tensor | None = None) -> Tensor:
        """Restore frames; arguments and result as in `DoseUNet.forward`."""
        given = [blocks, vector] if waves is None else [blocks, vector, waves]
        shape = tuple(blocks.shape)
        with self._lock:
            if shape not in self._recorded:
                self._recorded[shape] = self._record(given)
                if len(self._recorded) > _MOST_SHAPES:
                    self._recorded.popitem(last=False)
            self._recorded.move_to_end(shape)
            graph, places, result = self._recorded[shape]
            # Not the current device, which is the first one: torch records there, and nothing.
            with torch.cuda.device(self._device):
                stream = torch.cuda.current_stream()
                # The lock orders who asks. What was asked for runs on streams of their own.
                if self._read is not None:
                    stream.wait_event(self._read)
                for place, part in zip(places, given, strict=True):
                    place.copy_(part)
                graph.replay()
                out = result.clone()
                self._read = stream.record_event()
        if self._half and not bool(torch.isfinite(out).all()):
            out = self._network(blocks, vector, waves)
        return out

    def _record(self, given: list[Tensor]) -> tuple[Any, list[Tensor], Tensor]:
        with torch.cuda.device(self._device):
            places = [part.clone(memory_format=torch.preserve_format) for part in given]
            stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._run(*places)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads of the program use the GPU at the same time. By default the stream is
            # one of the process, on whatever device was current when it was first made.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = self._run(*places)
        return graph, places, result


def cuda_network(network: DoseUNet, half: bool) -> GraphedUNet | None:
    """The network as recorded graphs, or None where that does not work as it should.

    Parameters
    ----------
    network : DoseUNet
        On the GPU, ready to run.
    half : bool
        Whether to compute in half precision.
    """
    device = network.hadamard.device
    blocks, vector = (part.to(device) for part in trial(1.0))
    waves = torch.zeros_like(blocks) if network.waves else None
    distance = 0.0
    try:
        with torch.inference_mode():
            made = GraphedUNet(network, half)
            # Other frames, too: a graph of nothing gives the first one back for ever.
            for frame in (blocks, blocks.flip(0, -1), blocks.roll(1, -1)):
                error = made(frame, vector, waves) - network(frame, vector, waves)
                distance = max(distance, float(error.square().mean().sqrt()))
    except RuntimeError as problem:
        _log.warning("no CUDA graph: %s", str(problem).splitlines()[0])
        return None
    if not distance < AGREES:
        _log.warning("the CUDA graph is off by %.3g of the noise and is not used", distance)
        return None
    return made
