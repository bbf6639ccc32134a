"""The launcher file's MLflow commands, run as the launcher would, on another port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _servers(port: int) -> list[int]:
    """Session leaders that serve on `port`."""
    listing = subprocess.run(
        ["ps", "-eww", "-o", "pid=,sid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    return [int(p) for p, sid, args in rows if p == sid and f"--port {port} --workers" in args]


@pytest.fixture
def port() -> Iterator[int]:
    port = _free_port()
    yield port
    for leader in _servers(port):
        os.killpg(leader, signal.SIGKILL)


@pytest.mark.slow
def test_the_server_starts_once_and_keeps_its_data_on_the_head(tmp_path: Path, port: int) -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    commands = [c for c in config["head_start_ray_commands"] if "5000" in c]
    assert len(commands) == 2
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    (tmp_path / "mlflow").mkdir()  # by head_setup_commands
    for command in [*commands, *commands]:
        begin = time.monotonic()
        subprocess.run(
            ["bash", "-c", command.replace("5000", str(port))],
            env=environment,
            check=True,
            timeout=150,
            capture_output=True,  # returns only when nothing holds on to the terminal
        )
        if "mlflow server" in command:
            assert time.monotonic() - begin < 10, "the server was not put into the background"
    assert len(_servers(port)) == 1

    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/create",
        json.dumps({"name": "sweep"}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        created = json.load(answer)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get"
        f"?experiment_id={created['experiment_id']}",
        headers={"Host": f"10.0.0.5:{port}"},  # as a worker calls the head
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        location = json.load(answer)["experiment"]["artifact_location"]
    assert location.startswith("mlflow-artifacts:/")
    assert (tmp_path / "mlflow" / "mlflow.db").is_file()
