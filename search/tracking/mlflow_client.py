"""MLflow's client: opens it so that it does not block, and classifies its errors.

MLflow is imported by the first call, in the reporter's thread: that takes two seconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from search.tracking.uri import database_file, scheme_of, sqlite_path, sqlite_uri
from trainables.core.files import remove_file, replace_file
from trainables.core.storage import StorageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENVIRONMENT = {
    # A retry inside the client blocks for minutes and repeats `create_run`, which creates a second
    # run. Our own retry looks for the run first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; the default is 120
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def set_environment() -> None:
    """Keep MLflow's client from blocking, by environment variables; those that are set stay."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def open_client(uri: str) -> MlflowClient:
    """MLflow's client at `uri`; creates a missing sqlite database. Raises `OSError`."""
    from mlflow import MlflowClient

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic"):  # the reporter logs what matters
            logging.getLogger(name).setLevel(logging.CRITICAL)
    path = sqlite_path(uri) if scheme_of(uri) == "sqlite" else None
    if path is None:
        return MlflowClient(tracking_uri=uri)
    _create_database(uri)
    with _no_stray_folders(path.absolute()):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)  # opens the file
    return client


def _create_database(uri: str) -> None:
    """Create a missing database under another name and rename it: MLflow takes seconds to create
    one, and if it is killed meanwhile, it leaves a file that no later start can use."""
    from mlflow import MlflowClient

    path = sqlite_path(uri)
    if path is None or _has_content(path := database_file(path)):
        return
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _has_content(path):
            return
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        remove_file(new)
        with _no_stray_folders(new):
            MlflowClient(tracking_uri=sqlite_uri(new)).search_experiments(max_results=1)
        replace_file(new, path)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


@contextmanager
def _no_stray_folders(path: Path) -> Iterator[None]:
    """Remove the folders that MLflow creates from a quoted path before SQLAlchemy reads it: a
    database in `a%20b` would leave an empty folder `a%2520b` beside it."""
    quoted = Path(sqlite_uri(path).removeprefix("sqlite:///"))
    missing = [folder for folder in quoted.parents if not folder.exists()]
    yield
    for folder in missing:
        with suppress(OSError):
            folder.rmdir()


def close_connections(uri: str) -> None:
    """Close the database's open file, which may have been replaced: SQLite then refuses every
    write, and MLflow keeps its connections for as long as the process lives."""
    if scheme_of(uri) != "sqlite":
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.get(uri)
    if engine is not None:
        engine.dispose()


class RefusedError(Exception):
    """MLflow has refused a call, and will refuse it again."""


def is_permanent(error: Exception) -> bool:
    """Whether repeating the call cannot help. If unsure, it can: nothing is lost by waiting."""
    code = getattr(error, "error_code", None)
    if code is not None:  # MlflowException, whose class is not worth importing MLflow for
        return code in {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}
    response = getattr(error, "response", None)
    if response is not None:  # requests.HTTPError; other credentials or a later time may help
        return 400 <= response.status_code < 500 and response.status_code not in {
            401,
            403,
            408,
            429,
        }
    return not isinstance(error, OSError)


def is_outage(error: Exception) -> bool:
    """Whether a call failed for a reason that concerns all runs: no answer, no permission, too many
    requests, or the sweep's storage is unreachable."""
    if isinstance(error, StorageError | ConnectionError):
        return True
    code = getattr(error, "error_code", None)
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in {401, 403, 429} or code in {
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "REQUEST_LIMIT_EXCEEDED",
    }
