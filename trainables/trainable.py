"""Ray's verbs on a trial: the one file of this package that knows Ray.

A worker keeps its `EncodedTask` (backbone, images, features) for all the trials that it is given.
What travels is JSON: the trial's configuration in, one report a step out.
"""

from __future__ import annotations

import json
import re
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import torch
from ray import tune

from trainables.data.sealed import seal_process
from trainables.encoded_task import EncodedTask
from trainables.storage import Storage, StorageError, open_storage
from trainables.trial import TaskSpec, TrialConfig
from trainables.trial_run import Report, TrialRun

# Allocators that fail, and what libraries say of a GPU whose context is broken, come as plain
# `RuntimeError`s.
_OF_THE_PROCESS = re.compile(
    r"DefaultCPUAllocator|out of memory|CUDA error|cuDNN error|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_"
)


@dataclass(frozen=True)
class Assignment:
    """What a worker is told about the trial it shall run."""

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
    """Threads of torch on the CPU: results may depend on it in the last bit, so it is fixed."""
    in_sequence: bool
    """Whether the task's cells train one after the other (see `TrialRun`)."""
    checkpoint_seconds: float
    """Least time between two checkpoints, in seconds."""
    weights: str = ""
    """Where the backbone's files are shared, see `shared_weights`; or empty."""
    stages: str = ""
    """Where the sweep keeps what fixed stages have learned, see `trainables.fixed`; or empty."""


Outcome = Literal["running", "finished", "failed", "stuck"]


@dataclass(frozen=True)
class Message:
    """What a worker says after each step."""

    number: int
    """The trial's number in the ledger."""
    outcome: Outcome
    """`finished`: the whole budget was trained; `failed`: see `reason`; `stuck`: the storage does
    not work, which is not the trial's fault, see `reason`."""
    report: Report | None
    """The report; none from a trial that failed or has not begun to train."""
    seconds: float = 0.0
    """Time spent in training and validation in this step, in seconds."""
    reason: str = ""
    """One line for a failed or stuck trial, else empty."""
    details: str = ""
    """The traceback of a failed trial, else empty."""
    forecast: dict[str, float] = field(default_factory=dict)
    """What can be said before training; empty but in the first message."""
    warnings: tuple[str, ...] = ()
    """What the user should know before training; empty but in the first message."""
    host: str = field(default_factory=socket.gethostname)
    """Name of the machine."""

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
        self._bench: EncodedTask | None = None
        self._run: TrialRun | None = None
        self._folder: Storage
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Next trial of this process."""
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one part of the trial. A mistake ends the trial, not the process; but for want of
        memory, or an error of the GPU, the process ends, and the trial is tried again."""
        try:
            message = self._advance()
        except StorageError as error:
            message = Message(self._job.number, "stuck", None, reason=str(error))
            self._run = None
        except Exception as error:
            self._run = None  # cleanup must not keep half a step
            if _outlives_the_step(error):
                raise  # Tune discards the process, and all it holds is gone with it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            message = Message(
                self._job.number, "failed", None, reason=reason, details=traceback.format_exc()
            )
        return {"message": message.encode(), "done": message.outcome != "running"}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune's own checkpoint; ours lie under the trial's number."""
        if self._run is not None:
            self._run.save(open_storage(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continue from Tune's own checkpoint; where it is unusable, from the trial's own."""
        run = self._open_run()
        if run.load(open_storage(checkpoint_dir)):
            self._folder = open_storage(self._job.folder)
            self._run = run

    def cleanup(self) -> None:
        """The process ends: keep what an interrupted trial has trained."""
        if self._run is not None and not (self._run.finished or self._folder.exists("result.json")):
            with suppress(StorageError):  # it continues from an earlier part
                self._run.save(self._folder)

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
        task = TaskSpec.from_dict(job.task)
        bench, source = self._bench, task.source(job.data)
        wanted = task.backbone, job.device, source, job.stages
        if bench is None or (bench.spec, bench.device, bench.source, bench.stages) != wanted:
            bench = EncodedTask(task.backbone, job.device, source, job.weights, stages=job.stages)
            self._bench = bench
        trial = TrialConfig.from_dict(job.trial)
        return TrialRun(trial, task, bench, job.in_sequence)

    def _advance(self) -> Message:
        start = time.monotonic()
        if self._run is None:
            self._folder = open_storage(self._job.folder)
            self._run = self._open_run()
            self._run.load(self._folder)
            forecast, warnings = self._run.forecast(), tuple(self._run.warnings())
            # The part in the checkpoint is told before the next one is trained: the driver may have
            # died before it heard of it, and may want to stop the trial there.
            begun = self._run.step > 0 and not self._run.finished
            if begun or forecast or warnings:  # also: it may say that training is in vain
                seconds = time.monotonic() - start
                return Message(
                    self._job.number,
                    "running",
                    self._run.report() if begun else None,
                    seconds,
                    forecast=forecast,
                    warnings=warnings,
                )
        report = self._run.advance()
        seconds = time.monotonic() - start
        if report.finished:
            self._run.save_artifacts(self._folder)
        if time.monotonic() - self._saved >= self._job.checkpoint_seconds:
            self._run.save(self._folder)
            self._saved = time.monotonic()
        outcome: Outcome = "finished" if report.finished else "running"
        return Message(self._job.number, outcome, report, seconds)


def _outlives_the_step(error: Exception) -> bool:
    """Whether another trial in this process could fail for the same error: a failed step may hold
    memory, and after an error on the GPU all that follow there fail."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OF_THE_PROCESS.search(str(error)))
