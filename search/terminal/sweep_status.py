"""Status of a sweep, read from its folder without changing it, with or without a driver."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from search.core.config import SweepConfig
from search.core.objectives import winner_of
from search.core.problems import UsageError
from search.core.results import Result, counted
from search.core.sweep_folder import SweepFolder, find_sweep, sweep_folders
from search.evaluation.record import Evaluation, read_evaluation
from trainables.core.credentials import without_password
from trainables.core.storage import Storage, StorageError

State = Literal["running", "finished", "interrupted", "never begun", "unreadable"]
"""`finished`: see `SweepStatus.is_over`; `interrupted`: unfinished and without a driver;
`unreadable`: damaged, or written by another version."""

_PATIENCE = 10.0  # seconds for which requests to an unreachable bucket are retried


@dataclass(frozen=True)
class SweepStatus:
    """Status of one sweep at one moment."""

    name: str
    """Name of its folder."""
    sweep: Storage
    """The folder."""
    trouble: str = ""
    """Why the sweep cannot be read, and the fix; else empty."""
    id: str = ""
    """Unique id, created with the sweep."""
    config: SweepConfig | None = None
    """Configuration of the sweep; None if it cannot be read."""
    results: Mapping[int, Result] | None = None
    """Every finished trial, by number; None if they cannot be read."""
    evaluation: Evaluation | None = None
    """Evaluation of a winner; None if there is none, or if it cannot be read."""
    damaged: bool = False
    """Whether an evaluation exists that cannot be read and must be repeated."""
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
        """Whether every requested trial has finished (or there is a time budget) and the winner is
        evaluated."""
        in_time = self.config is not None and self.config.time_budget is not None
        if self.best is None:
            return self.done >= self.asked
        return self.judged is not None and (in_time or self.done >= self.asked)

    @property
    def done(self) -> int:
        """Number of finished trials that count, see `search.core.results.counted`."""
        trials = self.config.trials if self.config else 1
        return counted((self.results or {}).values(), trials)

    @property
    def asked(self) -> int:
        """Number of requested trials, or of finished trials if that is larger."""
        return max(self.config.trials if self.config else 0, self.done)

    @cached_property
    def best(self) -> Result | None:
        """The winner, as defined by `search.core.objectives.winner_of`."""
        choice = self.config.select if self.config else "best"
        return winner_of(self.results or {}, choice)

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation, if it is of the current winner."""
        found, best = self.evaluation, self.best
        return found if found is not None and best and found.winner == best.number else None

    @property
    def states(self) -> dict[str, int]:
        """Number of finished trials by final state."""
        ends = [result.state for result in (self.results or {}).values()]
        return {state: ends.count(state) for state in ("COMPLETE", "PRUNED", "FAIL")}

    @property
    def since(self) -> float | None:
        """Unix time at which the first finished trial was issued; None if no trial has finished."""
        return min((r.begun for r in (self.results or {}).values()), default=None)

    @property
    def latest(self) -> float | None:
        """Unix time at which the latest trial finished; None if no trial has finished."""
        return max((r.ended for r in (self.results or {}).values()), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON types. Accuracies are fractions, times are Unix seconds."""
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
            "best": best and {"trial": best.number, "value": best.value, "accuracy": best.accuracy},
            "judged": self.judged is not None,
            "begun": self.since,
            "ended": self.latest,
        }


def read_standing(name: str, storage: str) -> SweepStatus:
    """Read the status of one sweep; problems are stored in `trouble`. Raises `UsageError` if the
    sweep does not exist."""
    try:
        return _read(find_sweep(name, storage, _PATIENCE))
    except StorageError as error:
        raise UsageError([f"A sweep's folder must be readable, and is not: {error}."]) from error


def read_standings(storage: str) -> list[SweepStatus]:
    """Read every sweep in a storage location, by name; other folders are skipped. Raises
    `UsageError`."""
    try:
        found = [_read(sweep) for sweep in sweep_folders(storage, _PATIENCE)]
    except StorageError as error:
        raise UsageError(
            [f"The storage must be readable, and is not: {error}. Use --storage."]
        ) from error
    return found


def _read(sweep: SweepFolder) -> SweepStatus:
    """Read the status of a sweep; problems with its files are stored in `trouble`."""
    standing = SweepStatus(sweep.name, sweep.files)
    try:
        standing = replace(standing, id=sweep.id, config=sweep.config, owner=sweep.owner())
        standing = replace(standing, results=sweep.results(methods=False), begun=sweep.has_trials)
        found = read_evaluation(sweep.files)
        damaged = found is None and sweep.has_evaluation
    except UsageError as error:
        return replace(standing, trouble=error.problems[0])
    except StorageError as error:
        why = f"A sweep's folder must be readable, and is not: {error}. Grant access or remove it."
        return replace(standing, trouble=why)
    return replace(standing, evaluation=found, damaged=damaged)


def failures(results: Mapping[int, Result]) -> list[dict[str, Any]]:
    """Return every failed trial with its traceback, by number."""
    return [
        {key: asdict(result)[key] for key in _TOLD}
        for _, result in sorted(results.items())
        if result.state == "FAIL"
    ]


_TOLD = ("number", "reason", "details", "failures", "host", "begun", "ended", "parameters")


def ago(moment: float | None, now: float | None = None) -> str:
    """Format the time since a Unix time, e.g. `3 h`; a dash for None."""
    if moment is None:
        return "-"
    seconds = max(0.0, (time.time() if now is None else now) - moment)
    return duration(seconds)


def duration(seconds: float) -> str:
    """Format seconds in a readable unit: `40 s`, `12 min`, `3 h`, `2 d`."""
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


_UNITS: Sequence[tuple[str, float]] = (("d", 86400), ("h", 3600), ("min", 60))
