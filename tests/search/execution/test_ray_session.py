"""The private Ray of a sweep: who can reach it, what it leaves behind, and whose Ray it uses."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.core.problems import UsageError
from search.execution import ray_session as module
from search.execution.ray_session import ray_session
from tests.search.conftest import session_members
from tests.shared_ray import end_shared_ray

PROGRAM = """
import json, os, sys, threading
from pathlib import Path
from search.core.environment import quiet_environment
quiet_environment()
import ray
from rich.console import Console
from search.execution.ray_session import connected_machine, ray_session

@ray.remote
def home() -> str:
    return os.environ["HOME"]

def report(**found):
    print(json.dumps(found), flush=True)

"""


def start(program: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise AssertionError(process.stderr.read())
    return json.loads(line)  # type: ignore[no-any-return]


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Let the program go on; return what it reports last."""
    out, err = process.communicate("\n", timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]


def listening_addresses(session: int) -> set[str]:
    """Local addresses of TCP sockets that a session's processes listen on, and of UDP sockets."""
    inodes = set()
    for pid in session_members(session):
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            is_listening = fields[3] == ("0A" if table.startswith("tcp") else "07")
            if is_listening and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    return found


LOOPBACK = {
    "0100007F",  # 127.0.0.1
    "0000000000000000FFFF00000100007F",  # ::ffff:127.0.0.1
    "00000000000000000000000001000000",  # ::1
}


def test_a_private_ray_is_reachable_by_its_user_only(tmp_path: Path) -> None:
    """No token file, no open port, no folder that another user can enter; nothing is left."""
    process = start(
        """
for _ in range(2):  # the settings are restored in between
    with ray_session("", Console()) as folder:
        report(folder=str(folder), home=ray.get(home.remote()), token=os.environ["RAY_AUTH_TOKEN"],
               mode=os.environ["RAY_AUTH_MODE"])
        sys.stdin.readline()
    report(exists=folder.exists(), token=os.environ.get("RAY_AUTH_TOKEN"))
""",
        tmp_path,
    )
    found = answer(process)
    folder = Path(found["folder"])
    assert found["mode"] == "token"
    assert found["home"] == str(tmp_path)
    addresses = listening_addresses(process.pid)
    assert addresses
    assert addresses <= LOOPBACK
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not (tmp_path / ".ray").exists()
    holders = subprocess.run(
        ["grep", "-rlaF", found["token"], folder], capture_output=True, text=True, check=False
    )
    assert holders.stdout == ""
    if os.geteuid() == 0:
        listing = subprocess.run(
            ["ls", folder],
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
        assert b"Permission denied" in listing.stderr
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert answer(process) == {"exists": False, "token": None}
    second = answer(process)
    assert second["token"] != found["token"]
    assert finish(process) == {"exists": False, "token": None}
    assert not (tmp_path / ".ray").exists()


def test_a_connected_ray_is_used_and_stays_connected(tmp_path: Path) -> None:
    """As in a notebook; also outside the main thread."""
    process = start(
        """
ray.init("local", num_cpus=3, include_dashboard=False)
address = ray.get_runtime_context().gcs_address
found = []

def use(given):
    try:
        with ray_session(given, Console()) as folder:
            found.append([connected_machine(given).cpus, ray.get(home.remote()), folder.is_dir()])
    except Exception as error:
        found.append([type(error).__name__, str(error)])

use("")
thread = threading.Thread(target=use, args=(address,))
thread.start()
thread.join()
use("elsewhere:1")
sys.stdin.readline()
report(found=found, connected=ray.is_initialized(), home=ray.get(home.remote()))
""",
        tmp_path,
    )
    done = finish(process)
    *used, refused = done["found"]
    assert used == [[3, str(tmp_path), True]] * 2
    assert refused[0] == "UsageError"
    assert "--address must be the Ray cluster that this process is connected to" in refused[1]
    assert done["connected"]
    assert done["home"] == str(tmp_path)


def test_a_killed_process_leaves_a_folder_that_the_next_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(
        """
with ray_session("", Console()) as folder:
    report(folder=str(folder))
    sys.stdin.readline()
""",
        tmp_path,
    )
    folder = Path(answer(process)["folder"])
    with module._private_folder():
        assert folder.is_dir()  # its owner lives
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while session_members(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with module._private_folder():
        assert not folder.exists()


def test_a_death_of_ray_while_it_starts_is_one_line(tmp_path: Path) -> None:
    """Ray would try for a minute, and end the process with its own log."""
    process = start(
        """
from ray._private import worker
connect = worker.connect

def without_gcs(*args, **options):
    (gcs,) = worker._global_node.all_processes["gcs_server"]
    gcs.process.kill()
    return connect(*args, **options)

worker.connect = without_gcs
with ray_session("", Console()):
    report()
""",
        tmp_path,
    )
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (1, "")
    assert "error: Ray's gcs_server died. Finished trials are kept" in err
    assert "Traceback" not in err


def test_an_address_that_ray_refuses() -> None:
    end_shared_ray()
    with (
        pytest.raises(UsageError, match="--address must be a running Ray cluster that accepts"),
        ray_session("somewhere", Console(file=io.StringIO())),
    ):
        pass


def test_the_token_of_clusters_is_made_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    module._protect_token()  # there is none
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    module._protect_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
