"""The configuration of a sweep: one frozen record, stored as JSON in the sweep's folder.

The docstrings of its fields are the help texts of `search.run`, which has an option per field.
Spaces and methods, which load torch, are imported when they are needed: reading a configuration
does without them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, get_args

from search.core.dataset_problems import (
    NOT_WITH_FOLDS,
    bundle_problems,
    fold_problems,
    is_bundle,
)
from search.core.init_from import Start
from search.core.model_name import model_name_problem, sweep_name_problem
from search.core.objectives import SAMPLERS_OF_TWO, parse_objective
from search.core.pruners import PRUNERS
from search.core.samplers import GRID, SAMPLERS
from spaces.settings import Settings, SettingsError
from trainables.core.credentials import without_password
from trainables.core.protocols import Objective, Protocol, Validation
from trainables.core.records import from_plain, upgraded
from trainables.core.storage import join
from trainables.core.text import did_you_mean
from trainables.trial import TaskSpec, TrialConfig

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

    from spaces.base import Space
    from trainables.methods.base import TaskFacts

IDENTITY = ("space", "task", "sampler", "pruner", "seed")
"""Settings that may not change when a sweep is resumed; neither may `init_from`, `settings` and
`second_objective`, if there are any. The task's `skip_unreadable` may change: an unreadable image
can first turn up among the test images, and the fingerprints of the draws record what was trained
on."""

KEEP = ("auto", "all", "complete", "best")
"""Values of `keep_artifacts`."""

MAX_SEED = 2**62
"""Largest seed. Predictions store seeds as 64-bit integers, and fresh seeds follow the largest."""

_BOUNDS = {
    "trials": (1, 10**6),
    "seed": (0, MAX_SEED),
    "max_concurrent": (1, 10**6),
}


@dataclass(frozen=True)
class SweepConfig:
    """One hyper-parameter search over one few-shot task."""

    space: str = "rmt"
    """Search space: the method and the ranges of its parameters. Names joined by + are stages, each
    trained on the backbone that the one before has changed."""
    task: TaskSpec = field(default_factory=lambda: TaskSpec(("digits",), "tiny", (16,), (1,)))
    """What every trial solves."""
    init_from: Start | None = None
    """Start every trial from the winner of this finished sweep, given by name or folder, on the
    same task."""
    settings: Settings = field(default_factory=Settings)
    """What is fixed and searched in place of the space's own ranges."""
    trials: int = 16
    """Finished trials to reach, including those of earlier runs."""
    sampler: str = "tpe"
    """How trials are proposed."""
    pruner: str = "asha"
    """How bad trials are stopped early."""
    second_objective: str = ""
    """A second objective besides --objective: a metric that trials report when they finish, and
    max or min, e.g. mask/sparsity:max. It disables early stopping; the report shows the Pareto
    front."""
    seed: int = 0
    """Seed of the sampler and of the training. The same seed gives the same trials if they run one
    at a time."""
    select: str = "best"
    """What the result is: ensemble, the weighted log-probabilities of the best trials and the
    zero-shot model; best, the best trial; or the number of a trial, also of a finished sweep (with
    --resume)."""
    time_budget: float | None = None
    """Search for at most this long: 90, 10m, 1.5h. Unfinished trials are kept."""
    eval_seeds: int = 3
    """Fresh few-shot draws on which the winner is trained again before the test split is read."""
    per_task: bool = False
    """Run a separate search for every data set and number of shots, instead of one for all."""
    test_folds: int = 0
    """Cross-validate a folder of your own: N searches, each holding out a different N-th of the
    images for testing, so that each image is tested once."""
    plugin: tuple[str, ...] = ()
    """A Python file with methods, spaces or data sets of your own, in tables METHODS, SPACES and
    DATASETS; FEWSHOT_PLUGINS=FILE does the same for every command. Repeatable."""
    name: str = ""
    """Name of the sweep (default: derived from its settings)."""
    storage: str = "sweeps"
    """Where sweeps are stored: a folder, or a URI such as s3://BUCKET/PATH or gs://BUCKET/PATH."""
    study_storage: str = ""
    """Database that mirrors the Optuna study, for optuna-dashboard: sqlite:///FILE or
    postgresql://USER@HOST/DATABASE."""
    tracking_uri: str = ""
    """MLflow: sqlite:///FILE, http://HOST:PORT, or none (default: MLFLOW_TRACKING_URI if set, else
    a SQLite file in the storage folder)."""
    experiment: str = "few-shot-search"
    """MLflow experiment that holds the runs (default: MLFLOW_EXPERIMENT_NAME if set, else
    few-shot-search)."""
    data: str = ""
    """Folder of the field's data sets, in their usual layout, on every machine that runs trials;
    python -m search.doctor checks it (default: FEWSHOT_DATA if set)."""
    address: str = ""
    """Ray cluster to join, or auto (default: RAY_ADDRESS if set, else this machine)."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""
    cpus_per_trial: float = 1
    """CPU cores per trial, and its threads."""
    gpus_per_trial: float | None = None
    """GPUs per trial; 0.25 puts four trials on one card (default: 1 if there is a GPU)."""
    max_concurrent: int | None = None
    """Maximum number of concurrent trials; on a growing cluster, its full size (default: as many as
    fit)."""
    checkpoint_seconds: float = 5.0
    """Minimum interval between two checkpoints of a trial, in seconds."""
    keep_artifacts: str = "auto"
    """Whose learned artifacts are kept and sent to MLflow: all (also of trials stopped early),
    complete, best (one trial, or the Pareto front), or auto (all, and only complete ones while the
    disk has less than 5 GB left)."""
    report: bool = True
    """Whether a report is written at the end."""
    register: str | None = None
    """At the end, make the winner a version of this registered model in MLflow, with the alias
    champion; python -m search.export NAME --register MODEL does the same at any time."""

    def identity(self) -> dict[str, Any]:
        """Settings that may not change when a sweep is resumed."""
        plain = self.to_dict()
        del plain["task"]["skip_unreadable"]
        found = {key: plain[key] for key in IDENTITY}
        found |= {"init_from": self.init_from.identity()} if self.init_from else {}
        found |= {"settings": changed} if (changed := self.settings.identity()) else {}
        return found | (
            {"second_objective": self.second_objective} if self.second_objective else {}
        )

    def open_space(self, facts: TaskFacts) -> Space:
        """The space for a task; raises `SpaceError` and `SettingsError`."""
        from spaces.adjust import adjust
        from spaces.pipeline import StartedSpace

        space = adjust(self._plain_space(facts), self.settings)
        return StartedSpace(space, self.init_from.stage) if self.init_from else space

    def paper(self, facts: TaskFacts) -> TrialConfig:
        """The paper's setting for a task; raises `SpaceError`."""
        found = self._plain_space(facts).paper
        return found.after(self.init_from.stage) if self.init_from else found

    def _plain_space(self, facts: TaskFacts) -> Space:
        from spaces.registry import find_space

        before = self.init_from.stage.stages if self.init_from else ()
        own = dataclasses.replace(facts, after=tuple(stage.method for stage in before))
        return find_space(self.space).build(own)

    @property
    def general_space(self) -> Space:
        """The space for a general task, before anything is known of backbone and data; raises
        `SpaceError` and `SettingsError`."""
        from trainables.methods.base import TaskFacts

        # Presets depend on no larger number, and nothing has checked this one yet.
        shots = max(1, min(16, max(self.task.shots, default=1)))
        return self.open_space(TaskFacts("", shots, shots * 10, protocol=self.task.protocol))

    @property
    def sweep_name(self) -> str:
        """`name`, or a name derived from the identity."""
        if self.name:
            return self.name
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        shots, spec = "-".join(map(str, self.task.shots)), self.task.backbone
        backbone = "bundle" if is_bundle(spec) else PurePath(spec).name
        name = f"{self.space}-{self.task.short}-{backbone}-{shots}shot-{digest[:6]}"
        return re.sub(r"[^A-Za-z0-9._]+", "-", name)[-100:].lstrip("._-")

    @property
    def location(self) -> str:
        """Location of the sweep's folder: an absolute path or a URI."""
        return join(self.storage, self.sweep_name)

    def public(self) -> SweepConfig:
        """A copy without passwords, fit to be stored and printed."""
        start = self.init_from
        if start:
            location = without_password(start.location)
            start = dataclasses.replace(start, location=location)
        return dataclasses.replace(
            self,
            init_from=start,
            study_storage=without_password(self.study_storage),
            storage=without_password(self.storage),
            tracking_uri=without_password(self.tracking_uri),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain | {"task": self.task.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SweepConfig:
        """The inverse of `to_dict`; raises `RecordError`."""
        return from_plain(cls, plain)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return upgraded(handler(source), _upgrade)

    def problems(self) -> list[str]:
        """Every broken rule that shows without a model, a server or data."""
        found = [
            did_you_mean(kind, value, known)
            for kind, value, known in (
                ("choice for --keep-artifacts", self.keep_artifacts, KEEP),
                ("sampler", self.sampler, (*SAMPLERS, *((GRID,) if self.settings.grid else ()))),
                ("pruner", self.pruner, PRUNERS),
            )
            if value not in known
        ]
        found += self._space_problems()
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                found.append(f"{option(name)} must be {_between(least, most, value)}.")
        found += self._time_problems() + self.task_problems() + self._objective_problems()
        if self.init_from:
            found += self.init_from.problems(self.task)
        if not (self.select in _SELECT or self.select.isdecimal()):
            found.append(
                f"--select must be {', '.join(_SELECT)} or the number of a trial, got "
                f"'{self.select}'. Use e.g. --select best."
            )
        if self.select == "ensemble" and (self.init_from or "+" in self.space):
            found.append(
                "--select ensemble needs trials on one frozen image encoder, and those of several "
                "stages change it. Use --select best."
            )
        if self.task.validation == "folds" and (self.init_from or "+" in self.space):
            found.append(
                "--validation folds needs trials of one stage. Use --validation pooled or held-out."
            )
        if self.init_from and self.per_task:
            found.append(
                "--per-task cannot be used with --init-from, whose sweep solved the task as a "
                "whole. Omit one of them."
            )
        excluded = [option(name) for name in NOT_WITH_FOLDS if getattr(self, name)]
        found += fold_problems(self.test_folds, self.task, excluded)
        if self.register is not None and (why := model_name_problem(self.register)):
            found.append(why)
        if self.register is not None and self.tracking_uri == "none":
            found.append("--register requires MLflow, got --tracking-uri none. Omit one of them.")
        if self.register is not None and self.per_task:
            found.append(
                "--register cannot be used with --per-task, which finds a winner per task. "
                "Register each afterwards: python -m search.export NAME --register MODEL."
            )
        if self.register is not None and is_bundle(self.task.backbone):
            found.append(
                "--register requires an image model, and a bundle holds only features. Omit it."
            )
        if self.name and (why := sweep_name_problem(self.name)):
            found.append(f"--name {why}")
        return found

    def _space_problems(self) -> list[str]:
        from spaces.registry import SpaceError

        try:
            space = self.general_space
        except SpaceError as error:
            return [str(error)]
        except SettingsError as error:
            return list(error.problems)
        combinations = self.settings.combinations
        if self.settings.grid and self.sampler != GRID:
            return [f"--sampler must be omitted with --grid, got {self.sampler}."]
        if self.settings.grid and self.trials > combinations:
            return [
                f"--trials must be at most {combinations}, the number of combinations of --grid, "
                f"got {self.trials}."
            ]
        queued = len(space.queue)
        if not space.first_parameters and self.trials > queued:
            return [
                f"--trials must be {queued}, as nothing is searched, got {self.trials}. Search a "
                "field (--range, --choice), or omit the option."
            ]
        return []

    def _time_problems(self) -> list[str]:
        found = []
        if self.time_budget is not None and not 0 < self.time_budget < math.inf:
            found.append(
                f"--time-budget must be positive and finite, got {self.time_budget:g} s. Use e.g. "
                "10m, or omit it for no limit."
            )
        if not 0 <= self.checkpoint_seconds < math.inf:
            found.append(
                "--checkpoint-seconds must be a finite number of at least 0, got "
                f"{self.checkpoint_seconds:g}."
            )
        return found

    def _objective_problems(self) -> list[str]:
        if not self.second_objective:
            return []
        found = []
        try:
            parse_objective(self.second_objective)
        except ValueError as error:
            found.append(f"--second-objective: {error}.")
        if self.pruner != "none":
            found.append(
                "--pruner must be none with --second-objective, as no trial can be stopped early "
                f"for two objectives, got {self.pruner}."
            )
        if self.sampler not in (*SAMPLERS_OF_TWO, GRID):
            found.append(
                f"--sampler must be one of {', '.join(SAMPLERS_OF_TWO)} with --second-objective, "
                f"got {self.sampler}."
            )
        return found

    def task_problems(self) -> list[str]:
        """Every broken rule of the task, and of its draws, that shows without its data."""
        from trainables.data.derived import template_problem
        from trainables.data.few_shot import JOINED, RULES

        task, found = self.task, []
        if not 1 <= self.eval_seeds <= _MAX_EVAL_SEEDS:
            bound = _between(1, _MAX_EVAL_SEEDS, self.eval_seeds)
            found.append(f"--eval-seeds must be {bound}.")
        if task.protocol not in get_args(Protocol):
            found.append(did_you_mean("protocol", task.protocol, get_args(Protocol)))
        if task.validation not in get_args(Validation):
            found.append(did_you_mean("validation", task.validation, get_args(Validation)))
        found += filter(None, map(template_problem, task.prompt))
        if task.draws not in RULES and not task.draws.startswith("file:"):
            found.append(did_you_mean("rule for --draws", task.draws, RULES))
        if task.validation == "folds" and min(task.shots, default=2) < 2:
            found.append(
                "--validation folds needs at least 2 images per class, got --shots "
                f"{min(task.shots)}: with one, nothing can be left out. Use --validation pooled, "
                "which validates on the images of other draws, or --trials 1 for the paper's "
                "setting."
            )
        if task.draws == JOINED and task.validation != "folds":
            found.append(
                "--draws joined trains on the validation images, so it needs --validation folds, "
                f"got --validation {task.validation}. Use --draws seeded-capped."
            )
        if task.objective not in get_args(Objective):
            found.append(did_you_mean("objective", task.objective, get_args(Objective)))
        for name, example in _EXAMPLES.items():
            values = getattr(task, name)
            if not values:
                found.append(f"{option(name)} must have at least one value. Use e.g. {example}.")
            elif len(set(values)) < len(values):
                listed = ",".join(map(str, values))
                found.append(f"{option(name)} must differ from each other, got {listed}.")
        for name, least, most in (("seeds", 0, MAX_SEED), ("shots", 1, 10**6)):
            found += [
                f"{option(name)} must be {_between(least, most, value)}."
                for value in getattr(task, name)
                if not least <= value <= most
            ]
        episodes = len(task.sources) * len(task.shots) * len(task.seeds)
        if episodes > _MAX_EPISODES:
            found.append(
                f"--dataset, --shots and --seeds must make at most {_MAX_EPISODES:,} trainings per "
                f"trial, got {episodes:,}. Name fewer."
            )
        if task.datasets and task.protocol == "cross-dataset" and len(task.datasets) < 2:
            found.append(
                "--protocol cross-dataset needs at least two data sets (it trains on the first and "
                f"evaluates on the others), got only '{','.join(task.datasets)}'. Use e.g. "
                "--dataset imagenet,dtd,eurosat."
            )
        return found + (bundle_problems(task) if task.datasets else [])


def option(name: str) -> str:
    """The option of `search.run` that sets a field of the configuration or of its task."""
    return "--dataset" if name == "datasets" else f"--{name.replace('_', '-')}"


def _upgrade(plain: dict[str, Any]) -> dict[str, Any]:
    """A record of an earlier release with the present fields."""
    old_names = {"also": "second_objective", "start": "init_from"}
    fields = {old_names.get(key, key): value for key, value in plain.items()}
    fields.pop("ledger", None)  # the study is no longer stored outside the sweep's folder
    return fields


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line per setting that differs: its name, the stored value, the given value."""
    flat_stored, flat_given = _flat(stored), _flat(given)
    return [
        f"{key}: the sweep has {json.dumps(flat_stored.get(key))}, "
        f"got {json.dumps(flat_given.get(key))}"
        for key in sorted(flat_stored | flat_given)
        if flat_stored.get(key) != flat_given.get(key)
    ]


def _flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: plain[key] for key in plain if key not in ("task", "settings")}
    return own | dict(plain.get("task", {})) | dict(plain.get("settings", {}))


def _between(least: int, most: int, value: int) -> str:
    bound = f"at least {least}" if value < least else f"at most {most}"
    shown = value if abs(value) < 10**30 else f"a number of {len(str(abs(value)))} digits"
    return f"{bound}, got {shown}"


_EXAMPLES = {"datasets": "--dataset digits", "shots": "--shots 16", "seeds": "--seeds 1,2,3"}
_SELECT = ("ensemble", "best")
_MAX_EPISODES = 10_000
_MAX_EVAL_SEEDS = 1000
