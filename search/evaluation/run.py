"""The evaluation at the end of a sweep: the winner and its baselines, trained on draws that the
search has not used, and classified on the test splits.

Each training and each read of a test split is a Ray task whose result is stored as it ends, and an
interrupted evaluation continues from what is stored. Equal trainings are done once. Each read is
recorded before it happens.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from search.core.config import SweepConfig
from search.core.objectives import choice_problem
from search.core.placement import Placement
from search.core.problems import EvaluationError
from search.core.task import evaluation_sets
from search.evaluation.examples import EXAMPLES, Example, encode_examples
from search.evaluation.plan import (
    EvaluationPlan,
    SweepFacts,
    general_zero_shot,
    paper_trainings,
    plan_evaluation,
    split_jobs,
)
from search.evaluation.predictions import PREDICTIONS, PredictionTable, checksum, encode_predictions
from search.evaluation.record import EVALUATION, Evaluation, read_evaluation, record_read
from search.evaluation.scores import comparisons_of, scores_of
from search.evaluation.tasks import Task, cancel, run_tasks, task_options
from search.evaluation.winner import share_start
from search.evaluation.workers import (
    FOLDER,
    Candidate,
    EncodedTaskSpec,
    SplitJob,
    classify,
    load_result,
    predict_validation,
    train,
    training_file,
)
from search.ledger.ledger import Ledger
from search.selection.record import Selection
from search.selection.selection import ZERO_SHOT, select
from trainables.backbones.shared_weights import share_weights
from trainables.core.plugins import plugin_sources
from trainables.core.storage import LocalStorage, Storage
from trainables.core.tensor_file import read_checked, write_tensors
from trainables.data.sealed import EVALUATION_PROCESS, TRAINING_PROCESS

Progress = Callable[[str, int, int], None]
"""Progress callback: label, done, total."""


def stored_evaluation(ledger: Ledger, facts: SweepFacts) -> Evaluation | None:
    """The evaluation in the sweep's folder, unless it is of another winner, other draws, settings,
    data or another backbone."""
    found = read_evaluation(ledger.sweep)
    if found is None:
        return None
    selection = select(ledger.sweep, ledger.results, facts.config.select)
    if (
        selection is None
        or found.inputs != plan_evaluation(ledger.results, facts, selection).inputs
    ):
        return None
    return found


def shared_weights(config: SweepConfig, sweep: Storage) -> str:
    """Where workers find a local backbone; empty on one machine, where they find it themselves."""
    return share_weights(config.task.backbone, sweep) if config.address else ""


def train_paper(
    ledger: Ledger, facts: SweepFacts, placement: Placement, at_end: ExitStack
) -> dict[str, Any]:
    """Start the trainings of the paper's setting as Ray tasks, which run as soon as the search
    leaves slots free; return those that `evaluate` need not start. `at_end` cancels what is then
    left of them. Raises `StorageError`."""
    sweep, config = ledger.sweep, facts.config
    spec = _spec(facts, sweep, placement)
    remote = ray.remote(**task_options(placement, TRAINING_PROCESS))(train)
    wanted = {c.training: c for c in paper_trainings(facts)}
    started = {
        c.training: remote.remote(c, spec, sweep.location, config.checkpoint_seconds)
        for c in _untrained(wanted, sweep.child(FOLDER))
    }
    at_end.callback(cancel, started.values())
    return started


def evaluate(
    ledger: Ledger,
    facts: SweepFacts,
    placement: Placement,
    tell: Progress = lambda *_: None,
    started: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate the winner; needs a complete trial. Runs on the connected Ray cluster, with the
    resources of a trial per task. `started` is what `train_paper` has returned.

    Writes the winner's artifacts, all predictions, and `evaluation.json` last. Raises
    `EvaluationError` and `StorageError`; what was finished by then is kept for the next call.
    """
    sweep, config = ledger.sweep, facts.config
    spec = _spec(facts, sweep, placement)
    folder = sweep.child(FOLDER)
    try:
        selection = _select(ledger, facts, spec, placement, tell)
        plan = plan_evaluation(ledger.results, facts, selection)
        seconds = config.checkpoint_seconds
        _train_missing(plan, folder, sweep, spec, placement, tell, seconds, dict(started or {}))
        results = _classify_missing(plan, folder, sweep, spec, placement, tell)
    except ray.exceptions.RayError as error:
        raise EvaluationError(str(error).strip().splitlines()[-1]) from error
    tables = _whole_tables(plan, results)
    found = Evaluation(
        selection.trial,
        ledger.results[selection.trial].accuracy or 0.0,
        plan.draws.seeds,
        plan.task.protocol,
        scores_of(tables, plan.draws.seeds, plan.first),
        requested=plan.draws.requested,
        seen=plan.draws.seen,
        inputs=plan.inputs,
        selection=selection,
    )
    examples = [example for _, _, taken in results for example in taken]
    files = {PREDICTIONS: encode_predictions(tables), EXAMPLES: encode_examples(examples)}
    found = replace(
        found,
        comparisons=comparisons_of(found, tables),
        checksums={name: checksum(data) for name, data in files.items()},
    )
    _write_winner(plan, sweep)
    for name, data in files.items():
        sweep.write(name, data)
    sweep.write(EVALUATION, found.to_json())  # last: it makes the other files valid
    clean_up(sweep)
    return found


