"""The evaluation at the end of a sweep: the winner and its baselines, trained on draws that the
search has not used, and classified on the test splits.

Each training and each read of a test split is a Ray task whose result is stored as it ends, and an
interrupted evaluation continues from what is stored. Equal trainings are done once. Each read is
recorded before it happens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray

from search.core.config import SweepConfig
from search.core.placement import Placement
from search.core.problems import EvaluationError
from search.core.task import (
    FreshDraws,
    evaluation_sets,
    fresh_draws,
    same_training_sets,
)
from search.evaluation.examples import EXAMPLES, MOST, Example, encode_examples
from search.evaluation.predictions import (
    PREDICTIONS,
    PredictionTable,
    checksum,
    encode_predictions,
)
from search.evaluation.record import (
    EVALUATION,
    Evaluation,
    Label,
    read_evaluation,
    record_read,
)
from search.evaluation.scores import comparisons_of, scores_of
from search.evaluation.winner import share_start
from search.evaluation.workers import (
    FOLDER,
    Candidate,
    EncodedTaskSpec,
    SplitJob,
    classify,
    load_result,
    train,
    training_file,
)
from search.ledger.ledger import Ledger
from trainables.backbones.shared_weights import share_weights
from trainables.core.storage import LocalStorage, Storage
from trainables.core.tensor_file import read_checked, write_tensors
from trainables.data.registry import DataSource
from trainables.data.sealed import EVALUATION_PROCESS, TRAINING_PROCESS
from trainables.fixed import training_key
from trainables.methods.base import Tower
from trainables.presets import preset_trial, task_facts
from trainables.trial import Episode, TaskSpec, TrialConfig

_VERSION = 2  # of what an evaluation is: another number, and all are made again
_ATTEMPTS = 4  # per task, if its worker dies

Progress = Callable[[str, int, int], None]
"""Progress callback: label, done, total."""


@dataclass(frozen=True)
class SweepFacts:
    """What the evaluation needs to know of a sweep that can start."""

    config: SweepConfig
    """Its configuration."""
    source: DataSource
    """The task's data, opened."""
    tower: Tower
    """Family of the image tower."""
    fingerprints: dict[str, str]
    """Fingerprints of the backbone and of the few-shot pools."""


