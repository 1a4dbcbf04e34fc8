"""The study of quicker arithmetic compares what it says it compares."""

import pytest

from tem_live.models.network_restorer import NetworkRestorer
from tools import precision_study

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_same_arithmetic_adds_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(NetworkRestorer, "_in_integers", lambda *_: None)
    assert precision_study.main(["--size", "64"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "fast: float32 by torch over float32, 64 x 64"
    assert len(lines) == 8
    assert all("1.0000 (worst 1.0000)  difference 0.0000" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--size", "6"], "too small"), (["--model", "x"], "no restorer")]
)
def test_wrong_input_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert precision_study.main(arguments) > 0
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
