"""The Optuna study of a sweep: in memory, rebuilt at every start from the trials' records.

Sampler and pruner see after a restart what they saw before it, so they decide as if the sweep had
never stopped. This holds because a sampler is seeded per trial (see `samplers.py`), and because
everything that either of them stores with a trial or the study is part of the trial's record.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import (
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from search.core.objectives import Objective, directions, study_values
from search.core.problems import UsageError
from search.core.pruners import PRUNERS
from search.core.results import ISSUED, RESULT, IssuedTrial, Result, unreadable
from search.core.samplers import make_sampler
from search.ledger.seen_trials import SweepTrials
from spaces.base import Space

_RUNNING = TrialState.RUNNING
_NAME = "sweep"
"""Name of the study. Hyperband assigns trials to its brackets by it, so it never changes."""


class SweepStudy:
    """Proposes trials, decides which to prune, and keeps what they reported."""

    def __init__(
        self,
        space: Space,
        sampler: str,
        pruner: str,
        seed: int,
        second_objective: Objective | None,
        results: Mapping[int, Result],
        issued: Mapping[int, IssuedTrial],
    ) -> None:
        """Raises `UsageError` for a record that Optuna refuses, or that another space made."""
        self._space, self._sampler, self._seed = space, sampler, seed
        self._second = second_objective
        with _without_warnings():
            self._pruner = PRUNERS[pruner]()
        self._study = self._create()
        self._storage = self._study._storage
        self.missing: list[int] = []
        """Trials that neither ended nor have a record: they are proposed again."""
        records: dict[int, Result | IssuedTrial] = {**issued, **results}
        for number in range(max(records, default=-1) + 1):
            self._restore(number, records.get(number))
        _check_space(space, records.values())

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by number, as Optuna sees them; not to be changed."""
        return self._study.get_trials(deepcopy=False)

    @property
    def directions(self) -> list[optuna.study.StudyDirection]:
        """The direction of each objective."""
        return self._study.directions

    def ask(self) -> IssuedTrial:
        """Propose the next trial; the first ones are those of the space's queue."""
        return self._ask(self._study, len(self.trials))

    def ask_again(self, number: int) -> IssuedTrial:
        """Propose a missing trial: the same as if those after it did not exist yet."""
        earlier = self._create()
        for key, value in self._attrs(self._study).items():
            earlier._storage.set_study_system_attr(earlier._study_id, key, value)
        earlier.add_trials(self.trials[:number])
        issued = self._ask(earlier, number)
        for name, text in issued.distributions.items():
            distribution = json_to_distribution(text)
            internal = distribution.to_internal_repr(issued.parameters[name])
            self._storage.set_trial_param(self._id(number), name, internal, distribution)
        for key, value in issued.system_attrs.items():
            self._storage.set_trial_system_attr(self._id(number), key, value)
        self.missing.remove(number)
        return issued

    def report(self, number: int, values: Sequence[float]) -> None:
        """Add the values that a running trial has reported; the first is that of step 1."""
        known = self.frozen(number).intermediate_values
        for step in range(len(known) + 1, len(values) + 1):
            self._storage.set_trial_intermediate_value(self._id(number), step, values[step - 1])

    def should_prune(self, number: int) -> bool:
        """Whether the pruner stops a running trial at its latest step."""
        with _without_warnings():
            return self._pruner.prune(self._study, self.frozen(number))

    def system_attrs(self, number: int) -> dict[str, Any]:
        """What sampler and pruner have stored with a trial."""
        return dict(self.frozen(number).system_attrs)

    def finish(self, result: Result) -> None:
        """Make a running trial what its result says."""
        # A pruned trial has its last report as its value, as in `optuna.Study`.
        values = study_values(result, self._second)
        state = TrialState[result.state]
        self._storage.set_trial_state_values(self._id(result.number), state, values)

    def frozen(self, number: int) -> FrozenTrial:
        """A trial as it is now; not to be changed."""
        study_id = self._study._study_id
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return self._storage.get_trial(trial_id)

    def _create(self) -> optuna.Study:
        with _without_warnings():
            return optuna.create_study(
                storage=SweepTrials(),
                study_name=_NAME,
                directions=directions(self._second),
                sampler=RandomSampler(),  # `_ask` sets the real one
                pruner=self._pruner,
            )

    def _ask(self, study: optuna.Study, number: int) -> IssuedTrial:
        study.sampler = make_sampler(self._sampler, self._seed, number, self._space.grid)
        if number < len(self._space.queue):
            study.enqueue_trial(dict(self._space.queue[number]))
        before = self._attrs(study)
        with _without_warnings(), self._seen(study):
            trial = study.ask()
            config = self._space.suggest(trial).seeded(self._seed)
        after = self._attrs(study)
        return IssuedTrial(
            number,
            config.to_dict(),
            dict(trial.params),
            {name: distribution_to_json(d) for name, d in trial.distributions.items()},
            dict(study._storage.get_trial(trial._trial_id).system_attrs),
            {key: value for key, value in after.items() if before.get(key) != value},
            time.time(),
        )

    def _seen(self, study: optuna.Study) -> AbstractContextManager[None]:
        """What the sampler sees of a study: TPE's time per proposal grows with it."""
        trials = study._storage
        if self._sampler == "tpe" and isinstance(trials, SweepTrials):
            return trials.limited()
        return nullcontext()

    def _restore(self, number: int, record: Result | IssuedTrial | None) -> None:
        if record is None:
            self._storage.create_new_trial(self._study._study_id)
            self.missing.append(number)
            return
        try:
            self._study.add_trial(_frozen(record, self._second))
            for key, value in record.study_attrs.items():
                self._storage.set_study_system_attr(self._study._study_id, key, value)
        except Exception as error:  # whatever Optuna raises for foreign content
            name = f"{number:06d}/{RESULT if isinstance(record, Result) else ISSUED}"
            why = str(error).partition("\n")[0]
            raise unreadable(name, f"Optuna refuses it ({why})") from error

    def _attrs(self, study: optuna.Study) -> dict[str, Any]:
        return dict(study._storage.get_study_system_attrs(study._study_id))

    def _id(self, number: int) -> int:
        return self.frozen(number)._trial_id


