"""Half precision on the processor; graphs where there is a GPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import tem_live
from tem_live.errors import ModelError
from tem_live.models import testscenes
from tem_live.models.cuda_graph import HalfUNet, cuda_network
from tem_live.models.int8 import trial

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def network():
    return tem_live.load_restorer("fast", device="cpu", precision="float32")._network


@torch.inference_mode()
def test_half_precision_agrees_within_a_small_share_of_the_noise(network):
    half = HalfUNet(network)
    for amplitude in (0.0, 1.0, 3.0):
        blocks, vector = trial(amplitude)
        right = network(blocks, vector)
        error = half(blocks, vector) - right
        assert 0.0 < float(error.square().mean().sqrt()) < 0.02
    assert network.head.weight.dtype == torch.float32


@torch.inference_mode()
def test_what_half_precision_cannot_hold_is_computed_in_float32(network):
    half = HalfUNet(network)
    blocks, vector = trial(1.0)
    blocks = blocks * 1e5
    assert not torch.isfinite(half.unchecked(blocks, vector)).all()
    torch.testing.assert_close(half(blocks, vector), network(blocks, vector))


def test_half_precision_is_for_gpus():
    with pytest.raises(ModelError, match="float16"):
        tem_live.load_restorer("fast", device="cpu", precision="float16")


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
def test_graphs_of_several_shapes_give_what_the_network_gives(half):
    network = tem_live.load_restorer("fast", device="cuda", precision="float32")._network
    graphed = cuda_network(network, half)
    assert graphed is not None
    with torch.inference_mode():
        for side in (16, 32, 48, 64, 80, 16):
            blocks = torch.randn(1, 16, side, side, device="cuda")
            blocks = blocks.contiguous(memory_format=torch.channels_last)
            vector = torch.zeros(1, 16, device="cuda")
            for _ in range(2):
                torch.testing.assert_close(
                    graphed(blocks, vector),
                    network(blocks, vector),
                    atol=0.1 if half else 1e-3,
                    rtol=1e-2,
                )


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "float16"])
def test_two_threads_get_their_own_frames(precision):
    quick = tem_live.load_restorer("fast", device="cuda", precision=precision)
    exact = tem_live.load_restorer("fast", device="cpu", precision="float32")
    truth = 5.0 * testscenes.reference_scene("nanoparticles", 256)
    frames = [np.random.default_rng(n).poisson(truth).astype(np.float32) for n in range(8)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(quick.restore, frames))
    for frame, restored in zip(frames, found, strict=True):
        right = exact.restore(frame)
        assert np.mean((restored - right) ** 2) < 0.01 * np.mean((right - truth) ** 2)
