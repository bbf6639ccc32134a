"""Starts a private Ray for a sweep, or connects to one that is already running."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import parameter, ray_constants
from rich.console import Console

from search.core.placement import Machine
from search.core.problems import StoppedError, UsageError
from trainables.core.files import remove_abandoned_folders, temporary_folder

_OBJECT_STORE = 256 * 2**20  # bytes: artifacts pass through it, images do not
_LONGEST_PARENT = 23  # characters: the path of a Unix socket in the folder is at most 107 long
_PRIVATE = threading.Lock()  # held by the only private Ray that a process can have


@contextlib.contextmanager
def ray_session(address: str, console: Console, warm_workers: int = 0) -> Iterator[Path]:
    """Connect this process to Ray; yield a private folder for temporary files.

    If the process is connected already (in a notebook or a service), that connection is used and
    stays open. Otherwise connects to the cluster at `address`, or starts a private Ray that
    listens on the loopback interface only and ends with the session.

    `warm_workers`: how many idle processes a private Ray keeps, by default one per CPU core. Tasks
    of two kinds that take turns need as many for each, or every turn would start a new process.

    Raises:
        UsageError: the cluster does not answer, the process is connected to another one, or
            another thread has a private Ray.
        StoppedError: Ray did not start.
    """
    _silence_libraries()
    with _private_folder() as folder:
        if _PRIVATE.locked():
            raise UsageError([_OCCUPIED])
        if ray.is_initialized():
            _check_connected_to(address)
            yield folder
            return
        with contextlib.ExitStack() as stack:
            if not address:
                if not _PRIVATE.acquire(blocking=False):
                    raise UsageError([_OCCUPIED])
                stack.callback(_PRIVATE.release)
            with console.status("Starting Ray"):
                if address:
                    stack.callback(ray.shutdown)
                    _connect(address)
                else:
                    stack.enter_context(_private_settings(warm_workers))
                    stack.callback(ray.shutdown)
                    stack.enter_context(_watch_ray())
                    _start(folder)
            yield folder


_OCCUPIED = (
    "A process must have one Ray at a time, and a sweep in another thread has started its own. "
    "Call ray.init() before both, or start the second sweep in another process."
)


def connected_machine(address: str) -> Machine:
    """Return the resources of the connected Ray."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Machine(
        int(sum(node.get("CPU", 0) for node in nodes)),
        int(sum(node.get("GPU", 0) for node in nodes)),
        max((node.get("CPU", 0) for node in nodes), default=0),
        elastic=bool(address),
    )


def _silence_libraries() -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    # They print a traceback for each dead worker and lost connection; the ledger has the outcome.
    for name in ("ray.tune", "ray.train", "ray.air", "ray._private.worker", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"ray\..*")


def _check_connected_to(address: str) -> None:
    current = ray.get_runtime_context().gcs_address
    if address not in ("", "auto", current):
        raise UsageError(
            [
                f"--address must be the Ray cluster that this process is connected to ({current}), "
                f"got '{address}'. Omit the option, or call ray.shutdown() first."
            ]
        )


def _connect(address: str) -> None:
    _protect_token()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            [
                f"--address must be a running Ray cluster that accepts this client, got "
                f"'{address}' ({_first_line(error)}). If the cluster requires a token, store it "
                "in ~/.ray/auth_token and set RAY_AUTH_MODE=token."
            ]
        ) from error


def _start(folder: Path) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            # Ray makes its own folders writable for everybody; the one around them is private.
            _temp_dir=str(folder / "ray"),
            **options,
        )
    except Exception as error:  # Ray raises bare ones
        raise StoppedError(f"Ray did not start ({_first_line(error)})") from error


@contextlib.contextmanager
def _private_settings(warm_workers: int) -> Iterator[None]:
    """While open, a Ray that this process starts listens on the loopback interface only, and
    accepts only clients with a token that exists nowhere but in the environment of its processes.
    It has no processes that scale a cluster or copy logs to the driver: each takes a second of a
    core at the start.
    """
    settings = {
        # Ray's name for "use the loopback address", the default on Windows and macOS.
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **({"RAY_num_workers_soft_limit": str(warm_workers)} if warm_workers else {}),
    }
    before = {name: os.environ.get(name) for name in settings}
    is_cluster = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(settings)
    ray_constants.ENABLE_RAY_CLUSTER = False
    parameters = parameter.RayParams
    parameter.RayParams = partial(parameters, no_monitor=True, include_log_monitor=False)
    _reread_settings()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster
        parameter.RayParams = parameters
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _reread_settings()


def _reread_settings() -> None:
    ray._raylet.Config.initialize("")
    loader = getattr(ray._raylet, "AuthenticationTokenLoader", None)
    if loader is not None:  # older versions of Ray have no tokens
        loader.instance().reset_cache()


@contextlib.contextmanager
def _watch_ray() -> Iterator[None]:
    """While open, end the process if an essential part of its private Ray dies, also while it
    starts.

    Nothing restarts these parts. Without a raylet, Tune waits forever; without a GCS, Ray aborts
    the process after a minute. All results are on disk.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            node = ray._private.worker._global_node
            parts = node.dead_processes() if node else ()
            dead = [kind for kind, _ in parts if kind in ("gcs_server", "raylet")]
            if dead and not over.is_set():
                sys.stderr.write(
                    f"error: Ray's {dead[0]} died. Finished trials are kept; run the same command "
                    "again.\n"
                )
                sys.stderr.flush()
                node.kill_all_processes(check_alive=False, allow_graceful=False)
                _kill_starting_workers(node.session_name)
                os._exit(1)

    threading.Thread(target=watch, name="ray-watcher", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _kill_starting_workers(session: str) -> None:
    """Kill workers that are still starting: they notice the death of Ray only when they are ready,
    seconds later. Until then the session's name is in their command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if any(session.encode() in word for word in words) and int(folder.name) != os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A temporary folder; what killed processes have left is removed first."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > _LONGEST_PARENT:
        parent = Path("/tmp")
    for place in {parent, Path(tempfile.gettempdir())}:
        remove_abandoned_folders(place)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(parent))
        except OSError as error:
            raise StoppedError(
                f"no temporary folder can be created in '{parent}' ({error.strerror})"
            ) from error
        yield folder


def _protect_token() -> None:
    """Make Ray's token file readable by its owner only: Ray creates it readable by everybody."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
