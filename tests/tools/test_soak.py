from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "tools" / "soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak_tool", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def turns_as_before() -> Iterator[None]:
    interval_s = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.parametrize(
    ("last", "verdicts"),
    [
        ({}, [True, True, True]),
        ({"memory_MB": 407.9, "latency_ms_p99": 219.0}, [True, True, True]),
        ({"memory_MB": 408.1}, [True, False, True]),
        ({"memory_MB": 391.0}, [True, False, True]),
        ({"latency_ms_p99": 221.0}, [True, True, False]),
        ({"latency_ms_p99": 179.0}, [True, True, False]),
        ({"dropped_raw": 1}, [False, True, True]),
        ({"memory_MB": None, "latency_ms_p99": None}, [True, None, None]),
    ],
)
def test_first_minute_is_held_against_the_last(
    soak: ModuleType, last: dict[str, float | None], verdicts: list[bool | None]
) -> None:
    first = soak.Minute(20.0, 20.0, 60.0, 200.0, 0, 400.0, 401.0)
    # What is between the two does not count.
    between = replace(first, memory_MB=500.0, latency_ms_p99=900.0)
    found = soak.checks([first, between, replace(first, **last)])
    assert [check.passes for check in found] == verdicts
    told = soak.table(found)
    assert told.count("DOES NOT HOLD") == verdicts.count(False)
    assert told.count("not measured") == verdicts.count(None)


def test_thirds_tell_whether_it_becomes_slower(soak: ModuleType) -> None:
    minute = soak.Minute(20.0, 20.0, 60.0, 60.0, 0, 400.0, 401.0)
    p99 = [60.0, 250.0, 62.0, None, 90.0, 300.0, 66.0, 61.0, 64.0]
    run = [replace(minute, latency_ms_p99=ms) for ms in p99]
    assert soak.thirds(run) == (62.0, 64.0)
    assert soak.thirds(run[:2]) == (60.0, 250.0)
    assert soak.thirds([replace(minute, latency_ms_p99=None)] * 3) is None


def test_time_that_the_host_gave_to_others(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(soak, "Path", lambda name: stat if name == "/proc/stat" else Path(name))
    assert soak.processor_ticks() is None
    # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text("cpu  10 20 5 900 3 0 2 60 7 8\ncpu0 1 2 3 4 5 6 7 8 9 10\n", "ascii")
    assert soak.processor_ticks() == (1000.0, 60.0)
    assert soak.stolen_share((1000.0, 60.0), (1200.0, 70.0)) == pytest.approx(0.05)
    assert soak.stolen_share((1000.0, 60.0), (1000.0, 60.0)) is None
    assert soak.stolen_share(None, (1000.0, 60.0)) is None
    assert soak._stolen_text(0.05) == ", 5.0% stolen"
    assert soak._stolen_text(None) == ""


def test_frames_lost_in_the_first_minute_count(soak: ModuleType) -> None:
    minute = soak.Minute(20.0, 20.0, 60.0, 200.0, 3, 400.0, 401.0)
    assert soak.checks([minute, minute])[0].passes is False


@pytest.mark.usefixtures("turns_as_before")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--minutes", "1"], "2 or more"),
        (["--warm-up-s", "nan"], "0 to 600"),
        (["--profile", "no-such"], "no-such"),
    ],
)
def test_wrong_input_is_one_line(
    soak: ModuleType, wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = soak.main(wrong)
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
