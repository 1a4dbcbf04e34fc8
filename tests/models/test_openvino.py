"""OpenVINO: every kind of frame, however it differs from what the fixed scales were chosen for."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import tem_live
from tem_live.models import int8, testscenes
from tem_live.models.network import BLOCK, CONDITIONS, DoseUNet

pytest.importorskip("openvino")
openvino_network = pytest.importorskip("tem_live.models.openvino_network")


@pytest.fixture(scope="module")
def network():
    return tem_live.load_restorer("fast", device="cpu", precision="float32")._network


class Exact:
    """The network in float32 that counts how often it was asked."""

    def __init__(self, network):
        self.network, self.calls = network, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.network(*inputs)


@pytest.fixture
def made(network):
    exact = Exact(network)
    with torch.inference_mode():
        graphs = openvino_network.OpenvinoNetwork(network, lambda: exact)
    graphs.exact = exact
    return graphs


def inputs(amplitude, fringes=0.0, height=40, width=56):
    """Blocks of unit noise on a soft structure and on fringes of 4 px, and what describes them."""
    random = torch.Generator().manual_seed(3)
    frame = torch.randn(1, 1, BLOCK * height, BLOCK * width, generator=random)
    y = torch.arange(BLOCK * height)[:, None] / 30.0
    x = torch.arange(BLOCK * width) / 23.0
    frame += amplitude * torch.sin(x) * torch.cos(y)
    frame += fringes * torch.sin(torch.arange(BLOCK * width) * np.pi / 2.0 + 0.4)
    blocks = torch.nn.functional.pixel_unshuffle(frame - frame.mean(), BLOCK)
    vector = torch.zeros(1, CONDITIONS)
    vector[0, 0] = -0.8
    return blocks, vector


def distance(a, b):
    return float((a - b).square().mean().sqrt())


def graphs_of(made):
    return {graph for steps in made._graphs.values() for graph in steps.values()}


@pytest.mark.parametrize("amplitude", [0.0, 2.0, 4.0, 8.0])
def test_it_follows_the_contrast_of_the_frame(made, network, amplitude):
    with torch.inference_mode():
        blocks, vector = inputs(amplitude)
        found = made(blocks, vector)
        # A share of the noise, growing with the largest value that 8 bits have to hold.
        assert distance(found, network(blocks, vector)) < 0.008 + 0.003 * amplitude
    assert made.exact.calls == 0


@pytest.mark.parametrize(("amplitude", "fringes"), [(40.0, 0.0), (300.0, 0.0), (0.0, 30.0)])
def test_what_fits_no_scale_is_computed_exactly(made, network, amplitude, fringes):
    with torch.inference_mode():
        blocks, vector = inputs(amplitude, fringes)
        found = made(blocks, vector)
        assert torch.equal(found, network(blocks, vector))
    assert made.exact.calls == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_blocks_without_any_scale_are_left_to_the_network(made, value):
    blocks, vector = inputs(1.0)
    blocks[0, :, 3, 4] = value
    with torch.inference_mode():
        assert made.within_scales(blocks, vector) is None
        made(blocks, vector)
    assert made.exact.calls == 1


def test_scales_that_are_too_small_are_noticed_and_enlarged(made, network):
    blocks, vector = inputs(2.0)
    with torch.inference_mode():
        made._scales = tuple(
            {place: 0.4 * reach for place, reach in ranges.items()} for ranges in made._scales
        )
        found = made(blocks, vector)
        assert distance(found, network(blocks, vector)) < 0.02
    assert [len(steps) for steps in made._graphs.values()] == [2]
    assert made.exact.calls == 0


def test_the_waves_of_a_frame_are_taken_too():
    torch.manual_seed(1)
    network = DoseUNet((16, 32), (1, 1), waves=True).eval()
    with torch.inference_mode():
        for layer in (network.tail, *(b.second for stage in network.encoders for b in stage)):
            layer.weight.copy_(0.1 * torch.randn_like(layer.weight))
        network.tail.bias[BLOCK * BLOCK :] = 1.0
        graphs = openvino_network.OpenvinoNetwork(network, lambda: network)
        blocks, vector = inputs(1.0, 1.0)
        waves = 0.5 * blocks
        found = graphs.within_scales(blocks, vector, waves)
        right = network(blocks, vector, waves)
        assert distance(right, network(blocks, vector, torch.zeros_like(waves))) > 0.3
        assert distance(found, right) < 0.02


def test_threads_share_it(made):
    pairs = [inputs(amplitude) for amplitude in (0.5, 1.0, 3.0, 6.0)]

    def run(pair):
        with torch.inference_mode():
            return made(*pair)

    alone = [run(pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for one, other in zip(alone, pool.map(run, pairs), strict=True):
                assert torch.equal(one, other)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("largest_px", [1 << 16, 0])
def test_small_frames_are_computed_by_whoever_asks(made, network, monkeypatch, largest_px):
    monkeypatch.setattr(openvino_network, "_IN_CALLER_PX", largest_px)
    streams = []
    compiled = openvino_network._compiled

    def counted(core, graph, count, threads):
        streams.append(count)
        return compiled(core, graph, count, threads)

    monkeypatch.setattr(openvino_network, "_compiled", counted)
    pairs = [inputs(amplitude, height=24, width=32) for amplitude in (0.5, 0.7, 0.9)]

    def run(pair):
        torch.set_num_threads(1)
        with torch.inference_mode():
            return made(*pair)

    right = [run(pair) for pair in pairs]
    for found, pair in zip(right, pairs, strict=True):
        with torch.inference_mode():
            assert distance(found, network(*pair)) < 0.02
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            for one, other in zip(right, pool.map(run, pairs), strict=True):
                assert torch.equal(one, other)
    # Without streams, or with as many as there are processors for.
    assert set(streams) == {0 if largest_px else os.cpu_count()}


def test_graphs_are_not_kept_without_end(made, monkeypatch):
    monkeypatch.setattr(openvino_network, "_SHAPES", 3)
    with torch.inference_mode():
        for width in range(8, 48, 8):
            made(*inputs(1.0, height=16, width=width))
    assert len(made._graphs) == 3


def test_an_uncommon_frame_needs_nothing_new(made):
    with torch.inference_mode():
        made.prepare(16, 16)
        before, calls = graphs_of(made), made.exact.calls
        for amplitude in (10.0, 1.0, 40.0, 1.0):
            made(*inputs(amplitude, height=16, width=16))
    assert graphs_of(made) == before
    assert made.exact.calls > calls


def test_what_is_prepared_again_asks_for_no_more_memory(made):
    for _ in range(3):
        made.prepare(16, 16)
    streams = max(1, (os.cpu_count() or 1) // torch.get_num_threads())
    (graphs,) = made._graphs.values()
    assert [len(graph._idle) for graph in graphs.values()] == [streams] * len(graphs)


def test_tiles_of_a_frame_need_not_lie_in_one_piece(made, network):
    blocks, vector = inputs(1.0)
    with torch.inference_mode():
        part = blocks.contiguous(memory_format=torch.channels_last)[..., 8:32, 16:48]
        assert distance(made(part, vector), network(part, vector)) < 0.01


@pytest.mark.skipif(not int8.can_multiply_int8(), reason="no 8 bit multiplication")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda self, *a: (_ for _ in ()).throw(RuntimeError("no such operation")), "no such op"),
        (lambda self, *a: 0.0 * a[0], "off by"),
        (lambda self, *a: None, "does not fit"),
    ],
)
def test_where_it_fails_torch_restores_and_says_so(monkeypatch, caplog, fault, said):
    monkeypatch.setattr(openvino_network.OpenvinoNetwork, "within_scales", fault)
    with caplog.at_level(logging.WARNING):
        restorer = tem_live.load_restorer("fast", device="cpu")
    assert said in caplog.text
    assert (restorer.engine, restorer.precision) == ("torch", "int8")
    frame = np.random.default_rng(2).poisson(testscenes.reference_scene("section", 64) * 5.0)
    assert np.isfinite(restorer.restore(frame)).all()


def test_openvino_that_cannot_be_imported_is_no_error(network, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with caplog.at_level(logging.WARNING):
        assert openvino_network.openvino_network(network, lambda: network) is None
    assert "OpenVINO is not used" in caplog.text


def test_a_restorer_is_ready_before_its_first_frame(monkeypatch):
    restorer = tem_live.load_restorer("fast", device="cpu")
    graphs = restorer._run._graphs
    graphs.clear()
    restorer.prepare((90, 130))
    ready = set(graphs)
    assert {key[:2] for key in ready} == {(24, 40)}
    frame = np.random.default_rng(1).poisson(5.0, (90, 130)).astype(np.float32)
    restorer.restore(frame)
    assert set(graphs) == ready
    # A large frame is restored in tiles.
    graphs.clear()
    monkeypatch.setattr("tem_live.models.network_restorer._TILE_PX", 320)
    restorer.prepare((400, 300))
    ready = set(graphs)
    restorer.restore(np.random.default_rng(1).poisson(5.0, (400, 300)).astype(np.float32))
    assert set(graphs) == ready


RESTORERS_IN_TURN = """
import gc, signal, torch
from tem_live.models.network import DoseUNet
from tem_live.models.openvino_network import openvino_network

def made():
    network = DoseUNet((8, 16), (1, 1)).eval()
    graphs = openvino_network(network, lambda: network)
    graphs.prepare(8, 8)
    return graphs

handled = []
signal.signal(signal.SIGINT, lambda *_: handled.append(True))
first, second = made(), made()
del first
gc.collect()
del second
gc.collect()
signal.raise_signal(signal.SIGINT)
assert handled
"""


def test_a_signal_after_restorers_were_changed_does_no_harm():
    # A process of its own: this is about one that can end.
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", RESTORERS_IN_TURN],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_inside_and_outside_of_inference_mode(made):
    # What was kept from the one is written to in the other.
    blocks, vector = inputs(0.3)
    with torch.inference_mode():
        inside = made(blocks, vector)
    outside = made(blocks, vector)
    assert torch.equal(inside, outside)
