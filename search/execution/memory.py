"""Lowers the number of trials at a time when memory runs out, and raises it again later.

A worker that is killed because its node (or its GPU) has no memory left is not a crash of its
trial: other programs may use the memory. The trial continues from its checkpoint later.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_FIRST_WAIT, _LONGEST_WAIT = 2.0, 30.0  # seconds between two attempts of a trial that runs alone
_PATIENCE = 300.0  # seconds of shortage without any training, after which the sweep stops
_CALM = 300.0  # seconds without a shortage, after which one more trial may run at a time
_ATTEMPTS = 3  # of a trial that uses most of the memory itself


@dataclass(frozen=True)
class Shortage:
    """What an error says about memory, in bytes."""

    own: float
    """Used by the trial's worker; 0 if unknown."""
    used: float
    """Used by all processes, including the worker."""
    limit: float
    """At which workers are killed, or allocations fail."""
    place: str = "memory"
    """Which memory: `memory`, or `GPU memory`."""

    @property
    def is_own_fault(self) -> bool:
        """Whether the worker alone uses more than all other processes together."""
        return self.own > self.used - self.own


def find_shortage(error: str) -> Shortage | None:
    """Return the memory shortage that an error message reports, or None if it has another cause."""
    if found := _WORKER.search(error):
        own, used, limit = (float(found[name]) for name in ("own", "used", "limit"))
        return Shortage(own, used, limit, found["place"])
    if "node running low on memory" not in error:
        return None
    total = re.search(r"Memory usage (\d+)B exceeded threshold of (\d+)B", error)
    used, limit = (float(total[1]), float(total[2])) if total else (math.nan, math.nan)
    killed = error.partition("Selected to kill:")[2].partition("]")[0]
    workers = [float(size) for size in re.findall(r"actual memory used=([\d.]+)GB", killed)]
    return Shortage(max(workers, default=0.0) * 2**30, used, limit)


_WORKER = re.compile(
    r"The worker ran out of (?P<place>memory|GPU memory): it uses (?P<own>\d+) bytes, all "
    r"processes use (?P<used>\d+) of (?P<limit>\d+) bytes"
)


class MemoryGate:
    """Decides how many trials may run, from the shortages so far."""

    def __init__(
        self, slots: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`say` prints a notice."""
        self._slots, self._say, self._now = slots, say, clock
        self._limit = slots
        self._changed = -math.inf  # when the limit was changed last
        self._not_before = -math.inf
        self._wait = _FIRST_WAIT
        self._stuck_since: float | None = None
        self._issued: dict[int, float] = {}
        self._attempts: dict[int, int] = {}
        self._is_announced = False

    def may_start(self, running: int) -> bool:
        """Return whether another trial may start while this many run."""
        now = self._now()
        if self._limit < self._slots and now - self._changed > _CALM:
            self._limit, self._changed = self._limit + 1, now
        return running < self._limit and now >= self._not_before

    def started(self, number: int) -> None:
        """Called when a trial is issued."""
        self._issued[number] = self._now()

    def progressed(self, number: int) -> None:
        """Called when a trial has trained a step."""
        self._wait, self._stuck_since = _FIRST_WAIT, None
        self._attempts.pop(number, None)

    def ran_out(
        self, number: int, shortage: Shortage, running: int
    ) -> Literal["retry", "fail", "stop"]:
        """Record that a trial's worker ran out of memory while `running` trials ran, this one
        included. Return what to do with the trial: try it again later, fail it because it does not
        fit even alone, or stop the sweep because other programs use the memory."""
        now = self._now()
        self._stuck_since = self._stuck_since or now
        if not self._is_announced:
            self._is_announced = True
            self._say(
                f"Memory is short ({describe(shortage)}): fewer trials run at a time, and "
                "interrupted trials continue later."
            )
        was_alone = self._limit == 1 and self._issued.get(number, now) >= self._changed
        if not was_alone:
            self._limit, self._changed = max(1, min(self._limit, running) - 1), now
            self._not_before = now + self._wait
            return "retry"
        self._changed = now
        if shortage.is_own_fault:
            self._attempts[number] = self._attempts.get(number, 0) + 1
            if self._attempts[number] >= _ATTEMPTS:
                return "fail"
        self._not_before = now + self._wait
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return "stop" if now - self._stuck_since > _PATIENCE else "retry"


def describe(shortage: Shortage) -> str:
    """Return the figures of a shortage as a part of a sentence."""
    if math.isnan(shortage.used):
        return f"{shortage.place} ran out"
    figures = f"{_gib(shortage.used)} of {shortage.place} in use, the limit is "
    own = f", {_gib(shortage.own)} by the trial" if shortage.own else ""
    return f"{figures}{_gib(shortage.limit)}{own}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
