"""Renaming, annotating and deleting what MLflow holds of a sweep that has run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from search.core.config import SweepConfig
from search.tracking.mlflow_reporter import open_runs
from search.tracking.mlflow_runs import MlflowRuns
from search.tracking.uri import TrackingError, check_tracking_uri, scheme_of, sqlite_path
from trainables.core.credentials import in_one_line, shown
from trainables.core.storage import Storage

P = ParamSpec("P")
T = TypeVar("T")


class MlflowUpkeep:
    """The runs of one sweep, which are found when it is created.

    Every method may be repeated. All raise `TrackingError` if MLflow does not answer.
    """

    def __init__(self, uri: str, config: SweepConfig, identity: str, sweep: Storage) -> None:
        """`identity` is the sweep's id, `sweep` its folder. MLflow is not changed, and a missing
        database is not created."""
        self.uri = uri
        """Where the runs are; `none` without tracking."""
        self.count = 0
        """Number of runs found: the sweep's own and its trials'."""
        self._runs: MlflowRuns | None = None
        if uri == "none":
            return
        if unreachable := check_tracking_uri(uri):
            raise TrackingError(unreachable)
        path = sqlite_path(uri) if scheme_of(uri) == "sqlite" else None
        if path is not None and not path.exists():
            return
        try:
            runs = open_runs(uri, config, identity, sweep)
            found = runs.client.get_experiment_by_name(config.experiment)
            if found is not None and found.lifecycle_stage == "active":
                runs.connect()
                self._runs, self.count = runs, len(runs.numbers())
        except Exception as error:
            raise self._outage(error) from error

    def rename(self, name: str) -> None:
        """Give the sweep's own run and the tags of all its runs a new name."""
        if self._runs:
            self._try(self._runs.rename, name)

    def annotate(self, tags: Mapping[str, str], removed: Iterable[str]) -> bool:
        """Set and remove tags of the sweep's own run; return whether there is one."""
        run = self._runs.run_of(None) if self._runs else None
        if self._runs is None or run is None:
            return False
        client = self._runs.client
        for key, value in tags.items():
            self._try(client.set_tag, run, key, value)
        present = self._try(client.get_run, run).data.tags.keys()
        for key in present & set(removed):
            self._try(client.delete_tag, run, key)
        return True

    def delete(self) -> None:
        """Move all runs to MLflow's trash, the sweep's own last."""
        if self._runs:
            self._try(self._runs.delete)

    def _try(self, act: Callable[P, T], *values: P.args, **named: P.kwargs) -> T:
        try:
            return act(*values, **named)
        except Exception as error:
            raise self._outage(error) from error

    def _outage(self, error: Exception) -> TrackingError:
        return TrackingError(
            f"MLflow at {shown(self.uri)} must answer, and does not: {in_one_line(error)}."
        )
