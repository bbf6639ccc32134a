"""Tracking URIs: whether MLflow can work with one, and how a person opens it."""

from __future__ import annotations

import base64
import configparser
import os
import shlex
import sqlite3
import ssl
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path


class TrackingError(Exception):
    """A tracking URI that cannot work: the rule, the value and the remedy in one message."""


SERVERS = frozenset({"http", "https"})
_DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})


def check_tracking_uri(uri: str, timeout: float = 5.0) -> None:
    """Find out within `timeout` seconds per step whether MLflow can work with `uri`.

    Does not import MLflow, and does not connect to database servers.

    Raises:
        TrackingError: the URI is of an unknown kind or a file store, the server does not answer or
            does not let us in, or the database file cannot be written.
    """
    scheme = scheme_of(uri)
    if scheme in SERVERS:
        _check_server(uri, timeout)
    elif scheme == "sqlite":
        _check_sqlite(uri, timeout)
    elif scheme in {"", "file"}:
        path = urllib.parse.urlsplit(uri).path or "."
        raise TrackingError(
            f"MLflow no longer keeps runs in a folder of files, but the tracking URI is {uri!r}. "
            f"Use a database: sqlite:///{Path(path).absolute() / 'mlflow.db'}"
        )
    elif scheme not in _DATABASES:
        known = ", ".join(f"{name}:" for name in sorted(SERVERS | _DATABASES))
        raise TrackingError(
            f"A tracking URI begins with one of {known}, but it is {uri!r}. "
            f"Use sqlite:///{Path('mlflow.db').absolute()}, or the address of an MLflow server."
        )


def ui_command(uri: str) -> str:
    """How to see the runs: a shell command for a database, the address itself for a server."""
    if scheme_of(uri) in SERVERS:
        return uri
    return f"mlflow ui --backend-store-uri {shlex.quote(absolute_uri(uri))}"


def scheme_of(uri: str) -> str:
    """`postgresql+psycopg2://...` is `postgresql`; a bare path has none."""
    return urllib.parse.urlsplit(uri).scheme.partition("+")[0]


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLAlchemy URL: three slashes, then the path. None: in memory."""
    path = uri.partition("?")[0].partition(":///")[2]
    return None if path in {"", ":memory:"} else Path(path)


def absolute_uri(uri: str) -> str:
    """The same URI, with the path of a sqlite file made absolute."""
    path = sqlite_path(uri) if scheme_of(uri) == "sqlite" else None
    if path is None:
        return uri
    head, tail = uri.partition(":///")[0], uri.partition("?")[1:]
    return f"{head}:///{path.absolute()}{''.join(tail)}"


def _check_sqlite(uri: str, timeout: float) -> None:
    path = sqlite_path(uri)
    if path is None:
        raise TrackingError(
            f"A sqlite tracking URI names a file, but it is {uri!r}. "
            f"Use sqlite:///{Path('mlflow.db').absolute()}"
        )
    if not path.exists():
        if not path.parent.is_dir():
            raise TrackingError(
                f"The folder of a new sqlite database must exist, but the tracking URI is {uri!r}. "
                f"Create it: mkdir -p {shlex.quote(str(path.parent.absolute()))}"
            )
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise TrackingError(
                f"The folder of a sqlite database must be writable, but that of {uri!r} is not. "
                f"Choose another, or make {path.parent.absolute()} writable."
            )
        return
    # Sqlite says best itself whether it can write: a write transaction that changes nothing.
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=timeout, uri=True)
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


def _check_server(uri: str, timeout: float) -> None:
    """Ask for its health, and for one experiment: only the second is behind the log-in."""
    for question in ("/health", "/api/2.0/mlflow/experiments/search?max_results=1"):
        try:
            _get(uri, question, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in {401, 403}:
                raise TrackingError(
                    f"The tracking server must let us in, but {uri!r} answers {error.code} "
                    f"{error.reason}. Set the credentials MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; or start the server with "
                    "--allowed-hosts that name this address."
                ) from error
            raise TrackingError(
                f"A tracking server answers GET {question}, but {uri!r} answers {error.code} "
                f"{error.reason}. Give the address of an MLflow server."
            ) from error
        except (OSError, ValueError) as error:  # URLError is an OSError; a bad port is a ValueError
            raise TrackingError(
                f"The tracking server must answer within {timeout:g} s, but {uri!r} does not "
                f"({getattr(error, 'reason', error)}). Start it with "
                "`mlflow server --backend-store-uri sqlite:///mlflow.db`, correct the address, or "
                f"track to a file: sqlite:///{Path('mlflow.db').absolute()}"
            ) from error


def _get(uri: str, question: str, timeout: float) -> None:
    parts = urllib.parse.urlsplit(uri)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    request = urllib.request.Request(address.geturl().rstrip("/") + question)
    if authorization := _authorization(parts):
        request.add_header("Authorization", authorization)
    with urllib.request.urlopen(request, timeout=timeout, context=_certificates(parts.scheme)):
        pass


def _authorization(parts: urllib.parse.SplitResult) -> str | None:
    """What MLflow's client would send: by environment, credentials file, or address."""
    file = configparser.ConfigParser(interpolation=None)
    file.read(Path.home() / ".mlflow" / "credentials")

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
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"1", "true"}:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