def clean_up(sweep: Storage) -> None:
    """Remove what an evaluation has stored on its way, when it is finished."""
    folder = sweep.child(FOLDER)
    for name in folder.files():
        folder.delete(name)
    if isinstance(folder, LocalStorage):
        with suppress(OSError):
            folder.root.rmdir()


# --- running it ----------------------------------------------------------------------------------

_Result = tuple[SplitJob, list[PredictionTable], list[Example]]


def _spec(facts: SweepFacts, sweep: Storage, placement: Placement) -> EncodedTaskSpec:
    config = facts.config
    return EncodedTaskSpec(
        config.task,
        config.data,
        placement.device,
        max(1, int(placement.cpus)),
        shared_weights(config, sweep),
        share_start(config, facts.source, facts.fingerprints["backbone"], sweep),
        tuple(plugin_sources().items()),
    )


def _select(
    ledger: Ledger,
    facts: SweepFacts,
    spec: EncodedTaskSpec,
    placement: Placement,
    tell: Progress,
) -> Selection:
    """The result of the sweep, for which the zero-shot model is validated if that is missing."""
    sweep, config = ledger.sweep, facts.config
    if found := select(sweep, ledger.results, config.select):
        return found
    if why := choice_problem(config.select, ledger.results, config.trials):
        raise EvaluationError(why.rstrip("."))
    zero_shot = general_zero_shot(facts).to_dict()
    remote = ray.remote(**task_options(placement, TRAINING_PROCESS))(predict_validation)
    where = sweep.child(ZERO_SHOT).location
    call = partial(remote.remote, zero_shot, config.task.to_dict(), spec, where)
    _run("validating the zero-shot model", [call], 1, 0, tell)
    found = select(sweep, ledger.results, config.select)
    if found is None:
        raise EvaluationError("the zero-shot model's validation predictions are missing")
    return found


def _train_missing(
    plan: EvaluationPlan,
    folder: Storage,
    sweep: Storage,
    spec: EncodedTaskSpec,
    placement: Placement,
    tell: Progress,
    checkpoint_seconds: float,
    started: dict[str, Any],
) -> None:
    """Train every model whose training is not stored yet."""
    wanted = {c.training: c for c in plan.candidates if not c.stages}
    remote = ray.remote(**task_options(placement, TRAINING_PROCESS))(train)

    def start(candidate: Candidate) -> Any:
        if candidate.training in started:
            return started.pop(candidate.training)  # if its worker dies, it starts anew
        return remote.remote(candidate, spec, sweep.location, checkpoint_seconds)

    calls = [partial(start, plan.trained(c)) for c in _untrained(wanted, folder)]
    _run("training for the evaluation", calls, max(1, len(calls)), len(wanted) - len(calls), tell)


