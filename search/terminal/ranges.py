"""The ranges of a search space in words."""

from __future__ import annotations

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler

from spaces.base import Space

_SAMPLES = 200  # random points that are drawn to find the ranges of a space


def search_ranges(space: Space) -> dict[str, tuple[str, bool]]:
    """Return, per parameter of a space, its range and whether every trial has it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    found: dict[str, list[BaseDistribution]] = {}
    for _ in range(_SAMPLES):
        trial = study.ask()
        space.suggest(trial)
        for name, distribution in trial.distributions.items():
            found.setdefault(name, []).append(distribution)
    return {
        name: (" or ".join(dict.fromkeys(map(_words, seen))), len(seen) == _SAMPLES)
        for name, seen in found.items()
    }


def value_words(value: object) -> str:
    """A value of a field, as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "one of " + ", ".join(map(value_words, distribution.choices))
    if isinstance(distribution, FloatDistribution | IntDistribution):
        step = f" by {distribution.step:g}" if distribution.step and distribution.step != 1 else ""
        how = ", logarithmic" if distribution.log else ""
        return f"{distribution.low:g} to {distribution.high:g}{step}{how}"
    return str(distribution)
