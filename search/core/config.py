"""What a sweep is: one frozen record, checked as a whole, kept as JSON in the sweep's folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, get_args

from search.core.init_from import Start
from search.core.objectives import SAMPLERS_OF_TWO, parse_objective
from search.core.pruners import PRUNERS
from search.core.samplers import SAMPLERS
from search.ledger.store import JOURNAL_LEDGER
from spaces.base import Space, TaskFacts
from spaces.pipeline import StartedSpace
from spaces.registry import SPACES, SpaceError, find_space
from trainables.credentials import without_password
from trainables.storage import join
from trainables.suggest import did_you_mean
from trainables.trial import Protocol, TaskSpec

IDENTITY = ("space", "task", "sampler", "pruner", "seed")
"""Settings that make a sweep what it is, and its start and second objective where it has them; the
others may differ when it is resumed. So may the task's `skip_unreadable`: an image that cannot be
read may be met first among the test images, and what was trained on is known by the fingerprints
of the draws."""


@dataclass(frozen=True)
class SweepConfig:
    """One hyper-parameter search over one few-shot task."""

    space: str = "rmt"
    """Name of the space, see `spaces.registry.find_space`."""
    task: TaskSpec = field(
        default_factory=lambda: TaskSpec(("digits",), "tiny", (16,), SPACES["rmt"].seeds)
    )
    """What every trial solves."""
    trials: int = SPACES["rmt"].trials
    """Finished trials to reach, those of earlier runs counted in."""
    sampler: str = "tpe"
    """Registry name of the Optuna sampler."""
    pruner: str = "asha"
    """Registry name of the Optuna pruner."""
    second_objective: str = ""
    """A second objective beside validation accuracy, `METRIC:max` or `METRIC:min`, if any."""
    seed: int = 0
    """Seeds the sampler and the training of every trial."""
    init_from: Start | None = None
    """What every trial begins with, if anything."""
    time_budget: float | None = None
    """Seconds after which no part of a trial is begun; none by default."""
    eval_seeds: int = 3
    """Fresh few-shot draws that the winner is re-trained on before the test split is read."""
    per_task: bool = False
    """Whether every data set and number of shots gets a search of its own."""
    name: str = ""
    """Folder name of the sweep; derived from the identity where empty."""
    storage: str = "sweeps"
    """Where the sweeps are: a folder or a URI, see `trainables.storage.open_storage`."""
    ledger: str = JOURNAL_LEDGER
    """Where the study is kept: `journal` (in the sweep's folder) or a PostgreSQL address."""
    tracking_uri: str = ""
    """MLflow tracking URI, or `none`; a sqlite file in the storage where empty."""
    data: str = ""
    """Folder that holds the field's data sets, on every machine that runs trials."""
    address: str = ""
    """Ray cluster to join; a private local one where empty."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    cpus_per_trial: float = 1
    """CPU cores a trial occupies, and threads it trains with."""
    gpus_per_trial: float | None = None
    """GPUs (or a share of one) a trial occupies; chosen where none is given."""
    max_concurrent: int | None = None
    """Most trials at a time; as many as fit where none is given."""
    checkpoint_seconds: float = 5.0
    """Least time between two checkpoints of a trial, in seconds."""
    report: bool = True
    """Whether a report is written at the end."""
    register: str | None = None
    """Registered model in MLflow that the winner becomes a version of; none where not asked for."""

    def identity(self) -> dict[str, Any]:
        """The settings that may not change when a sweep is resumed."""
        plain = self.to_dict()
        del plain["task"]["skip_unreadable"]
        found = {key: plain[key] for key in IDENTITY}
        found |= {"init_from": self.init_from.identity()} if self.init_from else {}
        return found | (
            {"second_objective": self.second_objective} if self.second_objective else {}
        )

    def open_space(self, setting: TaskFacts) -> Space:
        """The space for a task; raises `SpaceError`."""
        space = find_space(self.space).build(setting)
        return StartedSpace(space, self.init_from.stage) if self.init_from else space

    @property
    def sweep_name(self) -> str:
        """`name`, or one that the same identity always gets."""
        if self.name:
            return self.name
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        shots = "-".join(map(str, self.task.shots))
        backbone = PurePath(self.task.backbone).name
        if is_bundle(self.task.backbone):
            backbone = "bundle"
        name = f"{self.space}-{self.task.short}-{backbone}-{shots}shot-{digest[:6]}"
        return re.sub(r"[^A-Za-z0-9._]+", "-", name)[-100:].lstrip("._-")

    @property
    def location(self) -> str:
        """Where the sweep's folder is: an absolute path, or a URI."""
        return join(self.storage, self.sweep_name)

    def public(self) -> SweepConfig:
        """As it may be stored and shown: no address holds a password."""
        start = self.init_from
        if start:
            location = without_password(start.location)
            start = dataclasses.replace(start, location=location)
        return dataclasses.replace(
            self,
            init_from=start,
            ledger=without_password(self.ledger),
            storage=without_password(self.storage),
            tracking_uri=without_password(self.tracking_uri),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SweepConfig:
        """The inverse of `to_dict`; raises `TypeError` for unknown fields."""
        fields = {_OLD_NAMES.get(key, key): value for key, value in plain.items()}
        start = fields.get("init_from")
        fields["init_from"] = Start.from_dict(start) if start else None
        return cls(**(fields | {"task": TaskSpec.from_dict(plain["task"])}))

    def problems(self) -> list[str]:
        """Every broken rule that can be seen without loading a model or asking a server."""
        found = [
            did_you_mean(kind, value, known)
            for kind, value, known in (
                ("sampler", self.sampler, SAMPLERS),
                ("pruner", self.pruner, PRUNERS),
            )
            if value not in known
        ]
        try:
            find_space(self.space)
        except SpaceError as error:
            found.append(str(error))
        for option, number, least in (
            ("--trials", self.trials, 1),
            ("--eval-seeds", self.eval_seeds, 1),
            ("--seed", self.seed, 0),
            ("--max-concurrent", 1 if self.max_concurrent is None else self.max_concurrent, 1),
        ):
            if number < least:
                found.append(f"{option} must be at least {least}, got {number}.")
        found += self.task_problems() + self._register_problems() + self._also_problems()
        if self.init_from:
            found += self.init_from.problems(self.task)
        if self.init_from and self.per_task:
            found.append(
                "--per-task splits a task, and --init-from was found on it as a whole: not both."
            )
        if self.time_budget is not None and self.time_budget <= 0:
            found.append(f"--time-budget must be positive, got {self.time_budget:g} s.")
        if not 0 <= self.checkpoint_seconds < math.inf:
            found.append(
                "--checkpoint-seconds must be a finite number of at least 0, got "
                f"{self.checkpoint_seconds:g}."
            )
        if self.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            found.append(
                "--name must be letters, digits, '.', '_' and '-' (at most 100, the first a "
                f"letter or digit), got '{self.name}'."
            )
        return found

    def _also_problems(self) -> list[str]:
        if not self.second_objective:
            return []
        found = []
        try:
            parse_objective(self.second_objective)
        except ValueError as error:
            found.append(f"--second-objective: {error}.")
        if self.pruner != "none":
            found.append(
                f"No trial can be stopped early for two objectives, got --pruner {self.pruner} "
                "with --second-objective: use --pruner none."
            )
        if self.sampler not in SAMPLERS_OF_TWO:
            found.append(
                f"--sampler {self.sampler} cannot propose for two objectives: with "
                f"--second-objective use one of {', '.join(SAMPLERS_OF_TWO)}."
            )
        return found

    def _register_problems(self) -> list[str]:
        if self.register is None:
            return []
        found = [why] if (why := model_name_problem(self.register)) else []
        if self.tracking_uri == "none":
            found.append("--register needs an MLflow: it does not go with --tracking-uri none.")
        if is_bundle(self.task.backbone):
            found.append(
                "--register takes a network that reads images, and a bundle holds features only: "
                "leave it away."
            )
        if self.per_task:
            found.append(
                "--per-task finds a winner a task, and --register names one model: register each "
                "afterwards with python -m search.export NAME --register MODEL."
            )
        return found

    def task_problems(self) -> list[str]:
        """Those of the task alone, before its data is looked at."""
        task = self.task
        found = [did_you_mean("protocol", task.protocol, get_args(Protocol))] * (
            task.protocol not in get_args(Protocol)
        )
        for option, values in (
            ("--dataset", task.datasets),
            ("--shots", task.shots),
            ("--seeds", task.seeds),
        ):
            if not values:
                found.append(f"{option} must name at least one, e.g. {_EXAMPLES[option]}.")
            elif len(set(values)) < len(values):
                listed = ",".join(map(str, values))
                found.append(f"{option} must differ from each other, got {listed}.")
        if min(task.seeds, default=0) < 0:
            found.append(f"--seeds must not be negative, got {min(task.seeds)}.")
        if min(task.shots, default=1) < 1:
            found.append(f"--shots must be at least 1, got {min(task.shots)}.")
        bundles = [spec for spec in task.datasets if is_bundle(spec)]
        if not task.datasets:
            return found
        if bundles and (len(task.datasets) > 1 or task.protocol != "few-shot"):
            found.append(
                f"A bundle is a task of its own, got --dataset {','.join(task.datasets)} "
                f"--protocol {task.protocol}: name the bundle alone, with --protocol few-shot."
            )
        elif bundles and task.backbone != bundles[0]:
            found.append(
                f"A bundle holds the features of its own backbone, so --backbone '{task.backbone}' "
                "does not go with it: leave that option away."
            )
        elif not bundles and is_bundle(task.backbone):
            found.append(
                f"--backbone '{task.backbone}' can encode no images: use it as --dataset, alone."
            )
        if task.protocol == "cross-dataset" and len(task.datasets) < 2:
            found.append(
                "--protocol cross-dataset trains on the first data set and judges the others, got "
                f"only '{','.join(task.datasets)}': e.g. --dataset imagenet,dtd,eurosat."
            )
        return found


def model_name_problem(name: str) -> str:
    """Why MLflow's model registry would refuse this name; empty if it would not."""
    if (
        name.strip()
        and not set(name) & {"/", ":"}
        and posixpath.normpath(name) == name
        and not name.startswith("..")
        and name != "."
        and len(name) <= _MODEL_NAME
        and name.isprintable()
        and not {"'", '"'} <= set(name)  # no query could ask for it
    ):
        return ""
    return (
        f"The name of a registered model must be up to {_MODEL_NAME} characters without '/' and "
        f"':', and not '.' or '..', got '{name}': e.g. --register digits-rmt."
    )


def is_bundle(spec: str) -> bool:
    """Whether a data set or a backbone is a bundle of features."""
    return spec.startswith("bundle:")


_OLD_NAMES = {"also": "second_objective", "start": "init_from"}
"""Names of fields in sweeps of earlier releases."""

_MODEL_NAME = 256  # characters the registry's tables keep
_EXAMPLES = {"--dataset": "--dataset digits", "--shots": "--shots 16", "--seeds": "--seeds 1,2,3"}


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """One line per setting that differs: option, stored value, asked value."""
    flat_stored, flat_asked = _flat(stored), _flat(asked)
    return [
        f"{key}: the sweep has {json.dumps(flat_stored.get(key))}, "
        f"asked for {json.dumps(flat_asked.get(key))}"
        for key in sorted(flat_stored | flat_asked)
        if flat_stored.get(key) != flat_asked.get(key)
    ]


def _flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    task = {f"{key}": value for key, value in plain.get("task", {}).items()}
    return {key: value for key, value in plain.items() if key != "task"} | task
