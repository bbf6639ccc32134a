"""Overhead of a sweep whose trials cost nothing: throughput, memory, and time to resume.

    python -m benchmarks.many_trials                 1,000 trials of 0 s, then one more after them
    python -m benchmarks.many_trials --trials 200    fewer
    python -m benchmarks.many_trials --away          with an unreachable tracking server

Runs a real sweep (Ray, ledger, commits) whose trials only compute the zero-shot model's accuracy on
40 images. Then a new process resumes the sweep for one more trial, timed from the start of the
process to the end of that trial. With --away, sweeps without tracking alternate with sweeps whose
server does not answer, in blocks, so that both run under the same load.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.core.environment import quiet_environment

quiet_environment()  # Ray reads its settings when it is imported

NO_OP = str(Path(__file__).with_name("_no_op_space.py"))
"""The plugin with the space `no-op`."""
_NOBODY = "http://127.0.0.1:9"  # the port of the discard service: nothing listens there


class Watch(io.TextIOBase):
    """A terminal that records time and memory for every reported trial."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float, float]] = []

    def write(self, text: str) -> int:
        """Parse lines like `trial 7 complete val 73.0 % best 73.0 % (8/1000)`."""
        for done in re.findall(r"\((\d+)/\d+\)", text):
            self.marks.append((int(done), time.time(), _megabytes()))
        return len(text)


def run(storage: str, name: str, trials: int, slots: int, tracking_uri: str) -> dict[str, Any]:
    """Run a sweep in this process; marks are (trials done, unix seconds, MB of this process)."""
    from rich.console import Console

    from search.core.config import SweepConfig
    from search.driver.preflight import preflight
    from search.driver.sweep import run_sweep
    from trainables.core.plugins import use_plugins
    from trainables.trial import TaskSpec

    use_plugins((NO_OP,))
    config = SweepConfig(
        space="no-op",
        task=TaskSpec(("digits",), "tiny", (16,), (1,)),
        trials=trials,
        pruner="none",
        eval_seeds=1,
        name=name,
        storage=storage,
        tracking_uri=tracking_uri,
        max_concurrent=slots,
    )
    watch = Watch()
    outcome = run_sweep(preflight(config), Console(file=watch, width=200))
    return {"marks": watch.marks, "overhead": outcome.overhead, "states": outcome.states}


def in_process(*arguments: str) -> dict[str, Any]:
    """Call `run` in a separate process; `started` is the time when it was started."""
    started = time.time()
    command = [sys.executable, "-m", "benchmarks.many_trials", "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"started": started}


def per_minute(marks: Sequence[Sequence[float]]) -> float:
    """Trials per minute, from the end of the first to the end of the last."""
    return 60 * (marks[-1][0] - marks[0][0]) / (marks[-1][1] - marks[0][1])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_trials")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=3, help="with --away: sweeps of each kind")
    parser.add_argument("--away", action="store_true")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        storage, name, trials, slots, uri = given.child
        print(json.dumps(run(storage, name, int(trials), int(slots), uri)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if given.away:
            _compare(folder, given.trials, given.slots, given.blocks)
        else:
            _many(folder, given.trials, given.slots)


def _many(folder: str, trials: int, slots: int) -> None:
    sweep = in_process(folder, "many", str(trials), str(slots), "none")
    marks = sweep["marks"]
    early = next(mark for mark in marks if mark[0] >= min(100, trials))
    print(f"{trials} trials of 0 s, {slots} at a time: {per_minute(marks):.0f} a minute")
    print(
        f"memory of the driver: {early[2]:.0f} MB at {early[0]}, {marks[-1][2]:.0f} MB at the end"
    )
    again = in_process(folder, "many", str(trials + 1), str(slots), "none")
    seconds = again["marks"][-1][1] - again["started"]
    print(f"resumed after {trials}: {seconds:.1f} s from the start to the end of the next trial")


def _compare(folder: str, trials: int, slots: int, blocks: int) -> None:
    rates: dict[str, list[float]] = {"none": [], _NOBODY: []}
    for block in range(blocks):
        for uri, found in rates.items():
            name = f"block{block}-{'away' if uri == _NOBODY else 'none'}"
            found.append(
                per_minute(in_process(folder, name, str(trials), str(slots), uri)["marks"])
            )
    calm, away = (statistics.median(found) for found in rates.values())
    print(f"{trials} trials of 0 s, {slots} at a time, median of {blocks} sweeps each, in turns:")
    print(f"without tracking {calm:.0f} a minute, server away {away:.0f} ({away / calm - 1:+.1%})")


def _megabytes() -> float:
    """Resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
