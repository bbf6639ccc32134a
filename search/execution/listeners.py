"""Sweep event listeners: the MLflow reporter, the terminal, and a clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Protocol

from search.core.results import Result
from search.ledger.ledger import Ledger, RunningTrial
from trainables.assignment import Message


class SweepListener(Protocol):
    """Receives every event of a sweep. A listener never changes the sweep and never raises."""

    def started(self, live: RunningTrial) -> None:
        """Called when a trial is issued."""
        return

    def heard(self, message: Message) -> None:
        """Called for each message of a worker."""
        return

    def ended(self, result: Result, ledger: Ledger) -> None:
        """Called when a trial's result is committed."""
        return


class SweepListeners(SweepListener):
    """Passes each event to several listeners."""

    def __init__(self, listeners: Sequence[SweepListener]) -> None:
        self._listeners = tuple(listeners)

    def started(self, live: RunningTrial) -> None:
        for listener in self._listeners:
            listener.started(live)

    def heard(self, message: Message) -> None:
        for listener in self._listeners:
            listener.heard(message)

    def ended(self, result: Result, ledger: Ledger) -> None:
        for listener in self._listeners:
            listener.ended(result, ledger)


class OverheadClock(SweepListener):
    """Measures the time per trial outside training: from the end of one trial to the end of the
    next in the same slot, less the time that the worker trained."""

    def __init__(self) -> None:
        self._slot_free_since: dict[int, float] = {}
        self._free_slots: list[float] = []
        self._costs: list[float] = []

    def started(self, live: RunningTrial) -> None:
        if self._free_slots:  # the slot that was free for the longest time is used first
            self._slot_free_since[live.number] = self._free_slots.pop(0)

    def ended(self, result: Result, ledger: Ledger) -> None:
        now = time.monotonic()
        free_since = self._slot_free_since.pop(result.number, None)
        if free_since is not None:
            self._costs.append(now - free_since - result.train_seconds)
        self._free_slots.append(now)

    def overhead(self) -> float | None:
        """Return the median in seconds; None before a warm worker has finished a trial."""
        return statistics.median(self._costs) if self._costs else None
