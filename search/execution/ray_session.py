"""Ray's start, its watch and its end: what a sweep runs on."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from search.core.config import SweepConfig
from search.core.problems import StoppedError, UsageError
from search.execution.resources import Machine
from search.tracking.tracker import Tracker
from search.tracking.worker_uploader import WorkerUploader


@contextlib.contextmanager
def ray_session(config: SweepConfig, console: Console) -> Iterator[None]:
    """A connection to Ray: the cluster at `address`, or a private one that ends with the sweep.

    Raises `UsageError` when the cluster does not answer.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    # It prints the traceback of every worker that died; the ledger says how the trial went on.
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"ray\..*")
    over = threading.Event()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with console.status("Starting Ray"):
        if config.address:
            try:
                ray.init(address=config.address, **common)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(
                    [
                        f"--address must name a running Ray cluster, and '{config.address}' does "
                        f"not let us in ({str(error).splitlines()[0]}). If it asks for a token, "
                        "it must be in ~/.ray/auth_token, with RAY_AUTH_MODE=token."
                    ]
                ) from error
        else:
            try:
                ray.init(
                    "local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **common
                )
            except Exception as error:  # Ray raises bare ones
                raise StoppedError(f"Ray did not start ({str(error).splitlines()[0]})") from error
            protect_token()
            threading.Thread(target=_mind_ray, args=(over,), name="ray-minder", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        ray.shutdown()


def _mind_ray(over: threading.Event) -> None:
    """End the process when a part of its private Ray has died before it is over.

    Nobody starts that part again. Without a raylet Tune waits for ever, without a GCS for a minute
    before Ray aborts the process; all that counts is on disk.
    """
    node = ray._private.worker._global_node
    while not over.wait(1):
        dead = [kind for kind, _ in node.dead_processes() if kind in ("gcs_server", "raylet")]
        if dead and not over.is_set():
            sys.stderr.write(
                f"error: Ray's {dead[0]} has died. Finished trials are kept; run the same command "
                "again.\n"
            )
            sys.stderr.flush()
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            _kill_starting_workers(node.session_name)
            os._exit(1)


def _kill_starting_workers(session: str) -> None:
    """Workers that have begun to start, which takes seconds, do not notice that Ray has died before
    they are ready. Until then the session's name stands in their command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if any(session.encode() in word for word in words) and int(folder.name) != os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)


_OBJECT_STORE = 256 * 2**20  # bytes: artifacts travel through it, images do not


def protect_token() -> None:
    """Ray writes its authentication token readable by everybody."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists() and stat.S_IMODE(token.stat().st_mode) != 0o600:
        token.chmod(0o600)


def cluster() -> Machine:
    """The nodes of the connected cluster."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Machine(
        int(sum(node.get("CPU", 0) for node in nodes)),
        int(sum(node.get("GPU", 0) for node in nodes)),
        max((node.get("CPU", 0) for node in nodes), default=0),
        elastic=True,
    )


@contextlib.contextmanager
def carried(config: SweepConfig, tracker: Tracker) -> Iterator[None]:
    """On a cluster, workers upload artifacts while it is there."""
    if not config.address:
        yield
        return
    carrier = WorkerUploader()
    tracker.set_uploader(carrier)
    try:
        yield
    finally:
        tracker.set_uploader(None)
        carrier.close()
