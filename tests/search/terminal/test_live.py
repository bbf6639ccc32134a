"""The output of a running sweep, in a real terminal that is resized, and seen from another
process."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyte
import pytest

from search import list as list_sweeps
from search import status
from tests.search.conftest import Sweep, environment, held, run_here

TRIALS = 4
OPTIONS = (
    *("--space", "rmt", "--shots", "2", "--trials", f"{TRIALS}", "--seeds", "1"),
    *("--set", "epochs=8", "--eval-seeds", "1", "--tracking-uri", "none"),
    *("--max-concurrent", "1"),
)


class Terminal:
    """A terminal of a given size, in which a program runs."""

    def __init__(self, command: list[str], columns: int, lines: int) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._lock = threading.Lock()
        self.raw = b""
        master, slave = pty.openpty()
        self._master = master
        self._set_size(columns, lines)
        variables = {k: v for k, v in environment().items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=variables | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the program has ended
                return
            if not data:
                return
            with self._lock:
                self.raw += data
                self._stream.feed(data)

    def resize(self, columns: int, lines: int) -> None:
        """Resize like a window, which notifies the program's processes by a signal."""
        with self._lock:
            self.screen.resize(lines, columns)
            self._set_size(columns, lines)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def text(self) -> str:
        with self._lock:
            return "\n".join(self.screen.display)

    def wait_for(self, pattern: str, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, text := self.text()):
            assert time.monotonic() < deadline, f"{pattern!r} was not seen:\n{text}"
            assert self.process.poll() is None, text
            time.sleep(0.05)
        return text

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join(5)
        os.close(self._master)


@dataclass
class Seen:
    """A sweep that has run in a terminal, and what was seen of it meanwhile."""

    sweep: Sweep
    wide: str
    narrow: str
    last: str
    raw: str
    code: int
    beside: dict[str, Any]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    sweep = Sweep(tmp_path_factory.mktemp("live"), "live")
    terminal = Terminal(sweep.command(*OPTIONS), 110, 30)
    try:
        wide = terminal.wait_for(rf"(?s)[1-9] of {TRIALS} trials.*epoch [1-9]\d*/", 240)
        terminal.resize(60, 20)
        time.sleep(1.0)  # four frames
        narrow = terminal.text()
        with held(terminal.process.pid):
            told = run_here(status.main, "live", "--json", "--storage", str(sweep.storage))
        assert told.returncode == 0, told.stderr
        code = terminal.process.wait(400)
        time.sleep(0.5)
        beside = json.loads(told.stdout)
        yield Seen(sweep, wide, narrow, terminal.text(), terminal.raw.decode(), code, beside)
    finally:
        terminal.close()


def test_the_table_shows_what_runs_and_what_is_best(seen: Seen) -> None:
    assert re.search(r"\d+ complete +\d+ pruned +\d+ failed +\d+ running", seen.wide)
    assert re.search(r"so far, [\d.]+ trials per minute, \d+ (s|min) left", seen.wide)
    assert re.search(r"\d+ +best +\d+\.\d %", seen.wide)
    assert re.search(r"\d+ +epoch \d+/\d+", seen.wide)


def test_it_fits_after_the_window_has_become_smaller(seen: Seen) -> None:
    lines = [line.rstrip() for line in seen.narrow.splitlines()]
    heads = [line for line in lines if f" of {TRIALS} trials" in line]
    assert len(heads) == 1, seen.narrow  # no remains of a wider frame
    above = lines[: lines.index(heads[0])]
    assert not any(re.search(r"epoch \d+/|validation|━", line) for line in above), seen.narrow
    assert all(len(line) <= 60 for line in lines)
    assert sum("trial" in x and "state" in x and "validation" in x for x in lines) == 1


def test_it_goes_on_to_its_end(seen: Seen) -> None:
    assert seen.code == 0, seen.raw[-3000:]
    # Trial 0 cannot flip a bit with these few images: it is not trained and does not count.
    assert sorted(seen.sweep.results()) == list(range(TRIALS + 1))
    assert "Test accuracy" in seen.raw
    assert "Traceback" not in seen.raw
    assert f" of {TRIALS} trials" not in seen.last  # the table is gone
    assert "classifying test images" in seen.raw


def test_its_status_was_told_meanwhile(seen: Seen) -> None:
    assert seen.beside["state"] == "running"
    assert 1 <= seen.beside["trials"]["done"] < TRIALS
    assert seen.beside["unfinished"]
    assert all(0 <= t["parts"] <= 8 for t in seen.beside["unfinished"])


def test_its_status_afterwards(seen: Seen) -> None:
    told = run_here(status.main, "live", "--storage", str(seen.sweep.storage))
    assert told.returncode == 0, told.stderr
    assert re.search(r"state +finished", told.stdout)
    assert f"{TRIALS} of {TRIALS} ended" in told.stdout
    assert re.search(r"test +winner \d+\.\d %, paper", told.stdout)
    assert "-m search.report live" in told.stdout
    listed = run_here(list_sweeps.main, "--json", "--storage", str(seen.sweep.storage))
    (row,) = json.loads(listed.stdout)["sweeps"]
    best = max(r["value"] for r in seen.sweep.results().values() if r["state"] == "COMPLETE")
    assert row["best"]["value"] == best
    assert row["state"] == "finished"


def test_a_dry_run_tells_the_first_trials_as_they_came(
    seen: Seen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from contextlib import nullcontext

    from search.driver import preflight as preflight_module
    from search.driver.backbone_probe import BackboneProbe
    from search.driver.dry_run import first_trials
    from search.options import configure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            preflight_module, "BackboneProbeProcess", lambda s: nullcontext(BackboneProbe(s))
        )
        config = configure([*OPTIONS, "--storage", str(tmp_path), "--name", "live"])
        plan = preflight_module.preflight(config, trial_write=False)
    trials, ended = first_trials(plan)
    results = seen.sweep.results()
    assert ended == 0
    assert [live.number for live in trials] == list(range(TRIALS))
    for live in trials:
        result = results[live.number]
        assert live.parameters == result["parameters"]
        assert json.loads(json.dumps(live.config.to_dict())) == result["config"]
    assert list(tmp_path.iterdir()) == []
