"""A Ray that starts before it is needed, and ends whether or not it is used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.search.conftest import session_members
from tests.search.execution.test_ray_session import answer, finish, start


def wait_for_end(session: int) -> None:
    """Wait until no process of a session is left."""
    deadline = time.monotonic() + 60
    while left := session_members(session):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_a_session_is_used_by_another_thread_than_the_one_that_started_it(tmp_path: Path) -> None:
    process = start(
        """
from search.core.problems import UsageError
from search.execution.early_ray import EarlyRay
with EarlyRay() as early:
    early.start()
    with early.session(Console()) as folder:
        report(folder=str(folder), home=ray.get(home.remote()), started=early.started)
        try:
            with ray_session("", Console()):
                pass
        except UsageError as error:
            report(second=error.problems)
        sys.stdin.readline()
    report(exists=folder.exists(), started=early.started, connected=ray.is_initialized())
""",
        tmp_path,
    )
    found = answer(process)
    assert found["home"] == str(tmp_path)
    assert found["started"]
    commands = " ".join(session_members(process.pid).values())
    assert "raylet" in commands
    assert "monitor.py" not in commands
    assert "must have one Ray at a time" in answer(process)["second"][0]
    assert finish(process) == {"exists": False, "started": False, "connected": False}


def test_an_unused_session_ends(tmp_path: Path) -> None:
    process = start(
        """
from search.execution.early_ray import EarlyRay
with EarlyRay() as early:
    early.start()
report(connected=ray.is_initialized(), threads=threading.active_count())
""",
        tmp_path,
    )
    assert finish(process)["connected"] is False
    wait_for_end(process.pid)


def test_ctrl_c_while_ray_starts_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "search.run", "--space", "taskres", "--tracking-uri", "none"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    deadline = time.monotonic() + 120
    while not any("gcs_server" in args for args in session_members(process.pid).values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert output == "Stopped. Finished trials are kept; run the same command again.\n"
    assert process.returncode == 130
    wait_for_end(process.pid)