def _untrained(wanted: Mapping[str, Candidate], folder: Storage) -> list[Candidate]:
    """Those of which no whole model is stored."""
    there = set(folder.files())
    return [
        candidate
        for training, candidate in wanted.items()
        if training_file(training) not in there
        or read_checked(folder, training_file(training)) is None
    ]


def _classify_missing(
    plan: EvaluationPlan,
    folder: Storage,
    sweep: Storage,
    spec: EncodedTaskSpec,
    placement: Placement,
    tell: Progress,
) -> list[_Result]:
    """Read every test split whose result is not stored yet."""
    jobs = split_jobs(plan)
    missing = [job for job in jobs if load_result(folder, job) is None]
    remote = ray.remote(**task_options(placement, EVALUATION_PROCESS))(classify)

    def start(job: SplitJob) -> Any:
        models = [
            (c.label, c.episode.dataset, c.episode.shots, c.episode.seed) for c in job.candidates
        ]
        moment = record_read(sweep, job.split.target, models, plan.inputs)
        return remote.remote(job, spec, sweep.location, moment)

    calls = [partial(start, job) for job in missing]
    _run("classifying test images", calls, placement.slots, len(jobs) - len(calls), tell)
    results: list[_Result] = []
    for job in jobs:
        found = load_result(folder, job)
        if found is None:
            raise EvaluationError(f"the predictions for '{job.split.target}' are missing")
        results.append((job, *found))
    return results


def _run(
    what: str, calls: Sequence[Callable[[], Any]], window: int, done: int, tell: Progress
) -> None:
    """Run calls and report their progress; see `run_tasks`."""
    total = done + len(calls)
    ended = itertools.count(done + 1)

    def count() -> Sequence[Task]:
        tell(what, next(ended), total)
        return ()

    tell(what, done, total)
    run_tasks([Task(call, count) for call in calls], window)


# --- results -------------------------------------------------------------------------------------


def _whole_tables(plan: EvaluationPlan, results: Sequence[_Result]) -> list[PredictionTable]:
    """One table per part of a test split, with the predictions of every candidate."""
    tables: dict[tuple[str, str], PredictionTable] = {}
    found: dict[tuple[str, str], dict[tuple[str, int], Any]] = {}
    for job, parts, _ in results:
        for table in parts:
            where = table.target, table.part
            first = tables.setdefault(where, table)
            if first.files != table.files or list(first.truth) != list(table.truth):
                raise EvaluationError(
                    f"the test images of '{table.target}' have changed since the evaluation began: "
                    f"remove the folder '{FOLDER}' of the sweep"
                )
            keys = (candidate.key for candidate in job.candidates)
            found.setdefault(where, {}).update(zip(keys, table.answers, strict=True))
    sources = {split.target: split.sources for split in evaluation_sets(plan.task)}
    return [
        replace(
            table,
            answers=tuple(
                replace(
                    found[where][c.key],
                    label=c.label,
                    dataset=c.episode.dataset,
                    shots=c.episode.shots,
                    seed=c.episode.seed,
                )
                for c in plan.candidates
                if c.episode.dataset in sources[table.target]
            ),
        )
        for where, table in tables.items()
    ]


def _write_winner(plan: EvaluationPlan, sweep: Storage) -> None:
    """The winner's artifacts, one per draw, and its configuration."""
    folder = sweep.child(FOLDER)
    for candidate in plan.candidates:
        if candidate.label == "winner":
            artifact = read_checked(folder, training_file(candidate.training))
            assert artifact is not None, "it was read a moment ago"
            label = plan.task.label(candidate.episode)
            write_tensors(sweep, f"winner/artifact-{label}.safetensors", *artifact)
    text = json.dumps(plan.winner.to_dict(), indent=1, allow_nan=False) + "\n"
    sweep.write("winner/config.json", text.encode())
