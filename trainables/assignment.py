"""What a sweep's driver and its workers exchange as JSON: a trial's assignment, and messages about
its steps."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from trainables.report import Report


@dataclass(frozen=True)
class Assignment:
    """A worker's assignment: one trial and everything it needs to run it."""

    number: int
    """The trial's number in the ledger."""
    trial: dict[str, Any]
    """`TrialConfig.to_dict()`."""
    task: dict[str, Any]
    """`TaskSpec.to_dict()`."""
    data: str
    """Folder of the field's data sets on the worker's machine."""
    folder: str
    """Location of the trial's folder, for checkpoints and artifacts."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """Torch's CPU threads. Fixed, because the last bit of a result may depend on it."""
    in_sequence: bool
    """Whether the task's episodes train one after the other (see `TrialRun`)."""
    checkpoint_seconds: float
    """Least time between two checkpoints, in seconds."""
    report_seconds: float = 0.0
    """Steps are reported together until they have taken so long; 0 reports every step."""
    decision_steps: tuple[int, ...] = ()
    """Steps after which the trial may be stopped; each is reported before the next one starts."""
    keep_stopped: bool = False
    """Whether the artifact is written before such a report, so that a stopped trial has one."""
    weights: str = ""
    """Location of the shared backbone files, see `shared_weights`; empty if unused."""
    stages: str = ""
    """Location of what fixed stages learned, see `trainables.fixed`; empty if unused."""
    zero_shot: dict[str, Any] = field(default_factory=dict)
    """The zero-shot model, whose validation metrics are part of the trial's forecast; empty if they
    are not."""
    plugins: dict[str, str] = field(default_factory=dict)
    """Files of plugins, name -> source: the worker may have neither them nor their names."""


Outcome = Literal["running", "finished", "failed", "stuck"]


@dataclass(frozen=True)
class Message:
    """A worker's message after one or several steps."""

    number: int
    """The trial's number in the ledger."""
    outcome: Outcome
    """`finished`: the whole budget was trained; `failed`: see `reason`; `stuck`: the storage does
    not work, which is not the trial's fault, see `reason`."""
    report: Report | None
    """The report of the steps that were done; None if none was."""
    seconds: float = 0.0
    """Time spent in training and validation in these steps, in seconds."""
    reason: str = ""
    """One line for a failed or stuck trial, else empty."""
    details: str = ""
    """The traceback of a failed trial, else empty."""
    forecast: dict[str, float] = field(default_factory=dict)
    """Metrics known before training; only in the first message."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user; only in the first message."""
    saved: bool = False
    """Whether the latest step is in a checkpoint."""
    host: str = field(default_factory=socket.gethostname)
    """Name of the machine."""

    def encode(self) -> str:
        """Return one JSON string, which Tune passes on unchanged."""
        report = None if self.report is None else vars(self.report)
        return json.dumps(vars(self) | {"report": report})

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` returned."""
        fields = json.loads(text)
        if fields["report"] is not None:
            report = fields["report"]
            report["values"], report["rows"] = tuple(report["values"]), tuple(report["rows"])
            fields["report"] = Report(**report)
        fields["warnings"] = tuple(fields["warnings"])
        return cls(**fields)
