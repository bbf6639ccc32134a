"""`search.ledger.seen_trials`: what TPE sees of a long sweep."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from search.ledger.seen_trials import BEST, LATEST, SweepTrials

LENGTH = LATEST + 200


def study_of(values: list[float], directions: int = 1) -> tuple[optuna.Study, SweepTrials]:
    """A study of complete trials, and its storage."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = SweepTrials()
    study = optuna.create_study(storage=storage, directions=["maximize"] * directions)
    for value in values:
        trial = create_trial(
            params={"x": value},
            distributions={"x": FloatDistribution(0, 1)},
            values=[value] * directions,
        )
        study.add_trial(trial)
    return study, storage


def seen(study: optuna.Study, storage: SweepTrials) -> list[int]:
    with storage.limited():
        return [trial.number for trial in study.get_trials(deepcopy=False)]


def test_a_sweep_that_is_not_long_is_seen_as_a_whole() -> None:
    study, storage = study_of([n / LATEST for n in range(LATEST)])
    assert seen(study, storage) == list(range(LATEST))


def test_of_a_long_sweep_the_best_and_the_latest_trials_are_seen() -> None:
    values = [(n * 7919 % LENGTH) / LENGTH for n in range(LENGTH)]
    study, storage = study_of(values)
    best = sorted(range(LENGTH), key=lambda n: -values[n])[:BEST]
    assert seen(study, storage) == sorted({*best, *range(LENGTH - LATEST, LENGTH)})
    assert len(study.trials) == LENGTH  # for everyone else


def test_of_equal_trials_the_first_ones_are_seen() -> None:
    study, storage = study_of([0.5] * LENGTH)
    assert seen(study, storage)[:BEST] == list(range(BEST))


def test_all_running_trials_are_seen_and_take_no_place() -> None:
    study, storage = study_of([0.5] * LENGTH)
    running = [study.ask().number for _ in range(LATEST)]
    assert seen(study, storage) == [*range(BEST), *range(LENGTH - LATEST, LENGTH), *running]
    study.tell(running[0], 0.9)
    assert running[0] in seen(study, storage)


def test_states_are_selected_among_the_seen_trials() -> None:
    study, storage = study_of([0.5] * LENGTH)
    study.ask()
    with storage.limited():
        found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    assert [trial.number for trial in found] == [LENGTH]


def test_two_objectives_are_seen_as_a_whole() -> None:
    study, storage = study_of([0.5] * LENGTH, directions=2)
    assert len(seen(study, storage)) == LENGTH


@pytest.mark.parametrize("length", [LATEST, LENGTH])
def test_a_study_built_at_once_sees_what_one_that_grew_sees(length: int) -> None:
    grown, storage = study_of([])
    for number in range(length):
        trial = grown.ask()
        trial.suggest_float("x", 0, 1)
        grown.tell(trial, (number * 7919 % length) / length)
    rebuilt, other = study_of([(n * 7919 % length) / length for n in range(length)])
    assert seen(grown, storage) == seen(rebuilt, other)
