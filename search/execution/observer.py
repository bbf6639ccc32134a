"""Who wants to know what happens in a sweep: the MLflow mirror and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from search.ledger.ledger import Ledger, RunningTrial
from search.ledger.results import Result
from trainables.trainable import Message


class Observer(Protocol):
    """Hears everything, decides nothing, and must not raise for reasons of its own."""

    def started(self, live: RunningTrial) -> None:
        """A trial has been issued."""

    def heard(self, message: Message) -> None:
        """A worker has spoken."""

    def ended(self, result: Result, ledger: Ledger) -> None:
        """A trial has been committed."""


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def started(self, live: RunningTrial) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.started(live)

    def heard(self, message: Message) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.heard(message)

    def ended(self, result: Result, ledger: Ledger) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.ended(result, ledger)
