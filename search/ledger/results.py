"""How trials ended: the files that make a trial finished, once they are there.

In a trial's folder lie `result.json`, the commit, and `metrics.jsonl`, a row an epoch, which is
written before it. `result.json` is whole or not there; nothing changes it afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from search.core.problems import UsageError
from trainables.storage import Storage
from trainables.trial import TrialConfig

FORMAT = 2
"""Version of `result.json`."""
RESULT = "result.json"
METRICS = "metrics.jsonl"

State = Literal["COMPLETE", "PRUNED", "FAIL"]
Row = dict[str, float]
"""Metrics of one epoch, with `epoch` and `time` (unix seconds)."""


@dataclass(frozen=True)
class Result:
    """How a trial ended: the content of its `result.json`."""

    number: int
    """The trial's number, from 0."""
    state: State
    """`COMPLETE`: trained to its end; `PRUNED`: stopped early by the pruner; `FAIL`: see reason."""
    value: float | None
    """Validation accuracy (a fraction): final, or the last before pruning; none for a failure."""
    values: tuple[float, ...]
    """The objective after each part."""
    metrics: dict[str, float]
    """The last row of metrics, and the forecast."""
    parameters: dict[str, Any]
    """The space's parameters, as sampled."""
    distributions: dict[str, str]
    """What each parameter was drawn from, as Optuna's JSON."""
    notes: dict[str, Any]
    """What sampler and pruner have noted of it (ASHA: its value on each rung), as Optuna's system
    attributes: later trials are compared with it."""
    config: dict[str, Any]
    """The resolved `TrialConfig`."""
    train_seconds: float
    """Time in training and validation."""
    begun: float
    """Unix time at which the trial was first issued."""
    ended: float
    """Unix time."""
    host: str
    """Name of the host that trained its last part; empty where none answered."""
    warnings: tuple[str, ...] = ()
    """What the method said before training that the user should know."""
    failures: int = 0
    """Times that its worker died or ran out of memory."""
    reason: str = ""
    """Why it failed, else empty."""
    details: str = ""
    """Traceback of a failure, else empty."""
    format: int = FORMAT
    """Version of this record."""


def trial_folder(number: int) -> str:
    """Where a trial's files lie in the sweep's folder."""
    return f"trials/{number:06d}"


def commit(sweep: Storage, result: Result, rows: Sequence[Row]) -> None:
    """Write a trial's end. After it returns, nothing loses it."""
    folder = sweep.child(trial_folder(result.number))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder.write(METRICS, lines.encode())
    text = json.dumps(asdict(result), indent=1, allow_nan=False) + "\n"
    folder.write(RESULT, text.encode())


def read_results(sweep: Storage) -> dict[int, Result]:
    """Every committed result, by number; raises `UsageError` for one that cannot be read."""
    names = [n for n in sweep.child("trials").files() if n.endswith(f"/{RESULT}")]
    texts = sweep.child("trials").read_many(names)
    results = (_parse(name, text) for name, text in zip(names, texts, strict=True))
    return {result.number: result for result in results}


def unreadable(name: str, why: str) -> UsageError:
    """What is told of a result that cannot be used; `name` is the file's in `trials`."""
    return UsageError(
        [
            f"A committed result must be readable, and 'trials/{name}' is not: {why}. "
            "Restore the file from a copy, or start another sweep with --name."
        ]
    )


def read_rows(sweep: Storage, number: int) -> list[Row]:
    """A committed trial's metrics, a row an epoch; none where the file was lost."""
    try:
        text = sweep.read(f"{trial_folder(number)}/{METRICS}")
        return [json.loads(line) for line in text.splitlines()]
    except (FileNotFoundError, ValueError):
        return []


def _parse(name: str, text: bytes) -> Result:
    try:
        plain = json.loads(text)
        if plain.get("format") != FORMAT:
            raise ValueError(f"it has format {plain.get('format')}, this version reads {FORMAT}")
        result = Result(**(plain | {key: tuple(plain[key]) for key in ("values", "warnings")}))
        if name != f"{result.number:06d}/{RESULT}":
            raise ValueError(f"it is of trial {result.number}")
        _check(result)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise unreadable(name, why) from error
    return result


def _check(result: Result) -> None:
    """Raises `ValueError` where no ledger of this version can have committed it."""
    if result.state not in get_args(State):
        raise ValueError(f"it has the state {json.dumps(result.state)}")
    if (result.state == "FAIL") != (result.value is None):
        raise ValueError(f"it is {result.state} with the value {json.dumps(result.value)}")
    for value in result.values if result.value is None else (*result.values, result.value):
        if not isinstance(value, float | int) or not math.isfinite(value):
            raise ValueError(f"it has the value {json.dumps(value)}")
    try:
        TrialConfig.from_dict(result.config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"this version does not know its configuration ({error})") from error
