"""One sweep of sleeping trials, with the driver's figures after every so many trials."""

from __future__ import annotations

import io
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.scale.sleeping_trial import SleepingTrial, seconds
from search.core.config import SweepConfig
from search.core.lock import SweepLock
from search.core.placement import Placement
from search.core.results import Result, trial_folder
from search.core.sweep_folder import SweepFolder
from search.driver.preflight import adopt, preflight
from search.execution.listeners import SweepListener, SweepListeners
from search.execution.ray_session import ray_session
from search.execution.tune_run import StopSwitch, run_trials
from search.ledger.ledger import Ledger, RunningTrial
from search.terminal.progress import Progress
from search.tracking.mlflow_reporter import MlflowReporter
from trainables.assignment import Assignment
from trainables.core.storage import open_storage
from trainables.trial import TaskSpec

EVERY = 100
"""Trials between two marks."""
_CATCH_UP = 1800.0  # seconds


@dataclass(frozen=True)
class Mark:
    """The driver after a number of trials; all times are sums since its start, in seconds."""

    trials: int
    """Trials that have ended."""
    wall: float
    """Unix time."""
    megabytes: float
    """Resident memory of the driver."""
    process: float
    """Processor time of the driver, all threads."""
    loop: float
    """Processor time of the thread that runs Tune's loop, the ledger and the sampler."""
    proposals: float
    """The part of `loop` in which trials were proposed."""
    slept: float
    """Time that trials have slept."""
    undelivered: int
    """Runs that MLflow does not hold completely."""


class TimedLedger(Ledger):
    """A ledger that measures the processor time of its proposals."""

    proposals = 0.0
    """Seconds so far."""

    def ask(self) -> RunningTrial:
        """Issue the next trial."""
        start = time.thread_time()
        found = super().ask()
        self.proposals += time.thread_time() - start
        return found


class Watch(SweepListener):
    """Keeps marks."""

    def __init__(self, ledger: TimedLedger, reporter: MlflowReporter, slots: int) -> None:
        self.marks: list[Mark] = []
        self.first_start = 0.0
        self._ledger, self._reporter, self._slots = ledger, reporter, slots
        self._slept = 0.0

    def started(self, live: RunningTrial) -> None:
        self.first_start = self.first_start or time.time()

    def ended(self, result: Result, ledger: Ledger) -> None:
        self._slept += result.train_seconds
        if len(ledger.results) % EVERY == 0 or not self.marks:
            self.mark()

    def mark(self) -> None:
        """Add a mark."""
        resident = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert resident is not None
        self.marks.append(
            Mark(
                len(self._ledger.results),
                time.time(),
                int(resident[1]) / 1024,
                time.process_time(),
                time.thread_time(),
                self._ledger.proposals,
                self._slept,
                self._reporter.flush(0.0),
            )
        )


def run(
    storage: str, trials: int, slots: int, factor: float, space: str, pruner: str, uri: str
) -> dict[str, Any]:
    """Run or resume a sweep in this process, as `run_sweep` does without its evaluation. `factor`
    divides the time of a trial."""
    config = SweepConfig(
        space=space,
        task=TaskSpec(("digits",), "tiny", (16,), (1,)),
        trials=trials,
        pruner=pruner,
        name="large",
        storage=storage,
        tracking_uri=uri,
    )
    plan = preflight(config)
    sweep = open_storage(plan.config.location)
    quiet = Console(file=io.StringIO())
    with SweepLock(sweep, print) as lock:
        plan = adopt(plan, SweepFolder(sweep))
        ledger = TimedLedger(
            sweep, plan.space, config.sampler, pruner, config.seed, guard=lock.check
        )
        reporter = MlflowReporter(plan.tracking_uri, plan.config, plan.id, plan.fingerprints, sweep)
        reporter.open_sweep(ledger.results)
        watch = Watch(ledger, reporter, slots)
        # Logical cores: each trial takes its share of those that Ray counts.
        placement = Placement("cpu", len(os.sched_getaffinity(0)) / slots, 0, slots)

        def assign(live: RunningTrial) -> Assignment:
            folder = sweep.child(trial_folder(live.number)).location
            trial, task = live.config.to_dict(), config.task.to_dict()
            return Assignment(live.number, trial, task, str(factor), folder, "cpu", 1, False, 5.0)

        with ray_session("", quiet) as folder, Progress(quiet, ledger, trials) as progress:
            listener = SweepListeners([progress, reporter, watch])
            stop = StopSwitch(None)
            common = (ledger, assign, trials, placement, listener, stop, folder, print)
            run_trials(*common, trainable=SleepingTrial)
        watch.mark()
        start = time.monotonic()
        left = reporter.close(_CATCH_UP)
    states = [result.state for result in ledger.results.values()]
    new = [r for r in ledger.results.values() if r.begun >= watch.first_start]
    asked = sum(seconds(result.number) for result in new) / factor
    return {
        "marks": [asdict(mark) for mark in watch.marks],
        "first_start": watch.first_start,
        "states": {state: states.count(state) for state in set(states)},
        "overslept": sum(result.train_seconds for result in new) / asked,
        "caught_up": None if left else time.monotonic() - start,
    }
