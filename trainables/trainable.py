"""Ray's verbs on a trial: the one file of this package that knows Ray.

A worker keeps its `Workbench` (backbone, images, features) for all the trials that it is given.
What travels is JSON: the trial's configuration in, one report a step out.
"""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from ray import tune

from trainables.data.sealed import seal_process
from trainables.trial import TaskSpec, TrialConfig
from trainables.trial_run import CHECKPOINT, Report, TrialRun
from trainables.workbench import Workbench


@dataclass(frozen=True)
class Assignment:
    """What a worker is told about the trial it shall run."""

    number: int
    """The trial's number in the ledger."""
    trial: dict[str, Any]
    """`TrialConfig.to_dict()`."""
    task: dict[str, Any]
    """Fields of `TaskSpec`."""
    folder: str
    """The trial's folder, for checkpoints and artifacts."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """Threads of torch on the CPU: results may depend on it in the last bit, so it is fixed."""
    in_sequence: bool
    """Whether the task's seeds train one after the other (see `TrialRun`)."""
    checkpoint_seconds: float
    """Least time between two checkpoints, in seconds."""


@dataclass(frozen=True)
class Message:
    """What a worker says after each step."""

    number: int
    """The trial's number in the ledger."""
    outcome: Literal["running", "finished", "failed"]
    """`finished`: the whole budget was trained; `failed`: see `reason`."""
    report: Report | None
    """The report; none from a trial that failed or has not begun to train."""
    reason: str
    """One line for a failed trial, else empty."""
    details: str
    """The traceback of a failed trial, else empty."""
    forecast: dict[str, float]
    """What can be said before training; empty but in the first message."""
    warnings: tuple[str, ...]
    """What the user should know before training; empty but in the first message."""
    seconds: float
    """Time spent in training and validation in this step, in seconds."""

    def encode(self) -> str:
        """As one JSON string, which Tune leaves as it is."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Self:
        """The inverse of `encode`."""
        fields = json.loads(text)
        if fields["report"] is not None:
            report = fields["report"]
            report["values"], report["rows"] = tuple(report["values"]), tuple(report["rows"])
            fields["report"] = Report(**report)
        fields["warnings"] = tuple(fields["warnings"])
        return cls(**fields)


class FewShotTrainable(tune.Trainable):
    """One trial after another in one warm process that cannot read test data."""

    def setup(self, config: dict[str, Any]) -> None:
        """First trial of this process."""
        seal_process()
        self._bench: Workbench | None = None
        self._run: TrialRun | None = None
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Next trial of this process."""
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one part of the trial. A mistake ends the trial, not the process."""
        try:
            message = self._advance()
        except torch.OutOfMemoryError:
            self._run = None  # cleanup must not keep half a step
            raise  # Tune discards the process: memory that a failed step holds is gone with it
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            details = traceback.format_exc()
            message = Message(self._job.number, "failed", None, reason, details, {}, (), 0.0)
            self._run = None
        return {"message": message.encode(), "done": message.outcome != "running"}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune's own checkpoint; ours lie under the trial's number."""
        if self._run is not None:
            self._run.save(Path(checkpoint_dir) / CHECKPOINT)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continue from Tune's own checkpoint; where it is unusable, from the trial's own."""
        run = self._open_run()
        if run.load(Path(checkpoint_dir) / CHECKPOINT):
            self._run = run

    def cleanup(self) -> None:
        """The process ends: keep what an interrupted trial has trained."""
        folder = Path(self._job.folder)
        if self._run is not None and not (self._run.finished or (folder / "result.json").exists()):
            self._run.save(folder / CHECKPOINT)

    def _take(self, config: dict[str, Any]) -> None:
        self._job = Assignment(**config["assignment"])
        self._run = None
        self._saved = time.monotonic()
        torch.set_num_threads(self._job.threads)
        # Convolutions in true float32, by the same algorithm each time.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True

    def _open_run(self) -> TrialRun:
        job = self._job
        Path(job.folder).mkdir(parents=True, exist_ok=True)
        task = TaskSpec(**(job.task | {"seeds": tuple(job.task["seeds"])}))
        if (self._bench is None) or (self._bench.spec, self._bench.device) != (
            task.backbone,
            job.device,
        ):
            self._bench = Workbench(task.backbone, job.device)
        trial = TrialConfig.from_dict(job.trial)
        return TrialRun(trial, task, self._bench, job.in_sequence)

    def _advance(self) -> Message:
        start, folder = time.monotonic(), Path(self._job.folder)
        if self._run is None:
            self._run = self._open_run()
            self._run.load(folder / CHECKPOINT)
            forecast, warnings = self._run.forecast(), tuple(self._run.warnings())
            if forecast or warnings:  # told before training: it may say that training is in vain
                seconds = time.monotonic() - start
                return Message(
                    self._job.number, "running", None, "", "", forecast, warnings, seconds
                )
        report = self._run.advance()
        seconds = time.monotonic() - start
        if report.finished:
            self._run.save_artifacts(folder)
        if time.monotonic() - self._saved >= self._job.checkpoint_seconds:
            self._run.save(folder / CHECKPOINT)
            self._saved = time.monotonic()
        outcome: Literal["running", "finished"] = "finished" if report.finished else "running"
        return Message(self._job.number, outcome, report, "", "", {}, (), seconds)
