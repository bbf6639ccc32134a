"""First trials that did well on other data sets, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.selection.bank import complete
from benchmarks.selection.report import Outcome
from benchmarks.selection.simulate import Bench, outcomes_of
from benchmarks.selection.tasks import BenchTask
from search.selection.rules import ensemble

SIZE = 3
"""Configurations of a portfolio."""
BUDGETS = (5, 10, 20)
"""Trials of a sweep."""


def portfolio_outcomes(
    cache: Path, tasks: Sequence[BenchTask], methods: Sequence[str], seeds: int
) -> list[Outcome]:
    """Outcomes of short and long sweeps with and without the portfolio of the other data sets."""
    found = []
    for method in methods:
        here = [task for task in tasks if complete(cache, task, method)]
        losses = {task.name: _losses(Bench.open(cache, task, (method,), False)) for task in here}
        for task in here:
            others = [other for other in here if other.data_set != task.data_set]
            if not others:
                continue
            bench = Bench.open(cache, task, (method,), folds=False)
            first = [0, *chosen(others, losses)]
            for count in BUDGETS:
                for start in ([0], first):
                    sweeps = [_sweep(bench, start, count, seed) for seed in range(seeds)]
                    name = f"{count} trials, {'portfolio' if len(start) > 1 else 'random'}"
                    outcomes = outcomes_of(
                        bench, "pooled", sweeps, lambda e: {"ensemble": ensemble(e)}, method
                    )
                    found += [replace(outcome, rule=name) for outcome in outcomes]
    return found


def chosen(tasks: Sequence[BenchTask], losses: dict[str, Tensor]) -> list[int]:
    """The configurations that lower the loss of the best of them and the paper's setting most:
    the mean over data sets of the mean over their tasks, one configuration after the other.
    `losses`: task -> what a configuration's test accuracy is below the best one's [m]."""
    found = [0]
    for _ in range(SIZE):
        totals = torch.zeros_like(losses[tasks[0].name])
        for data_set in sorted({task.data_set for task in tasks}):
            rows = torch.stack([losses[t.name] for t in tasks if t.data_set == data_set])
            totals += torch.minimum(rows, rows[:, found].amin(dim=1, keepdim=True)).mean(dim=0)
        totals[found] = torch.inf
        found.append(int(totals.argmin()))
    return found[1:]


def _losses(bench: Bench) -> Tensor:
    trials = bench.test_accuracies[: bench.zero_shot]
    return trials.max() - trials


def _sweep(bench: Bench, first: list[int], count: int, seed: int) -> list[int]:
    rng = torch.Generator().manual_seed(seed)
    others = [k for k in bench.trials() if k not in first]
    drawn = torch.randperm(len(others), generator=rng)[: count - len(first)]
    return [*first, *(others[k] for k in drawn.tolist()), bench.zero_shot]
