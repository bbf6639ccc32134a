"""The end of a sweep: the winner on fresh few-shot draws, and the one look at the test split.

The only module that may open test data. The winner, the paper's setting and the zero-shot model
are judged on the same draws, none of which the search has seen; the test split is read once for
all of them, and the read is written down before it happens.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from safetensors.torch import load, save

from search.config import SweepConfig
from search.files import read_json, write_json
from search.ledger import Ledger
from search.resources import Placement
from spaces.base import Setting, Space, preset_trial
from trainables.data.registry import open_dataset
from trainables.data.sealed import read_test_split
from trainables.trainer import Trainer, accuracy
from trainables.trial import TaskSpec, TrialConfig
from trainables.workbench import Workbench

READS = "test_reads.jsonl"
EVALUATION = "evaluation.json"

Label = Literal["zero-shot", "paper", "winner"]


class EvaluationError(RuntimeError):
    """The winner could not be re-trained or scored; the trials are not touched by it."""


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


@dataclass(frozen=True)
class Score:
    """Mean and spread of a configuration's test accuracy over the fresh draws, as fractions."""

    label: Label
    """What was judged."""
    values: tuple[float, ...]
    """One accuracy a draw."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1); none for a single draw."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Evaluation:
    """What the sweep found, on data that it was not chosen on."""

    winner: int
    """Number of the winning trial."""
    validation: float
    """The winner's value in the search."""
    seeds: tuple[int, ...]
    """Seeds of the fresh draws."""
    images: int
    """Test images."""
    scores: tuple[Score, ...]
    """Zero-shot, paper's setting, winner."""

    def score(self, label: Label) -> Score:
        """The score of that name."""
        return next(score for score in self.scores if score.label == label)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Evaluation:
        """The inverse of `dataclasses.asdict`."""
        scores = tuple(Score(s["label"], tuple(s["values"])) for s in plain["scores"])
        return cls(**(plain | {"scores": scores, "seeds": tuple(plain["seeds"])}))


def fresh_seeds(used: Sequence[int], count: int) -> tuple[int, ...]:
    """The next `count` seeds after all those that the search has used."""
    return tuple(range(max(used) + 1, max(used) + 1 + count))


def stored_evaluation(ledger: Ledger, config: SweepConfig) -> Evaluation | None:
    """The evaluation of the present winner on the same draws, if there is one already."""
    path, best = ledger.folder / EVALUATION, ledger.best()
    if best is None or not path.exists():
        return None
    found = Evaluation.from_dict(read_json(path))
    seeds = fresh_seeds(config.task.seeds, config.eval_seeds)
    return found if (found.winner, found.seeds) == (best.number, seeds) else None


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
    jobs = [
        train.remote(label, trial.to_dict(), asdict(config.task), seed, placement.device, threads)
        for label, trial in wanted.items()
        for seed in seeds
    ]
    place = (str(ledger.folder), placement.device, threads)
    try:
        trained: list[Candidate] = ray.get(jobs)
        images, values = ray.get(score.remote(trained, asdict(config.task), *place))
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
            path = ledger.folder / "winner" / f"artifact-seed{candidate.seed}.safetensors"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(save(load(candidate.artifact), candidate.metadata))
    write_json(ledger.folder / "winner" / "config.json", best.config)
    write_json(ledger.folder / EVALUATION, asdict(found))
    return found


def _train(
    label: Label,
    config: dict[str, Any],
    task: dict[str, Any],
    seed: int,
    device: str,
    threads: int,
) -> Candidate:
    """On a worker: one configuration on one draw, to the last epoch."""
    torch.set_num_threads(threads)
    spec = _task(task)
    bench = Workbench(spec.backbone, device)
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
) -> tuple[int, list[float]]:
    """On a worker: every candidate's accuracy on the test split, which is read once."""
    torch.set_num_threads(threads)
    spec = _task(task)
    bench = Workbench(spec.backbone, device)
    test = read_test_split(
        open_dataset(spec.dataset),
        lambda: _record(Path(folder), spec, [(c.label, c.seed) for c in candidates]),
    )
    view = bench.view(test.images, test.labels)
    accuracies = []
    for candidate in candidates:
        config = TrialConfig.from_dict(candidate.config)
        trainer = Trainer(config, bench, spec.dataset, spec.shots, candidate.seed)
        trainer.method.load_artifact(load(candidate.artifact), candidate.metadata)
        accuracies.append(accuracy(trainer.logits(view), view.labels))
    return len(test.labels), accuracies


def _record(folder: Path, task: TaskSpec, judged: Sequence[tuple[str, int]]) -> None:
    """Append the read to the sweep's list of reads, on the disk before any image is given."""
    entry = {"time": time.time(), "dataset": task.dataset, "judged": judged}
    with open(folder / READS, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def test_reads(folder: Path) -> int:
    """How often the sweep has read the test split."""
    path = folder / READS
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def _task(plain: dict[str, Any]) -> TaskSpec:
    return TaskSpec(**(plain | {"seeds": tuple(plain["seeds"])}))
