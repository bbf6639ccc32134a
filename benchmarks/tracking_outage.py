"""Cost of tracking for the driver while the tracking server is unreachable.

    python -m benchmarks.tracking_outage               1,000 trials of each kind, an unused port
    python -m benchmarks.tracking_outage --uri URI     another address, e.g. one that never answers

A trial that reports eight times, four epochs of ten metrics each, is passed to a reporter with an
unreachable server and to one without tracking, in turns in one process. The output is the time of
the driver's thread per trial, the slowest call, and the processor time that the reporter's thread
takes while it waits. `benchmarks.many_trials --away` compares whole sweeps.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from search.core.config import SweepConfig
from search.core.results import Result
from search.ledger.ledger import Ledger, RunningTrial
from search.tracking.mlflow_reporter import MlflowReporter
from trainables.assignment import Message
from trainables.core.optim import OptimConfig
from trainables.core.storage import LocalStorage
from trainables.methods.taskres import TaskResConfig
from trainables.report import Report
from trainables.trial import TrialConfig

REPORTS, EPOCHS, METRICS = 8, 4, 10
CONFIG = TrialConfig("taskres", "search", TaskResConfig(), OptimConfig(2e-3, 32, 64))


class Stopwatch:
    """Times single calls."""

    def __init__(self) -> None:
        self.total, self.slowest = 0.0, 0.0

    def __call__(self, act: Callable[[], None]) -> None:
        begin = time.perf_counter()
        act()
        seconds = time.perf_counter() - begin
        self.total += seconds
        self.slowest = max(self.slowest, seconds)


def run_trial(reporter: MlflowReporter, number: int) -> Stopwatch:
    """Report one trial from its start to its end."""
    watch, now = Stopwatch(), time.time()
    live: Any = RunningTrial.__new__(RunningTrial)  # only what a reporter reads
    live.number, live.begun, live.config = number, now, CONFIG
    watch(lambda: reporter.started(live))
    metrics = {f"metric/{i}": i / 3 for i in range(METRICS)}
    for step in range(REPORTS):
        epochs = range(1 + EPOCHS * step, 1 + EPOCHS * (step + 1))
        rows = tuple({"epoch": float(e), "time": now + e} | metrics for e in epochs)
        message = Message(number, "running", Report(step + 1, (0.5,), rows, False, metrics))
        watch(partial(reporter.heard, message))
    result = Result(
        *(number, "COMPLETE", 0.5, (0.5,), metrics, {}, {}, {}, CONFIG.to_dict()),
        *(1.0, now, now + 1, "host"),
    )
    watch(lambda: reporter.ended(result, cast(Ledger, None)))
    return watch


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking_outage")
    parser.add_argument("--trials", type=int, default=1000, help="of each kind")
    parser.add_argument("--uri", default="http://127.0.0.1:1")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to watch the thread")
    given = parser.parse_args()
    logging.getLogger("search").setLevel(logging.ERROR)
    config = SweepConfig(name="s")
    with tempfile.TemporaryDirectory(prefix="outage-") as folder:
        sweep = LocalStorage(Path(folder) / "sweep")
        kinds = {
            kind: MlflowReporter(uri, config, "id", {}, sweep)
            for kind, uri in (("none", "none"), ("away", given.uri))
        }
        for reporter in kinds.values():
            reporter.open_sweep({})
        watches: dict[str, list[Stopwatch]] = {kind: [] for kind in kinds}
        for number in range(given.trials):
            for kind, reporter in kinds.items():
                watches[kind].append(run_trial(reporter, number))
        begin = time.process_time()
        time.sleep(given.idle)
        idle = (time.process_time() - begin) / given.idle
        left = kinds["away"].close(0.0)
    print(f"{given.trials} trials of each kind, in turns; {left} runs wait")
    print(f"{'':10}{'ms per trial':>14}{'slowest call/ms':>18}")
    for kind, found in watches.items():
        median = statistics.median(watch.total for watch in found)
        slowest = max(watch.slowest for watch in found)
        print(f"{kind:10}{1e3 * median:14.3f}{1e3 * slowest:18.2f}")
    print(f"processor time while it waits: {100 * idle:.2f} % of one core")
    print(f"MLflow was {'' if 'mlflow' in sys.modules else 'not '}imported")


if __name__ == "__main__":
    main()
