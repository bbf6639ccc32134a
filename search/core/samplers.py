"""Optuna's samplers by name.

There is a new sampler for every trial, seeded by the sweep's seed and the trial's number. Its
proposal depends on the study alone, so a restarted search proposes what it would have proposed
without the restart.

Optuna is imported when a sampler is created: commands that only read a sweep do without it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

STARTUP_TRIALS = 8
"""Random trials before a model-based sampler begins."""


def _tpe(seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=STARTUP_TRIALS)


def _gp(seed: int) -> BaseSampler:
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def _cmaes(seed: int) -> BaseSampler:
    from optuna.samplers import CmaEsSampler

    # Categorical and conditional parameters are outside CMA-ES's reach: they are drawn at random.
    return CmaEsSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _nsga2(seed: int) -> BaseSampler:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=STARTUP_TRIALS)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "random": _random,
    "nsga2": _nsga2,
}


GRID = "grid"
"""Name of the sampler that runs every combination of a grid."""


def make_sampler(
    name: str, seed: int, number: int, grid: Mapping[str, Sequence[Any]] | None = None
) -> BaseSampler:
    """The sampler that proposes trial `number`; `grid` has the values of every parameter, for the
    sampler `grid` only."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import GridSampler

    if name == GRID:
        # The order of the combinations depends on the seed, so it is the same for all trials.
        return GridSampler(grid or {}, seed=seed % 2**32)
    digest = hashlib.sha256(f"{name}/{seed}/{number}".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](int.from_bytes(digest[:4], "big"))
