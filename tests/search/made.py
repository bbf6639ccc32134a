"""A sweep's folder with trained trials, made without Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path

from search.core.config import SweepConfig
from search.core.results import Result, commit, trial_folder
from search.core.sweep_folder import FORMAT
from search.core.task import task_fingerprints
from trainables.core.storage import LocalStorage
from trainables.encoded_task import EncodedTask
from trainables.trial import TaskSpec, TrialConfig
from trainables.trial_run import TrialRun


def made(storage: Path, name: str, config: TrialConfig, task: TaskSpec) -> None:
    """One trial, number 0, in a sweep without tracking."""
    bench = EncodedTask(task.backbone, "cpu", task.source(""))
    run = TrialRun(config, task, bench)
    report = run.advance()
    while not report.finished:
        report = run.advance()
    sweep = LocalStorage(storage / name)
    prints = task_fingerprints(task, bench.source) | {"backbone": bench.backbone.fingerprint}
    sweep_config = SweepConfig("taskres", task, name=name, tracking_uri="none")
    record = {
        "format": FORMAT,
        "id": name,
        "config": sweep_config.to_dict(),
        "fingerprints": prints,
    }
    sweep.write("sweep.json", json.dumps(record).encode())
    run.save_artifacts(sweep.child(trial_folder(0)))
    now = time.time()
    value = report.values[-1]
    plain = config.to_dict()
    result = Result(
        0, "COMPLETE", value, report.values, report.metrics, {}, {}, {}, plain, 1.0, now, now, "h"
    )
    commit(sweep, result, [])
