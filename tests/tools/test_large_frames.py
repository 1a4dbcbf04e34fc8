"""What large frames cost is told of each size that is asked for."""

from __future__ import annotations

import pytest

from tem_live.threads import arithmetic_threads, set_arithmetic_threads
from tools import large_frames


@pytest.fixture(autouse=True)
def _threads_as_before():
    count = arithmetic_threads()
    yield
    set_arithmetic_threads(count)


def test_a_line_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert large_frames.main(["--sides", "64,96", "--model", "gaussian", "--turns", "1"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert len(head.split("|")) == 7
    assert [int(line.split("|")[0]) for line in lines] == [64, 96]
    for line in lines:
        assert all(float(ms) > 0.0 for ms in line.split("|")[1:])


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert large_frames.main(["--model", "nobody"]) != 0
    error = capsys.readouterr().err
    assert error.startswith("error: no restorer is called 'nobody'")
    assert len(error.splitlines()) == 1
