"""More of one sweep than the list shows: what is unfinished, what MLflow lacks, its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial

from search.core.problems import StoppedError, UsageError
from search.driver.preflight import tracking_uri
from search.ledger.ledger import FAILURES, ISSUED
from search.ledger.store import look_at_study
from search.reporting.build import has_report
from search.terminal.sweep_status import SweepStatus
from search.tracking.outbox import refused, waiting
from search.tracking.uploader import outbox_path
from trainables.credentials import shown
from trainables.storage import LocalStorage, StorageError


@dataclass(frozen=True)
class Unfinished:
    """A trial that was issued and has not ended: it runs, or waits to be continued."""

    number: int
    """In the ledger."""
    parts: int
    """Parts that it has reported, of at most eight."""
    value: float | None
    """Validation accuracy after the last of them, a fraction; None before the first."""
    begun: float | None
    """Unix time at which it was first issued."""
    deaths: int
    """Times that its worker has died."""
    parameters: dict[str, Any]
    """The space's parameters, as sampled."""


@dataclass(frozen=True)
class Details:
    """What a look into the sweep's ledger and outbox tells."""

    unfinished: Sequence[Unfinished]
    """By number."""
    trouble: str
    """Why the ledger could not be asked, else empty."""
    tracking_uri: str
    """Where the runs are shown; `none` without tracking."""
    waiting: int | None
    """Events that MLflow has not been told; None where the outbox is on another machine."""
    refused: int
    """Events that MLflow would not take."""
    has_report: bool
    """Whether the folder holds one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; no address holds a password."""
        return {
            "unfinished": [asdict(trial) for trial in self.unfinished],
            "ledger_trouble": self.trouble or None,
            "mlflow": {
                "uri": shown(self.tracking_uri),
                "waiting": self.waiting,
                "refused": self.refused,
            },
            "report": self.has_report,
        }


def load_details(found: SweepStatus) -> Details:
    """Changes nothing. Raises `UsageError` where the folder cannot be read."""
    config = found.config
    assert config is not None
    assert found.results is not None
    trials: list[FrozenTrial] = []
    trouble = ""
    try:
        trials = look_at_study(config.ledger, found.sweep, f"{config.name}-{found.id[:8]}")
        report = has_report(found.sweep)
    except StorageError as error:
        raise UsageError([f"A sweep's folder must be readable, and is not: {error}."]) from error
    except StoppedError as error:
        trouble, report = str(error), has_report(found.sweep)
    unfinished = [
        _unfinished(trial)
        for trial in trials
        if not trial.state.is_finished() and ISSUED in trial.user_attrs
        if trial.number not in found.results
    ]
    uri = tracking_uri(config)
    path = None if uri == "none" else outbox_path(uri, found.sweep)
    known = path is not None and (path.exists() or isinstance(found.sweep, LocalStorage))
    return Details(
        unfinished,
        trouble,
        uri,
        waiting(path) if path is not None and known else None,
        refused(path) if path is not None else 0,
        report,
    )


def _unfinished(trial: FrozenTrial) -> Unfinished:
    parts = trial.intermediate_values
    deaths = trial.user_attrs.get(FAILURES, (0,))[0]
    return Unfinished(
        trial.number,
        len(parts),
        parts[max(parts)] if parts else None,
        trial.user_attrs[ISSUED],
        int(deaths),
        dict(trial.params),
    )
