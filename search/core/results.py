"""The records of a trial: how it was issued, and how it ended.

A trial's folder holds `issued.json` from its start to its end, then `metrics.jsonl` (one row per
epoch) and `result.json`, the commit: with it the trial has ended, whatever else is there. Each file
is whole or absent, and nothing changes a result afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeVar

from search.core.problems import UsageError
from trainables.core.records import (
    Count,
    Fraction01,
    RecordError,
    Seconds,
    parse_json,
    read_version,
)
from trainables.core.storage import Storage
from trainables.trial import TrialConfig

FORMAT = 2
"""Version of `result.json`."""
ISSUED_FORMAT = 1
"""Version of `issued.json`."""
ISSUED = "issued.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"

State = Literal["COMPLETE", "PRUNED", "FAIL"]
Row = dict[str, float]
"""Metrics of one epoch, with `epoch` and `time` (Unix seconds)."""
_LARGEST_DENOMINATOR = 10**6
_ROUNDING = 10**15  # an error of less than 1 / _ROUNDING comes from adding floats


def exact(value: float) -> float:
    """The value without the rounding error of a sum, if it is a fraction of at most a million.

    Accuracies are means of whole counts over numbers of images. Older versions added them as
    floats, so that equal counts could differ in the last bit.
    """
    if not math.isfinite(value):
        return value
    # A fraction as close as this is a convergent of the value's continued fraction (Legendre), so
    # it is the last one with a small denominator.
    numerator, denominator = value.as_integer_ratio()
    p_before, q_before, p, q = 0, 1, 1, 0
    n, d = numerator, denominator
    while d:
        whole, rest = divmod(n, d)
        if q_before + whole * q > _LARGEST_DENOMINATOR:
            break
        p_before, q_before, p, q = p, q, p_before + whole * p, q_before + whole * q
        n, d = d, rest
    error = abs(p * denominator - numerator * q) * _ROUNDING
    return p / q if error < q * denominator else value


@dataclass(frozen=True)
class IssuedTrial:
    """A trial that was issued and has not ended: the content of its `issued.json`.

    With the results, these records are all that is needed to rebuild the study after a crash, such
    that samplers and pruners decide as if nothing had happened.
    """

    number: Count
    """The trial's number, from 0."""
    config: dict[str, Any]
    """The resolved `TrialConfig`."""
    parameters: dict[str, Any]
    """The space's parameters, as sampled."""
    distributions: dict[str, str]
    """The distribution of each parameter, as Optuna's JSON."""
    system_attrs: dict[str, Any]
    """Optuna's system attributes: what sampler and pruner have stored with the trial."""
    study_attrs: dict[str, Any]
    """System attributes of the study that the sampler has set when it proposed this trial."""
    begun: Seconds
    """Unix time at which it was first issued."""
    values: tuple[Fraction01, ...] = ()
    """The objective after each step that the pruner has decided on."""
    failures: Count = 0
    """Number of crashes of its workers."""
    crashes_since_progress: Count = 0
    """Those since its latest report."""
    steps_at_last_crash: int = -1
    """Number of reports before the latest crash."""
    earlier_failures: tuple[str, ...] = ()
    """Why earlier attempts ended as FAIL (see `--retry-failed`)."""
    format: int = ISSUED_FORMAT
    """Version of this record."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(exact, self.values)))


@dataclass(frozen=True)
class Result:
    """How a trial ended: the content of its `result.json`."""

    number: Count
    """The trial's number, from 0."""
    state: State
    """`COMPLETE`: trained to its end; `PRUNED`: stopped early by the pruner; `FAIL`: see reason."""
    value: Fraction01 | None
    """The sweep's objective on validation images, in [0, 1]: final, or the last before pruning;
    None for a failure."""
    values: tuple[Fraction01, ...]
    """The objective after each step."""
    metrics: dict[str, float]
    """The last row of metrics, and the forecast."""
    parameters: dict[str, Any]
    """The space's parameters, as sampled."""
    distributions: dict[str, str]
    """The distribution of each parameter, as Optuna's JSON."""
    notes: dict[str, Any]
    """Optuna's system attributes, with which later trials are compared (ASHA: value per rung)."""
    config: dict[str, Any]
    """The resolved `TrialConfig`."""
    train_seconds: Seconds
    """Time in training and validation."""
    begun: Seconds
    """Unix time at which the trial was first issued."""
    ended: Seconds
    """Unix time."""
    host: str
    """Name of the host that trained its last part; empty if none answered."""
    warnings: tuple[str, ...] = ()
    """The method's warnings before training."""
    failures: Count = 0
    """Number of crashes of its workers."""
    reason: str = ""
    """Why it failed, else empty."""
    details: str = ""
    """Traceback of a failure, else empty."""
    study_attrs: dict[str, Any] = field(default_factory=dict)
    """System attributes of the study that the sampler has set when it proposed this trial."""
    earlier_failures: tuple[str, ...] = ()
    """Why earlier attempts ended as FAIL (see `--retry-failed`)."""
    trained: bool = True
    """False if training provably changes nothing (no mask bit can flip), so that none took place:
    the result is that of the untuned model."""
    format: int = FORMAT
    """Version of this record."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(exact, self.values)))
        object.__setattr__(self, "value", None if self.value is None else exact(self.value))

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy, a fraction, whatever the objective; None for a failure."""
        return None if self.value is None else self.metrics.get("val/accuracy", self.value)

    @property
    def system_attrs(self) -> dict[str, Any]:
        """`notes`, by the name that they have in `IssuedTrial`."""
        return self.notes


