"""8 bit integers: as good as float32, float32 where they are not, and a word where they fail."""

import importlib.util
import logging

import numpy as np
import pytest
import torch

import tem_live
from tem_live.errors import ModelError
from tem_live.models import int8, testscenes

needs_vnni = pytest.mark.skipif(
    not int8.can_multiply_int8(), reason="this processor has no 8 bit multiplication"
)


@pytest.fixture(scope="module")
def exact():
    return tem_live.load_restorer("fast", device="cpu", precision="float32")


def loaded_without_openvino():
    with pytest.MonkeyPatch.context() as patch:
        found = importlib.util.find_spec
        patch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: None if name == "openvino" else found(name, *more),
        )
        return tem_live.load_restorer("fast", device="cpu")


@pytest.fixture(scope="module", params=["torch", "OpenVINO"])
def quick(request):
    if request.param == "torch":
        return loaded_without_openvino()
    pytest.importorskip("openvino")
    return tem_live.load_restorer("fast", device="cpu")


def frames(dose, size=256):
    for name in ("nanoparticles", "crystal", "grid_square"):
        truth = dose * testscenes.reference_scene(name, size)
        yield truth, np.random.default_rng(2).poisson(truth).astype(np.float32)


@needs_vnni
def test_auto_takes_integers_where_they_are_fast(quick, exact, request):
    assert (quick.precision, exact.precision) == ("int8", "float32")
    assert quick.engine.partition(" ")[0] == request.node.callspec.params["quick"]
    assert exact.engine == "torch"


@needs_vnni
@pytest.mark.parametrize("dose", [1.0, 5.0, 50.0])
def test_the_error_is_that_of_float32_within_a_percent(quick, exact, dose):
    ratios = []
    for truth, frame in frames(dose):
        theirs = np.mean((exact.restore(frame) - truth) ** 2)
        ratios.append(np.mean((quick.restore(frame) - truth) ** 2) / theirs)
    assert 0.98 < np.exp(np.mean(np.log(ratios))) < 1.01
    # It is not float32 that ran.
    assert not np.array_equal(quick.restore(frame), exact.restore(frame))


@needs_vnni
def test_a_frame_far_outside_of_the_noise_is_restored_in_float32(quick, exact):
    (_, frame), *_ = frames(5.0)
    frame[100, 100] = 3e4
    np.testing.assert_array_equal(quick.restore(frame), exact.restore(frame))


@needs_vnni
def test_the_middle_of_a_block_that_overflows_is_computed_again(exact):
    made = int8.int8_network(exact._network)
    blocks, vector = int8.trial(1.0)
    with torch.inference_mode():
        right = made(blocks, vector)
        made._spans = [span / 20.0 for span in made._spans]
        again = made(blocks, vector)
    assert float((again - right).square().mean().sqrt()) < 0.05


@needs_vnni
def test_two_runs_give_the_same(quick):
    (_, frame), *_ = frames(5.0)
    np.testing.assert_array_equal(quick.restore(frame), quick.restore(frame))


@needs_vnni
def test_wrong_arithmetic_is_found_and_float32_used(exact, monkeypatch, caplog):
    def wrong(self, total, x, scale):
        return total

    monkeypatch.setattr(int8._Convolution, "add_to", wrong)
    with caplog.at_level(logging.WARNING):
        assert int8.int8_network(exact._network) is None
    assert "float32 is used" in caplog.text


def test_without_such_instructions_float32_is_used(monkeypatch):
    monkeypatch.setattr(int8, "can_multiply_int8", lambda: False)
    assert tem_live.load_restorer("fast", device="cpu").precision == "float32"
    with pytest.raises(ModelError, match="VNNI"):
        tem_live.load_restorer("fast", device="cpu", precision="int8")


def test_a_torch_without_the_convolutions_is_no_error(exact, monkeypatch, caplog):
    monkeypatch.setattr(int8, "can_multiply_int8", lambda: True)

    def missing(self, layer):
        raise AttributeError("no qconv_prepack")

    monkeypatch.setattr(int8._Convolution, "__init__", missing)
    with caplog.at_level(logging.WARNING):
        assert int8.int8_network(exact._network) is None
    assert "no qconv_prepack" in caplog.text
