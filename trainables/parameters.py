"""A trial described by flat parameters, as a script for Ray Tune has them: `{"method": "taskres",
"dataset": "digits", "shots": 16, "alpha": 0.5, "lr": 0.01}`.

The parameters of the task have the names of `TASK`. All others are fields of the method's
configuration, of `OptimConfig`, or `crop_scale`; what is not given has the preset's value. Methods
joined by `+` are stages, whose fields are written as `rmt.leak`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, get_args

from trainables.all_shots import ALL, with_all_shots
from trainables.core.records import RecordError, from_plain
from trainables.core.text import did_you_mean, printable
from trainables.data.base import DataError
from trainables.data.bundle import PREFIX, open_bundle
from trainables.data.registry import PREFIXES, DataSource
from trainables.fields import fields_of, with_values
from trainables.methods.base import Preset, Tower
from trainables.methods.registry import METHODS
from trainables.presets import preset_trial, task_facts
from trainables.trial import TaskSpec, TrialConfig

TASK: Mapping[str, object] = {
    "method": "taskres",
    "preset": "paper",
    "seed": 0,
    "dataset": "digits",
    "data": "",
    "backbone": "tiny",
    "shots": 16,
    "seeds": 1,
    "device": "auto",
    **{field.name: field.default for field in fields(TaskSpec) if field.default is not MISSING},
}
"""Parameters of the task, with their defaults; those of `TaskSpec` have its meaning. `dataset`,
`shots` and `seeds` may be lists, and `shots` may be "all". `data`: folder of the field's data sets
(default: the environment's FEWSHOT_DATA). `seed`: of the training. `device`: auto, cpu or cuda."""
_TYPES: Mapping[str, type] = {"method": str, "data": str, "seed": int}


class ParameterError(ValueError):
    """Parameters do not describe a trial; `problems` has one line per error."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)  # from which a pickled exception is rebuilt
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True)
class Parameters:
    """A trial's parameters, whose names and types have been checked."""

    task: TaskSpec
    """The task."""
    methods: tuple[str, ...]
    """Registry names of the stages' methods."""
    preset: Preset
    """The preset that fills in what is not given."""
    seed: int
    """Seed of the training."""
    data: str
    """Folder of the field's data sets."""
    device: str
    """auto, cpu or cuda."""
    values: tuple[Mapping[str, Any], ...]
    """The fields given for each stage."""

    def trial(self, source: DataSource, tower: Tower) -> TrialConfig:
        """Return the configuration of the trial. Raises `ParameterError`, `DataError`."""
        facts = task_facts(self.task, source, tower)
        stages, problems = [], list[str]()
        for place, (method, values) in enumerate(zip(self.methods, self.values, strict=True)):
            own = replace(facts, after=self.methods[:place])
            try:
                stages.append(_changed(preset_trial(method, self.preset, own), values))
            except ParameterError as error:
                problems += error.problems
        if not problems:
            found = reduce(lambda before, stage: stage.after(before), stages).seeded(self.seed)
            problems = found.problems()
        if problems:
            raise ParameterError(*problems)
        return found


def read_parameters(parameters: Mapping[str, object]) -> Parameters:
    """Check everything that can be checked without images and model; raises `ParameterError`."""
    plain = {name: _plain(value) for name, value in parameters.items()}
    own: dict[str, Any] = {name: plain.pop(name, default) for name, default in TASK.items()}
    problems = [
        f"{name} must be {'a whole number' if kind is int else 'a text'}, got {own[name]!r}."
        for name, kind in _TYPES.items()
        if not isinstance(own[name], kind)
    ]
    methods = tuple(str(own["method"]).split("+"))
    unknown = [method for method in methods if method not in METHODS]
    problems += [f"{did_you_mean('method', method, METHODS)}" for method in unknown]
    for name, known in (
        ("preset", get_args(Preset)),
        ("device", ("auto", "cpu", "cuda")),
    ):
        if own[name] not in known:
            problems.append(f"{name} must be one of {', '.join(known)}, got {own[name]!r}.")
    if unknown:
        values: tuple[dict[str, Any], ...] = ()
    else:
        values, found = _by_stage(plain, methods)
        problems += found
    data = own["data"] or os.environ.get("FEWSHOT_DATA", "")
    task, found = _task(own, parameters.keys(), data)
    problems += found
    if problems or task is None:
        raise ParameterError(*dict.fromkeys(problems))
    return Parameters(task, methods, own["preset"], own["seed"], data, own["device"], values)


def _changed(config: TrialConfig, values: Mapping[str, Any]) -> TrialConfig:
    """One stage's configuration with other values of some fields, also where a preset has settings
    per data set; raises `ParameterError` for values of the wrong type."""
    known, converted, problems = fields_of(config.method), dict[str, Any](), []
    for name, value in values.items():
        try:
            converted[name] = known[name].convert(value)
        except ValueError as error:
            problems.append(f"{name} of {config.method} {error}.")
        except TypeError:
            problems.append(f"{name} of {config.method} must be a plain value, got {value!r}.")
    if problems:
        raise ParameterError(*problems)
    each = tuple(with_values(one, converted) for one in config.per_episode)
    found = replace(with_values(config, converted), per_episode=each)
    return found if found == config else replace(found, preset="search")


def _by_stage(
    given: Mapping[str, Any], methods: Sequence[str]
) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """The fields of each stage, and a problem for each name that is none's or several's."""
    names = [fields_of(method) for method in methods]
    values: tuple[dict[str, Any], ...] = tuple({} for _ in methods)
    problems = []
    for name, value in given.items():
        stage, dot, field = name.rpartition(".")
        places = [
            place
            for place, method in enumerate(methods)
            if field in names[place] and (not dot or stage == method)
        ]
        if len(places) == 1:
            values[places[0]][field] = value
        elif places:
            full = ", ".join(f"{methods[place]}.{field}" for place in places)
            problems.append(f"{name} must name its stage, as several have it. Use {full}.")
        else:
            problems.append(_unknown(name, methods, names))
    return values, problems


def _unknown(name: str, methods: Sequence[str], names: Sequence[Iterable[str]]) -> str:
    known = {field for own in names for field in own} | set(TASK)
    if len(methods) > 1:
        known |= {f"{m}.{field}" for m, own in zip(methods, names, strict=True) for field in own}
    near = difflib.get_close_matches(name, sorted(known), n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    fields_of = ", ".join(sorted({field for own in names for field in own}))
    return (
        f"There is no parameter '{printable(name)}' of {'+'.join(methods)}.{hint} Its fields: "
        f"{fields_of}. The task's: {', '.join(TASK)}."
    )


def _task(
    own: Mapping[str, Any], given: Collection[str], data: str
) -> tuple[TaskSpec | None, list[str]]:
    """The task, and what is wrong with it."""
    datasets, shots, seeds = (_listed(own[name]) for name in ("dataset", "shots", "seeds"))
    backbone, problems = own["backbone"], []
    for spec in datasets:
        prefix = next((p for p in PREFIXES if str(spec).startswith(p)), None)
        if prefix and not os.path.isabs(spec.removeprefix(prefix)):
            problems.append(
                "dataset must have an absolute path, as workers run in other folders, got "
                f"'{spec}'."
            )
    if len(datasets) == 1 and str(datasets[0]).startswith(PREFIX) and not problems:
        backbone = datasets[0]
        try:
            shots = (
                shots
                if "shots" in given
                else [open_bundle(Path(backbone.removeprefix(PREFIX))).shots]
            )
        except DataError as error:
            problems.append(str(error))
    everything = shots == [ALL]
    shots = [1] if everything else shots
    for name, values, least in (("shots", shots, 1), ("seeds", seeds, 0)):
        if not values or len(set(values)) < len(values):
            problems.append(f"{name} must be one or several different numbers, got {own[name]!r}.")
        problems += [
            f"{name} must be at least {least}, got {value}."
            for value in values
            if isinstance(value, int) and value < least
        ]
    plain = {
        **{field.name: own[field.name] for field in fields(TaskSpec) if field.name in own},
        "datasets": datasets,
        "backbone": backbone,
        "shots": shots,
        "seeds": seeds,
    }
    try:
        task = from_plain(TaskSpec, plain)
    except RecordError as error:
        return None, [*problems, f"{error}."]
    if everything and not problems:
        task = with_all_shots(task, data, task.draws if "draws" in given else None)
    return task, problems


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(value: Any) -> Any:
    """A plain Python value of a NumPy one, which some search algorithms suggest."""
    return value.item() if hasattr(value, "item") else value
