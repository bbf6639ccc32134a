"""The launcher file's MLflow commands, run as the launcher would, on another port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.launcher_file import environment

ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _servers(port: int) -> list[int]:
    """Session leaders that listen on `port`."""
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
def test_the_server_starts_once_asks_who_you_are_and_keeps_its_data(
    tmp_path: Path, port: int
) -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    commands = [c for c in config["head_start_ray_commands"] if "5000" in c]
    assert len(commands) == 2
    settings = environment(config, "") | {"STORAGE": str(tmp_path / "bucket")}
    password = settings["MLFLOW_TRACKING_PASSWORD"]
    home = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token", encoding="utf-8")
    script = next(c for c in config["setup_commands"] if "derived()" in c)
    subprocess.run(["bash", "-c", script], env=home, check=True)

    def start() -> None:
        for command in commands:
            begin = time.monotonic()
            given = f"source ~/cluster.env; STORAGE={settings['STORAGE']}; {command}"
            subprocess.run(
                ["bash", "-c", given.replace("5000", str(port))],
                env=os.environ | home,
                check=True,
                timeout=150,
                capture_output=True,  # returns only when no process holds the terminal
            )
            if "mlflow server" in command:
                assert time.monotonic() - begin < 10, "the server was not put into the background"

    def ask(question: str, user: str = "", host: str = "", **body: object) -> Any:
        """Return the answer, or the status of an error."""
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/{question}")
        if body:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if user:
            request.add_header("Authorization", f"Basic {b64encode(user.encode()).decode()}")
        if host:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    start()
    start()
    assert len(_servers(port)) == 1
    search = "mlflow/experiments/search?max_results=1"
    assert ask(search) == ask(search, "admin:password") == 401
    upload = "mlflow-artifacts/artifacts/0/file"
    assert ask(upload) == ask(upload, "admin:token") == 401
    admin = f"admin:{password}"
    created = ask("mlflow/experiments/create", admin, name="sweep")["experiment_id"]

    os.killpg(_servers(port)[0], signal.SIGKILL)
    start()
    question = f"mlflow/experiments/get?experiment_id={created}"
    answer = ask(question, admin, host=f"10.0.0.5:{port}")  # as called by a worker
    assert answer["experiment"]["artifact_location"].startswith("mlflow-artifacts:/")
    assert (tmp_path / "mlflow" / "mlflow.db").is_file()
