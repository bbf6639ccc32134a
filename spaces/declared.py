"""Spaces declared as tables: one row per parameter, which is a field of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from spaces.base import searched
from spaces.conditions import CONDITIONS, Condition, always
from trainables.fields import CROP_SCALE, Field, Settings, Value, fields_of, values_of, with_values
from trainables.methods.base import Preset, TaskFacts
from trainables.presets import preset_trial
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class _Interval(Generic[Number]):
    """An interval, which is widened to include the value of trial 0."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: bool = False
    """Whether to sample the logarithm uniformly."""
    step: Number | None = None
    """Distance of the values; None for any."""
    exact: bool = False
    """Whether the interval stays as it is, and trial 0 takes its nearest value."""
    apart: bool = False
    """Whether the interval stays as it is, and trial 0 may lie outside, see `DeclaredSpace`."""

    def nearest(self, value: Any) -> Any:
        """The value of trial 0, given that of the preset."""
        return self._nearest(value) if self.exact else value

    def inside(self, value: Any) -> Any:
        """The value of trial 0, or the nearest one if it lies apart."""
        return self._nearest(value) if self.apart else value

    def _nearest(self, value: Any) -> Any:
        inside = min(max(value, self.low), self.high)
        if not self.step:
            return inside
        most = int((self.high - self.low) / self.step + 1e-9)
        return self.low + min(round((inside - self.low) / self.step), most) * self.step


@dataclass(frozen=True)
class Float(_Interval[float]):
    """Any number in an interval."""

    relative: bool = False
    """Whether both ends are multiples of the value of trial 0."""

    def suggest(self, trial: BaseTrial, name: str, first: Any) -> Any:
        """A value; `first` is that of trial 0."""
        first = self.inside(first)
        unit = first if self.relative else 1
        low, high = min(unit * self.low, first), max(unit * self.high, first)
        return trial.suggest_float(name, low, high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Int(_Interval[int]):
    """A whole number in an interval."""

    def suggest(self, trial: BaseTrial, name: str, first: Any) -> Any:
        """A value; `first` is that of trial 0."""
        first = self.inside(first)
        low, high = min(self.low, first), max(self.high, first)
        return trial.suggest_int(name, low, high, log=self.log, step=self.step or 1)


@dataclass(frozen=True)
class Categorical:
    """One of several values, to which that of trial 0 is added if it is missing."""

    values: tuple[Value, ...]
    """In any order."""
    exact: bool = False
    """Whether no value is added, and trial 0 takes the first one if the preset's is missing."""
    apart: bool = False
    """Whether no value is added, and trial 0 may lie outside, see `DeclaredSpace`."""

    def nearest(self, value: Any) -> Any:
        """The value of trial 0, given that of the preset."""
        return self.values[0] if self.exact and value not in self.values else value

    def inside(self, value: Any) -> Any:
        """The value of trial 0, or the first one if it lies apart."""
        return self.values[0] if self.apart and value not in self.values else value

    def suggest(self, trial: BaseTrial, name: str, first: Any) -> Any:
        """A value; `first` is that of trial 0."""
        first = self.inside(first)
        return trial.suggest_categorical(name, list(dict.fromkeys((*self.values, first))))


Range = Float | Int | Categorical
Ranges = Mapping[str, Range]
"""Field -> range, in the order in which they are suggested."""

CROPS: Ranges = {CROP_SCALE: Categorical((1.0, 0.5, 0.08))}
"""No augmentation, the crops of R-AMT and Tip-Adapter, and those of CoOp."""


@dataclass(frozen=True)
class DeclaredSpace:
    """A method whose fields `ranges` are searched; all others are as in a preset, or fixed.

    A row is a field of the method's `Config`, of `OptimConfig`, or `crop_scale`, which is left out
    for data sets that hold features only. Rows that lie apart from trial 0 are suggested as soon
    as another parameter differs from it.
    """

    facts: TaskFacts
    """The task."""
    name: str
    """Registry name."""
    method: str
    """Registry name of the method."""
    ranges: Ranges
    """Field -> range."""
    preset: Preset = "paper"
    """The preset that trial 0 has."""
    fixed: Mapping[str, Value] = field(default_factory=dict)
    """Field -> value that every trial has in place of the preset's."""
    conditions: Mapping[str, Condition] = field(default_factory=lambda: CONDITIONS)
    """Field -> when it is suggested; the others always are."""

    exclusive: ClassVar[tuple[str, ...]] = ()
    """Fields that determine each other, of which the user may give only one."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """What can be fixed or searched, by name."""
        return fields_of(self.method)

    @property
    def paper(self) -> TrialConfig:
        """The method's preset `paper`."""
        return preset_trial(self.method, "paper", self.facts)

    @cached_property
    def first(self) -> TrialConfig:
        """The preset with what is fixed, with the nearest value within every exact range."""
        preset = preset_trial(self.method, self.preset, self.facts)
        own = tuple(self._first(settings) for settings in preset.per_episode)
        found = self._first(replace(preset, per_episode=()))
        alike = all(values_of(settings) == values_of(found) for settings in own)
        found = replace(found, per_episode=() if alike else own)
        return preset if found == preset else replace(found, preset="search")

    @property
    def first_values(self) -> dict[str, Value]:
        """The value of every row in trial 0, also of those that are not suggested in it: the
        general setting for several data sets or numbers of shots."""
        values = self._values
        return {name: row.inside(values[name]) for name, row in self._rows}

    @property
    def first_parameters(self) -> dict[str, Value]:
        """Those of `first_values` that are suggested in trial 0."""
        values = self._values
        return {name: values[name] for name, _ in self._rows if self.condition(name).holds(values)}

    @property
    def queue(self) -> tuple[Mapping[str, Value], ...]:
        """Trial 0."""
        return (self.first_parameters,)

    @property
    def grid(self) -> Mapping[str, tuple[Value, ...]]:
        """Empty: the sampler decides."""
        return {}

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """One value per row whose condition holds."""
        first, values = self.first, self._values
        chosen: dict[str, Any] = {}
        for name, row in self._rows:
            if self.condition(name).holds(values | chosen):
                chosen[name] = row.suggest(trial, name, values[name])
        return searched(self.with_values(first, {**self.fixed, **chosen}), first)

    def condition(self, name: str) -> Condition:
        """When a row is suggested."""
        row = self.ranges.get(name)
        if row is None or not row.apart:
            found = self.conditions.get(name, always)
            return found if self.fields.keys() >= {*found.names} else always
        first = self._values
        names = tuple(other for other, its in self.ranges.items() if not its.apart)
        return Condition(
            "except in trial 0", names, lambda chosen: any(chosen[n] != first[n] for n in names)
        )

    def values(self, settings: Any) -> dict[str, Any]:
        """Field -> value of a configuration's general setting."""
        return values_of(settings)

    def with_values(self, settings: Settings, chosen: Mapping[str, Any]) -> Settings:
        """Return the settings with other values of some fields."""
        return with_values(settings, chosen)

    def _first(self, settings: Settings) -> Settings:
        found = self.with_values(settings, self.fixed)
        values, rows = self.values(found), self._rows
        moved = {n: near for n, row in rows if (near := row.nearest(values[n])) != values[n]}
        return self.with_values(found, moved) if moved else found

    @cached_property
    def _values(self) -> dict[str, Any]:
        """Those of `first`, asked for by every row of every trial."""
        return self.values(self.first)

    @property
    def _rows(self) -> list[tuple[str, Range]]:
        pixels = self.facts.pixels
        return [(n, row) for n, row in self.ranges.items() if pixels or n != CROP_SCALE]
