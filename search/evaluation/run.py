"""The end of a sweep: the winner on fresh few-shot draws, and the one look at the test splits.

The only module that may open test data. The winner, the paper's setting and the zero-shot model
are judged on the same draws, none of which the search has seen; each test split is read once for
all of them, and the read is written down before it happens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, cast, get_args

import numpy as np
import ray
import torch
from safetensors.torch import load, save
from torch import Tensor

from search.core.config import SweepConfig
from search.core.placement import Placement
from search.core.problems import EvaluationError
from search.core.task import fresh_draws, task_facts
from search.driver.preflight import Plan
from search.evaluation.evaluation_sets import EvaluationSet, evaluation_sets
from search.evaluation.examples import MOST, Example, take_examples, write_examples
from search.evaluation.prediction_table import PredictionTable, file_names, from_logits
from search.evaluation.predictions import write_predictions
from search.evaluation.record import (
    EVALUATION,
    Evaluation,
    Label,
    Score,
    read_evaluation,
    record_read,
)
from search.evaluation.winner import share_start
from search.ledger.ledger import Ledger
from spaces.base import preset_trial
from trainables.backbones.shared_weights import share_weights
from trainables.data.base import Dataset, Shift
from trainables.data.class_subsets import Half, classes_of
from trainables.data.sealed import read_test_split
from trainables.encoded_task import EncodedTask, Progress, View
from trainables.stages import open_training
from trainables.storage import Storage, open_storage
from trainables.trial import Episode, TaskSpec, TrialConfig

Judged = tuple[list[PredictionTable], list[Example]]
"""What was said of one test split, part by part, and some of its images."""


@dataclass(frozen=True)
class Candidate:
    """One configuration trained on one fresh draw."""

    label: Label
    """What it stands for in the report."""
    episode: Episode
    """What it was trained on."""
    config: dict[str, Any]
    """`TrialConfig.to_dict()`."""
    artifact: bytes
    """What was learned, as a safetensors file; its tensors without the metadata."""
    metadata: dict[str, str]
    """The artifact's metadata."""


@dataclass(frozen=True)
class Bench:
    """What a worker needs to set up its `EncodedTask`."""

    task: TaskSpec
    """Whose data it holds."""
    data: str
    """Folder of the field's data sets."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """Threads of torch."""
    weights: str
    """Where the backbone's files were shared, or empty."""
    stages: str = ""
    """Where the sweep keeps what fixed stages have learned, or empty."""

    def open(self, progress: Callable[[Progress], None] | None = None) -> EncodedTask:
        """In this process."""
        torch.set_num_threads(self.threads)
        source = self.task.source(self.data)
        backbone = self.task.backbone
        return EncodedTask(backbone, self.device, source, self.weights, progress, self.stages)


def stored_evaluation(ledger: Ledger, plan: Plan) -> Evaluation | None:
    """The evaluation of the present winner on the same draws, if there is one already."""
    found, best = read_evaluation(ledger.sweep), ledger.best()
    if found is None or best is None:
        return None
    seeds = fresh_draws(plan.config.task, plan.source, plan.config.eval_seeds)
    return found if (found.winner, found.seeds) == (best.number, seeds) else None


def shared_weights(config: SweepConfig, sweep: Storage) -> str:
    """Where workers find a local backbone; empty on one machine, where they find it themselves."""
    return share_weights(config.task.backbone, sweep) if config.address else ""


Tell = Callable[[str, int, int], None]
"""Is told of what is done: what, how many, of how many."""


