"""What a sweep runs on, how it is stopped, and what a trial costs beside its training."""

from __future__ import annotations

import io
import os
import signal
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.execution.clock import Clock
from search.execution.ray_session import carried, protect_token, ray_session
from search.execution.stop import StopSwitch
from search.ledger.ledger import Ledger, RunningTrial
from search.ledger.results import Result
from search.tracking.tracker import NullTracker


def test_an_address_that_ray_does_not_take() -> None:
    config = SweepConfig(address="somewhere")
    with (
        pytest.raises(UsageError, match="--address must name a running Ray cluster"),
        ray_session(config, Console(file=io.StringIO())),
    ):
        pass


def test_the_token_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    protect_token()  # there is none
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    protect_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_nothing_is_carried_on_one_machine() -> None:
    with carried(SweepConfig(), NullTracker()):
        pass


def test_signals_throw_the_switch_and_the_second_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSwitch(None)
    with stop.listening():
        assert not stop.stop_all()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.interrupted
        assert stop.stop_all()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    late = StopSwitch(None)
    late.at_once = True
    with late.listening(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_time_budget_begins_with_the_first_trial() -> None:
    stop = StopSwitch(0.05)
    time.sleep(0.1)
    assert not stop.stop_all()
    stop.start_clock()
    assert not stop.stop_all()
    time.sleep(0.1)
    assert stop.stop_all()
    assert not stop("trial", {})


def test_the_first_reason_is_kept() -> None:
    stop = StopSwitch(None)
    stop.give_up("the disk is full")
    stop.give_up("something else")
    assert (stop.reason, stop.stop_all()) == ("the disk is full", True)


def test_a_trial_costs_the_time_between_two_ends_less_its_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("search.execution.clock.time.monotonic", lambda: now)
    clock, ledger = Clock(), cast(Ledger, None)

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
