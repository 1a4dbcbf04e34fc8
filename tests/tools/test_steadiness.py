"""The script that tells how steady a machine is."""

from __future__ import annotations

import pytest

from tem_live.threads import arithmetic_threads, set_arithmetic_threads
from tools import steadiness


@pytest.fixture(autouse=True)
def _threads_as_before():
    count = arithmetic_threads()
    yield
    set_arithmetic_threads(count)


def test_each_minute_has_a_line_and_the_end_their_range(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--minutes", "2", "--each-s", "0.3", "--side", "64", "--model", "gaussian"]
    assert steadiness.main(quick) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("   1 min: ")
    assert second.startswith("   2 min: ")
    assert last.startswith("99 % of the minutes: ")


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert steadiness.main(["--model", "nobody"]) != 0
    error = capsys.readouterr().err
    assert error.startswith("error: no restorer is called 'nobody'")
    assert len(error.splitlines()) == 1


def test_a_wrong_number_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        steadiness.main(["--per-second", "0"])
    assert "must be a number above 0" in capsys.readouterr().err
