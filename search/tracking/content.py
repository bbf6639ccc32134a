"""What MLflow's runs of a sweep should hold, from results and from what workers report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.core.config import SweepConfig
from search.core.results import Result, learned_files, read_rows, trial_folder
from search.evaluation.record import EVALUATION
from trainables.core.storage import Storage
from trainables.report import step_ends
from trainables.trial import Episode, TrialConfig

REPORT = "report"
"""The only folder among artifacts; all other files are at the top."""
_CONFIG = "config.json"
_POINTS = 32  # of a training curve; each costs the driver about 0.2 ms
_DIGEST_LENGTH = 36  # characters of a data set's digest that MLflow keeps


@dataclass(frozen=True)
class Row:
    """What was measured at one step."""

    step: int
    """Counted from the trial's start."""
    time: float
    """Unix time in seconds."""
    metrics: Mapping[str, float]
    """Metrics by name. NaN is kept; an infinity goes to the tag `search.infinite_metrics`."""


@dataclass(frozen=True)
class DataInput:
    """A data set that a run was trained on."""

    name: str
    """Short name of the data set."""
    digest: str
    """Fingerprint of the images that few-shot sets are drawn from."""
    source: str
    """The data set's specification."""
    profile: Mapping[str, Any]
    """How the few-shot sets were drawn."""


@dataclass(frozen=True)
class End:
    """How a run ended."""

    state: str
    """COMPLETE, PRUNED, FAIL or INTERRUPTED."""
    time: float
    """Unix time in seconds."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final figures; stored at step 0."""
    artifacts: Sequence[str] = ()
    """Names of files in the sweep's folder."""


@dataclass(frozen=True)
class RunContent:
    """What a run should hold."""

    begun: float
    """Unix time in seconds."""
    params: Mapping[str, object]
    """Parameters by name. MLflow does not change one that exists."""
    tags: Mapping[str, str]
    """Tags by name."""
    rows: Sequence[Row] = ()
    """Metrics of the steps so far."""
    inputs: Sequence[DataInput] = ()
    """Data sets that the run is trained on."""
    end: End | None = None
    """How the run ended, or None while it is running."""
    removed_tags: Sequence[str] = ()
    """Names of tags that the run must not have."""


def trial_content(
    config: TrialConfig,
    begun: float,
    rows: Sequence[Row],
    end: End | None,
    inputs: Sequence[DataInput],
    tags: Mapping[str, str],
    in_sequence: Sequence[Episode] = (),
) -> RunContent:
    """The run of a trial, with the rows at the ends of its steps, and between them so many that a
    curve has at most 32 more points. `in_sequence` as in `step_ends`."""
    own = {"preset": config.preset, "method": config.methods}
    ends = step_ends(config, in_sequence)
    stride = math.ceil(max(1, ends[-1]) / _POINTS)
    sent = [row for row in rows if row.step % stride == 0 or row.step in ends]
    return RunContent(begun, config.flat(), own | dict(tags), sent, inputs, end)


def result_content(
    sweep: Storage,
    result: Result,
    inputs: Sequence[DataInput],
    tags: Mapping[str, str],
    in_sequence: Sequence[Episode] = (),
) -> RunContent:
    """The run of a trial that has ended, from the sweep's folder; raises `StorageError`."""
    measured = read_rows(sweep, result.number)
    rows = [metric_row(row) for row in measured]
    last = measured[-1] if measured else {}
    if forecast := {name: value for name, value in result.metrics.items() if name not in last}:
        rows.insert(0, Row(0, result.begun, forecast))
    metrics = {"train/seconds": result.train_seconds}
    if result.value is not None:
        metrics["objective"] = result.value
    own = {"search.reason": result.reason} if result.reason else {}
    if result.warnings:
        own["search.warning"] = " ".join(result.warnings)
    end = End(result.state, result.ended, metrics, _artifacts(sweep, result))
    config = TrialConfig.from_dict(result.config)
    return trial_content(config, result.begun, rows, end, inputs, own | dict(tags), in_sequence)


def metric_row(row: Mapping[str, float]) -> Row:
    """A row of a trial's metrics, as workers report it and as the folder holds it."""
    metrics = {name: value for name, value in row.items() if name not in ("epoch", "time")}
    return Row(int(row["epoch"]), row["time"], metrics)


def _artifacts(sweep: Storage, result: Result) -> list[str]:
    """The trial's configuration, which is written if it is missing, and what it learned."""
    folder = sweep.child(trial_folder(result.number))
    files = folder.files()
    if _CONFIG not in files:
        folder.write(_CONFIG, (json.dumps(result.config, indent=1) + "\n").encode())
    names = [_CONFIG, *(learned_files(folder) if result.state != "FAIL" else [])]
    return [f"{trial_folder(result.number)}/{name}" for name in names]


def sweep_artifacts(sweep: Storage) -> list[str]:
    """Names of the files that belong to the sweep's own run, once it has been evaluated."""
    names = (f"{folder}/{n}" for folder in ("winner", REPORT) for n in sweep.child(folder).files())
    return [EVALUATION, *names]


def data_inputs(config: SweepConfig, fingerprints: Mapping[str, str]) -> list[DataInput]:
    """The data sets that trials are trained on, as MLflow's inputs of a run."""
    task = config.task
    profile = {"shots": task.shots, "seeds": task.seeds, "draws": task.draws}
    found = []
    for source, name in zip(task.sources, task.names, strict=True):
        suffix = f".{source}" if len(task.sources) > 1 else ""
        if digest := fingerprints.get(f"train{suffix}"):
            found.append(DataInput(name, digest[:_DIGEST_LENGTH], source, profile))
    return found
