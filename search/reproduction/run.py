"""Trains and evaluates the cells of a table in parallel on Ray.

Each training is a Ray task, and so is each read of a test split, which follows as soon as the model
is trained. Results are stored at once; an interrupted reproduction continues from them, and
from the checkpoints of unfinished trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray

from search.core.placement import Placement
from search.core.problems import StoppedError
from search.evaluation.record import record_read
from search.evaluation.tasks import Task, run_tasks, task_options
from search.evaluation.workers import EncodedTaskSpec, SplitJob, classify, train
from search.reproduction.plan import PlannedCell, ReproductionPlan
from search.reproduction.store import CellStore
from trainables.backbones.shared_weights import share_weights
from trainables.core.storage import Storage
from trainables.data.sealed import EVALUATION_PROCESS, TRAINING_PROCESS

_CHECKPOINT_SECONDS = 5.0

Progress = Callable[[str, int, int], None]
"""Progress callback: label, done, total."""


def run_cells(
    plan: ReproductionPlan,
    store: CellStore,
    placement: Placement,
    shared: bool,
    retry_failed: bool = False,
    tell: Progress = lambda *_: None,
) -> None:
    """Train and evaluate every cell that is not in the ledger yet. Runs on the connected Ray.

    `shared`: whether workers on other machines need copies of local weights. If a training fails,
    the failure is recorded and the others continue. Raises `StoppedError` and `StorageError`.
    """
    run = _Run(plan, store, placement, shared, tell)
    missing = [
        planned
        for training, planned in plan.trainings.items()
        if (retry_failed or not store.failure(training))
        and any(store.evaluated(job) is None for job in planned.jobs)
    ]
    try:
        run.run(missing)
    except ray.exceptions.RayError as error:
        raise StoppedError(str(error).strip().splitlines()[-1]) from error


class _Run:
    """One run over the missing cells."""

    def __init__(
        self,
        plan: ReproductionPlan,
        store: CellStore,
        placement: Placement,
        shared: bool,
        tell: Progress,
    ) -> None:
        self._plan, self._store, self._placement, self._tell = plan, store, placement, tell
        self._specs = self._open_specs(shared, store.storage)
        self._done, self._total = 0, len(plan.trainings)
        self._left: dict[str, int] = {}
        """Number of unfinished reads of test splits, by training."""
        self._train = ray.remote(**task_options(placement, TRAINING_PROCESS))(train)
        self._classify = ray.remote(**task_options(placement, EVALUATION_PROCESS))(classify)

    def _open_specs(self, shared: bool, storage: Storage) -> Mapping[str, EncodedTaskSpec]:
        """Return how workers open each backbone, once for all its cells."""
        threads = max(1, int(self._placement.cpus))
        found: dict[str, EncodedTaskSpec] = {}
        for planned in self._plan.cells:
            backbone = planned.task.backbone
            if backbone not in found:
                weights = share_weights(backbone, storage) if shared else ""
                data, device = self._plan.request.data, self._placement.device
                found[backbone] = EncodedTaskSpec(planned.task, data, device, threads, weights)
        return found

    def run(self, missing: Sequence[PlannedCell]) -> None:
        """Train and evaluate these cells."""
        self._done = self._total - len(missing)
        self._tell("trainings", self._done, self._total)
        tasks = []
        for planned in missing:
            self._left[planned.training] = sum(
                self._store.evaluated(job) is None for job in planned.jobs
            )
            tasks += [self._training(planned)]
        # One more than fit, so that no worker waits for the driver.
        run_tasks(tasks, self._placement.slots + 1)

    def _training(self, planned: PlannedCell) -> Task:
        """Return the training of a cell, followed by its reads; only the reads if the model is
        stored."""
        if self._store.is_trained(planned.training):
            first, *rest = self._reads(planned)
            return Task(first.start, lambda: [*first.then(), *rest], first.failed)
        spec, location = self._specs[planned.task.backbone], self._store.storage.location
        return Task(
            partial(self._train.remote, planned.candidate, spec, location, _CHECKPOINT_SECONDS),
            partial(self._reads, planned),
            partial(self._fail, planned, ""),
        )

    def _reads(self, planned: PlannedCell) -> list[Task]:
        """Return the reads of test splits that evaluate a trained cell."""
        return [
            Task(
                partial(self._read, planned, job),
                partial(self._commit, planned, job),
                partial(self._fail, planned, job.file),
            )
            for job in planned.jobs
            if self._store.evaluated(job) is None
        ]

    def _read(self, planned: PlannedCell, job: SplitJob) -> Any:
        """Record the read, then start it."""
        episode, storage = planned.candidate.episode, self._store.storage
        model = (planned.candidate.label, episode.dataset, episode.shots, episode.seed)
        name = self._plan.request.name
        moment = record_read(storage, job.split.target, [model], f"{name} {planned.training}")
        spec = self._specs[planned.task.backbone]
        return self._classify.remote(job, spec, storage.location, moment)

    def _commit(self, planned: PlannedCell, job: SplitJob) -> Sequence[Task]:
        training = planned.training
        self._store.commit(training, job)
        if training in self._left:  # else another of its reads has failed
            self._left[training] -= 1
            if not self._left[training]:
                del self._left[training]
                self._count()
        return ()

    def _fail(self, planned: PlannedCell, job: str, error: Exception) -> None:
        """Record a failure; storage errors are raised, because the cell did not cause them."""
        cause = getattr(error, "cause", error)
        if isinstance(cause, OSError):
            raise error
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        self._store.commit_failure(planned.training, reason, job)
        if self._left.pop(planned.training, 0):  # the first of its tasks to fail
            self._count()

    def _count(self) -> None:
        self._done += 1
        self._tell("trainings", self._done, self._total)