def counted(results: Iterable[Result], trials: int) -> int:
    """Number of ended trials that count against `--trials`: untrained ones do not, but fewer than
    `trials` of them, so that a sweep ends if its space has no others, and `--trials 1` is one."""
    trained = [result.trained for result in results]
    return counting(len(trained), trained.count(False), trials)


def counting(ended: int, untrained: int, trials: int) -> int:
    """As `counted`, of numbers of results."""
    return ended - min(untrained, max(0, trials - 1))


def untrained_note(results: Iterable[Result]) -> str:
    """How many trials were not trained, and why; empty if all were."""
    numbers = [str(result.number) for result in results if not result.trained]
    if not numbers:
        return ""
    if len(numbers) == 1:
        return f"Trial {numbers[0]} cannot flip a mask bit: it was not trained and does not count."
    return f"{len(numbers)} trials cannot flip a mask bit: they were not trained."


T = TypeVar("T", IssuedTrial, Result)


def trial_folder(number: int) -> str:
    """Name of a trial's folder in the sweep's folder."""
    return f"trials/{number:06d}"


def learned_files(folder: Storage) -> list[str]:
    """Names of the files in a trial's folder that hold what it has learned, one per episode."""
    names = folder.files()
    return [name for name in names if name.startswith("artifact") and name.endswith(".safetensors")]


def write_issued(sweep: Storage, issued: IssuedTrial) -> None:
    """Create or replace a trial's `issued.json`."""
    sweep.child(trial_folder(issued.number)).write(ISSUED, _json(issued))


def commit(sweep: Storage, result: Result, rows: Sequence[Row]) -> None:
    """Write a trial's end. After it returns, no crash undoes it."""
    folder = sweep.child(trial_folder(result.number))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder.write(METRICS, lines.encode())
    folder.write(RESULT, _json(result))


def read_trials(sweep: Storage) -> tuple[dict[int, Result], dict[int, IssuedTrial]]:
    """All trials that have ended, and those that have not, by number; raises `UsageError` for a
    file that cannot be read."""
    files = sweep.child("trials").files()
    results = _read_results(sweep, files)
    return results, _read_issued(sweep, [name for name in files if _number(name) not in results])


def read_results(sweep: Storage, methods: bool = True) -> dict[int, Result]:
    """Every committed result, by number; raises `UsageError` for one that cannot be read.

    Without `methods`, the parts of configurations that depend on the method are not checked:
    methods load torch.
    """
    files = sweep.child("trials").files()
    return _read_results(sweep, files, methods)


def read_issued(sweep: Storage, methods: bool = True) -> dict[int, IssuedTrial]:
    """Every trial that was issued and has not ended, by number; raises `UsageError`. `methods` as
    in `read_results`."""
    files = sweep.child("trials").files()
    ended = {_number(name) for name in files if name.endswith(f"/{RESULT}")}
    return _read_issued(sweep, [name for name in files if _number(name) not in ended], methods)


