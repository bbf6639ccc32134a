"""Applies the user's settings to a space, and reports those that do not fit it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, get_args

from spaces.auto import MethodChoice
from spaces.base import Space
from spaces.declared import Categorical, DeclaredSpace, Float, Int, Range
from spaces.pipeline import PipelineSpace
from spaces.settings import Settings, SettingsError, Values
from trainables.core.text import did_you_mean
from trainables.fields import CROP_SCALE, Field, Value
from trainables.methods.base import Preset
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

MAX_GRID = 10_000
"""Most combinations of a grid."""


@dataclass(frozen=True)
class AdjustedSpace:
    """A space with a grid, or with more trials before those of the sampler."""

    space: Space
    """What is searched."""
    grid: Mapping[str, tuple[Value, ...]]
    """Parameter -> values, every combination of which is run once; may be empty."""
    enqueued: tuple[Mapping[str, Value], ...]
    """Parameters of the trials that follow trial 0."""

    @property
    def name(self) -> str:
        """Registry name of the space."""
        return self.space.name

    @property
    def paper(self) -> TrialConfig:
        """The paper's setting."""
        return self.space.paper

    @property
    def first(self) -> TrialConfig:
        """Trial 0."""
        return self.space.first

    @property
    def first_parameters(self) -> dict[str, Value]:
        """The parameters of trial 0."""
        return self.space.first_parameters

    @property
    def queue(self) -> tuple[Mapping[str, Value], ...]:
        """Trial 0 and what is enqueued; nothing for a grid, which has its own trials only."""
        return () if self.grid else (self.first_parameters, *self.enqueued)

    def suggest(self, trial: BaseTrial) -> TrialConfig:
        """One point of the space."""
        return self.space.suggest(trial)


def adjust(space: Space, settings: Settings) -> Space:
    """The space with the settings; raises `SettingsError` with every problem."""
    if not settings.identity():
        return space
    if not isinstance(space, DeclaredSpace | PipelineSpace | MethodChoice):
        raise SettingsError(
            [
                f"--space {space.name} has no table of fields, so that --preset, --set, --range, "
                "--choice, --grid and --enqueue cannot change it. Omit them."
            ]
        )
    if isinstance(space, MethodChoice) and (settings.grid or settings.enqueue):
        raise SettingsError(
            [
                f"--grid and --enqueue need a space of one method, got {space.name}. Use --space "
                f"{space.spaces[0].name}, or --set, --range and --choice."
            ]
        )
    return _Adjustment(space, settings).result()


def _tables(
    space: DeclaredSpace | PipelineSpace | MethodChoice,
) -> tuple[DeclaredSpace, ...]:
    """The tables of a space: of its stages, of its methods, or itself."""
    match space:
        case PipelineSpace():
            return space.stages
        case MethodChoice():
            return space.spaces
    return (space,)


def _labels(space: DeclaredSpace | PipelineSpace | MethodChoice) -> tuple[str, ...]:
    """What the names of each table's fields begin with."""
    if isinstance(space, PipelineSpace):
        return space.labels
    return tuple(table.name for table in _tables(space))


