"""The bank: every configuration of every method trained on every draw of a task, once.

It keeps the log-probabilities of all images, so that a sweep, its validation and its test are a
matter of picking rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import optuna
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from benchmarks.selection.tasks import SEARCH_DRAWS, BenchData, BenchTask
from spaces.registry import SPACES
from trainables.methods.base import MethodError
from trainables.methods.classifiers import class_means, zero_shot_classifier
from trainables.methods.gda import GdaConfig
from trainables.trainer import NonFiniteError, Trainer
from trainables.trial import Episode, TrialConfig

CONFIGS: Mapping[str, int] = {
    "taskres": 32,
    "gda": 40,
    "tip-adapter": 40,
    "tip-adapter-f": 24,
    "clap": 20,
    "lp-plus-plus": 12,
    "linear-probe": 10,
}
"""Method -> configurations: the paper's setting, then random points of its space."""
FOLDED = ("gda", "taskres", "tip-adapter-f", "clap")
"""Methods that are also trained on folds, with `FOLD_CONFIGS` configurations."""
FOLD_CONFIGS = 16


@dataclass(frozen=True)
class Trained:
    """All trainings of one method on one task."""

    method: str
    """Its name."""
    parameters: tuple[dict[str, Any], ...]
    """The parameters of each configuration; the first is the paper's setting."""
    log_probs: Tensor
    """float16 [configurations, draws, images, c]; NaN where the training diverged."""
    seconds: Tensor
    """Duration of each training [configurations, draws]."""


class _Fit(Trainer):
    """Training without the validation after every epoch."""

    def validate(self) -> dict[str, float]:
        return {}


def configurations(
    method: str, data: BenchData, count: int = 1000
) -> list[tuple[TrialConfig, dict[str, Any]]]:
    """The paper's setting and random ones, at most `count`, with their parameters: the same on
    every task as far as the method's ranges are."""
    images = len(data.task.train_rows(1))
    space = SPACES[method].build(data.facts(images))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [(space.paper, dict(space.first_parameters))]
    for _ in range(min(count, CONFIGS[method]) - 1):
        trial = study.ask()
        found.append((space.suggest(trial), dict(trial.params)))
    return found


def fit(config: TrialConfig, data: BenchData, seed: int) -> tuple[Tensor, float]:
    """Train once; return the log-probabilities of all images, float16 [n, c], and seconds."""
    start = time.perf_counter()
    episode = Episode(data.task.bundle.name, data.task.shots, seed)
    try:
        trainer = _Fit(config, data, episode)
        for _ in range(trainer.epochs):
            trainer.run_epoch()
        logits = trainer.logits(data.everything)
    except (NonFiniteError, MethodError):
        shape = len(data.task.labels), len(data.task.bundle.class_names)
        logits = torch.full(shape, torch.nan)
    seconds = time.perf_counter() - start
    return logits.log_softmax(dim=-1).clamp(min=-60_000).half(), seconds


Fit = Callable[[TrialConfig, BenchData, int], tuple[Tensor, float]]


