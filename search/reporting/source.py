"""The input of a report: a sweep's folder, read but never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from search.core.config import SweepConfig
from search.core.objectives import winner_of
from search.core.problems import UsageError
from search.core.pruners import IN_SEQUENCE
from search.core.results import IssuedTrial, Result
from search.core.shown import shown_parameters
from search.core.sweep_folder import SweepFolder, SweepRecord, find_sweep
from search.evaluation.examples import Example, read_examples
from search.evaluation.predictions import DamagedFileError, PredictionTable, read_predictions
from search.evaluation.record import EVALUATION, Evaluation, Read, list_reads, read_evaluation
from trainables.core.storage import Storage, StorageError
from trainables.report import step_ends
from trainables.trial import TrialConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A snapshot of one sweep."""

    sweep: Storage
    """Folder of the sweep."""
    record: SweepRecord
    """Content of its `sweep.json`."""
    config: SweepConfig
    """Configuration of the sweep."""
    results: Mapping[int, Result]
    """Every finished trial, by number; at least one."""
    evaluation: Evaluation | None
    """Evaluation of a winner; None if there is none, or if it cannot be read."""
    reads: Sequence[Read | None]
    """Every recorded read of a test split; None for a line that cannot be parsed."""
    running: str | None
    """The driver that runs the sweep, if any."""
    damaged: bool = False
    """Whether an evaluation exists that cannot be read."""
    issued: Mapping[int, IssuedTrial] = field(default_factory=dict)
    """Every trial that was issued and has not ended, by number."""

    @property
    def objective(self) -> str:
        """What the sweep maximises, in words with its unit."""
        return f"validation {self.config.task.objective} (%)"

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.config.name

    @cached_property
    def best(self) -> Result | None:
        """The winner, as defined by `search.core.objectives.winner_of`."""
        return winner_of(self.results, self.config.select)

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation, if it is of the current winner; None if later trials have replaced that
        winner."""
        found, best = self.evaluation, self.best
        return found if found is not None and best and found.winner == best.number else None

    @property
    def unjudged(self) -> str:
        """One sentence on why there are no test results; empty if there are."""
        if self.judged is not None:
            return ""
        if self.best is None:
            return "It has no completed trial yet."
        if self.evaluation is not None:
            return (
                f"Its evaluation is of trial {self.evaluation.winner}, which is no longer the "
                "winner. To evaluate the current winner, run the sweep again."
            )
        if self.damaged:
            return (
                f"Its evaluation cannot be read: {EVALUATION} is damaged, or was written by "
                "another version. To repeat the evaluation, run the sweep again."
            )
        return "It has not been evaluated on test data yet."

    @cached_property
    def _predictions(self) -> tuple[list[PredictionTable], str]:
        return self._of_evaluation(read_predictions)

    @cached_property
    def _examples(self) -> tuple[list[Example], str]:
        return self._of_evaluation(read_examples)

    @property
    def sheets(self) -> list[PredictionTable]:
        """Predictions for every test image; empty if they cannot be read."""
        return self._predictions[0]

    @property
    def examples(self) -> list[Example]:
        """Example test images; empty if they cannot be read."""
        return self._examples[0]

    @property
    def images_problems(self) -> list[str]:
        """Why predictions or examples cannot be read, one sentence per file."""
        return [problem for _, problem in (self._predictions, self._examples) if problem]

    def _of_evaluation(self, read: Callable[[Storage, Evaluation], list[T]]) -> tuple[list[T], str]:
        """Return the content of a file of the evaluation, and why it cannot be read (or "")."""
        if self.judged is None:
            return [], ""
        try:
            return read(self.sweep, self.judged), ""
        except DamagedFileError as error:
            return [], str(error)

    def of(self, *states: str) -> list[Result]:
        """Return the trials with one of these final states, ordered by number."""
        return [r for _, r in sorted(self.results.items()) if r.state in states]

    @property
    def trials(self) -> list[Result | IssuedTrial]:
        """Return all trials, first those that have ended."""
        return [*self.results.values(), *self.issued.values()]

    @property
    def valued(self) -> list[Result]:
        """The completed and the pruned trials that have a value, ordered by number."""
        return [r for r in self.of("COMPLETE", "PRUNED") if r.value is not None]

    @cached_property
    def planned(self) -> Mapping[int, tuple[float, ...]]:
        """For each trial, the share of its training (0 to 1) at the end of each report step."""
        if self.config.pruner in IN_SEQUENCE:
            count = len(self.config.task.episodes)
            every = tuple((k + 1) / count for k in range(count))
            return dict.fromkeys((trial.number for trial in self.trials), every)
        return {trial.number: _shares(trial.config) for trial in self.trials}

    def done(self, trial: Result | IssuedTrial) -> tuple[float, ...]:
        """Return the shares of its training at which a trial has reported."""
        if isinstance(trial, Result) and trial.state == "COMPLETE":
            count = len(trial.values)
            own = self.planned[trial.number]
            return own if len(own) == count else tuple((k + 1) / count for k in range(count))
        return self.planned[trial.number][: len(trial.values)]


def parameters_of(trial: Result | IssuedTrial) -> dict[str, object]:
    """Return a trial's parameters for display."""
    return dict(shown_parameters(trial.config, trial.parameters)) if trial.config else {}