def unreadable(name: str, why: str) -> UsageError:
    """The error for a trial's file that cannot be used; `name` is relative to `trials`."""
    return UsageError(
        [
            f"A trial's files must be readable, and 'trials/{name}' is not: {why}. "
            "Restore the file from a copy, or start another sweep with --name."
        ]
    )


def read_rows(sweep: Storage, number: int) -> list[Row]:
    """A committed trial's metrics, one row per epoch; empty if the file is lost or damaged."""
    try:
        text = sweep.read(f"{trial_folder(number)}/{METRICS}")
        rows = [json.loads(line) for line in text.splitlines()]
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    return rows if all(map(_is_row, rows)) else []


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in row.values()
    )


def _json(record: IssuedTrial | Result) -> bytes:
    return (json.dumps(asdict(record), indent=1, allow_nan=False) + "\n").encode()


def _number(name: str) -> int | None:
    folder = name.partition("/")[0]
    return int(folder) if folder.isdecimal() else None


def _read_results(sweep: Storage, files: Sequence[str], methods: bool = True) -> dict[int, Result]:
    names = [file for file in files if file.endswith(f"/{RESULT}")]
    found = zip(names, sweep.child("trials").read_many(names), strict=True)
    results = (_read(name, data, Result, methods) for name, data in found if data is not None)
    return {result.number: result for result in results}


def _read_issued(
    sweep: Storage, files: Sequence[str], methods: bool = True
) -> dict[int, IssuedTrial]:
    found = {}
    for name in files:
        if name.endswith(f"/{ISSUED}"):
            # A trial that ends while we look loses this file.
            with suppress(FileNotFoundError):
                issued = _read(name, sweep.read(f"trials/{name}"), IssuedTrial, methods)
                found[issued.number] = issued
    return found


def _read(name: str, data: bytes, cls: type[T], methods: bool) -> T:
    """Parse a record; `name` is relative to `trials`."""
    try:
        record = read_version(cls, data, FORMAT if cls is Result else ISSUED_FORMAT)
        _check(name, record, methods)
    except RecordError as error:
        raise unreadable(name, str(error)) from error
    return record


def _check(name: str, record: Result | IssuedTrial, methods: bool) -> None:
    """Raises `RecordError` if fields contradict each other, or the record is in the wrong place."""
    if name.rpartition("/")[0] != f"{record.number:06d}":
        raise RecordError("number", f"must be that of the folder, got {record.number}")
    try:
        if methods:
            TrialConfig.from_dict(record.config)
        else:
            TrialConfig.check_shape(record.config)
    except RecordError as error:
        raise error.inside("config") from error
    for parameter, text in record.distributions.items():
        if parameter not in record.parameters:
            raise RecordError(f"parameters.{parameter}", "is missing")
        if problem := _misfit(record.parameters[parameter], text):
            raise RecordError(f"parameters.{parameter}", problem)
    if isinstance(record, IssuedTrial):
        return
    value = record.value
    if (record.state == "FAIL") != (value is None):
        raise RecordError(
            "value", f"must be null if and only if state is FAIL, got {json.dumps(value)}"
        )
    for metric, number in record.metrics.items():
        if metric.endswith("/accuracy") and not 0 <= number <= 1:
            raise RecordError(f"metrics.{metric}", f"must be between 0 and 1, got {number}")


def _misfit(value: object, distribution: str) -> str:
    """Why a value cannot have been drawn from a distribution in Optuna's JSON; empty if it can. A
    number may be outside its interval: the paper's setting often is."""
    shown = json.dumps(value)[:60]
    match _parsed(distribution):
        case {"name": "CategoricalDistribution", "attributes": {"choices": list(choices)}}:
            return "" if value in choices else f"must be one of the choices, got {shown}"
        case {"name": "FloatDistribution" | "IntDistribution", "attributes": dict()}:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return "" if is_number else f"must be a number, got {shown}"
    return f"must have a distribution in Optuna's JSON, got {json.dumps(distribution)[:60]}"


@lru_cache(maxsize=1 << 10)  # trials share their distributions
def _parsed(distribution: str) -> object:
    try:
        return parse_json(distribution.encode())
    except (RecordError, UnicodeEncodeError):
        return None
