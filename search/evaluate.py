"""The end of a sweep: the winner on fresh few-shot draws, and the one look at the test split.

The only module that may open test data. The winner, the paper's setting and the zero-shot model
are judged on the same draws, none of which the search has seen; the test split is read once for
all of them, and the read is written down before it happens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import torch
from safetensors.torch import load, save

from search.config import SweepConfig
from search.evaluation import EVALUATION, READS, Evaluation, Label, Score, read_evaluation
from search.ledger import Ledger
from search.problems import EvaluationError
from search.resources import Placement
from spaces.base import Setting, Space, preset_trial
from trainables.backbones.shared import share_weights
from trainables.data.registry import open_dataset
from trainables.data.sealed import read_test_split
from trainables.storage import Storage, open_storage
from trainables.trainer import Trainer, accuracy
from trainables.trial import TaskSpec, TrialConfig
from trainables.workbench import Workbench


@dataclass(frozen=True)
class Candidate:
    """One configuration trained on one fresh draw."""

    label: Label
    """What it stands for in the report."""
    seed: int
    """Seed of the few-shot draw."""
    config: dict[str, Any]
    """`TrialConfig.to_dict()`."""
    artifact: bytes
    """What was learned, as a safetensors file; its tensors without the metadata."""
    metadata: dict[str, str]
    """The artifact's metadata."""


def fresh_seeds(used: Sequence[int], count: int) -> tuple[int, ...]:
    """The next `count` seeds after all those that the search has used."""
    return tuple(range(max(used) + 1, max(used) + 1 + count))


def stored_evaluation(ledger: Ledger, config: SweepConfig) -> Evaluation | None:
    """The evaluation of the present winner on the same draws, if there is one already."""
    found, best = read_evaluation(ledger.sweep), ledger.best()
    if found is None or best is None:
        return None
    seeds = fresh_seeds(config.task.seeds, config.eval_seeds)
    return found if (found.winner, found.seeds) == (best.number, seeds) else None


def shared_weights(config: SweepConfig, sweep: Storage) -> str:
    """Where workers find a local backbone; empty on one machine, where they find it themselves."""
    return share_weights(config.task.backbone, sweep) if config.address else ""


def evaluate(
    ledger: Ledger, space: Space, setting: Setting, config: SweepConfig, placement: Placement
) -> Evaluation:
    """Train winner and paper's setting on fresh draws, then score all on the test split, once.

    Runs on the Ray cluster that is connected, with a trial's resources per training. Writes
    `evaluation.json` and the winner's artifacts. Needs a complete trial in the ledger. Raises
    `EvaluationError`.
    """
    best = ledger.best()
    if best is None:
        raise ValueError("there is no complete trial to evaluate")
    winner = ledger.config_of(best)
    wanted: dict[Label, TrialConfig] = {
        "zero-shot": preset_trial("zero-shot", "paper", setting),
        "paper": replace(space.paper, seed=config.seed),
        "winner": winner,
    }
    seeds = fresh_seeds(config.task.seeds, config.eval_seeds)
    options = {"num_cpus": placement.cpus, "num_gpus": placement.gpus, "max_retries": 3}
    train = ray.remote(**options)(_train)
    score = ray.remote(**options)(_score)
    threads = max(1, int(placement.cpus))
    place = (placement.device, threads, shared_weights(config, ledger.sweep))
    jobs = [
        train.remote(label, trial.to_dict(), asdict(config.task), seed, *place)
        for label, trial in wanted.items()
        for seed in seeds
    ]
    try:
        trained: list[Candidate] = ray.get(jobs)
        images, values = ray.get(
            score.remote(trained, asdict(config.task), ledger.sweep.location, *place)
        )
    except ray.exceptions.RayError as error:
        raise EvaluationError(str(error).strip().splitlines()[-1]) from error
    scores = tuple(
        Score(label, tuple(v for c, v in zip(trained, values, strict=True) if c.label == label))
        for label in wanted
    )
    assert best.value is not None
    found = Evaluation(best.number, best.value, seeds, images, scores)
    for candidate in trained:
        if candidate.label == "winner":
            name = f"winner/artifact-seed{candidate.seed}.safetensors"
            ledger.sweep.write(name, save(load(candidate.artifact), candidate.metadata))
    ledger.sweep.write("winner/config.json", _json(best.config))
    ledger.sweep.write(EVALUATION, _json(asdict(found)))
    return found


def _train(
    label: Label,
    config: dict[str, Any],
    task: dict[str, Any],
    seed: int,
    device: str,
    threads: int,
    weights: str,
) -> Candidate:
    """On a worker: one configuration on one draw, to the last epoch."""
    torch.set_num_threads(threads)
    spec = _task(task)
    bench = Workbench(spec.backbone, device, weights)
    trainer = Trainer(TrialConfig.from_dict(config), bench, spec.dataset, spec.shots, seed)
    for _ in range(trainer.epochs):
        trainer.run_epoch()
    tensors, metadata = trainer.method.artifact()
    artifact = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    return Candidate(label, seed, config, artifact, metadata)


def _score(
    candidates: Sequence[Candidate],
    task: dict[str, Any],
    folder: str,
    device: str,
    threads: int,
    weights: str,
) -> tuple[int, list[float]]:
    """On a worker: every candidate's accuracy on the test split, which is read once."""
    torch.set_num_threads(threads)
    spec = _task(task)
    bench = Workbench(spec.backbone, device, weights)
    test = read_test_split(
        open_dataset(spec.dataset),
        lambda: _record(open_storage(folder), spec, [(c.label, c.seed) for c in candidates]),
    )
    view = bench.view(test.images, test.labels)
    accuracies = []
    for candidate in candidates:
        config = TrialConfig.from_dict(candidate.config)
        trainer = Trainer(config, bench, spec.dataset, spec.shots, candidate.seed)
        trainer.method.load_artifact(load(candidate.artifact), candidate.metadata)
        accuracies.append(accuracy(trainer.logits(view), view.labels))
    return len(test.labels), accuracies


def _record(sweep: Storage, task: TaskSpec, judged: Sequence[tuple[str, int]]) -> None:
    """Append the read to the sweep's list of reads, for good before any image is given."""
    entry = {"time": time.time(), "dataset": task.dataset, "judged": judged}
    sweep.append(READS, json.dumps(entry).encode() + b"\n")


def _json(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, indent=1, allow_nan=False).encode() + b"\n"


def _task(plain: dict[str, Any]) -> TaskSpec:
    return TaskSpec(**(plain | {"seeds": tuple(plain["seeds"])}))