def gda_fits(data: BenchData) -> Fit:
    """`fit` for GDA with one decomposition per draw instead of one inversion per configuration."""
    text = zero_shot_classifier(data.classes(data.spec, "all", "single"), data.backbone)
    images = functional.normalize(data.everything.features(), dim=-1)

    @cache
    def parts(seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
        view, _ = data.views(Episode(data.spec, data.task.shots, seed))
        rows, labels = functional.normalize(view.features(), dim=-1), view.labels
        mean = class_means(rows, labels, len(text))
        centred = rows - mean[labels]
        centred = centred - centred.mean(dim=0)
        _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
        squares = values.square()
        return mean, vectors, squares, float(squares.sum()) / max(1, len(rows) - 1)

    def gda(config: TrialConfig, data: BenchData, seed: int) -> tuple[Tensor, float]:
        start = time.perf_counter()
        method = cast(GdaConfig, config.method_config)
        mean, vectors, squares, trace = parts(seed)
        weight = torch.zeros_like(mean)
        if trace > 1e-12:
            added = method.shrinkage * trace
            inner = 1 / (squares + added) - 1 / added
            weight = mean.shape[1] * ((mean @ vectors.T * inner) @ vectors + mean / added)
        bias = -(weight * mean).sum(dim=-1) / 2
        logits = images @ (text + method.alpha * weight).T + method.alpha * bias
        return logits.log_softmax(dim=-1).clamp(min=-60_000).half(), time.perf_counter() - start

    return gda


def bank_file(folder: Path, task: BenchTask, method: str, folds: bool = False) -> Path:
    """Where it is stored."""
    return folder / f"{task.name}-{method}{'-folds' if folds else ''}.safetensors"


def make(folder: Path, task: BenchTask, method: str, count: int = 1000) -> float:
    """Train at most `count` configurations of one method on one task, unless its file is there;
    return the seconds."""
    path = bank_file(folder, task, method)
    if path.exists():
        return 0.0
    data = BenchData(task)
    configs = configurations(method, data, count)
    train = gda_fits(data) if method == "gda" else fit
    found = [[train(config, data, draw) for draw in task.draws] for config, _ in configs]
    return _save(path, [parameters for _, parameters in configs], found)


def make_folds(folder: Path, task: BenchTask, method: str, count: int = 1000) -> float:
    """The same for folds: entry [configuration, draw, image] is the prediction of the model that
    has not seen the image, for the draw's training images, and NaN for all others."""
    path = bank_file(folder, task, method, folds=True)
    if path.exists() or task.shots == 1:
        return 0.0
    data = BenchData(task)
    draws = [draw for draw in task.draws if draw in SEARCH_DRAWS]
    configs = configurations(method, data, min(count, FOLD_CONFIGS))
    train = gda_fits(data) if method == "gda" else fit
    found = []
    for config, _ in configs:
        row = []
        for draw in draws:
            whole, spent = (
                torch.full((len(task.labels), len(task.bundle.class_names)), torch.nan),
                0.0,
            )
            for number, (kept, left) in enumerate(folds(task, draw)):
                seed = 1000 * draw + number
                data.rows[seed] = kept
                log_probs, seconds = train(config, data, seed)
                whole[left] = log_probs[left].float()
                spent += seconds
            row.append((whole.half(), spent))
        found.append(row)
    return _save(path, [parameters for _, parameters in configs], found)


def folds(task: BenchTask, draw: int) -> list[tuple[Tensor, Tensor]]:
    """(kept, left out) positions of min(shots, 4) stratified folds of a draw's training images."""
    rows, count = task.train_rows(draw), min(task.shots, 4)
    place = torch.arange(len(rows)) % task.shots % count  # rows are ordered by class
    return [(rows[place != number], rows[place == number]) for number in range(count)]


def complete(folder: Path, task: BenchTask, method: str, folds: bool = False) -> bool:
    """Whether the bank has it."""
    return bank_file(folder, task, method, folds).exists()


def load(folder: Path, task: BenchTask, method: str, folds: bool = False) -> Trained:
    """What `make` has stored."""
    with safe_open(bank_file(folder, task, method, folds), "pt") as file:
        parameters = tuple(json.loads(file.metadata()["parameters"]))
        return Trained(method, parameters, file.get_tensor("log_probs"), file.get_tensor("seconds"))


def _save(path: Path, parameters: list[Any], found: list[list[tuple[Tensor, float]]]) -> float:
    seconds = torch.tensor([[each[1] for each in row] for row in found])
    log_probs = torch.stack([torch.stack([each[0] for each in row]) for row in found])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {"log_probs": log_probs, "seconds": seconds},
        partial,
        {"parameters": json.dumps(parameters)},
    )
    partial.rename(path)
    return float(seconds.sum())
