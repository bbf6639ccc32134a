"""Sweeps and their validation, put together from a bank; and the test that judges a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.selection.bank import CONFIGS, FOLD_CONFIGS, load
from benchmarks.selection.candidates import take
from benchmarks.selection.report import Outcome, spearman
from benchmarks.selection.tasks import FRESH_DRAWS, SEARCH_DRAWS, BenchTask
from search.selection.rules import Evidence, Mixture, row_weights

Validation = Literal["held-out", "validation sets", "pooled", "folds"]
"""What a model of a draw is validated on: the draw's own validation images; those of all draws; all
labelled images of all draws that it was not trained on; or, fold by fold, its own training
images."""


@dataclass(frozen=True)
class Bench:
    """One or several methods on one task: all configurations, and the zero-shot model as the last
    member."""

    task: BenchTask
    """The task."""
    methods: tuple[str, ...]
    """Methods of the bank."""
    log_probs: Tensor
    """float16 [members, draws, images, c]."""
    sizes: tuple[int, ...]
    """Configurations per method."""
    fold_probs: Tensor | None = None
    """The same for folds, if there are any: [members, search draws, images, c]."""

    @classmethod
    def open(cls, cache: Path, task: BenchTask, methods: tuple[str, ...], folds: bool) -> Bench:
        """Read the bank; with `folds`, only the configurations that were trained on folds, too."""

        def read(folds: bool, most: int) -> tuple[Tensor, list[int]]:
            found = [
                load(cache, task, method, folds).log_probs[: min(most, CONFIGS[method])]
                for method in methods
            ]
            zero = task.zero_shot().half().expand(1, found[0].shape[1], -1, -1)
            return torch.cat([*found, zero]), [len(each) for each in found]

        log_probs, sizes = read(False, FOLD_CONFIGS if folds else 1000)
        fold_probs = read(True, FOLD_CONFIGS)[0] if folds else None
        return cls(task, methods, log_probs, tuple(sizes), fold_probs)

    @property
    def zero_shot(self) -> int:
        """Its place among the members."""
        return len(self.log_probs) - 1

    @cached_property
    def test(self) -> Tensor:
        """Test log-probabilities float32 [members, draws, images, c] of the fresh draws, or of the
        only one."""
        draws = self.task.draws
        fresh = [p for p, d in enumerate(draws) if d in FRESH_DRAWS] or [0]
        return self.log_probs[:, fresh][:, :, self.task.test_rows].float()

    @cached_property
    def test_labels(self) -> Tensor:
        """int64 [images]."""
        return self.task.labels[self.task.test_rows]

    @cached_property
    def test_accuracies(self) -> Tensor:
        """Mean over draws, in per cent, float64 [members]."""
        right = self.test.argmax(dim=-1) == self.test_labels
        return 100 * right.double().mean(dim=(1, 2))

    def accuracy(self, members: list[int], mixture: Mixture) -> float:
        """Test accuracy in per cent of a pool of these members, mean over draws."""
        used = [k for k, w in enumerate(mixture.weights) if w > 0]
        weights = torch.tensor([mixture.weights[k] for k in used])
        logits = torch.einsum("m,mdnc->dnc", weights, self.test[[members[k] for k in used]])
        return float(100 * (logits.argmax(dim=-1) == self.test_labels).double().mean())

    def evidence(self, validation: Validation) -> Evidence:
        """That of all members."""
        source = self.log_probs if validation != "folds" else self.fold_probs
        assert source is not None
        parts, groups = [], []
        for place, draw in enumerate(d for d in self.task.draws if d in SEARCH_DRAWS):
            rows = self.rows(validation, draw)
            parts.append(source[:, place, rows].float())
            groups.append(rows)
        rows = torch.cat(groups)
        log_probs = torch.cat(parts, dim=1).log_softmax(dim=-1)
        return Evidence(log_probs, self.task.labels[rows], rows, self.zero_shot, 0)

    def rows(self, validation: Validation, draw: int) -> Tensor:
        """The images that the model of a draw is validated on."""
        task = self.task
        if validation == "folds":
            return task.train_rows(draw)
        if validation == "held-out" and len(task.draws) > 1:
            return task.val_rows(draw)
        found = {row for d in SEARCH_DRAWS for row in task.val_rows(d).tolist()}
        if validation == "pooled":
            found |= {row for d in SEARCH_DRAWS for row in task.train_rows(d).tolist()}
        return torch.tensor(sorted(found - set(task.train_rows(draw).tolist())))

    def trials(self) -> list[int]:
        """The configurations that ended with finite numbers."""
        finite = self.log_probs[:, :, :1, :1].isfinite().flatten(1).all(dim=1)
        return [k for k in range(self.zero_shot) if finite[k]]

    def sweeps(self, trials: int, seeds: int) -> Iterator[list[int]]:
        """Members of sweeps: the paper's setting, random others, and the zero-shot model last. A
        method with few configurations has shorter sweeps, so that they differ."""
        rng = torch.Generator().manual_seed(1)
        others = [k for k in self.trials() if k > 0]
        count = min(trials, (2 * len(others) + 5) // 3) - 1
        for _ in range(seeds):
            order = torch.randperm(len(others), generator=rng)[:count]
            yield [0, *sorted(others[k] for k in order.tolist()), self.zero_shot]


Rules = Callable[[Evidence], Mapping[str, Mixture]]
"""Evaluates several rules at once."""


def outcomes_of(
    bench: Bench, validation: Validation, sweeps: Iterable[list[int]], rules: Rules, name: str
) -> list[Outcome]:
    """What the rules make of sweeps, each of them a list of members with the paper's setting first
    and the zero-shot model last. `name`: of what is searched."""
    whole, found = bench.evidence(validation), list[Outcome]()
    kind = validation + ", fewer trials" * (bench.fold_probs is not None)
    for seed, members in enumerate(sweeps):
        part = take(whole, members)
        test = bench.test_accuracies[torch.tensor(members)]
        right = (part.log_probs.argmax(dim=-1) == part.labels).double() @ row_weights(part.groups)
        ranks = [spearman(values[:-1], test[:-1]) for values in (right, part.likelihoods)]
        facts = (bench.task.data_set, bench.task.path.stem, bench.task.shots, name, seed)
        for rule, mixture in rules(part).items():
            accuracy = bench.accuracy(members, mixture)
            ends = float(test[-1]), float(test[0]), float(test[:-1].max())
            size = len(mixture.members)
            found.append(Outcome(*facts, kind, rule, accuracy, *ends, *ranks, size))
    return found