def _check_space(space: Space, records: Iterable[Result | IssuedTrial]) -> None:
    """Raise `UsageError` unless the space can have made these trials: one of an earlier version may
    have other parameters, or other kinds of ranges, which samplers cannot combine. An interval may
    have other ends."""
    kinds = {frozenset(record.distributions.items()): record for record in records}
    for record in kinds.values():
        try:
            made = FixedTrial(record.parameters)
            with warnings.catch_warnings(action="ignore"):  # a value beyond the ends
                space.suggest(made)
            for name, distribution in made.distributions.items():
                stored = json_to_distribution(record.distributions[name])
                check_distribution_compatibility(stored, distribution)
        except (ValueError, KeyError) as error:
            why = str(error).partition(". ")[0].removesuffix(".")
            raise UsageError(
                [
                    "A sweep is resumed with the space that it was started with, and trial "
                    f"{record.number} (of {', '.join(sorted(record.parameters))}) does not fit "
                    f"--space {space.name} ({why}). The sweep is unchanged: report and export it, "
                    "and start another sweep with --name."
                ]
            ) from error


def finished_study(
    results: Mapping[int, Result], second_objective: Objective | None
) -> optuna.Study:
    """Return the results as a study in memory, which proposes nothing."""
    study = optuna.create_study(study_name=_NAME, directions=directions(second_objective))
    study.add_trials([_frozen(result, second_objective) for _, result in sorted(results.items())])
    return study


def _frozen(record: Result | IssuedTrial, second_objective: Objective | None) -> FrozenTrial:
    """A trial's record as Optuna's; raises whatever Optuna raises for foreign content."""
    trial = create_trial(
        state=TrialState[record.state] if isinstance(record, Result) else _RUNNING,
        values=study_values(record, second_objective) if isinstance(record, Result) else None,
        params=record.parameters,
        distributions={n: json_to_distribution(text) for n, text in record.distributions.items()},
        intermediate_values=dict(enumerate(record.values, start=1)),
        system_attrs=record.system_attrs,
    )
    trial.datetime_start = datetime.fromtimestamp(record.begun)
    if isinstance(record, Result):
        trial.datetime_complete = datetime.fromtimestamp(record.ended)
    return trial


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
