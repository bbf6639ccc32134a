"""Details of one sweep: unfinished trials, runs that MLflow lacks, its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from search.core.annotations import Annotations, read_annotations
from search.core.problems import UsageError
from search.core.results import IssuedTrial, read_issued
from search.reporting.files import has_report
from search.terminal.sweep_status import SweepStatus
from search.tracking.marks import SWEEP_RUN, open_marks
from search.tracking.uri import tracking_uri
from trainables.core.credentials import shown
from trainables.core.storage import LocalStorage, StorageError


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
    """Unfinished trials, runs that MLflow lacks, and the report of a sweep."""

    unfinished: Sequence[Unfinished]
    """Trials that have not ended, by number."""
    tracking_uri: str
    """Where the runs are shown; `none` without tracking."""
    waiting: int | None
    """Runs that MLflow does not hold to their end; None if that is known on another machine."""
    refused: int
    """Runs that MLflow has refused."""
    has_report: bool
    """Whether the folder holds one."""
    annotations: Annotations = field(default_factory=Annotations)
    """The user's note and tags."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; no address holds a password."""
        return {
            "unfinished": [asdict(trial) for trial in self.unfinished],
            "mlflow": {
                "uri": shown(self.tracking_uri),
                "waiting": self.waiting,
                "refused": self.refused,
            },
            "report": self.has_report,
            "note": self.annotations.note,
            "tags": dict(self.annotations.tags),
        }


def load_details(found: SweepStatus) -> Details:
    """Changes nothing. Raises `UsageError` where the folder cannot be read."""
    config = found.config
    assert config is not None
    assert found.results is not None
    try:
        issued, report = read_issued(found.sweep, methods=False), has_report(found.sweep)
        annotations = read_annotations(found.sweep)
    except StorageError as error:
        raise UsageError([f"A sweep's folder must be readable, and is not: {error}."]) from error
    unfinished = [_unfinished(trial) for _, trial in sorted(issued.items())]
    uri = tracking_uri(config)
    marks = None if uri == "none" else open_marks(uri, config, found.id, found.sweep)
    waiting, refused = None, 0
    if marks is not None and (marks.path.exists() or isinstance(found.sweep, LocalStorage)):
        missing = set(marks.undelivered(found.results))
        waiting = len(missing - {SWEEP_RUN} if found.owner else missing)
        refused = len(marks.refused())
    return Details(unfinished, uri, waiting, refused, report, annotations)


def _unfinished(trial: IssuedTrial) -> Unfinished:
    return Unfinished(
        trial.number,
        len(trial.values),
        trial.values[-1] if trial.values else None,
        trial.begun,
        trial.failures,
        trial.parameters,
    )
