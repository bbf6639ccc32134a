"""Tracking URIs: whether MLflow can use one, and how a person opens it."""

from __future__ import annotations

import base64
import configparser
import errno
import http.client
import json
import os
import shlex
import socket
import sqlite3
import ssl
import stat
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from search.core.config import SweepConfig
from search.core.problems import UsageError
from trainables.core.credentials import shown
from trainables.core.storage import local_folder


class TrackingError(Exception):
    """A tracking URI that cannot work: the rule, the value and the remedy in one message."""


SERVERS = frozenset({"http", "https"})
_DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})
_DATABRICKS = frozenset({"databricks", "databricks-uc", "uc"})  # URIs as they are, without a colon
_LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` answers


def check_tracking_uri(uri: str, timeout: float = 5.0) -> str:
    """Find out within `timeout` seconds per step whether MLflow can work with `uri`.

    Imports MLflow only for a scheme that this project does not know, and does not connect to
    database servers.

    Returns:
        "" if it can, or one line about a server that is unreachable and may come back.

    Raises:
        TrackingError: the URI is of an unknown kind or a file store, there is no such host, the
            server is not MLflow's or rejects our credentials, or the database is not writable.
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        scheme = scheme_of(uri)
        if scheme in SERVERS and not (parts.hostname and parts.port != 0):
            raise ValueError("it names no host")
        if scheme in _DATABASES and "\0" in (_database(uri) or ""):
            raise ValueError("it contains a NUL")
    except ValueError as error:
        raise TrackingError(
            f"A tracking URI must be well-formed, but {shown(uri)!r} is not ({error})."
        ) from error
    if scheme in SERVERS:
        return _check_server(uri, timeout)
    if scheme == "sqlite":
        _check_sqlite(uri, timeout)
    elif scheme in {"", "file"}:
        path = Path(urllib.parse.unquote(parts.path) if scheme else uri or ".").absolute()
        raise TrackingError(
            "A tracking URI must name a server or a database: MLflow no longer stores runs in a "
            f"folder of files, got {uri!r}. Use {sqlite_uri(path / 'mlflow.db')}"
        )
    elif scheme not in _DATABASES and (known := _other_schemes(scheme)):
        raise TrackingError(
            f"The scheme of a tracking URI must be one that MLflow knows ({', '.join(known)}), got "
            f"{shown(uri)!r}. Use {sqlite_uri(Path('mlflow.db').absolute())}, the address of an "
            f"MLflow server, or install the MLflow plugin for '{scheme}:'."
        )
    return ""


def ui_command(uri: str) -> str:
    """How to see the runs: a shell command for a database, else the server's address. A password
    is replaced by stars."""
    if scheme_of(uri) in _DATABASES:
        return f"mlflow ui --backend-store-uri {shlex.quote(shown(absolute_uri(uri)))}"
    return without_user(uri).rstrip("/")


def page_of(uri: str, page: str) -> str:
    """What to append to `ui_command` to name one page of it."""
    if scheme_of(uri) in _DATABASES:
        return f", then {_LOCAL}{page}"
    return page if scheme_of(uri) in SERVERS else ""


def without_user(uri: str) -> str:
    """Remove the user's name and password from a URI."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def server_answers(uri: str, timeout: float) -> None:
    """Request a server's health; raises `OSError` unless it answers well."""
    try:
        _get(uri, "/health", timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise ConnectionError(f"it answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise ConnectionError(str(error.reason)) from error


def is_database(uri: str) -> bool:
    """Whether MLflow's client opens a database itself, without a server."""
    return scheme_of(uri) in _DATABASES


def scheme_of(uri: str) -> str:
    """The scheme without a driver: `postgresql` of `postgresql+psycopg2://...`, "" of a path."""
    if uri in _DATABRICKS:
        return uri
    return urllib.parse.urlsplit(uri).scheme.partition("+")[0]


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite URI, as SQLAlchemy reads it; None for one in memory."""
    path = _database(uri)
    return None if path in {None, "", ":memory:"} else Path(path)


def _database(uri: str) -> str | None:
    """The database that a URI names, as SQLAlchemy reads it; raises `ValueError`."""
    from sqlalchemy.engine import make_url  # takes a quarter of a second to import
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(uri).database
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def sqlite_uri(path: Path) -> str:
    """The inverse of `sqlite_path`. Characters that SQLAlchemy reads as they are stay."""
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def absolute_uri(uri: str) -> str:
    """The same URI, with the path of a sqlite file made absolute."""
    path = sqlite_path(uri) if scheme_of(uri) == "sqlite" else None
    if path is None:
        return uri
    head, (_, mark, query) = uri.partition(":///")[0], uri.partition("?")
    return f"{head}{sqlite_uri(path.absolute()).removeprefix('sqlite')}{mark}{query}"


def database_file(path: Path) -> Path:
    """The file that `path` leads to, through links. Raises `OSError` if it exists and is not a
    regular file (a device, a folder, a pipe): it must never be replaced or opened."""
    target = Path(os.path.realpath(path))
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(target.lstat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    return target


def _other_schemes(scheme: str) -> list[str]:
    """All schemes in MLflow's own registry (Databricks, installed plugins) if `scheme` is none of
    them, else nothing. Imports MLflow."""
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    known = set(_tracking_store_registry._registry) - {"", "file"}
    return [] if scheme in known else sorted(known)


def _check_sqlite(uri: str, timeout: float) -> None:
    path = sqlite_path(uri)
    if path is None:
        raise TrackingError(
            f"A sqlite tracking URI must name a file, got {uri!r}. "
            f"Use {sqlite_uri(Path('mlflow.db').absolute())}"
        )
    try:
        path = database_file(path)
    except OSError as error:
        raise TrackingError(
            f"A sqlite tracking URI must name a regular file or one to be created, got {uri!r} "
            f"({error.strerror}: '{error.filename}'). Use another path."
        ) from error
    if not path.exists():
        if not path.parent.is_dir():
            raise TrackingError(
                f"The folder of a new sqlite database must exist, got the tracking URI {uri!r}. "
                f"Create it: mkdir -p {shlex.quote(str(path.parent))}"
            )
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise TrackingError(
                f"The folder of a sqlite database must be writable, got the tracking URI {uri!r}. "
                f"Use another folder, or make {path.parent} writable."
            )
        return
    # Sqlite says best itself whether it can write: a write transaction that changes nothing.
    try:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=timeout, uri=True)
        ) as database:
            database.execute("BEGIN IMMEDIATE")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            database.execute(f"PRAGMA user_version = {version}")
            database.rollback()
    except sqlite3.Error as error:
        raise TrackingError(
            f"The tracking database must be a sqlite file that can be written, but {uri!r} is not "
            f"({error}). Name another file, or check its owner and permissions."
        ) from error


def _check_server(uri: str, timeout: float) -> str:
    """Ask for its health, and for one experiment: only the second is behind the log-in."""
    for question in ("/health", "/api/2.0/mlflow/experiments/search?max_results=1"):
        try:
            answer = _get(uri, question, timeout)
            if question != "/health" and not isinstance(json.loads(answer), dict):
                raise ValueError("not a JSON object")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code >= 500:
                return _away(uri, f"it answers {error.code} {error.reason}")
            if error.code in {401, 403}:
                raise TrackingError(
                    f"The tracking server must accept our credentials, got {error.code} "
                    f"{error.reason} from {shown(uri)!r}. Set the credentials "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                    "MLFLOW_TRACKING_TOKEN; or start the server with --allowed-hosts that name "
                    "this address."
                ) from error
            raise TrackingError(
                f"A tracking server answers GET {question}, but {shown(uri)!r} answers "
                f"{error.code} {error.reason}. Give the address of an MLflow server."
            ) from error
        except OSError as error:  # URLError is one, with the error that is meant inside
            reason = getattr(error, "reason", error)
            if not _may_pass(reason):
                raise TrackingError(
                    f"A tracking server must be reachable, but {shown(uri)!r} is not ({reason}). "
                    f"{_REMEDY}: {sqlite_uri(Path('mlflow.db').absolute())}"
                ) from error
            return _away(uri, str(reason))
        except (ValueError, http.client.HTTPException) as error:
            raise TrackingError(
                f"A tracking server answers GET {question} as MLflow does, but {shown(uri)!r} does "
                f"not ({error}). {_REMEDY}: {sqlite_uri(Path('mlflow.db').absolute())}"
            ) from error
    return ""


_CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
_REMEDY = "Correct the address, or track to a file"


def _away(uri: str, reason: str) -> str:
    return (
        f"The tracking server {without_user(uri)} is unreachable ({reason}); MLflow is brought up "
        "to date when it answers."
    )


def _may_pass(reason: object) -> bool:
    """Whether a server that cannot be reached may be reachable later."""
    if isinstance(reason, socket.gaierror):
        return reason.errno == socket.EAI_AGAIN
    return not isinstance(reason, ssl.SSLCertVerificationError)


def _get(uri: str, question: str, timeout: float) -> bytes:
    parts = urllib.parse.urlsplit(uri)
    request = urllib.request.Request(without_user(uri).rstrip("/") + question)
    if authorization := _authorization(parts):
        request.add_header("Authorization", authorization)
    with urllib.request.urlopen(
        request, timeout=timeout, context=_certificates(parts.scheme)
    ) as answer:
        return bytes(answer.read())


def _authorization(parts: urllib.parse.SplitResult) -> str | None:
    """What MLflow's client would send: by environment, credentials file, or address."""
    file = configparser.ConfigParser(interpolation=None)
    path = Path.home() / ".mlflow" / "credentials"
    try:
        file.read(path)
    except (configparser.Error, UnicodeDecodeError) as error:  # which quotes a line, with passwords
        raise TrackingError(
            f"MLflow's credentials must be an INI file with a section [mlflow], '{path}' is not "
            f"({type(error).__name__}). Correct or remove it."
        ) from None

    def setting(name: str) -> str | None:
        name = f"mlflow_tracking_{name}"
        return os.environ.get(name.upper()) or file.get("mlflow", name, fallback=None)

    user, password = setting("username"), setting("password")
    if not (user and password) and (token := setting("token")):
        return f"Bearer {token}"
    if not (user and password) and parts.username and parts.password:
        user, password = map(urllib.parse.unquote, (parts.username, parts.password))
    if user and password:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return None


