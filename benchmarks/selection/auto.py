"""Sweeps over all methods together, and the same number of trials of each method alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.selection.report import Outcome
from benchmarks.selection.simulate import Bench, outcomes_of
from benchmarks.selection.tasks import BenchTask
from search.selection.rules import RULES, Evidence, Mixture


def auto_outcomes(
    cache: Path, task: BenchTask, methods: Sequence[str], trials: int, seeds: int
) -> list[Outcome]:
    """Outcomes of sweeps over `methods`: evenly spread trials, successive halving, and each method
    alone. The reference is the paper's setting of the first method."""
    bench = Bench.open(cache, task, tuple(methods), folds=False)
    whole, found = bench.evidence("pooled"), list[Outcome]()
    pools = _pools(bench)
    for name, plan in (("even", _even), ("halving", _halving)):
        sweeps = [plan(pools, whole, trials, _rng(seed)) for seed in range(seeds)]
        found += outcomes_of(bench, "pooled", sweeps, _rules, f"auto, {name}")
    for method, pool in zip(methods, pools, strict=True):
        count = min(trials, (2 * len(pool) + 5) // 3)
        drawn = [_drawn(pool[1:], count - 1, _rng(seed)) for seed in range(seeds)]
        sweeps = [[pool[0], *others, bench.zero_shot] for others in drawn]
        alone = outcomes_of(bench, "pooled", sweeps, _rules, f"auto: {method} alone")
        paper = float(bench.test_accuracies[0])
        found += [Outcome(**(vars(each) | {"paper": paper})) for each in alone]
    return found


def _rules(evidence: Evidence) -> dict[str, Mixture]:
    return {name: rule(evidence) for name, rule in RULES.items()}


def _pools(bench: Bench) -> list[list[int]]:
    """The members of each method, its paper's setting first."""
    finite, first, found = set(bench.trials()), 0, []
    for size in bench.sizes:
        found.append([k for k in range(first, first + size) if k in finite])
        first += size
    return found


def _even(pools: list[list[int]], whole: Evidence, trials: int, rng: torch.Generator) -> list[int]:
    """Every paper's setting, then one random configuration per method in turns."""
    queues = [pool[1:2] and _drawn(pool[1:], len(pool) - 1, rng) for pool in pools]
    found = [pool[0] for pool in pools]
    while len(found) < trials and any(queues):
        found += [queue.pop() for queue in queues if queue]
    return [*found[:trials], whole.zero_shot]


def _halving(
    pools: list[list[int]], whole: Evidence, trials: int, rng: torch.Generator
) -> list[int]:
    """Every paper's setting; a random configuration of the better half of the methods, by the
    likelihood of their best trial; the rest of the trials for the better half of those."""
    queues = {n: _drawn(pool[1:], len(pool) - 1, rng) for n, pool in enumerate(pools)}
    tried = {n: [pool[0]] for n, pool in enumerate(pools)}
    alive = list(tried)
    while sum(map(len, tried.values())) < trials and any(queues[n] for n in alive):
        if len(alive) > 2:
            alive.sort(key=lambda n: -max(float(whole.likelihoods[k]) for k in tried[n]))
            alive = alive[: max(2, len(alive) // 2)]
        for n in alive:
            if queues[n]:
                tried[n].append(queues[n].pop())
    first, *others = (tried[n] for n in sorted(tried))
    return [*[*first, *(k for each in others for k in each)][:trials], whole.zero_shot]


def _drawn(pool: list[int], count: int, rng: torch.Generator) -> list[int]:
    return [pool[k] for k in torch.randperm(len(pool), generator=rng)[:count].tolist()]


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + seed)
