"""What tracking costs a driver while the tracking server cannot be reached.

    python -m benchmarks.tracking_outage               1,000 trials of each kind, a port nobody has
    python -m benchmarks.tracking_outage --uri URI     another address, e.g. one that swallows all

What a driver tells of a trial that reports eight times, four epochs of ten metrics each, is told to
a real tracker and to none, in turns in one process. Printed are the seconds of the driver's thread
a trial, the slowest call, and the processor time that the uploader's thread takes while it waits.
Whole sweeps with and without a reachable server are compared by `benchmarks.many_trials --away`.
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

from search.tracking.tracker import Row, Tracker
from search.tracking.uploader import open_tracker
from trainables.storage import LocalStorage

REPORTS, EPOCHS, METRICS, PARAMS = 8, 4, 10, 12


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


def tell(tracker: Tracker, number: int) -> Stopwatch:
    """One trial from its start to its end."""
    watch, now = Stopwatch(), time.time()
    params = {f"parameter_{i}": i / 7 for i in range(PARAMS)}
    watch(lambda: tracker.start(number, now, params, {"method": "rmt", "preset": "search"}))
    for report in range(REPORTS):
        rows = [
            Row(epoch, now + epoch, {f"metric/{i}": i / (epoch + 3) for i in range(METRICS)})
            for epoch in range(EPOCHS * report, EPOCHS * (report + 1))
        ]
        watch(partial(tracker.log, number, rows))
    artifacts = [f"trials/{number:06d}/config.json"]
    watch(lambda: tracker.finish(number, now, "COMPLETE", {}, {"objective": 0.5}, artifacts))
    return watch


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking_outage")
    parser.add_argument("--trials", type=int, default=1000, help="of each kind")
    parser.add_argument("--uri", default="http://127.0.0.1:1")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to watch the uploader")
    given = parser.parse_args()
    logging.getLogger("search").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="outage-") as folder:
        sweep = LocalStorage(Path(folder) / "sweep")
        kinds = {
            "none": open_tracker("none", "s", sweep),
            "away": open_tracker(given.uri, "s", sweep),
        }
        watches: dict[str, list[Stopwatch]] = {kind: [] for kind in kinds}
        for number in range(given.trials):
            for kind, tracker in kinds.items():
                watches[kind].append(tell(tracker, number))
        begin = time.process_time()
        time.sleep(given.idle)
        idle = (time.process_time() - begin) / given.idle
        size = sum(path.stat().st_size for path in (sweep.root / "outbox").iterdir())
        left = kinds["away"].close(0.0)
    print(
        f"{given.trials} trials of each kind, in turns; {left} events wait in {size / 2**20:.1f} MB"
    )
    print(f"{'':10}{'ms a trial':>12}{'slowest call/ms':>18}")
    for kind, found in watches.items():
        median = statistics.median(watch.total for watch in found)
        slowest = max(watch.slowest for watch in found)
        print(f"{kind:10}{1e3 * median:12.3f}{1e3 * slowest:18.2f}")
    print(f"processor time while it waits: {100 * idle:.2f} % of one core")
    print(f"MLflow was {'' if 'mlflow' in sys.modules else 'not '}imported")


if __name__ == "__main__":
    main()
