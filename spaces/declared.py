"""Spaces declared as tables: one row per parameter, which is a field of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spaces.base import Value, searched
from trainables.methods.base import TaskFacts
from trainables.presets import preset_trial
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Condition = Callable[[Mapping[str, Any]], bool]
"""Whether a parameter is suggested, given the values of those before it. Otherwise its field keeps
the paper's value."""


def always(chosen: Mapping[str, Any]) -> bool:
    """The condition of a parameter that every trial has."""
    return True


def unless(name: str, *values: Value) -> Condition:
    """The condition that the parameter `name` has none of `values`."""
    return lambda chosen: chosen[name] not in values


@dataclass(frozen=True)
class Float:
    """Any number in an interval, which is widened to include the paper's value."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Whether to sample the logarithm uniformly."""
    relative: bool = False
    """Whether both ends are multiples of the paper's value."""
    when: Condition = always
    """When the parameter is suggested."""

    def suggest(self, trial: BaseTrial, name: str, paper: Any) -> Any:
        """A value; `paper` is the paper's."""
        unit = paper if self.relative else 1
        low, high = min(unit * self.low, paper), max(unit * self.high, paper)
        return trial.suggest_float(name, low, high, log=self.log)


@dataclass(frozen=True)
class Int:
    """A whole number in an interval, which is widened to include the paper's value."""

    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    log: bool = False
    """Whether to sample the logarithm uniformly."""
    when: Condition = always
    """When the parameter is suggested."""

    def suggest(self, trial: BaseTrial, name: str, paper: Any) -> Any:
        """A value; `paper` is the paper's."""
        low, high = min(self.low, paper), max(self.high, paper)
        return trial.suggest_int(name, low, high, log=self.log)


@dataclass(frozen=True)
class Categorical:
    """One of several values, to which the paper's is added if it is missing."""

    values: tuple[Value, ...]
    """In any order."""
    when: Condition = always
    """When the parameter is suggested."""

    def suggest(self, trial: BaseTrial, name: str, paper: Any) -> Any:
        """A value; `paper` is the paper's."""
        return trial.suggest_categorical(name, list(dict.fromkeys((*self.values, paper))))


Range = Float | Int | Categorical
Ranges = Mapping[str, Range]
"""Field -> range, in the order in which they are suggested."""

CROPS: Ranges = {"crop_scale": Categorical((1.0, 0.5, 0.08))}
"""No augmentation, the crops of R-AMT and Tip-Adapter, and those of CoOp."""


@dataclass(frozen=True)
class DeclaredSpace:
    """A method whose fields `ranges` are searched; all others are as in the preset `paper`.

    A row is a field of the method's `Config`, of `OptimConfig`, or `crop_scale`, which is left out
    for data sets that hold features only.
    """

    facts: TaskFacts
    """The task."""
    name: str
    """Registry name."""
    method: str
    """Registry name of the method."""
    ranges: Ranges
    """Field -> range."""

    @property
    def paper(self) -> TrialConfig:
        """The method's preset `paper`."""
        return preset_trial(self.method, "paper", self.facts)

    @property
    def paper_parameters(self) -> dict[str, Value]:
        """The general setting for several data sets or numbers of shots."""
        values = _general(self.paper)
        return {name: values[name] for name, row in self._rows if row.when(values)}

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """One value per row whose condition holds."""
        paper = self.paper
        values = _general(paper)
        chosen: dict[str, Any] = {}
        for name, row in self._rows:
            if row.when(values | chosen):
                chosen[name] = row.suggest(trial, name, values[name])
        return searched(_with(paper, chosen), paper)

    @property
    def _rows(self) -> list[tuple[str, Range]]:
        pixels = self.facts.pixels
        return [(n, row) for n, row in self.ranges.items() if pixels or n != "crop_scale"]


def _general(config: TrialConfig) -> dict[str, Any]:
    return replace(config, per_episode=()).flat()


def _with(config: TrialConfig, chosen: Mapping[str, Any]) -> TrialConfig:
    """The same with other values of some fields of the method, the optimiser or the trial."""
    fields = vars(config.method_config), vars(config.optim), {"crop_scale": 1}
    method, optim, own = ({n: v for n, v in chosen.items() if n in names} for names in fields)
    return replace(
        config,
        method_config=replace(config.method_config, **method),
        optim=replace(config.optim, **optim),
        **own,
    )
