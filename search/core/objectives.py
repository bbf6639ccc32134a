"""How trials are ranked: by the task's objective, or by it and a second metric; and by method.

With two objectives there is a Pareto front instead of a best trial. The report shows the front; the
evaluation uses its best trial in the first objective.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from search.core.results import Result, exact
from trainables.trial import TrialConfig

Direction = Literal["maximize", "minimize"]

SAMPLERS_OF_TWO = ("tpe", "gp", "random", "nsga2")
"""Samplers that support two objectives."""

_SHOWN = 10  # trials that a message lists
_SHORT: dict[str, Direction] = {"max": "maximize", "min": "minimize"}


@dataclass(frozen=True)
class Objective:
    """A metric and its direction."""

    metric: str
    """Name of the metric that trials report, e.g. `mask/sparsity`."""
    direction: Direction
    """Direction in Optuna's words."""

    @property
    def words(self) -> str:
        """The objective in words."""
        return f"{self.metric} (to {self.direction})"

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """A trial's value; None if it is missing or not finite."""
        found = metrics.get(self.metric, math.nan)
        return found if math.isfinite(found) else None

    def cost(self, value: float) -> float:
        """The value such that less is better."""
        return value if self.direction == "minimize" else -value


def parse_objective(text: str) -> Objective:
    """`METRIC:max` or `METRIC:min`; raises `ValueError`."""
    metric, _, way = text.rpartition(":")
    if not metric or way not in _SHORT:
        raise ValueError(f"expected METRIC:max or METRIC:min, got '{text}'")
    return Objective(metric, _SHORT[way])


def directions(also: Objective | None) -> list[Direction]:
    """The directions of the study's objectives: the task's, then the second one."""
    return ["maximize", *([also.direction] if also else [])]


def study_values(result: Result, also: Objective | None) -> list[float] | None:
    """A trial's values for the study; None without a value, and for a trial that was stopped
    before its second value was known."""
    if result.value is None:
        return None
    if also is None:
        return [result.value]
    second = also.value(result.metrics)
    return None if second is None else [result.value, second]


def pareto_front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """The trials that no other trial dominates, by rising cost; of equal points, the first trial.
    `points` holds (cost, accuracy): a low cost and a high accuracy are better."""
    front: list[int] = []
    best = float("-inf")
    for number in sorted(points, key=lambda n: (points[n][0], -points[n][1], n)):
        if points[number][1] > best:
            best = points[number][1]
            front.append(number)
    return front


def best_of(results: Iterable[Result]) -> Result | None:
    """The completed trial with the highest value; of equals, the one with the lower validation
    loss, then the earlier one."""
    return next(iter(ranked(results)), None)


def ranked(results: Iterable[Result]) -> list[Result]:
    """The completed trials in the order of `best_of`."""
    return sorted((result for result in results if result.state == "COMPLETE"), key=_rank)


def winner_of(results: Mapping[int, Result], choice: str) -> Result | None:
    """The trial that `--select CHOICE` puts first: the one with this number if it is complete, else
    the best one."""
    if not choice.isdecimal():
        return best_of(results.values())
    chosen = results.get(int(choice))
    return chosen if chosen is not None and chosen.state == "COMPLETE" else None


def choice_problem(choice: str, results: Mapping[int, Result], trials: int) -> str:
    """Why a sweep of so many trials cannot end with `--select CHOICE`; empty if it can."""
    if not choice.isdecimal():
        return ""
    chosen, complete = results.get(int(choice)), [r.number for r in ranked(results.values())]
    if (chosen is None and int(choice) < trials) or int(choice) in complete:
        return ""
    state = f"which is {chosen.state}" if chosen else f"and --trials {trials} ends before it"
    shown = f" Complete so far, the best first: {_listed(complete)}." if complete else ""
    return f"--select must be ensemble, best or a complete trial, got {choice}, {state}.{shown}"


def _listed(numbers: Sequence[int]) -> str:
    more = ", ..." if len(numbers) > _SHOWN else ""
    return ", ".join(map(str, numbers[:_SHOWN])) + more


def _rank(result: Result) -> tuple[float, float, int]:
    value = exact(cast(float, result.value))
    return (-value, result.metrics.get("val/loss", math.inf), result.number)


def front_of(results: Iterable[Result], also: Objective) -> list[int]:
    """The completed trials on the front, the best in the second objective first."""
    points = {}
    for result in results:
        second = also.value(result.metrics)
        if result.state == "COMPLETE" and second is not None:
            points[result.number] = also.cost(second), exact(cast(float, result.value))
    return pareto_front(points)


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
