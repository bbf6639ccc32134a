"""What a trial costs beside its training."""

from __future__ import annotations

import statistics
import time

from search.ledger.ledger import Ledger, RunningTrial
from search.ledger.results import Result
from trainables.trainable import Message


class Clock:
    """Measures what a trial costs outside training: the time from the end of one trial to the
    end of the next in the same slot, less the time the worker spent training."""

    def __init__(self) -> None:
        self._begun: dict[int, float] = {}
        self._freed: list[float] = []
        self._costs: list[float] = []

    def started(self, live: RunningTrial) -> None:
        """See `Observer`. A trial takes the slot that has been free the longest."""
        if self._freed:
            self._begun[live.number] = self._freed.pop(0)

    def heard(self, message: Message) -> None:
        """See `Observer`."""

    def ended(self, result: Result, ledger: Ledger) -> None:
        """See `Observer`."""
        now = time.monotonic()
        begun = self._begun.pop(result.number, None)
        if begun is not None:
            self._costs.append(now - begun - result.train_seconds)
        self._freed.append(now)

    def overhead(self) -> float | None:
        """Median cost in seconds; none before a warm worker has finished a trial."""
        return statistics.median(self._costs) if self._costs else None
