"""The account by itself: on a clock that a test turns, and on a disk that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tem_live.account import DoseAccount
from tem_live.beam_clock import BeamClock
from tem_live.ledger import Ledger
from tem_live.ledger_reading import entries, summarise

Make = Callable[..., DoseAccount]


class Ticking:
    """Time that passes whenever it is asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """An account on a specimen area; more keywords are its own."""
    made: list[DoseAccount] = []

    def make_account(
        area: str = "a",
        budget_e_per_A2: float | None = None,
        on_spent: Callable[[], None] = lambda: None,
        clock: BeamClock | None = None,
    ) -> DoseAccount:
        ledger = Ledger(area, "sim", folder=tmp_path)
        account = DoseAccount(
            ledger, budget_e_per_A2, 0.8, lambda text: None, on_spent, clock=clock
        )
        account.set_rate(100.0)
        made.append(account)
        return account

    yield make_account
    for account in made:
        account.close()


def test_what_comes_in_while_the_area_is_changed_is_on_one_of_the_two(make: Make, tmp_path: Path):
    account = make(clock=BeamClock(Ticking()))
    account.beam_on()
    account.frame_ended(0, account.clock.now())
    account.move_to(Ledger("b", "sim", folder=tmp_path))
    account.beam_off()
    account.close()
    on_both = sum(summarise(area, tmp_path).fluence_e_per_A2 for area in ("a", "b"))
    assert on_both == pytest.approx(account.fluence_e_per_A2, rel=1e-6)
    beam = [entry["event"] for entry in entries("b", tmp_path) if entry["event"] != "rest"]
    assert beam == ["beam on", "beam off"]


def test_an_area_that_was_left_with_the_beam_off_is_not_open(make: Make, tmp_path: Path):
    account = make()
    account.beam_on()
    account.beam_off()
    account.move_to(Ledger("b", "sim", folder=tmp_path))
    account.close()
    assert summarise("a", tmp_path).open_since is None
    assert summarise("b", tmp_path).sessions == 0


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No ledger's line gets to the disk before this is set."""
    answers = threading.Event()
    written = Ledger._begin

    def begin(ledger: Ledger) -> object:
        assert answers.wait(30)
        return written(ledger)

    monkeypatch.setattr(Ledger, "_begin", begin)
    yield answers
    answers.set()


def test_a_disk_that_hangs_holds_up_neither_budget_nor_blanking(
    make: Make, hanging: threading.Event, tmp_path: Path
):
    spent = threading.Event()
    account = make(budget_e_per_A2=5.0, on_spent=spent.set)
    account.beam_on()
    account.recheck()
    # A frame is on its way to the ledger while the budget is watched.
    account.frame_ended(0, account.clock.now())
    assert spent.wait(10)
    account.beam_off()
    account.settle()
    assert not account.clock.on
    assert (account.left_e_per_A2, hanging.is_set()) == (pytest.approx(0, abs=0.5), False)
    hanging.set()
    account.close()
    summary = summarise("a", tmp_path)
    assert summary.fluence_e_per_A2 == pytest.approx(account.fluence_e_per_A2, rel=1e-6)
    assert (summary.frames, summary.open_since) == (1, None)
