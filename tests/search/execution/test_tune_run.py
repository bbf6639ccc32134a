"""Running trials on a real Ray, and stopping a sweep."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale.sleeping_trial import SleepingTrial
from search.core.placement import Placement
from search.execution.listeners import SweepListeners
from search.execution.tune_run import StopSwitch, run_trials
from search.ledger.ledger import Ledger, RunningTrial
from spaces.registry import SPACES
from tests.shared_ray import share_ray
from trainables.assignment import Assignment
from trainables.core.storage import LocalStorage
from trainables.methods.base import TaskFacts


class SlowStart(SleepingTrial):
    """Short trials, in processes of which only the first starts at once."""

    def setup(self, config: dict[str, Any]) -> None:
        self._folder = Path(config["assignment"]["folder"])
        try:
            (self._folder / "first").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(3)
        (self._folder / f"process-{os.getpid()}").touch()
        super().setup(config)


def test_a_worker_that_starts_slowly_gets_its_turn(tmp_path: Path) -> None:
    """Its trial is not given to another worker, which ends several trials meanwhile."""
    share_ray()
    space = SPACES["taskres"].build(TaskFacts("digits", 2, 20, "vit"))
    ledger = Ledger(LocalStorage(tmp_path / "sweep"), space, "random", "none", 1)

    def assign(live: RunningTrial) -> Assignment:
        trial, share = live.config.to_dict(), "200"  # of the time that it sleeps
        return Assignment(live.number, trial, {}, share, str(tmp_path), "cpu", 1, False, 5.0)

    placement, listener, stop = Placement("cpu", 1, 0, 2), SweepListeners([]), StopSwitch(None)
    common = (ledger, assign, 30, placement, listener, stop, tmp_path / "tune", print)
    run_trials(*common, trainable=SlowStart)
    assert len(ledger.results) == 30
    assert len(list(tmp_path.glob("process-*"))) == 2


def test_the_first_signal_throws_the_switch_and_the_second_interrupts() -> None:
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


def test_a_signal_interrupts_at_once_while_no_trial_runs() -> None:
    stop = StopSwitch(None)
    with stop.listening():
        stop.interrupt_at_once()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.interrupted
    early = StopSwitch(None)
    with early.listening():
        os.kill(os.getpid(), signal.SIGINT)  # while Ray starts
        with pytest.raises(KeyboardInterrupt):
            early.interrupt_at_once()


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    during = []

    def listen() -> None:
        with StopSwitch(None).listening():
            during.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert during == [before]


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
