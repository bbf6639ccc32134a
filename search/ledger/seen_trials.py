"""What TPE sees of a long sweep: the best trials and the latest ones.

TPE's time per proposal grows by about 46 us for each trial that it looks at, so that after 10,000
trials one core proposes two trials per second. It models the 25 best trials, and all others with
weights that fall with their age. A sweep of up to `LATEST` finished trials is seen as a whole.
`benchmarks/seen_trials.py` compares the proposals.
"""

from __future__ import annotations

import copy
from bisect import insort
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

LATEST = 500
"""Finished trials that TPE sees, besides the best ones."""
BEST = 25
"""The best trials that TPE sees at any age, as many as it ever models as good ones."""


class SweepTrials(InMemoryStorage):
    """The trials of a study, of which a sampler may see a part."""

    def __init__(self) -> None:
        super().__init__()
        self._best: list[tuple[float, int]] = []  # of complete trials: minus the value, the number
        self._is_limited = False

    @contextmanager
    def limited(self) -> Iterator[None]:
        """While open, only the best and the latest trials are there, if there is one objective."""
        self._is_limited = True
        try:
            yield
        finally:
            self._is_limited = False

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial."""
        trial_id = super().create_new_trial(study_id, template_trial)
        self._rank(trial_id)
        return trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Begin or end a trial."""
        is_set = super().set_trial_state_values(trial_id, state, values)
        self._rank(trial_id)
        return is_set

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The trials in these states by number, or those that are seen."""
        if not self._is_limited or len(self.get_study_directions(study_id)) > 1:
            return super().get_all_trials(study_id, deepcopy, states)
        seen = self._seen(super().get_all_trials(study_id, deepcopy=False))
        found = [trial for trial in seen if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _rank(self, trial_id: int) -> None:
        trial = self.get_trial(trial_id)
        if trial.state == TrialState.COMPLETE:
            insort(self._best, (-trial.values[0], trial.number))
            del self._best[BEST:]

    def _seen(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        start, finished = len(trials), 0
        while start > 0 and finished < LATEST:
            start -= 1
            finished += trials[start].state.is_finished()
        older = sorted(number for _, number in self._best if number < start)
        return [trials[number] for number in older] + trials[start:]
