"""Runs the command line as a user does, and faster in the process of the tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from search.driver import preflight
from search.driver.backbone_probe import BackboneProbe
from search.run import main
from tests.shared_ray import share_ray


@dataclass
class Sweep:
    """A sweep's folder, seen from outside."""

    storage: Path
    name: str
    location: str = ""
    """Location of the sweep if it is not in `storage`, which then contains only the log."""
    report: bool = False
    """Whether it ends with a report."""

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    def results(self) -> dict[int, dict[str, Any]]:
        paths = sorted(self.folder.glob("trials/*/result.json"))
        return {int(p.parent.name): json.loads(p.read_text()) for p in paths}

    def evaluation(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "evaluation.json").read_text())
        return found

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "search.run", *self._arguments(*options)]

    def _arguments(self, *options: str) -> list[str]:
        report = [] if self.report else ["--no-report"]  # whose figures take ten seconds to draw
        storage = self.location or str(self.storage)
        return ["--storage", storage, "--name", self.name, *report, *options]

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run in the process of the tests and on their Ray: no imports, no start of Ray. One trial
        at a time unless told otherwise, as each worker imports torch."""
        serial = () if "--max-concurrent" in options else ("--max-concurrent", "1")
        share_ray()
        return run_here(main, *self._arguments(*options, *serial))

    def run_until(
        self, condition: Callable[[], bool], *options: str
    ) -> subprocess.CompletedProcess[str]:
        """Like `run`, with a Ctrl-C as soon as the condition holds."""
        ended = threading.Event()

        def press() -> None:
            while not condition():
                if ended.wait(0.02):
                    return
            os.kill(os.getpid(), signal.SIGINT)

        def interrupt(*_: object) -> None:
            if not ended.is_set():  # else it came too late, and would end the tests
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, interrupt)
        waiting = threading.Thread(target=press)
        waiting.start()
        try:
            done = self.run(*options)
        finally:
            ended.set()
            waiting.join()
            signal.signal(signal.SIGINT, before)
        assert done.returncode == 130, done.stdout + done.stderr
        return done

    def run_alone(self, *options: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Run in a separate process with a private Ray, as a user does."""
        return subprocess.run(
            self.command(*options),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(),
            check=False,
        )

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start the command in a separate process group, so that all of it can be killed."""
        log = open(self.storage / f"{self.name}.log", "a", encoding="utf-8")  # noqa: SIM115
        with log:
            return subprocess.Popen(
                self.command(*options),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env=environment(),
            )

    def wait_until(self, condition: Callable[[], bool], timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                log = (self.storage / f"{self.name}.log").read_text()
                raise AssertionError(f"the sweep did not get there:\n{log}")
            time.sleep(0.05)


def run_here(
    command: Callable[[list[str]], int], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Call a command's `main` and return what the command would print. The backbone is probed in
    this process."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # Ray's own
        patch.setattr(preflight, "BackboneProbeProcess", lambda s: nullcontext(BackboneProbe(s)))
        with redirect_stdout(out), redirect_stderr(err):
            code = command([*arguments])
    return subprocess.CompletedProcess([*arguments], code, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONHASHSEED": "random", "COLUMNS": "100"}


def session_members(leader: int) -> dict[int, str]:
    """Processes of a driver's session, Ray's among them: id -> command line."""
    listing = subprocess.run(
        ["ps", "-eww", "-o", "pid=,sid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split(None, 2) for line in listing.splitlines())
    return {int(pid): args for pid, sid, args in rows if int(sid) == leader}


def as_another_user(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the user `nobody`; only root can."""
    return subprocess.run(
        command,
        user="nobody",
        group="nogroup",
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def held(process: int) -> Iterator[None]:
    """Pause a process, so that a sweep cannot finish in the meantime."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def kill_everything(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the driver, at once, and to everything that Ray has started for it."""
    os.kill(process.pid, signal.SIGKILL)
    for pid in session_members(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep that does not exist yet."""
    return Sweep(tmp_path, "test")
