"""The scales of the 8 bit integers: measured on scenes, kept beside the weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tem_live
from tem_live.models import openvino_scales
from tem_live.models.cards import sha256_of
from tem_live.models.network import BLOCK, DoseUNet

WEIGHTS = Path(tem_live.models.__file__).parent / "weights"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(2)
    return DoseUNet((8, 16), (1, 1)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def scales(network):
    return openvino_scales.measured_scales(network)


def test_contrast_is_the_strongest_mean_of_a_block():
    frame = torch.zeros(1, 1, 16, 24)
    frame[..., 4:8, 8:12] = -3.0
    frame[..., 0, 0] = 20.0
    blocks = torch.nn.functional.pixel_unshuffle(frame, BLOCK)
    assert openvino_scales.contrast_of(blocks) == pytest.approx(3.0)
    assert openvino_scales.contrast_of(blocks * float("nan")) != 0.0


def test_every_place_has_its_channels_and_reaches_more_where_there_is_more(network, scales):
    assert len(scales) == len(openvino_scales.CONTRASTS)
    (block,) = network.encoders[0]
    for ranges in scales:
        assert ranges["down 0.0"].shape == (8,)
        assert ranges["down 0.0 middle"].shape == (block.second.in_channels,)
        assert set(ranges) == set(scales[0])
    strongest = [ranges["down 0.0"].max() for ranges in scales]
    assert strongest == sorted(strongest)
    assert strongest[-1] > 2.0 * strongest[0]


def test_measured_twice_they_are_the_same(network, scales):
    again = openvino_scales.measured_scales(network)
    for one, other in zip(scales, again, strict=True):
        for place, reach in one.items():
            np.testing.assert_allclose(other[place], reach, rtol=1e-4)


def test_a_file_keeps_them_apart_from_the_weights(network, scales, tmp_path):
    path = tmp_path / "n.safetensors"
    weights = network.state_dict()
    save_file({**weights, **openvino_scales.tensors_of(scales)}, path)
    held = load_file(path)
    assert set(openvino_scales.without_scales(held)) == set(weights)
    found = openvino_scales.scales_in(held)
    assert found is not None
    for one, other in zip(scales, found, strict=True):
        assert one.keys() == other.keys()
        for place, reach in one.items():
            np.testing.assert_allclose(other[place], reach, rtol=1e-6)
    assert openvino_scales.scales_in(weights) is None
    # Of other steps than those of today.
    some = {k: v for k, v in held.items() if not k.startswith("reaches.3.")}
    assert openvino_scales.scales_in(some) is None


def test_the_shipped_ones_are_those_that_are_measured():
    restorer = tem_live.load_restorer("fast", "cpu", precision="float32")
    found = openvino_scales.scales_in(load_file(WEIGHTS / "fast.safetensors"))
    assert found is not None
    for ranges, measured in zip(
        found, openvino_scales.measured_scales(restorer._network), strict=True
    ):
        for place, reach in measured.items():
            # On another processor rounding tips single counts of the frames.
            np.testing.assert_allclose(ranges[place], reach, rtol=0.02, atol=1e-2)


def test_weights_without_them_restore_as_well(tmp_path):
    pytest.importorskip("openvino")
    held = load_file(WEIGHTS / "fast.safetensors")
    path = tmp_path / "fast.safetensors"
    save_file(openvino_scales.without_scales(held), path)
    card = json.loads((WEIGHTS / "fast.json").read_text(encoding="utf-8"))
    card["sha256"] = sha256_of(path)
    path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
    frame = np.random.default_rng(4).poisson(5.0, (64, 96)).astype(np.float32)
    with_them, without = (tem_live.load_restorer(name, "cpu") for name in ("fast", path))
    assert with_them.engine == without.engine
    np.testing.assert_allclose(without.restore(frame), with_them.restore(frame), atol=0.02)


@pytest.mark.parametrize("step", [0, 3])
def test_scales_that_do_not_fit_are_measured_anew(tmp_path, step):
    held = load_file(WEIGHTS / "fast.safetensors")
    whole = openvino_scales.scales_in(held)
    held[f"reaches.{step}.down 0.0"] = torch.ones(3)
    assert whole is not None
    assert openvino_scales.scales_in(held) is None


def test_scales_of_another_network_are_told_and_not_used(scales, caplog):
    openvino_network = pytest.importorskip("tem_live.models.openvino_network")
    other = DoseUNet((16, 32), (1, 1)).eval().requires_grad_(False)
    with caplog.at_level("WARNING"):
        assert openvino_network.openvino_network(other, lambda: other, scales) is None
    assert "OpenVINO is not used" in caplog.text
