"""What a pruner wants to remember of a trial, kept back until the trial's commit."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.storages import BaseStorage


class Notes:
    """A study to a pruner, which only takes down what the pruner wants to store with a trial."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._storage = _NotingStorage(study._storage)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def taken(self) -> dict[str, Any]:
        """By key. A pruner speaks of the trial that it is asked about."""
        return self._storage.taken


class _NotingStorage:
    def __init__(self, storage: BaseStorage) -> None:
        self._inner = storage
        self.taken: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.taken[key] = value
