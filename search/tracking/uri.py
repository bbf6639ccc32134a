"""Tracking URIs and names of models: whether MLflow can work with them, how a person opens one."""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import os
import posixpath
import shlex
import socket
import sqlite3
import ssl
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path

from trainables.credentials import shown


class TrackingError(Exception):
    """A tracking URI that cannot work: the rule, the value and the remedy in one message."""


SERVERS = frozenset({"http", "https"})
_DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})
_LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` answers
_MODEL_NAME = 256  # characters the registry's tables keep


def check_tracking_uri(uri: str, timeout: float = 5.0) -> str:
    """Find out within `timeout` seconds per step whether MLflow can work with `uri`.

    Does not import MLflow, and does not connect to database servers.

    Returns:
        Nothing to say: "". Otherwise one line about a server that is away and may come back.

    Raises:
        TrackingError: the URI is of an unknown kind or a file store, there is no such host, what
            answers is not MLflow or does not let us in, or the database file cannot be written.
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        scheme = scheme_of(uri)
        if scheme in SERVERS and not (parts.hostname and parts.port != 0):
            raise ValueError("it names no host")
    except ValueError as error:
        raise TrackingError(
            f"A tracking URI must be well-formed, but {shown(uri)!r} is not ({error})."
        ) from error
    if scheme in SERVERS:
        return _check_server(uri, timeout)
    if scheme == "sqlite":
        _check_sqlite(uri, timeout)
    elif scheme in {"", "file"}:
        path = parts.path or "."
        raise TrackingError(
            f"MLflow no longer keeps runs in a folder of files, but the tracking URI is {uri!r}. "
            f"Use a database: sqlite:///{Path(path).absolute() / 'mlflow.db'}"
        )
    elif scheme not in _DATABASES:
        known = ", ".join(f"{name}:" for name in sorted(SERVERS | _DATABASES))
        raise TrackingError(
            f"A tracking URI begins with one of {known}, but it is {shown(uri)!r}. "
            f"Use sqlite:///{Path('mlflow.db').absolute()}, or the address of an MLflow server."
        )
    return ""


def model_name_problem(name: str) -> str:
    """Why the registry would not take this name; empty where it would."""
    if (
        name.strip()
        and not set(name) & {"/", ":"}
        and posixpath.normpath(name) == name
        and not name.startswith("..")
        and name != "."
        and len(name) <= _MODEL_NAME
        and name.isprintable()
        and not {"'", '"'} <= set(name)  # no query could ask for it
    ):
        return ""
    return (
        f"The name of a registered model must be up to {_MODEL_NAME} characters without '/' and "
        f"':', and not '.' or '..', got '{name}': e.g. --register digits-rmt."
    )


def ui_command(uri: str) -> str:
    """How to see the runs: a shell command for a database, the address itself for a server.

    A password is not repeated: it has to be put in.
    """
    if scheme_of(uri) in SERVERS:
        return without_user(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(shown(absolute_uri(uri)))}"


def page_of(uri: str, page: str) -> str:
    """What follows the command or the address of `ui_command` where a page of it is meant."""
    return page if scheme_of(uri) in SERVERS else f", then {_LOCAL}{page}"


def without_user(uri: str) -> str:
    """The same URI without a user's name and password."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def server_answers(uri: str, timeout: float) -> None:
    """Ask a server for its health, cheaply; raises `OSError` where it does not answer well."""
    try:
        _get(uri, "/health", timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise ConnectionError(f"it answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise ConnectionError(str(error.reason)) from error


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
                    f"The tracking server must let us in, but {shown(uri)!r} answers {error.code} "
                    f"{error.reason}. Set the credentials MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; or start the server with "
                    "--allowed-hosts that name this address."
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
                    f"{_REMEDY}: sqlite:///{Path('mlflow.db').absolute()}"
                ) from error
            return _away(uri, str(reason))
        except (ValueError, http.client.HTTPException) as error:
            raise TrackingError(
                f"A tracking server answers GET {question} as MLflow does, but {shown(uri)!r} does "
                f"not ({error}). {_REMEDY}: sqlite:///{Path('mlflow.db').absolute()}"
            ) from error
    return ""


_REMEDY = "Correct the address, or track to a file"


def _away(uri: str, reason: str) -> str:
    return (
        f"The tracking server {without_user(uri)} is away ({reason}): what it should know is kept "
        "and sent when it answers."
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
