"""Status of a sweep, read from its folder without changing it, with or without a driver."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from search.core.config import SweepConfig
from search.core.objectives import best_of
from search.core.problems import UsageError
from search.core.results import Result
from search.core.sweep_folder import SweepFolder, find_sweep, sweep_folders
from search.evaluation.record import Evaluation, read_evaluation
from trainables.core.credentials import without_password
from trainables.core.storage import Storage, StorageError

State = Literal["running", "finished", "interrupted", "never begun", "unreadable"]
"""`finished`: see `SweepStatus.is_over`; `interrupted`: nobody runs it and something is left to do;
`unreadable`: damaged, or of another version."""

_PATIENCE = 10.0  # seconds for which a bucket that does not answer is asked again


@dataclass(frozen=True)
class SweepStatus:
    """Status of one sweep at one moment."""

    name: str
    """Name of its folder."""
    sweep: Storage
    """The folder."""
    trouble: str = ""
    """Why it cannot be read, and what to do; else empty."""
    id: str = ""
    """Given to it when it was first started."""
    config: SweepConfig | None = None
    """What it searches, and where it is kept; None where that cannot be read."""
    results: Mapping[int, Result] | None = None
    """Every finished trial, by number; None where that cannot be read."""
    evaluation: Evaluation | None = None
    """None while it has not been judged, or where that cannot be read."""
    damaged: bool = False
    """Whether there is an evaluation that cannot be read: it was judged, and must be again."""
    owner: str | None = None
    """The driver that runs it, if any."""
    begun: bool = False
    """Whether a trial has ever been issued."""

    @property
    def state(self) -> State:
        """The state, as described in `State`."""
        if self.trouble:
            return "unreadable"
        if self.owner is not None:
            return "running"
        if not self.begun:
            return "never begun"
        return "finished" if self.is_over else "interrupted"

    @property
    def is_over(self) -> bool:
        """Whether every trial that was asked for has ended, or as many as its time allowed, and the
        best of them is judged."""
        in_time = self.config is not None and self.config.time_budget is not None
        if self.best is None:
            return self.done >= self.asked
        return self.judged is not None and (in_time or self.done >= self.asked)

    @property
    def done(self) -> int:
        """Trials that have ended."""
        return len(self.results or {})

    @property
    def asked(self) -> int:
        """Trials that were asked for, or more if there are more."""
        return max(self.config.trials if self.config else 0, self.done)

    @cached_property
    def best(self) -> Result | None:
        """The winner: see `search.core.objectives.best_of`."""
        return best_of((self.results or {}).values())

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation, where it is of the present winner."""
        found, best = self.evaluation, self.best
        return found if found is not None and best and found.winner == best.number else None

    @property
    def states(self) -> dict[str, int]:
        """Finished trials by how they ended."""
        ends = [result.state for result in (self.results or {}).values()]
        return {state: ends.count(state) for state in ("COMPLETE", "PRUNED", "FAIL")}

    @property
    def since(self) -> float | None:
        """Unix time at which its first trial was issued; None before one has ended."""
        return min((r.begun for r in (self.results or {}).values()), default=None)

    @property
    def latest(self) -> float | None:
        """Unix time at which a trial has last ended."""
        return max((r.ended for r in (self.results or {}).values()), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: what a program may want to know. Accuracies are fractions, times are
        unix seconds."""
        config, best = self.config, self.best
        return {
            "name": self.name,
            "state": self.state,
            "trouble": self.trouble or None,
            "location": without_password(self.sweep.location),
            "id": self.id or None,
            "space": config.space if config else None,
            "task": config.public().to_dict()["task"] if config else None,
            "owner": self.owner,
            "trials": {"done": self.done, "asked": self.asked} | self.states,
            "best": best and {"trial": best.number, "value": best.value},
            "judged": self.judged is not None,
            "begun": self.since,
            "ended": self.latest,
        }


def read_standing(name: str, storage: str) -> SweepStatus:
    """The sweep of this name; `trouble` says what is wrong with it. Raises `UsageError` if there is
    none."""
    try:
        return _read(find_sweep(name, storage, _PATIENCE))
    except StorageError as error:
        raise UsageError([f"A sweep's folder must be readable, and is not: {error}."]) from error


def read_standings(storage: str) -> list[SweepStatus]:
    """Every sweep in a storage, by name; other folders are passed over. Raises `UsageError`."""
    try:
        found = [_read(sweep) for sweep in sweep_folders(storage, _PATIENCE)]
    except StorageError as error:
        raise UsageError(
            [f"The storage must be readable, and is not: {error}. Use --storage."]
        ) from error
    return found


def _read(sweep: SweepFolder) -> SweepStatus:
    """The status of a sweep; what is wrong with its files goes into `trouble`."""
    standing = SweepStatus(sweep.name, sweep.files)
    try:
        standing = replace(standing, id=sweep.id, config=sweep.config, owner=sweep.owner())
        standing = replace(standing, results=sweep.results(), begun=sweep.has_trials)
        found = read_evaluation(sweep.files)
        damaged = found is None and sweep.has_evaluation
    except UsageError as error:
        return replace(standing, trouble=error.problems[0])
    except StorageError as error:
        why = f"A sweep's folder must be readable, and is not: {error}. Grant access or remove it."
        return replace(standing, trouble=why)
    return replace(standing, evaluation=found, damaged=damaged)


def failures(results: Mapping[int, Result]) -> list[dict[str, Any]]:
    """Every trial that has failed, by number, with its traceback."""
    return [
        {key: asdict(result)[key] for key in _TOLD}
        for _, result in sorted(results.items())
        if result.state == "FAIL"
    ]


_TOLD = ("number", "reason", "details", "failures", "host", "begun", "ended", "parameters")


def ago(moment: float | None, now: float | None = None) -> str:
    """How long ago a unix time was, e.g. `3 h`; a dash for none."""
    if moment is None:
        return "-"
    seconds = max(0.0, (time.time() if now is None else now) - moment)
    return duration(seconds)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `12 min`, `3.5 h`, `2 d`."""
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


_UNITS: Sequence[tuple[str, float]] = (("d", 86400), ("h", 3600), ("min", 60))
