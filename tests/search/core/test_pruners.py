"""At which steps each pruner decides."""

from __future__ import annotations

import random
import warnings

import optuna
import pytest
from optuna.trial import TrialState

from search.core.pruners import PRUNERS, decision_steps
from trainables.report import REPORTS_PER_TRIAL

TRIALS = 60


def decisions(pruner: str, steps: int, seed: int) -> tuple[set[int], set[int]]:
    """The steps after which trials with random values were stopped, and those after which something
    was stored with a trial."""
    draw = random.Random(seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            direction="maximize", pruner=PRUNERS[pruner](), sampler=optuna.samplers.RandomSampler(0)
        )
        stopped, noted = set(), set()
        for _ in range(TRIALS):
            trial = study.ask()
            for step in range(1, steps + 1):
                before = dict(study._storage.get_trial_system_attrs(trial._trial_id))
                trial.report(draw.random(), step)
                prune = trial.should_prune()
                if study._storage.get_trial_system_attrs(trial._trial_id) != before:
                    noted.add(step)
                if prune:
                    stopped.add(step)
                    break
            state = TrialState.PRUNED if prune else TrialState.COMPLETE
            study.tell(trial, None if prune else 0.5, state)
    return stopped, noted


@pytest.mark.parametrize("steps", [1, 3, REPORTS_PER_TRIAL, 15])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_pruner_does_nothing_after_other_steps(pruner: str, steps: int) -> None:
    known = decision_steps(pruner, steps)
    assert [*known] == sorted({*known} & {*range(1, steps + 1)})
    for seed in range(3):
        stopped, noted = decisions(pruner, steps, seed)
        assert stopped <= {*known}
        assert noted <= {*known}


# Wilcoxon's test cannot reject anything with fewer than four pairs.
@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name not in ("none", "wilcoxon")])
def test_the_steps_are_those_after_which_trials_are_stopped(pruner: str) -> None:
    """Else short steps would be reported one by one for nothing."""
    stopped: set[int] = set()
    for seed in range(12):
        stopped |= decisions(pruner, REPORTS_PER_TRIAL, seed)[0]
    ends_anyway = {REPORTS_PER_TRIAL}
    assert stopped | ends_anyway >= {*decision_steps(pruner, REPORTS_PER_TRIAL)}
