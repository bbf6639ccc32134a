"""Sweep event listeners."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from search.core.results import Result
from search.execution.listeners import OverheadClock
from search.ledger.ledger import Ledger, RunningTrial


def test_overhead_is_the_time_between_two_ends_less_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("search.execution.listeners.time.monotonic", lambda: now)
    clock, ledger = OverheadClock(), cast(Ledger, None)

    def ends(number: int, seconds: float) -> None:
        ended: Any = SimpleNamespace(number=number, train_seconds=seconds)
        clock.ended(cast(Result, ended), ledger)

    def starts(number: int) -> None:
        live: Any = SimpleNamespace(number=number)
        clock.started(cast(RunningTrial, live))

    starts(0)
    now = 110.0
    ends(0, 4.0)  # its worker had to start: not counted
    assert clock.overhead() is None
    starts(1)
    now = 115.0
    ends(1, 4.5)
    assert clock.overhead() == pytest.approx(0.5)
