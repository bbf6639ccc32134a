"""The Ray Tune trainable: the only file of this package that imports Ray.

A worker keeps its `EncodedTask` (backbone, images, features) for all trials that it runs. Messages
are JSON: the trial's configuration in, one report per step out.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from ray import tune
from ray._private.utils import get_system_memory, get_used_memory

from trainables.core.storage import Storage, StorageError, local_folder, open_storage
from trainables.data.sealed import seal_process
from trainables.encoded_task import EncodedTask
from trainables.trial import TaskSpec, TrialConfig
from trainables.trial_run import Report, TrialRun

# Failed allocations and errors of a broken GPU context may be plain `RuntimeError`s.
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|out of memory|ALLOC_FAILED")
_BROKEN_GPU = re.compile(r"CUDA error|cuDNN error|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_")
_SIZE = re.compile(r"([\d.]+) (bytes|[KMGTP]iB)")
_UNITS = {"bytes": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40, "PiB": 50}


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
    weights: str = ""
    """Location of the shared backbone files, see `shared_weights`; empty if unused."""
    stages: str = ""
    """Location of what fixed stages learned, see `trainables.fixed`; empty if unused."""


Outcome = Literal["running", "finished", "failed", "stuck"]


@dataclass(frozen=True)
class Message:
    """A worker's message after each step."""

    number: int
    """The trial's number in the ledger."""
    outcome: Outcome
    """`finished`: the whole budget was trained; `failed`: see `reason`; `stuck`: the storage does
    not work, which is not the trial's fault, see `reason`."""
    report: Report | None
    """The report; None if the trial failed or has not trained yet."""
    seconds: float = 0.0
    """Time spent in training and validation in this step, in seconds."""
    reason: str = ""
    """One line for a failed or stuck trial, else empty."""
    details: str = ""
    """The traceback of a failed trial, else empty."""
    forecast: dict[str, float] = field(default_factory=dict)
    """Metrics known before training; only in the first message."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user; only in the first message."""
    host: str = field(default_factory=socket.gethostname)
    """Name of the machine."""

    def encode(self) -> str:
        """Return one JSON string, which Tune passes on unchanged."""
        return json.dumps(asdict(self))

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


class FewShotTrainable(tune.Trainable):
    """Runs one trial after another in a process that cannot read test data."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the first trial of this process."""
        seal_process()
        self._task: EncodedTask | None = None
        self._run: TrialRun | None = None
        self._folder: Storage
        self._accept(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare the next trial of this process."""
        self._accept(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one step of the trial.

        An ordinary error fails the trial and keeps the process. Lack of memory and errors of the
        GPU end the process; the trial is issued again.
        """
        try:
            message = self._advance()
        except StorageError as error:
            message = Message(self._job.number, "stuck", None, reason=str(error))
            self._run = None
        except Exception as error:
            self._run = None  # `cleanup` must not save half a step
            # The process ends, because the failed step may hold memory that the next would need.
            if _is_out_of_memory(error):
                raise MemoryError(_memory_report(error, self._job.device)) from error
            if _has_broken_gpu(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            message = Message(
                self._job.number, "failed", None, reason=reason, details=traceback.format_exc()
            )
        return {"message": message.encode(), "done": message.outcome != "running"}

    def cleanup(self) -> None:
        """Save what an interrupted trial has trained before the process ends."""
        if self._run is not None and not (self._run.finished or self._folder.exists("result.json")):
            with suppress(StorageError):  # it continues from an earlier step
                self._check_sweep_folder()
                self._run.save(self._folder)

    def _accept(self, config: dict[str, Any]) -> None:
        self._job = Assignment(**config["assignment"])
        self._run = None
        self._saved = time.monotonic()
        torch.set_num_threads(self._job.threads)
        # Convolutions in true float32, with the same algorithm each time.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True

    def _open_run(self) -> TrialRun:
        job = self._job
        known, spec = self._task, TaskSpec.from_dict(job.task)
        source = spec.source(job.data)
        wanted = spec.backbone, job.device, source, job.stages
        if known is None or (known.spec, known.device, known.source, known.stages) != wanted:
            known = EncodedTask(spec.backbone, job.device, source, job.weights, stages=job.stages)
            self._task = known
        return TrialRun(TrialConfig.from_dict(job.trial), spec, known, job.in_sequence)

    def _advance(self) -> Message:
        start = time.monotonic()
        if self._run is None:
            self._folder = open_storage(self._job.folder)
            self._run = self._open_run()
            self._run.load(self._folder)
            forecast, warnings = self._run.forecast(), tuple(self._run.warnings())
            # Report the step in the checkpoint before training the next: the driver may have died
            # before it received it, and may want to stop the trial there.
            has_begun = self._run.step > 0 and not self._run.finished
            if has_begun or forecast or warnings:
                seconds = time.monotonic() - start
                return Message(
                    self._job.number,
                    "running",
                    self._run.report() if has_begun else None,
                    seconds,
                    forecast=forecast,
                    warnings=warnings,
                )
        report = self._run.advance()
        seconds = time.monotonic() - start
        if report.finished:
            self._check_sweep_folder()
            self._run.save_artifacts(self._folder)
        if time.monotonic() - self._saved >= self._job.checkpoint_seconds:
            self._check_sweep_folder()
            self._run.save(self._folder)
            self._saved = time.monotonic()
        outcome: Outcome = "finished" if report.finished else "running"
        return Message(self._job.number, outcome, report, seconds)

    def _check_sweep_folder(self) -> None:
        """Raise `StorageError` if the sweep's folder was moved or deleted: writing would create a
        second, incomplete one in its place."""
        folder = local_folder(self._job.folder)
        if folder is not None and not folder.parents[1].is_dir():
            raise StorageError(f"'{folder.parents[1]}' was moved or deleted while the sweep ran")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def _has_broken_gpu(error: Exception) -> bool:
    """Return whether the error is one of the GPU, after which all later operations there fail."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and bool(_BROKEN_GPU.search(str(error)))


def _memory_report(error: Exception, device: str) -> str:
    """Say who uses the memory, with the failed request counted as this process's; the driver
    decides from these figures whether the trial is too large or other programs use the memory."""
    size = _SIZE.search(str(error))
    request = int(float(size[1]) * 2 ** _UNITS[size[2]]) if size else 0
    if device == "cuda" and not isinstance(error, MemoryError):
        free, limit = torch.cuda.mem_get_info()
        own, used, place = torch.cuda.memory_reserved(), limit - free, "GPU memory"
    else:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        own, place = pages * os.sysconf("SC_PAGE_SIZE"), "memory"
        used, limit = get_used_memory(), get_system_memory()
    return (
        f"The worker ran out of {place}: it uses {own + request} bytes, all processes use "
        f"{used + request} of {limit} bytes. {error}"
    )