def _shares(config: Mapping[str, object]) -> tuple[float, ...]:
    """Return the share of the training at the end of each step; empty without a configuration."""
    if not config:
        return ()
    ends = step_ends(TrialConfig.from_dict(config))
    return tuple(end / ends[-1] for end in ends) if ends[-1] else (1.0,)


def read_source(name: str, storage: str) -> Source:
    """Read the sweep `name` in `storage`; raises `UsageError`."""
    try:
        sweep = find_sweep(name, storage)
        return source_of(sweep.files, sweep.owner())
    except StorageError as error:
        raise UsageError([f"A sweep's folder must be readable, and is not: {error}."]) from error


def source_of(sweep: Storage, driver: str | None = None) -> Source:
    """Read the sweep in a folder; `driver` is the process that runs it, if any.

    Raises `UsageError` if there is no sweep, another version wrote it, or no trial has finished;
    and `StorageError`.
    """
    folder = SweepFolder(sweep)
    record, config = folder.record, folder.record.config
    results, issued = folder.trials()
    if not results:
        raise UsageError(
            [
                f"A report needs a finished trial, and '{config.name}' has none yet. Wait for the "
                f"first, or resume the sweep: python -m search.run --resume {config.name}."
            ]
        )
    evaluation, reads = read_evaluation(sweep), list_reads(sweep)
    damaged = evaluation is None and sweep.exists(EVALUATION)
    return Source(sweep, record, config, results, evaluation, reads, driver, damaged, issued)


def comparable(source: Source, others: Sequence[Source]) -> None:
    """Raise `UsageError` if the sweeps cannot be compared.

    Backbone, protocol, rule of draws and the images of shared data sets must be the same. Data
    sets, shots, methods and spaces may differ.
    """
    problems = []
    names = [source.name, *(other.name for other in others)]
    if len(set(names)) < len(names):
        problems.append(f"--compare must name other sweeps, each once, got {', '.join(names)}.")
    for other in others:
        found = [
            f"{what}: '{mine}' and '{theirs}'"
            for what, mine, theirs in _facts(source, other)
            if mine != theirs
        ]
        if found:
            problems.append(
                f"Compared sweeps must have the same backbone, protocol and rule of draws, and "
                f"'{source.name}' and '{other.name}' differ in {'; '.join(found)}. Omit "
                f"'{other.name}'."
            )
    if problems:
        raise UsageError(problems)


def _facts(source: Source, other: Source) -> list[tuple[str, object, object]]:
    task, theirs = source.config.task, other.config.task
    names = ("backbone", "protocol", "draws", "generate_split")
    facts = [(name, getattr(task, name), getattr(theirs, name)) for name in names]
    pools, their_pools = (_pools(s) for s in (source, other))
    facts += [
        (f"the images of {key}", pools[key], their_pools[key])
        for key in pools
        if key in their_pools
    ]
    return facts


def _pools(source: Source) -> dict[str, str]:
    """Return the fingerprints that must agree: of the backbone and of each data set."""
    prints = source.record.fingerprints
    found = {"backbone": prints.get("backbone", "")}
    for dataset in source.config.task.sources:
        suffix = f".{dataset}" if len(source.config.task.sources) > 1 else ""
        for split in ("train", "val"):
            if (key := f"{split}{suffix}") in prints:
                found[f"{dataset} ({split})"] = prints[key]
    return found
