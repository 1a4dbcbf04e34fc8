"""Deepening: a network with more blocks computes what it did, and all of the new ones can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tem_live.errors import InputError
from tem_live.models import deepen, load_restorer, trim
from tem_live.models.network import CONDITIONS, DoseUNet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def network() -> DoseUNet:
    torch.manual_seed(4)
    made = DoseUNet((8, 16), (1, 2), middles=(4, 16, 12, 6)).eval()
    with torch.no_grad():
        made.tail.weight.normal_(0.0, 0.1)
    return made


def result(network: DoseUNet) -> Tensor:
    blocks = torch.randn(1, 16, 24, 16, generator=torch.Generator().manual_seed(1))
    found: Tensor = network(blocks, torch.zeros(1, CONDITIONS))
    return found


def test_it_computes_the_same(network: DoseUNet) -> None:
    made = deepen.deepened(network, (3, 2), (5, 7, 9, 11))
    assert made.blocks == (3, 2)
    # Those of the finest level on the way down, then the coarse ones, then on the way up.
    assert made.middles == (4, 5, 7, 16, 12, 6, 9, 11)
    assert torch.equal(result(made), result(network))
    assert deepen.deepened(network, (2, 3)).middles == (4, 8, 16, 12, 16, 6, 8)
    assert network.blocks == (1, 2)


def test_the_new_blocks_can_learn(network: DoseUNet) -> None:
    made = deepen.deepened(network, (2, 2)).train()
    new = [made.encoders[0][1], made.decoders[0][1]]  # type: ignore[index]
    rate = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(2):
        rate.zero_grad()
        result(made).square().mean().backward()
        rate.step()
    for block in new:
        assert float(block.second.weight.detach().abs().max()) > 0.0
        # What is behind it has moved: from now on what is in front of it does, too.
        assert float(block.first.weight.grad.abs().max()) > 0.0


def test_the_same_seed_gives_the_same_and_leaves_the_generator_alone(network: DoseUNet) -> None:
    before = torch.get_rng_state()
    one, same, other = (deepen.deepened(network, (2, 2), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [net.encoders[0][1].first.weight for net in (one, same, other)]  # type: ignore[index]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("blocks", "middles", "told"),
    [
        ((1,), (), "as many numbers"),
        ((1, 1), (), "no smaller ones"),
        ((2, 2), (3,), "2 new blocks"),
        ((2, 2), (3, 0), "1 or more"),
    ],
)
def test_numbers_that_do_not_fit_are_one_line(
    network: DoseUNet, blocks: tuple[int, ...], middles: tuple[int, ...], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        deepen.deepened(network, blocks, middles)


def test_the_command_writes_a_restorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep.safetensors"
    assert deepen.main(["fast", "--blocks", "2,1,1,2", "--to", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"{path}: " in told
    frame = np.random.default_rng(1).poisson(5.0, (96, 96)).astype(np.float32)
    made, fast = (load_restorer(name, "cpu", precision="float32") for name in (str(path), "fast"))
    assert f"{made.card.gmac_512} GMAC" in told
    assert made.card.gmac_512 > fast.card.gmac_512
    assert trim.network_of(made).blocks == (2, 1, 1, 2)
    np.testing.assert_allclose(made.restore(frame), fast.restore(frame), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fast", "--blocks", "2,1,1,2", "--to", "x.pt"], "safetensors"),
        (["fast", "--blocks", "2,one", "--to", "x.safetensors"], "--blocks '2,one'"),
        (["fast", "--blocks", "2,2", "--to", "x.safetensors"], "as many numbers"),
        (["gaussian", "--blocks", "2,2", "--to", "x.safetensors"], "no network"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deepen.main(arguments) == InputError("").exit_code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
