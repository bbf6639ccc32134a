"""What a report is made of: a sweep's folder, read and never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from search.core.config import SweepConfig
from search.core.objectives import best_of
from search.core.problems import UsageError
from search.core.results import Result
from search.core.sweep_folder import SweepFolder, SweepRecord, find_sweep
from search.evaluation.examples import Example, read_examples
from search.evaluation.predictions import (
    DamagedFileError,
    PredictionTable,
    read_predictions,
)
from search.evaluation.record import (
    EVALUATION,
    Evaluation,
    Read,
    list_reads,
    read_evaluation,
)
from trainables.core.storage import Storage, StorageError

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One sweep, as it lay in its folder at one moment."""

    sweep: Storage
    """The folder."""
    record: SweepRecord
    """Its `sweep.json`."""
    config: SweepConfig
    """What it searches."""
    results: Mapping[int, Result]
    """Every finished trial, by number; at least one."""
    evaluation: Evaluation | None
    """None while it has not been judged, or where that cannot be read."""
    reads: Sequence[Read | None]
    """Every read of a test split; None for one whose line cannot be read."""
    running: str | None
    """Who runs it, if anybody does."""
    damaged: bool = False
    """Whether there is an evaluation that cannot be read."""

    @property
    def name(self) -> str:
        """Of the sweep."""
        return self.config.name

    @cached_property
    def best(self) -> Result | None:
        """The winner: see `search.core.objectives.best_of`."""
        return best_of(self.results.values())

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation, where it is of the present winner: trials added later may have made
        another trial the best."""
        found, best = self.evaluation, self.best
        return found if found is not None and best and found.winner == best.number else None

    @property
    def unjudged(self) -> str:
        """Why there are no test figures, in a sentence; empty where there are."""
        if self.judged is not None:
            return ""
        if self.best is None:
            return "It has no complete trial yet."
        if self.evaluation is not None:
            return (
                f"Its evaluation is of trial {self.evaluation.winner}, which is no longer the "
                "winner. To judge the present one, run the sweep again."
            )
        if self.damaged:
            return (
                f"It has been judged, but {EVALUATION} in its folder cannot be read: it is "
                "damaged, or of another version. To judge it anew, run the sweep again."
            )
        return "It has not been judged on test data yet."

    @cached_property
    def _predictions(self) -> tuple[list[PredictionTable], str]:
        return self._of_evaluation(read_predictions)

    @cached_property
    def _examples(self) -> tuple[list[Example], str]:
        return self._of_evaluation(read_examples)

    @property
    def sheets(self) -> list[PredictionTable]:
        """The predictions for every test image; empty if they cannot be read."""
        return self._predictions[0]

    @property
    def examples(self) -> list[Example]:
        """A few test images; empty if they cannot be read."""
        return self._examples[0]

    @property
    def images_problems(self) -> list[str]:
        """Why predictions or examples cannot be read, a sentence each."""
        return [problem for _, problem in (self._predictions, self._examples) if problem]

    def _of_evaluation(self, read: Callable[[Storage, Evaluation], list[T]]) -> tuple[list[T], str]:
        """A file of the evaluation, or why it cannot be read."""
        if self.judged is None:
            return [], ""
        try:
            return read(self.sweep, self.judged), ""
        except DamagedFileError as error:
            return [], str(error)

    def of(self, state: str) -> list[Result]:
        """The trials that ended so, by number."""
        return [r for _, r in sorted(self.results.items()) if r.state == state]


def read_source(name: str, storage: str) -> Source:
    """The sweep of this name in `storage`; raises `UsageError`."""
    try:
        sweep = find_sweep(name, storage)
        return source_of(sweep.files, sweep.owner())
    except StorageError as error:
        raise UsageError([f"A sweep's folder must be readable, and is not: {error}."]) from error


def source_of(sweep: Storage, driver: str | None = None) -> Source:
    """The sweep in a folder; `driver` says who runs it. Raises `UsageError` where there is none,
    where another version made it, or where no trial has ended; and `StorageError`."""
    folder = SweepFolder(sweep)
    record, config, results = folder.record, folder.record.config, folder.results()
    if not results:
        raise UsageError(
            [
                f"A report needs a finished trial, and '{config.name}' has none yet: wait for its "
                f"first, or go on with it: python -m search.run --resume {config.name}."
            ]
        )
    evaluation, reads = read_evaluation(sweep), list_reads(sweep)
    damaged = evaluation is None and sweep.exists(EVALUATION)
    return Source(sweep, record, config, results, evaluation, reads, driver, damaged)


def comparable(source: Source, others: Sequence[Source]) -> None:
    """Raises `UsageError` where what is to stand side by side was not measured alike: another
    backbone, protocol, rule of draws, or other images under one data set's name. Data sets, shots,
    methods and spaces may differ."""
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
                f"Sweeps that are compared must have one backbone, protocol and rule of draws, and "
                f"'{source.name}' and '{other.name}' differ in {'; '.join(found)}. Leave "
                f"'{other.name}' out."
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
    """Fingerprints that must agree, by what they are of: the backbone's and each data set's."""
    prints = source.record.fingerprints
    found = {"backbone": prints.get("backbone", "")}
    for dataset in source.config.task.sources:
        suffix = f".{dataset}" if len(source.config.task.sources) > 1 else ""
        for split in ("train", "val"):
            if (key := f"{split}{suffix}") in prints:
                found[f"{dataset} ({split})"] = prints[key]
    return found
