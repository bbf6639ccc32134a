"""Stopping a sweep."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from search.execution.tune_run import StopSwitch


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
