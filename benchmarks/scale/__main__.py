"""Cost of a large sweep for its driver: how many workers one driver keeps busy.

    python -m benchmarks.scale --workers 256 --trials 10000     about 40 minutes
    python -m benchmarks.scale --workers 256 --trials 1000 --scale 4

Runs a real sweep (Ray Tune, ledger, TPE, MLflow) whose trials sleep for 30 to 90 s, divided by
`--scale`, and report eight times. A machine with two cores has no room for 256 processes: at most
16 per core take their place, and sleep for as much less, so that the driver receives as many
messages per second as from all workers. The driver's cost is then that of the workers' number of
trials, except for what Ray itself does per open connection.

For every hundred trials up to a power of ten: trials per minute, the share of time that workers
slept, the driver's memory, its processor time per trial (Tune and ledger; the sampler's proposals;
other threads, which are mostly MLflow's), and the runs that MLflow did not hold yet. Afterwards a
new process resumes the sweep for one more trial per worker, and the commands that read the sweep
are timed. The measurement is void if trials slept more than 10 % longer than asked: the machine
was too busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from search.core.environment import quiet_environment

quiet_environment()  # Ray reads its settings when it is imported

from benchmarks.scale.sleeping_trial import LONGEST, SHORTEST  # noqa: E402

_PER_CORE = 16  # processes
_MOST_OVERSLEPT = 1.1


def in_process(**options: Any) -> dict[str, Any]:
    """Run a sweep in a separate process; `started` is the time when it was started."""
    started = time.time()
    command = [sys.executable, "-m", "benchmarks.scale", "--child", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"started": started}


def table(marks: Sequence[dict[str, Any]], slots: int) -> list[str]:
    """A row for the hundred trials before each power of ten, and for the last ones."""
    head = ("trials", "per min", "asleep", "MB", "loop/ms", "TPE/ms", "other/ms", "MLflow lacks")
    rows = ["".join(f"{text:>13}" for text in head)]
    for before, mark in pairwise(marks):
        trials = mark["trials"]
        if trials not in (100, 1000, 10_000, 100_000) and mark is not marks[-1]:
            continue
        count = trials - before["trials"]
        if not count:
            continue
        seconds = mark["wall"] - before["wall"]
        spent = {
            name: 1e3 * (mark[name] - before[name]) / count
            for name in ("process", "loop", "proposals")
        }
        cells = (
            str(trials),
            f"{60 * count / seconds:.0f}",
            f"{(mark['slept'] - before['slept']) / seconds / slots:.0%}",
            f"{mark['megabytes']:.0f}",
            f"{spent['loop'] - spent['proposals']:.0f}",
            f"{spent['proposals']:.0f}",
            f"{spent['process'] - spent['loop']:.0f}",
            str(mark["undelivered"]),
        )
        rows.append("".join(f"{cell:>13}" for cell in cells))
    return rows


def time_command(*arguments: str) -> tuple[float, float]:
    """Wall and processor seconds of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", *arguments], capture_output=True, check=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--scale", type=float, default=1.0, help="divides the time of a trial")
    parser.add_argument("--space", default="rmt")
    parser.add_argument("--pruner", default="none")
    parser.add_argument("--no-tracking", action="store_true", help="the sweep without MLflow")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        from benchmarks.scale.large_sweep import run

        print(json.dumps(run(**json.loads(given.child))))
        return
    slots = min(given.workers, _PER_CORE * len(os.sched_getaffinity(0)))
    factor = given.scale * given.workers / slots
    load = os.getloadavg()[0]
    print(
        f"{given.workers} workers, trials of {SHORTEST:g} to {LONGEST:g} s divided by "
        f"{given.scale:g}: {slots} processes, trials of {SHORTEST / factor:.2g} to "
        f"{LONGEST / factor:.2g} s; space {given.space}, pruner {given.pruner}, load {load:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="scale-") as storage:
        options = {
            "storage": storage,
            "slots": slots,
            "factor": factor,
            "space": given.space,
            "pruner": given.pruner,
            "uri": "none" if given.no_tracking else "",
        }
        sweep = in_process(trials=given.trials, **options)
        print("\n".join(table(sweep["marks"], slots)))
        if not given.no_tracking:
            late = sweep["caught_up"]
            shown = "not within half an hour" if late is None else f"{late:.1f} s"
            print(f"MLflow held all runs after the end of the last trial: {shown}")
        again = in_process(trials=given.trials + slots, **options)
        first = again["first_start"] - again["started"]
        print(f"resumed at {given.trials} trials: {first:.1f} s to the first new trial")
        for command in (["status", "large"], ["list"], ["report", "large"]):
            wall, processor = time_command(
                f"search.{command[0]}", *command[1:], "--storage", storage
            )
            print(f"{command[0]}: {wall:.1f} s, {processor:.1f} s of processor time")
    ended = sum(again["states"].values())
    if ended != given.trials + slots or "FAIL" in again["states"]:
        raise SystemExit(f"the measurement is void: trials ended as {again['states']}")
    if given.pruner == "none" and sweep["overslept"] > _MOST_OVERSLEPT:
        raise SystemExit(
            f"the measurement of busy workers is void: trials slept {sweep['overslept']:.2f} times "
            "as long as asked, because the machine was too busy"
        )


if __name__ == "__main__":
    main()