def _certificates(scheme: str) -> ssl.SSLContext | None:
    if scheme != "https":
        return None
    path = os.environ.get(_CERTIFICATE)
    try:
        context = ssl.create_default_context(cafile=path)
    except OSError as error:
        raise TrackingError(
            f"{_CERTIFICATE} must be a file of certificates, '{path}' is not "
            f"({error.strerror or error}). Correct or unset it."
        ) from error
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"1", "true"}:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def tracking_uri(config: SweepConfig) -> str:
    """The URI to track to: a sqlite file beside the sweeps unless one is given, or in the current
    folder where the sweeps are in a bucket."""
    if config.tracking_uri:
        return config.tracking_uri
    folder = (local_folder(config.storage) or Path.cwd()).resolve()
    return sqlite_uri(folder / "mlflow.db")


def uri_afterwards(given: str, config: SweepConfig) -> str:
    """Where a sweep that has run is tracked to: the URI given, else the sweep's own, else the
    environment's, else the default.

    Raises `UsageError` where the sweep is run without tracking.
    """
    chosen = last_uri(given, config)
    if chosen == "none":
        raise UsageError(
            [
                f"Something can be delivered only to an MLflow, and '{config.name}' is run without "
                "tracking: name one with --tracking-uri."
            ]
        )
    return chosen


def last_uri(given: str, config: SweepConfig) -> str:
    """The same, or `none` for a sweep that is run without tracking."""
    chosen = given or config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return tracking_uri(replace(config, tracking_uri=chosen))