def evaluate(
    ledger: Ledger, plan: Plan, placement: Placement, tell: Tell = lambda *_: None
) -> Evaluation:
    """Train winner and paper's setting on fresh draws, then score all on the test splits, once.

    Runs on the Ray cluster that is connected, with a trial's resources per training. Writes the
    winner's artifacts, all predictions, and `evaluation.json` last. Needs a complete trial in the
    ledger. Raises `EvaluationError`.
    """
    best, config = ledger.best(), plan.config
    if best is None:
        raise ValueError("there is no complete trial to evaluate")
    winner = ledger.config_of(best)
    seeds = fresh_draws(config.task, plan.source, config.eval_seeds)
    task = replace(config.task, seeds=seeds)
    threads = max(1, int(placement.cpus))
    weights = shared_weights(config, ledger.sweep)
    stages = share_start(plan, ledger.sweep)
    bench = Bench(task, config.data, placement.device, threads, weights, stages)
    jobs = [
        (label, trial.to_dict(), episode)
        for episode in task.episodes
        for label, trial in _wanted(plan, episode, winner).items()
    ]
    judged = evaluation_sets(task)
    # Tasks, not actors: they run on what is left of a cluster that has lost a machine.
    options = {"num_cpus": placement.cpus, "num_gpus": placement.gpus, "max_retries": 3}
    train, judge = ray.remote(**options)(_train), ray.remote(**options)(_judge)
    try:
        trained: list[Candidate] = _gather(
            "training the winner on fresh draws", [train.remote(*job, bench) for job in jobs], tell
        )
        held, folder = ray.put(trained), ledger.sweep.location
        most = max(1, MOST // sum(len(exam.halves) for exam in judged))
        found: list[Judged] = _gather(
            "judging test images",
            [judge.remote(exam, held, bench, folder, most) for exam in judged],
            tell,
        )
    except ray.exceptions.RayError as error:
        raise EvaluationError(str(error).strip().splitlines()[-1]) from error
    sheets = [sheet for sheets, _ in found for sheet in sheets]
    scores = tuple(score for sheet in sheets for score in _scores(sheet))
    assert best.value is not None
    evaluation = Evaluation(best.number, best.value, seeds, task.protocol, scores)
    for candidate in trained:
        if candidate.label == "winner":
            name = f"winner/artifact-{task.label(candidate.episode)}.safetensors"
            ledger.sweep.write(name, save(load(candidate.artifact), candidate.metadata))
    ledger.sweep.write("winner/config.json", _json(best.config))
    write_predictions(ledger.sweep, evaluation, sheets)
    write_examples(ledger.sweep, evaluation, [e for _, examples in found for e in examples])
    # Last: what is evaluated need not be read again.
    ledger.sweep.write(EVALUATION, _json(asdict(evaluation)))
    return evaluation


def _gather(what: str, references: list[Any], tell: Tell) -> Any:
    """The values of Ray's references, in order; raises `RayError`."""
    left = references
    tell(what, 0, len(references))
    while left:
        _, left = ray.wait(left)
        tell(what, len(references) - len(left), len(references))
    return ray.get(references)


def _wanted(plan: Plan, episode: Episode, winner: TrialConfig) -> dict[Label, TrialConfig]:
    """Who is judged. The papers set some things by data set and shots: so does this row."""
    facts = task_facts(plan.config.task, plan.source, plan.setting.tower, episode)
    paper = plan.config.open_space(facts).paper
    return {
        "zero-shot": preset_trial("zero-shot", "paper", facts),
        "paper": paper.seeded(plan.config.seed),
        "winner": winner,
    }


def _scores(sheet: PredictionTable) -> list[Score]:
    """One score a model: its values are those of the fresh draws, in their order."""
    rows: dict[tuple[Label, str, int], list[float]] = {}
    for answers in sheet.answers:
        rows.setdefault(answers.model, []).append(sheet.accuracy(answers))
    order = get_args(Label)
    return [
        Score(label, tuple(found), dataset, shots, sheet.target, sheet.part, len(sheet.truth))
        for (label, dataset, shots), found in sorted(
            rows.items(), key=lambda item: order.index(item[0][0])
        )
    ]


@lru_cache(maxsize=1)
def _warm(bench: Bench) -> EncodedTask:
    """A worker's process keeps its backbone and its features from one task to the next."""
    return bench.open()


def _train(label: Label, config: dict[str, Any], episode: Episode, bench: Bench) -> Candidate:
    """On a worker: one configuration on one draw, to the last epoch."""
    trainer = open_training(TrialConfig.from_dict(config), _warm(bench), episode)
    for _ in range(trainer.epochs):
        trainer.run_epoch()
    tensors, metadata = trainer.artifact()
    artifact = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    return Candidate(label, episode, config, artifact, metadata)


def _judge(
    exam: EvaluationSet, trained: Sequence[Candidate], opener: Bench, folder: str, most: int
) -> Judged:
    """On a worker: every candidate's predictions on one test split, which is read once; and at most
    `most` examples of each kind for each part."""
    bench = _warm(opener)
    dataset = bench.source.dataset(exam.target)
    judged = [c for c in trained if exam.judges(c.episode)]

    def record() -> None:
        episodes = [(c.label, c.episode.dataset, c.episode.shots, c.episode.seed) for c in judged]
        record_read(open_storage(folder), exam.target, episodes)

    test = bench.source.readable(read_test_split(dataset, record))
    sheets, examples = [], []
    for half in exam.halves:
        kept = classes_of(half, len(dataset.class_names))
        split = test if half == "all" else test.of_classes(kept)
        view = bench.view(split, dataset.flip)
        answers = [
            from_logits(c.label, c.episode, _logits(exam, half, dataset, view, c, bench))
            for c in judged
        ]
        names = [dataset.class_names[label] for label in kept]
        rows = torch.isin(test.labels, torch.tensor(kept)).nonzero().flatten()
        sheet = PredictionTable(
            exam.target,
            exam.part(half),
            tuple(names),
            rows.int().numpy(),
            file_names(split.images),
            split.labels.numpy().astype(np.uint16),
            tuple(answers),
        )
        sheets.append(sheet)
        examples += take_examples(sheet, split.images, most)
    return sheets, examples


def _logits(
    exam: EvaluationSet,
    half: Half,
    dataset: Dataset,
    view: View,
    candidate: Candidate,
    bench: EncodedTask,
) -> Tensor:
    """[n, c]: the candidate's logits for the classes that this part of the exam has."""
    episode = candidate.episode
    trainer = open_training(TrialConfig.from_dict(candidate.config), bench, episode)
    trainer.load_artifact(load(candidate.artifact), candidate.metadata)
    if not exam.shift and (exam.target, half) != (episode.dataset, episode.half):
        trainer.set_classes(exam.target, half)
    logits = trainer.logits(view)
    if exam.shift and exam.target != episode.dataset:
        logits = logits[:, list(cast(Shift, dataset).source_classes)]
    return logits


def _json(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, indent=1, allow_nan=False).encode() + b"\n"
