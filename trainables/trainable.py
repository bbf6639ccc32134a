"""The Ray Tune trainable: the only file of this package that imports Ray.

In anyone's own script, its configuration is a trial's flat parameters (see `parameters.py`), and
each report step returns plain metrics:

    tune.Tuner(
        tune.with_resources(FewShotTrainable, {"cpu": 1}),
        param_space={"method": "taskres", "dataset": "digits", "lr": tune.loguniform(1e-4, 1e-1)},
        tune_config=tune.TuneConfig(metric="val/accuracy", mode="max", reuse_actors=True),
    )

A sweep's driver passes an `Assignment` instead, which it has resolved, and reads a `Message` beside
the metrics. A worker keeps its `EncodedTask` (backbone, images, features) for all trials that it
runs.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray._private.utils import get_system_memory, get_used_memory

from trainables.assignment import Assignment, Message, Outcome
from trainables.core.plugins import plugin_sources, receive_plugins
from trainables.core.storage import (
    PATIENCE,
    LocalStorage,
    ObjectStorage,
    Storage,
    StorageError,
    local_folder,
    open_storage,
)
from trainables.data.sealed import seal_process
from trainables.encoded_task import EncodedTask
from trainables.parameters import read_parameters
from trainables.report import METRICS, ZERO_SHOT, Report
from trainables.trial import TaskSpec, TrialConfig
from trainables.trial_run import TrialRun

logger = logging.getLogger(__name__)

# Failed allocations and errors of a broken GPU context may be plain `RuntimeError`s.
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|out of memory|ALLOC_FAILED")
_BROKEN_GPU = re.compile(r"CUDA error|cuDNN error|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_")
_SIZE = re.compile(r"([\d.]+) (bytes|[KMGTP]iB)")
_UNITS = {"bytes": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40, "PiB": 50}


class FewShotTrainable(tune.Trainable):
    """Runs one trial after another in a process that cannot read test data.

    A step reports `val/accuracy` (a fraction), `val/loss`, `epoch` and the method's own metrics. A
    trial has at most `REPORTS_PER_TRIAL` steps. What it has learned is in `artifact.safetensors`
    (one file per episode if there are several) in the trial's folder, also if it was stopped early.
    """

    @classmethod
    def with_plugins(cls, *files: str) -> type[FewShotTrainable]:
        """Return this class with methods and data sets from plugin files, which its workers
        receive, also on other machines. Raises `PluginError`."""
        return tune.with_parameters(cls, plugins=plugin_sources(files))  # type: ignore[no-any-return]

    def setup(self, config: dict[str, Any], plugins: Mapping[str, str] | None = None) -> None:
        """Prepare the first trial of this process, with the sources of plugins by file name."""
        seal_process()
        if plugins:
            receive_plugins(plugins)
        self._task: EncodedTask | None = None
        self._run: TrialRun | None = None
        self._job: Assignment | None = None
        self._unsent: Report | None = None  # of steps that were done before one that fails
        self._folder: Storage
        self._accept(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare the next trial of this process."""
        self._leave()
        self._accept(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one step of the trial, or in a sweep as many short ones as the pruner ignores.

        In a sweep, an ordinary error fails the trial and keeps the process. Lack of memory and
        errors of the GPU end the process; the trial is issued again.
        """
        number = self._job.number if self._job else -1
        self._unsent = None
        try:
            message = self._advance(number)
        except Exception as error:
            is_swept = self._job is not None
            self._run = None  # `cleanup` must not save half a step
            # The process ends, because the failed step may hold memory that the next would need.
            if _is_out_of_memory(error):
                raise MemoryError(_memory_report(error, self._device)) from error
            if _has_broken_gpu(error) or not is_swept:
                raise
            if isinstance(error, StorageError):
                message = Message(number, "stuck", None, reason=str(error))
            else:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                details = traceback.format_exc()
                message = Message(number, "failed", self._unsent, reason=reason, details=details)
        return self._result(message)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write everything that the rest of the training depends on. For Tune's own checkpoints; a
        sweep's trials have theirs in the sweep's folder."""
        self._open_run().save(LocalStorage(Path(checkpoint_dir)))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continue from a folder that `save_checkpoint` has written, possibly with other settings,
        see `TrialRun.load_changed`."""
        self._open_run().load_changed(LocalStorage(Path(checkpoint)))

    def cleanup(self) -> None:
        """Save what a stopped or interrupted trial has trained before the process ends."""
        run = self._run
        if self._job and run and not (run.finished or self._folder.exists("result.json")):
            with suppress(StorageError):  # it continues from an earlier step
                self._check_sweep_folder()
                run.save(self._folder)
        self._leave()

    def _accept(self, config: dict[str, Any]) -> None:
        self._run, self._parameters = None, config
        self._saved = time.monotonic()
        self._job = Assignment(**config["assignment"]) if "assignment" in config else None
        if self._job:
            receive_plugins(self._job.plugins)
        torch.set_num_threads(self._job.threads if self._job else self._threads)
        # Convolutions in true float32, with the same algorithm each time.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True

    def _leave(self) -> None:
        """Write the artifact of a trial that Tune has stopped early; a finished one has written
        it."""
        run, self._run = self._run, None
        if self._job is None and run is not None and 0 < run.step < run.steps:
            run.save_artifacts(self._folder)

    def _open_run(self) -> TrialRun:
        if self._run is not None:
            return self._run
        if self._job is None:
            parameters = read_parameters(self._parameters)
            self._folder = self._trial_folder()
            encoded = self._encoded(parameters.task, parameters.data)
            config = parameters.trial(encoded.source, encoded.backbone.tower)
            self._run = TrialRun(config, parameters.task, encoded)
            for warning in self._run.warnings():
                logger.warning(warning)
            return self._run
        job = self._job
        self._folder = open_storage(job.folder)
        spec = TaskSpec.from_dict(job.task)
        encoded = self._encoded(spec, job.data, job.weights, job.stages)
        self._run = TrialRun(TrialConfig.from_dict(job.trial), spec, encoded, job.in_sequence)
        self._run.load(self._folder)
        return self._run

    def _zero_shot_metrics(self) -> dict[str, float]:
        """The zero-shot model's metrics, if the assignment asks for them."""
        job, encoded = self._job, self._task
        if job is None or encoded is None or not job.zero_shot:
            return {}
        model = TrialConfig.from_dict(job.zero_shot)
        report = TrialRun(model, TaskSpec.from_dict(job.task), encoded).advance()
        return {name: report.metrics[METRICS[objective]] for objective, name in ZERO_SHOT.items()}

    def _encoded(
        self, spec: TaskSpec, data: str, weights: str = "", stages: str = ""
    ) -> EncodedTask:
        known, source = self._task, spec.source(data)
        wanted = spec.backbone, self._device, source, stages
        if known is None or (known.spec, known.device, known.source, known.stages) != wanted:
            known = EncodedTask(spec.backbone, self._device, source, weights, stages=stages)
            self._task = known
        return known

    def _advance(self, number: int) -> Message:
        start = time.monotonic()
        forecast: dict[str, float] = {}
        if self._run is None:
            run = self._open_run()
            forecast = run.forecast() | self._zero_shot_metrics()
            warnings = tuple(run.warnings())
            # Report the step in the checkpoint before training the next: the driver may have died
            # before it received it, and may want to stop the trial there.
            has_begun = run.step > 0 and not run.finished
            if has_begun:
                self._keep_stopped(run)
            if self._job and (has_begun or forecast or warnings):
                seconds = time.monotonic() - start
                return Message(
                    number,
                    "running",
                    run.report() if has_begun else None,
                    seconds,
                    forecast=forecast,
                    warnings=warnings,
                )
        run = self._open_run()
        report = self._unsent = run.advance()
        together = self._job.report_seconds if self._job else 0.0
        while not (report.finished or self._is_decided_on(run)):
            if time.monotonic() - start >= together:
                break
            later = run.advance()
            report = self._unsent = replace(later, rows=report.rows + later.rows)
        seconds = time.monotonic() - start
        if report.finished:
            self._check_sweep_folder()
            run.save_artifacts(self._folder)
            if self._job:  # only a sweep chooses from them
                run.save_predictions(self._folder)
        else:
            self._keep_stopped(run)
        age = time.monotonic() - self._saved
        saved = self._job is not None and age >= self._job.checkpoint_seconds
        if saved:
            self._check_sweep_folder()
            run.save(self._folder)
            self._saved = time.monotonic()
        outcome: Outcome = "finished" if report.finished else "running"
        return Message(number, outcome, report, seconds, forecast=forecast, saved=saved)

    def _result(self, message: Message) -> dict[str, Any]:
        """What Tune gets: plain metrics, and in a sweep the whole message."""
        metrics: dict[str, Any] = dict(message.forecast)
        if message.report is not None:
            metrics |= message.report.metrics
            metrics["epoch"] = message.report.rows[-1]["epoch"]
        swept = {"message": message.encode()} if self._job else {}
        return metrics | swept | {"done": message.outcome != "running"}

    def _keep_stopped(self, run: TrialRun) -> None:
        """Write what the trial would have learned if the driver stops it after this report, which
        commits its end at once."""
        if self._job and self._job.keep_stopped and self._is_decided_on(run):
            self._check_sweep_folder()
            run.save_artifacts(self._folder)

    def _is_decided_on(self, run: TrialRun) -> bool:
        """Whether the driver may stop the trial after its latest step."""
        return self._job is not None and run.step in self._job.decision_steps

    def _check_sweep_folder(self) -> None:
        """Raise `StorageError` if the sweep's folder was moved or deleted: writing would create a
        second, incomplete one in its place."""
        folder = local_folder(self._job.folder) if self._job else None
        if folder is not None and not folder.parents[1].is_dir():
            raise StorageError(f"'{folder.parents[1]}' was moved or deleted while the sweep ran")

    def _trial_folder(self) -> Storage:
        """The trial's folder in Tune's storage; outside of Tune, its working directory."""
        if self._storage is None:
            return LocalStorage(Path(self.logdir))
        files, path = self._storage.storage_filesystem, self._storage.trial_fs_path
        if files.type_name == "local":
            return LocalStorage(Path(path))
        return ObjectStorage(files, path, path, PATIENCE)

    @property
    def _device(self) -> str:
        if self._job:
            return self._job.device
        asked = self._parameters.get("device", "auto")
        return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else str(asked)

    @property
    def _threads(self) -> int:
        """One per CPU core that Tune has reserved: the last bit of a result may depend on it."""
        resources = self.trial_resources
        return max(1, math.floor(resources.required_resources.get("CPU", 1))) if resources else 1


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