@dataclass(frozen=True)
class _Plan:
    """What is evaluated."""

    winner: int
    """Number of the winning trial."""
    draws: FreshDraws
    """The draws."""
    task: TaskSpec
    """The sweep's task, on these draws."""
    first: dict[Episode, Episode]
    """The first episode with the same training images, for each; see `same_training_sets`."""
    candidates: tuple[Candidate, ...]
    """Every model of every episode."""

    def trained(self, candidate: Candidate) -> Candidate:
        """The same model, with the episode that it is really trained on: the first with the same
        training images. The zero-shot model is the same on every draw."""
        if candidate.label == "zero-shot":
            return replace(candidate, episode=_zero_shot_episode(self.task, candidate.episode))
        return replace(candidate, episode=self.first[candidate.episode])

    @property
    def inputs(self) -> str:
        """Digest of everything that the evaluation is made from, as far as it can be known without
        reading test data."""
        facts = {
            "version": _VERSION,
            "winner": self.winner,
            "draws": [self.draws.seeds, self.draws.requested],
            "task": self.task.to_dict() | {"skip_unreadable": None},
            "models": [(c.label, repr(c.episode), c.key) for c in self.candidates],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def stored_evaluation(ledger: Ledger, facts: SweepFacts) -> Evaluation | None:
    """The evaluation in the sweep's folder, unless it is of another winner, other draws, settings,
    data or another backbone."""
    found = read_evaluation(ledger.sweep)
    if found is None or ledger.best() is None or found.inputs != _plan(ledger, facts).inputs:
        return None
    return found


def shared_weights(config: SweepConfig, sweep: Storage) -> str:
    """Where workers find a local backbone; empty on one machine, where they find it themselves."""
    return share_weights(config.task.backbone, sweep) if config.address else ""


def evaluate(
    ledger: Ledger, facts: SweepFacts, placement: Placement, tell: Progress = lambda *_: None
) -> Evaluation:
    """Evaluate the winner; needs a complete trial. Runs on the connected Ray cluster, with the
    resources of a trial per task.

    Writes the winner's artifacts, all predictions, and `evaluation.json` last. Raises
    `EvaluationError` and `StorageError`; what was finished by then is kept for the next call.
    """
    plan, sweep, config = _plan(ledger, facts), ledger.sweep, facts.config
    best = ledger.best()
    assert best is not None
    assert best.accuracy is not None
    spec = EncodedTaskSpec(
        plan.task,
        config.data,
        placement.device,
        max(1, int(placement.cpus)),
        shared_weights(config, sweep),
        share_start(config, facts.source, facts.fingerprints["backbone"], sweep),
    )
    folder = sweep.child(FOLDER)
    try:
        _train_missing(plan, folder, sweep, spec, placement, tell)
        results = _classify_missing(plan, folder, sweep, spec, placement, tell)
    except ray.exceptions.RayError as error:
        raise EvaluationError(str(error).strip().splitlines()[-1]) from error
    tables = _whole_tables(plan, results)
    found = Evaluation(
        plan.winner,
        best.accuracy,
        plan.draws.seeds,
        plan.task.protocol,
        scores_of(tables, plan.draws.seeds, plan.first),
        requested=plan.draws.requested,
        seen=plan.draws.seen,
        inputs=plan.inputs,
    )
    examples = [example for _, _, taken in results for example in taken]
    files = {PREDICTIONS: encode_predictions(tables), EXAMPLES: encode_examples(examples)}
    found = replace(
        found,
        comparisons=comparisons_of(found, tables),
        checksums={name: checksum(data) for name, data in files.items()},
    )
    _write_winner(plan, sweep, best.config)
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


# --- what is evaluated ---------------------------------------------------------------------------


def _plan(ledger: Ledger, facts: SweepFacts) -> _Plan:
    best, config = ledger.best(), facts.config
    if best is None:
        raise ValueError("there is no complete trial to evaluate")
    winner = ledger.config_of(best)
    draws = fresh_draws(config.task, facts.source, config.eval_seeds)
    task = replace(config.task, seeds=draws.seeds)
    first = same_training_sets(task, facts.source)
    backbone = facts.fingerprints["backbone"]
    candidates = []
    for episode in task.episodes:
        configs = _configs(facts, episode, winner)
        for label, trial in configs.items():
            trained = _zero_shot_episode(task, episode) if label == "zero-shot" else first[episode]
            stages = len(trial.stages) if label == "start" else 0
            whole = configs["winner"] if label == "start" else trial
            key = training_key(whole, trained, facts.source, backbone)
            candidates.append(Candidate(label, episode, trial.to_dict(), key, stages))
    return _Plan(best.number, draws, task, first, tuple(candidates))


def _configs(facts: SweepFacts, episode: Episode, winner: TrialConfig) -> dict[Label, TrialConfig]:
    """The models of an episode. The papers set some things per data set and number of shots, and so
    does the paper's setting."""
    config = facts.config
    about = task_facts(config.task, facts.source, facts.tower, episode)
    paper = config.paper(about)
    start = config.init_from.stage if config.init_from else winner.before
    return {
        "zero-shot": _zero_shot(preset_trial("zero-shot", "paper", about), paper),
        **({"start": _unfixed(start)} if start else {}),
        "paper": paper.seeded(config.seed),
        "winner": winner,
    }


def _zero_shot(single: TrialConfig, paper: TrialConfig) -> TrialConfig:
    """Zero-shot CLIP with the prompts that the method's paper compares itself with: a template
    ensemble if the method starts from one, else a single prompt per data set."""
    prompts = paper.method_config.prompts
    if prompts == "photo":  # start of learned prompts; papers compare with the data set's prompt
        return single
    return replace(single, method_config=replace(single.method_config, prompts=prompts))


def _unfixed(stage: TrialConfig) -> TrialConfig:
    before = _unfixed(stage.before) if stage.before else None
    return replace(stage, before=before, fixed=False)


def _zero_shot_episode(task: TaskSpec, episode: Episode) -> Episode:
    """The episode that represents a data set: that of the most shots and the first draw, of
    which examples are taken."""
    return replace(episode, shots=max(task.shots), seed=task.seeds[0])


def _jobs(plan: _Plan) -> list[SplitJob]:
    """One read per test split and episode, with the models that are trained on the episode."""
    sets = evaluation_sets(plan.task)
    most = max(1, MOST // sum(len(split.halves) for split in sets))
    jobs = []
    for split in sets:
        models = [c for c in plan.candidates if c.episode.dataset in split.sources]
        shown = _zero_shot_episode(plan.task, models[0].episode)  # examples are taken of its models
        pair = {c.label: c.key for c in models if c.episode == shown}
        by_episode: dict[Episode, dict[tuple[str, int], Candidate]] = {}
        for model in (plan.trained(c) for c in models):
            by_episode.setdefault(model.episode, {}).setdefault(model.key, model)
        for episode, distinct in by_episode.items():
            keys, places = list(distinct), None
            if episode == shown:
                places = keys.index(pair["zero-shot"]), keys.index(pair["winner"])
            jobs.append(SplitJob(split, tuple(distinct.values()), most, places))
    return jobs


# --- running it ----------------------------------------------------------------------------------

_Result = tuple[SplitJob, list[PredictionTable], list[Example]]


def _train_missing(
    plan: _Plan,
    folder: Storage,
    sweep: Storage,
    spec: EncodedTaskSpec,
    placement: Placement,
    tell: Progress,
) -> None:
    """Train every model whose training is not stored yet."""
    there = set(folder.files())
    wanted = {c.training: c for c in plan.candidates if not c.stages}
    missing = [
        candidate
        for training, candidate in wanted.items()
        if training_file(training) not in there
        or read_checked(folder, training_file(training)) is None
    ]
    remote = ray.remote(**_options(placement, TRAINING_PROCESS))(train)
    calls = [partial(remote.remote, plan.trained(c), spec, sweep.location) for c in missing]
    _run("training for the evaluation", calls, len(calls), len(wanted) - len(calls), tell)


def _classify_missing(
    plan: _Plan,
    folder: Storage,
    sweep: Storage,
    spec: EncodedTaskSpec,
    placement: Placement,
    tell: Progress,
) -> list[_Result]:
    """Read every test split whose result is not stored yet."""
    jobs = _jobs(plan)
    missing = [job for job in jobs if load_result(folder, job) is None]
    remote = ray.remote(**_options(placement, EVALUATION_PROCESS))(classify)

    def start(job: SplitJob) -> Any:
        models = [(c.label, *_facts(c.episode)) for c in job.candidates]
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


def _facts(episode: Episode) -> tuple[str, int, int]:
    return episode.dataset, episode.shots, episode.seed


def _options(placement: Placement, process: dict[str, str]) -> dict[str, Any]:
    """Tasks rather than actors: they run on what is left of a cluster that has lost a machine. They
    run in separate processes per role, because Ray reuses a process only for tasks with the same
    environment. A task is started again here and not by Ray: a repeated read must be recorded."""
    return {
        "num_cpus": placement.cpus,
        "num_gpus": placement.gpus,
        "max_retries": 0,
        "runtime_env": {"env_vars": process},
    }


def _run(
    what: str, calls: Sequence[Callable[[], Any]], window: int, done: int, tell: Progress
) -> None:
    """Run Ray tasks, at most `window` at a time; one whose worker dies is started again. Raises
    `RayError`."""
    total = done + len(calls)
    tell(what, done, total)
    waiting = [(call, 1) for call in reversed(calls)]
    running: dict[Any, tuple[Callable[[], Any], int]] = {}
    while waiting or running:
        while waiting and len(running) < window:
            call, attempt = waiting.pop()
            running[call()] = call, attempt
        (reference, *_), _ = ray.wait(list(running))
        call, attempt = running.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise  # an exception of the task itself
        except ray.exceptions.RayError:
            if attempt == _ATTEMPTS:
                raise
            waiting.append((call, attempt + 1))
            continue
        done += 1
        tell(what, done, total)


# --- results -------------------------------------------------------------------------------------


def _whole_tables(plan: _Plan, results: Sequence[_Result]) -> list[PredictionTable]:
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


def _write_winner(plan: _Plan, sweep: Storage, config: dict[str, Any]) -> None:
    """The winner's artifacts, one per draw, and its configuration."""
    folder = sweep.child(FOLDER)
    for candidate in plan.candidates:
        if candidate.label == "winner":
            artifact = read_checked(folder, training_file(candidate.training))
            assert artifact is not None, "it was read a moment ago"
            label = plan.task.label(candidate.episode)
            write_tensors(sweep, f"winner/artifact-{label}.safetensors", *artifact)
    text = json.dumps(config, indent=1, allow_nan=False) + "\n"
    sweep.write("winner/config.json", text.encode())
