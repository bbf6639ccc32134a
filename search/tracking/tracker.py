"""What a sweep tells the people who watch it, whoever they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

ArtifactUploader = Callable[[str, str, str, str], bool]
"""Somebody else who uploads: tracking URI, run, location of the storage, name of the file in it ->
whether it has arrived."""


@dataclass(frozen=True)
class Row:
    """What was measured at one step."""

    step: int
    """Counted by the trial, from its start. A step that has been told is not told again."""
    time: float
    """Unix seconds."""
    metrics: Mapping[str, float]
    """By name. NaN is stored as NaN; an infinity goes to the tag `search.infinite_metrics`."""


class Tracker(Protocol):
    """What a sweep tells the people who watch it.

    `number` is a trial's, or None for the sweep's own run; times are unix seconds. Calls return at
    once, keep their order and never raise: a watcher's trouble is not the sweep's. They may come
    from any thread.
    """

    trouble: str
    """Why nothing is delivered at present, in one line; empty where all is well."""
    delivered: int
    """Events delivered by this tracker."""

    def unreported_trials(self, numbers: Iterable[int]) -> set[int]:
        """The trials whose end nobody has told, neither in this run of the driver nor earlier."""
        ...

    def settle(self, time: float) -> None:
        """Nothing runs: whatever a driver that was killed has left running is interrupted."""
        ...

    def start(
        self, number: int | None, time: float, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        """Start a run, or re-open it. A param, once there, cannot change."""
        ...

    def log(self, number: int | None, rows: Sequence[Row]) -> None:
        """Add rows to a run."""
        ...

    def finish(
        self,
        number: int | None,
        time: float,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: Sequence[str],
    ) -> None:
        """End a run. `status` is COMPLETE, PRUNED, FAIL or INTERRUPTED. Artifacts are names of
        files in the sweep's storage, which are read later: they must stay in place."""
        ...

    def flush(self, timeout: float, patience: float = math.inf) -> int:
        """Wait up to `timeout` seconds for the delivery, and no longer than `patience` while MLflow
        is away; return how many events are undelivered."""
        ...

    def page(self) -> str:
        """Where MLflow shows the sweep, behind the server's address; empty where that is not
        known."""
        ...

    def set_uploader(self, carrier: ArtifactUploader | None) -> None:
        """Let artifacts be uploaded by somebody else, from now on or no longer."""
        ...

    def close(self, timeout: float, patience: float = math.inf) -> int:
        """Flush, then stop; return how many events are left on disk for the next tracker."""
        ...


class NullTracker(Tracker):
    """Nobody watches."""

    trouble = ""
    delivered = 0

    def unreported_trials(self, numbers: Iterable[int]) -> set[int]:
        return set()

    def settle(self, *_: object) -> None:
        pass

    def start(self, *_: object) -> None:
        pass

    def log(self, *_: object) -> None:
        pass

    def finish(self, *_: object) -> None:
        pass

    def flush(self, timeout: float, patience: float = math.inf) -> int:
        return 0

    def page(self) -> str:
        return ""

    def set_uploader(self, carrier: ArtifactUploader | None) -> None:
        pass

    def close(self, timeout: float, patience: float = math.inf) -> int:
        return 0
