"""Spaces that are a table: one row a parameter, which is a field of the configuration.

For methods whose parameters have no conditions between them; `rmt.py` and `taskres.py` have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spaces.base import TaskFacts, preset_trial
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Float:
    """Any number of an interval, which is widened where the paper's lies outside."""

    low: float
    """Smallest."""
    high: float
    """Largest."""
    log: bool = False
    """Whether every order of magnitude is as likely as the next."""

    def suggest(self, trial: BaseTrial, name: str, paper: Any) -> Any:
        """A value."""
        low, high = min(self.low, paper), max(self.high, paper)
        return trial.suggest_float(name, low, high, log=self.log)


@dataclass(frozen=True)
class Int:
    """A whole number of an interval, which is widened where the paper's lies outside."""

    low: int
    """Smallest."""
    high: int
    """Largest."""
    log: bool = False
    """Whether every order of magnitude is as likely as the next."""

    def suggest(self, trial: BaseTrial, name: str, paper: Any) -> Any:
        """A value."""
        low, high = min(self.low, paper), max(self.high, paper)
        return trial.suggest_int(name, low, high, log=self.log)


@dataclass(frozen=True)
class Categorical:
    """One of some values, to which the paper's is added where it is missing."""

    values: tuple[float | int | str | bool, ...]
    """In any order."""

    def suggest(self, trial: BaseTrial, name: str, paper: Any) -> Any:
        """A value."""
        return trial.suggest_categorical(name, list(dict.fromkeys((*self.values, paper))))


Range = Float | Int | Categorical

CROPS: Mapping[str, Range] = {"crop_scale": Categorical((1.0, 0.5, 0.08))}
"""No augmentation, R-AMT's and Tip-Adapter's, CoOp's."""


@dataclass(frozen=True)
class DeclaredSpace:
    """The fields of a method's `Config` and of its `OptimConfig` that `ranges` names, and
    `crop_scale` where there are pixels; all others are as in the paper's preset."""

    setting: TaskFacts
    """The task."""
    name: str
    """Registry name."""
    method: str
    """Registry name of the method."""
    ranges: Mapping[str, Range]
    """Field -> what it may be."""

    @property
    def paper(self) -> TrialConfig:
        """The method's preset `paper`."""
        return preset_trial(self.method, "paper", self.setting)

    @property
    def paper_parameters(self) -> dict[str, float | int | str | bool]:
        """See `paper`."""
        values = self.paper.flat()
        return {name: values[name] for name in self._ranges}  # type: ignore[misc]

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """See `Space`."""
        paper = self.paper
        values = paper.flat()
        chosen = {
            name: where.suggest(trial, name, values[name]) for name, where in self._ranges.items()
        }
        fields = vars(paper.method_config), vars(paper.optim), {"crop_scale": 1}
        method, optim, own = ({n: v for n, v in chosen.items() if n in names} for names in fields)
        found = replace(
            paper,
            method_config=replace(paper.method_config, **method),
            optim=replace(paper.optim, **optim),
            **own,
        )
        return paper if found == paper else replace(found, preset="search")

    @property
    def _ranges(self) -> dict[str, Range]:
        pixels = self.setting.pixels
        return {n: r for n, r in self.ranges.items() if pixels or n != "crop_scale"}
