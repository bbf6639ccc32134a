"""What a sweep over several methods has tried: its trials by method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from search.core.results import Result
from trainables.trial import TrialConfig


@dataclass(frozen=True)
class MethodTrials:
    """The trials of one method."""

    methods: str
    """Name of the method, or of the stages' methods joined by `+`."""
    trials: int
    """Number of trials that have ended."""
    best: Result | None
    """The complete trial with the highest value; None if none is complete."""
    seconds: float
    """Time in training and validation, of all trials."""


def method_trials(results: Iterable[Result]) -> tuple[MethodTrials, ...]:
    """The trials by method, the best method first."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: r.number):
        groups.setdefault(TrialConfig.from_dict(result.config).methods, []).append(result)
    found = []
    for name, own in groups.items():
        complete = [r for r in own if r.state == "COMPLETE" and r.value is not None]
        best = max(complete, key=lambda r: r.value or 0.0, default=None)
        found.append(MethodTrials(name, len(own), best, sum(r.train_seconds for r in own)))
    return tuple(sorted(found, key=lambda m: -((m.best.value if m.best else None) or 0.0)))