class _Adjustment:
    """Applies settings to the stages of a space, and collects problems."""

    def __init__(
        self, space: DeclaredSpace | PipelineSpace | MethodChoice, settings: Settings
    ) -> None:
        self._settings, self._space = settings, space
        self._stages = list(_tables(space))
        self._labels = _labels(space)
        self._kind = "method" if isinstance(space, MethodChoice) else "stage"
        self._fields = [stage.fields for stage in self._stages]
        self._problems: list[str] = []
        self._owners: dict[tuple[int, str], str] = {}

    def result(self) -> Space:
        """The adjusted space; raises `SettingsError`."""
        settings = self._settings
        if settings.preset not in get_args(Preset):
            self._problems.append(did_you_mean("preset", settings.preset, get_args(Preset)))
        if settings.grid and (settings.range or settings.choice or settings.enqueue):
            self._problems.append(
                "--grid cannot be used with --range, --choice or --enqueue, as it runs its own "
                "combinations and nothing else. Write the values into --grid, or omit it."
            )
        if settings.combinations > MAX_GRID:
            self._problems.append(
                f"--grid must have at most {MAX_GRID:,} combinations, got "
                f"{settings.combinations:,}. Use fewer values, or --choice."
            )
        fixed, ranges = self._read()
        self._stop()
        for number, stage in enumerate(self._stages):
            own = {} if settings.grid else dict(stage.ranges)
            own = {name: row for name, row in own.items() if name not in fixed[number]}
            self._stages[number] = replace(
                stage,
                preset=cast(Preset, settings.preset),
                fixed=fixed[number],
                ranges=_ordered(stage, own, ranges[number]),
            )
        for number, stage in enumerate(self._stages):
            self._check(number, stage, ranges[number])
        self._stop()
        if settings.grid:  # every combination is a trial, whether all of its values matter or not
            self._stages = [replace(stage, conditions={}) for stage in self._stages]
        space = self._with_stages()
        if isinstance(space, MethodChoice):
            return space
        grid = {
            self._parameter(number, name): row.values
            for number, own in enumerate(ranges)
            for name, row in own.items()
            if settings.grid and isinstance(row, Categorical)
        }
        self._problems += _combined(space, grid) if grid else []
        enqueued: tuple[Mapping[str, Value], ...] = ()
        for found in (self._entry(space, entry) for entry in settings.enqueue):
            enqueued += () if found in (space.first_values, *enqueued) else (found,)
        self._stop()
        return AdjustedSpace(space, grid, enqueued) if grid or enqueued else space

    def _with_stages(self) -> DeclaredSpace | PipelineSpace | MethodChoice:
        """The space with its adjusted tables."""
        stages = tuple(self._stages)
        match self._space:
            case PipelineSpace():
                return PipelineSpace(stages)
            case MethodChoice():
                return replace(self._space, spaces=stages)
        return stages[0]

    def _stop(self) -> None:
        if self._problems:
            raise SettingsError(list(dict.fromkeys(self._problems)))

    def _read(self) -> tuple[list[dict[str, Value]], list[dict[str, Range]]]:
        """Per stage, what is fixed and what is searched."""
        fixed: list[dict[str, Value]] = [{} for _ in self._stages]
        ranges: list[dict[str, Range]] = [{} for _ in self._stages]
        for number, name, value in self._each("set"):
            if (converted := self._convert("--set", number, name, value)) is not None:
                fixed[number][name] = converted
        for number, name, text in self._each("range"):
            try:
                ranges[number][name] = _interval(self._fields[number][name], text)
            except ValueError as error:
                self._problems.append(f"--range {name} {error}.")
        for option in ("choice", "grid"):
            for number, name, values in self._each(option):
                given = [self._convert(f"--{option}", number, name, value) for value in values]
                kept = tuple(dict.fromkeys(value for value in given if value is not None))
                ranges[number][name] = Categorical(kept, exact=True)
                if len(kept) < len(given) and None not in given:
                    self._problems.append(f"--{option} {name} must have different values.")
        for number, stage in enumerate(self._stages):
            both = [
                f"--{self._owners[number, name]} {name}"
                for name in stage.exclusive
                if (number, name) in self._owners
            ]
            if len(both) > 1:
                self._problems.append(
                    f"{' and '.join(both)} must not both be given, as one determines the other. "
                    "Omit one of them."
                )
        return fixed, ranges

    def _each(self, option: str) -> Iterator[tuple[int, str, Any]]:
        """Stage, field and value of every use of an option."""
        for typed, value in getattr(self._settings, option).items():
            place = self._place(typed, f"--{option}")
            if place is None:
                continue
            if other := self._owners.get(place):
                twice = f"--{option}" if other == option else f"--{other} and --{option}"
                self._problems.append(
                    f"{twice} must not both be given for '{typed}'. Omit one of them."
                )
                continue
            self._owners[place] = option
            yield *place, value

    def _place(self, typed: str, option: str) -> tuple[int, str] | None:
        """The stage and the field of a name; reports an unknown or ambiguous one."""
        stage, dot, name = typed.rpartition(".")
        every = range(len(self._stages))
        numbers = [n for n in every if dot and stage == self._labels[n]] or [
            n
            for n in every
            if not dot or stage in (self._stages[n].name, self._stages[n].method, str(n + 1))
        ]
        having = [number for number in numbers if name in self._fields[number]]
        if len(having) == 1:
            return having[0], name
        if having:
            shown = ", ".join(f"{self._labels[number]}.{name}" for number in having)
            self._problems.append(
                f"{option} {typed} must name one {self._kind}. Use one of {shown}."
            )
        elif not numbers:
            self._problems.append(f"{option}: {did_you_mean(self._kind, stage, self._labels)}")
        else:
            known = {field for number in numbers for field in self._fields[number]}
            self._problems.append(f"{option}: {did_you_mean('field', name, known)}")
        return None

    def _convert(self, option: str, number: int, name: str, value: Value) -> Value | None:
        try:
            return self._fields[number][name].convert(value)
        except ValueError as error:
            self._problems.append(f"{option} {name} {error}.")
            return None

    def _check(self, number: int, stage: DeclaredSpace, searched: Mapping[str, Range]) -> None:
        """Report values that break a rule of the method or the optimiser, and searched fields that
        have no effect."""
        known = replace(stage, ranges={}).first.problems()
        self._problems += [f"--set: {problem}." for problem in known]
        first = replace(stage.first, per_episode=())
        for name, row in searched.items() if not known else ():
            option = self._owners[number, name]
            if not stage.facts.pixels and name == CROP_SCALE:
                self._problems.append(
                    f"--{option} {name} needs images, and the data set holds only features. Omit "
                    "it."
                )
            elif _is_void(stage, name):
                self._problems.append(
                    f"--{option} {name} has no effect here, as it is used only "
                    f"{stage.condition(name).words}. Omit it."
                )
            elif option != "grid":  # whose combinations are checked together
                for value in _ends(row):
                    config = stage.with_values(first, {name: value})
                    self._problems += [f"--{option}: {problem}." for problem in config.problems()]

    def _parameter(self, number: int, name: str) -> str:
        label = self._labels[number]
        return f"{label}.{name}" if isinstance(self._space, PipelineSpace) else name

    def _entry(
        self, space: DeclaredSpace | PipelineSpace, entry: Mapping[str, Value]
    ) -> dict[str, Value]:
        """The parameters of an enqueued trial: those of trial 0, unless the entry has them."""
        found = dict(space.first_values)
        for typed, value in entry.items():
            place = self._place(typed, "--enqueue")
            if place is None:
                continue
            number, name = place
            stage = self._stages[number]
            converted = self._convert("--enqueue", number, name, value)
            if converted is None:
                continue
            row = stage.ranges.get(name)
            if row is None:
                if stage.values(stage.first)[name] != converted:
                    self._problems.append(
                        f"--enqueue {name} must be searched, and is fixed. Search it (--range, "
                        "--choice), or omit the column."
                    )
                continue
            if not _holds(row, converted, stage.first_values[name]):
                self._problems.append(
                    f"--enqueue {name} must be in the searched range, got {converted}. Widen the "
                    "range (--range, --choice), or omit the trial."
                )
            found[self._parameter(number, name)] = converted
        return found


