"""How much a dashboard slows the sweep that it shows, and how long its page takes.

    python -m benchmarks.dashboard                  10 pairs of blocks of 15 s, from trial 1,000 on
    python -m benchmarks.dashboard --trials 100 --pairs 1 --seconds 5

Trials cost nothing, see `many_trials`, so that the driver is busy all the time. Blocks with and
without a page that is open, which asks every 3 s as a browser does, alternate in one sweep.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from benchmarks.many_trials import NO_OP
from search.core.results import read_results
from trainables.core.plugins import use_plugins
from trainables.core.storage import LocalStorage

_PAGE_SECONDS = 3.0  # between two requests, as in `page.js`
_NAME = "many"


def processor_seconds(process: subprocess.Popen[str]) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_page(address: str, until: float) -> list[bytes]:
    """Ask for the content until a time, as an open page does; return the distinct answers."""
    found: list[bytes] = []
    while time.time() < until:
        content = urlopen(f"{address}/content").read()
        found += [content] * (content not in found)
        time.sleep(min(_PAGE_SECONDS, max(0.0, until - time.time())))
    return found


def measure(folder: str, trials: int, pairs: int, seconds: float) -> None:
    """Run the sweep and the dashboard, and print the figures."""
    use_plugins((NO_OP,))
    # More trials than the blocks can hold: the sweep is stopped afterwards.
    arguments = ["benchmarks.many_trials", "--child", folder, _NAME, "1000000", "2", "none"]
    command = [sys.executable, "-m", *arguments]
    sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    started = [sweep]
    try:
        finished = Path(folder, _NAME, "trials", f"{trials - 1:06d}", "result.json")
        while not finished.exists():
            if sweep.poll() is not None:
                raise RuntimeError("the sweep has ended")
            time.sleep(1)
        dashboard = subprocess.Popen(
            [sys.executable, "-m", "search.dashboard", _NAME, "--storage", folder, "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(dashboard)
        assert dashboard.stdout is not None
        told = re.search(r"http://\S+", dashboard.stdout.readline())
        assert told is not None
        blocks: list[tuple[bool, float, float]] = []
        pages, used = 0, processor_seconds(dashboard)
        for number in range(2 * pairs):
            is_open = number % 4 in (1, 2)  # in turns that cancel a steady change
            begun = time.time()
            if is_open:
                pages += len(open_page(told[0], begun + seconds))
            else:
                time.sleep(seconds)
            blocks.append((is_open, begun, begun + seconds))
        used = processor_seconds(dashboard) - used
    finally:
        for process in started:
            process.terminate()
            process.wait()
    results = read_results(LocalStorage(Path(folder, _NAME)))
    ends = sorted(result.ended for result in results.values())
    rates = [(is_open, sum(a <= end < b for end in ends) / (b - a)) for is_open, a, b in blocks]
    closed = [rate for is_open, rate in rates if not is_open]
    opened = [rate for is_open, rate in rates if is_open]
    changes = [after / before - 1 for before, after in zip(closed, opened, strict=True)]
    error = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
    print(f"load average {os.getloadavg()[0]:.1f}, {len(ends)} trials at the end")
    print(
        f"trials per minute, mean of {pairs} blocks: {60 * statistics.fmean(closed):.0f} without "
        f"and {60 * statistics.fmean(opened):.0f} with an open page: "
        f"{statistics.fmean(changes):+.1%} ± {error:.1%} (standard error)"
    )
    print(
        f"the dashboard: {used / max(1, pages):.2f} s of processor time per page, "
        f"{used / (pairs * seconds):.1%} of a core while a page is open"
    )
    print(json.dumps({"closed": closed, "opened": opened}))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard")
    parser.add_argument("--trials", type=int, default=1000, help="in the sweep when it begins")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a block")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(folder, given.trials, given.pairs, given.seconds)


if __name__ == "__main__":
    main()
