"""Which trials' learned artifacts a sweep keeps (`--keep-artifacts`)."""

from __future__ import annotations

import shutil

from search.core.config import SweepConfig
from search.core.objectives import Objective, front_of
from search.core.results import Result, learned_files, trial_folder
from search.execution.listeners import SweepListener
from search.ledger.ledger import Ledger
from trainables.core.storage import LocalStorage, Storage

_LEAST_FREE = 5 * 10**9  # bytes: the disk is needed for checkpoints and the evaluation


def keeps_stopped(config: SweepConfig, sweep: Storage) -> bool:
    """Return whether trials that are stopped early leave an artifact."""
    if config.pruner == "none" or config.keep_artifacts not in ("auto", "all"):
        return False
    if config.keep_artifacts == "all" or not isinstance(sweep, LocalStorage):
        return True
    return shutil.disk_usage(sweep.root).free >= _LEAST_FREE


class BestArtifacts(SweepListener):
    """Deletes the artifacts of trials that others have surpassed."""

    def __init__(self, sweep: Storage, second_objective: Objective | None) -> None:
        self._sweep, self._second = sweep, second_objective
        self._known: set[int] | None = None  # trials that may have artifacts

    def ended(self, result: Result, ledger: Ledger) -> None:
        """Keep those of the best trial, or of the Pareto front."""
        known = set(ledger.results) if self._known is None else {*self._known, result.number}
        best = ledger.best()
        kept = set(front_of(ledger.results.values(), self._second)) if self._second else set()
        kept |= {best.number} if best else set()
        for number in known - kept:
            folder = self._sweep.child(trial_folder(number))
            for name in learned_files(folder):
                folder.delete(name)
        self._known = kept