def _interval(kind: Field, text: str) -> Float | Int:
    """Parse LOW:HIGH, LOW:HIGH:log or LOW:HIGH:STEP; raises `ValueError`."""
    if not kind.is_number:
        raise ValueError("must be a number to be searched in an interval. Use --choice")
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"must be LOW:HIGH, LOW:HIGH:log or LOW:HIGH:STEP, got '{text}'")
    is_log = parts[2:] == ["log"]
    numbers: list[Any] = []
    for part in parts[: 2 if is_log else None]:
        try:
            numbers.append(kind.convert(float(part)))
        except (ValueError, OverflowError):
            whole = "whole numbers" if kind.kind is int else "finite numbers"
            raise ValueError(f"must be {whole}, got '{part}' in '{text}'") from None
    low, high, *rest = numbers
    if low >= high:
        raise ValueError(f"must be LOW:HIGH with LOW < HIGH, got '{text}'")
    if is_log and low <= 0:
        raise ValueError(f"must be positive to be searched on a logarithmic scale, got '{text}'")
    step = rest[0] if rest else None
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"must have a step between 0 and HIGH - LOW, got '{text}'")
    if kind.kind is int:
        return Int(low, high, is_log, step, exact=True)
    return Float(low, high, is_log, step=step, exact=True)


def _ordered(
    space: DeclaredSpace, own: Mapping[str, Range], given: Mapping[str, Range]
) -> dict[str, Range]:
    """Return the table with the given rows replaced or added. New rows come before it if the
    conditions of others depend on them, else after it."""
    needed = {name for row in (*own, *given) for name in space.condition(row).names}
    added = {name: row for name, row in given.items() if name not in own}
    before = {name: row for name, row in added.items() if name in needed}
    return {**before, **own, **given}


def _ends(row: Range) -> tuple[Value, ...]:
    return row.values if isinstance(row, Categorical) else (row.low, row.high)


def _is_void(space: DeclaredSpace, name: str) -> bool:
    """Whether a searched field has no effect, whatever the fields are that its condition needs."""
    condition, values = space.condition(name), space.values(space.first)
    options = [
        (*_ends(row), values[other]) if (row := space.ranges.get(other)) else (values[other],)
        for other in condition.names
    ]
    return not any(
        condition.holds(values | dict(zip(condition.names, chosen, strict=True)))
        for chosen in itertools.product(*options)
    )


def _holds(row: Range, value: Any, first: Any) -> bool:
    """Whether a range, widened to the value of trial 0, has a value."""
    if isinstance(row, Categorical):
        return value in (*row.values, row.inside(first))
    if row.exact or row.apart:
        return bool(row.nearest(value) == row.inside(value) == value)
    unit = first if isinstance(row, Float) and row.relative else 1
    return bool(min(row.low * unit, first) <= value <= max(row.high * unit, first))


def _combined(space: DeclaredSpace | PipelineSpace, grid: Values) -> list[str]:
    """Problems of the combinations of a grid."""
    found: dict[str, None] = {}
    for chosen in itertools.product(*grid.values()):
        config = space.suggest(_Chosen(dict(zip(grid, chosen, strict=True))))  # type: ignore[arg-type]
        found |= dict.fromkeys(f"--grid: {problem}." for problem in config.problems())
    return list(found)


@dataclass(frozen=True)
class _Chosen:
    """The methods of an Optuna trial that spaces call, for parameters that are known."""

    values: Mapping[str, Value]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.values[name]
