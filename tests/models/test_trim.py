"""Trimming: what sleeps goes without a trace, what is begun anew changes nothing at first."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tem_live.errors import InputError
from tem_live.models import load_restorer, trim
from tem_live.models.cards import write_card
from tem_live.models.network import BLOCK, CONDITIONS, DoseUNet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def network() -> DoseUNet:
    """Two levels; of each middle the odd channels are asleep."""
    torch.manual_seed(4)
    made = DoseUNet((8, 16), (1, 1)).eval()
    with torch.no_grad():
        made.tail.weight.normal_(0.0, 0.1)
        for block in trim.blocks_of(made):
            block.first.bias[1::2] = -1e3
    return made


class Watched:
    """The network as a restorer would run it."""

    def __init__(self, network: DoseUNet) -> None:
        self._network, self.name = network, "watched"

    def restore(self, frame: np.ndarray) -> None:
        blocks = torch.nn.functional.pixel_unshuffle(torch.from_numpy(frame)[None, None], BLOCK)
        with torch.inference_mode():
            self._network((blocks - blocks.mean()) / blocks.std(), torch.zeros(1, CONDITIONS))


def result(network: DoseUNet) -> torch.Tensor:
    blocks = torch.randn(1, 16, 24, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network(blocks, torch.zeros(1, CONDITIONS))


def seen(network: DoseUNet) -> list[trim.Middle]:
    return trim.seen_middles(Watched(network), frames=3)  # type: ignore[arg-type]


def test_what_sleeps_goes_without_a_trace(network: DoseUNet) -> None:
    found = seen(network)
    for block, middle in zip(trim.blocks_of(network), found, strict=True):
        shares = middle.shares(block.second)
        assert float(shares.sum()) == pytest.approx(1.0)
        assert torch.all(shares[1::2] == 0.0)
        assert torch.all(shares[::2] > 0.0)
    made = trim.trimmed(network, found, (4, 8, 4))
    assert made.middles == (4, 8, 4)
    torch.testing.assert_close(result(made), result(network), rtol=0.0, atol=1e-5)
    # One more channel is one that does something.
    assert not torch.allclose(result(trim.trimmed(network, found, (3, 8, 4))), result(network))


def test_the_mean_of_what_is_taken_out_stays(network: DoseUNet) -> None:
    with torch.no_grad():
        for block in trim.blocks_of(network):
            # A channel that always gives about the same is as good as a bias.
            block.first.weight[1] *= 1e-4
            block.first.bias[1] = 2.0
            block.noise.bias[1] = 0.0
    made = trim.trimmed(network, seen(network), (4, 8, 4))
    # But for the edge of the frame, where zeros are around it.
    inner = (..., slice(8, -8), slice(6, -6))
    torch.testing.assert_close(result(made)[inner], result(network)[inner], rtol=0.0, atol=5e-3)


@pytest.mark.parametrize("middles", [(6, 12, 8), (6, 20, 12)])
def test_channels_that_begin_anew_change_nothing_and_can_learn(
    network: DoseUNet, middles: tuple[int, ...]
) -> None:
    made = trim.trimmed(network, seen(network), middles, waken=True)
    assert made.middles == middles
    torch.testing.assert_close(result(made), result(network), rtol=0.0, atol=1e-5)
    blocks = torch.randn(2, 16, 24, 16)
    made(blocks, torch.zeros(2, CONDITIONS)).square().sum().backward()
    for block, old in zip(trim.blocks_of(made), trim.blocks_of(network), strict=True):
        asleep = (block.second.weight == 0.0).all(dim=3).all(dim=2).all(dim=0)
        assert int(asleep.sum()) == len(block.first.bias) - len(old.first.bias) // 2
        gradient = block.second.weight.grad.abs().amax(dim=(0, 2, 3))
        assert torch.all(gradient[asleep] > 0.0)


@pytest.mark.parametrize("middles", [(4, 8), (4, 8, 9), (0, 8, 4)])
def test_middles_that_do_not_fit_are_one_line(network: DoseUNet, middles: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="8,16,8"):
        trim.trimmed(network, seen(network), middles)


def test_the_command_writes_a_restorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trim.main(["fast", "--frames", "2"]) == 0
    before = capsys.readouterr().out.splitlines()
    whole = load_restorer("fast", "cpu", "float32")
    widths = [int(line.split()[0]) for line in before]
    assert widths == list(trim.network_of(whole).middles)
    halves = ",".join(str(width // 2) for width in widths)
    path = tmp_path / "new" / "half.safetensors"
    assert trim.main(["fast", "--frames", "2", "--middles", halves, "--to", str(path)]) == 0
    made = load_restorer(path, "cpu")
    assert (made.name, list(made.card.architecture["middles"])) == (
        "half", [width // 2 for width in widths],
    )  # fmt: skip
    told, was = made.gmac((512, 512)), whole.gmac((512, 512))
    assert told is not None
    assert was is not None
    assert told < was
    assert made.card.gmac_512 == pytest.approx(told, abs=0.02)
    frame = np.random.default_rng(0).poisson(5.0, (96, 80)).astype(np.float32)
    assert made.restore(frame).mean() == pytest.approx(frame.mean(), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gaussian"], "no network of this package"),
        (["fast", "--frames", "1", "--middles", "a,b", "--to", "x.safetensors"], "numbers"),
        (["fast", "--frames", "1", "--middles", "4", "--to", "x.safetensors"], "do not fit"),
        (["fast", "--frames", "1", "--middles", "4", "--to", "x.pt"], ".safetensors"),
        (["fast", "--frames", "0"], "one frame or more"),
        (["nowhere"], "no restorer is called"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trim.main(arguments) > 0
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_a_network_of_borrowed_weights_gets_its_own(tmp_path: Path) -> None:
    fast = load_restorer("fast", "cpu", "float32")
    trim.write(trim.network_of(fast), fast, tmp_path / "theirs.safetensors")
    theirs = load_restorer(tmp_path / "theirs.safetensors", "cpu", "float32").card
    card = theirs.model_copy(update={"name": "borrows", "kind": "views", "weights": "theirs"})
    write_card(tmp_path / "borrows.json", card)
    borrows = load_restorer(tmp_path / "borrows.safetensors", "cpu", "float32")
    assert borrows.card.weights
    path = tmp_path / "mine.safetensors"
    trim.write(trim.network_of(borrows), borrows, path)
    mine = load_restorer(path, "cpu", "float32")
    assert (mine.name, mine.card.weights, mine.card.kind) == ("mine", "", "views")
