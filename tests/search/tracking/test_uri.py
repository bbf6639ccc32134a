"""Tracking URIs: accepted values, error messages, and the command or address that opens one."""

import base64
import http.server
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils as mlflow_utils
from sqlalchemy.engine import make_url

from search.tracking.mlflow_client import open_client
from search.tracking.uri import (
    TrackingError,
    absolute_uri,
    check_tracking_uri,
    page_of,
    sqlite_path,
    sqlite_uri,
    ui_command,
)

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 configures its tables with an option that SQLAlchemy 2.1 has deprecated.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)

ODD_NAMES = ["a b", "a%20b", "a%2520b", "100%", "a#b", "a?b", "a?b=c&d", "a;b", "a'b", "ü", "a%2Fb"]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once; the tests copy it."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


def test_a_folder_of_files_and_an_unknown_scheme_are_refused(tmp_path: Path) -> None:
    for uri in ("file:///runs", "runs", "./runs", "/runs"):
        with pytest.raises(TrackingError, match=r"folder of files.*Use sqlite:///"):
            check_tracking_uri(uri)
    with pytest.raises(TrackingError, match=r"scheme .* databricks.*ftp://host.*plugin for 'ftp:'"):
        check_tracking_uri("ftp://host/")
    with pytest.raises(TrackingError, match="must name a file"):
        check_tracking_uri("sqlite://")
    for uri in ("sqlite:", "sqlite:/x", "sqlite:///%00", "postgresql:"):
        with pytest.raises(TrackingError, match="must be well-formed"):
            check_tracking_uri(uri)
    check_tracking_uri("postgresql+psycopg2://user@host/mlflow")
    with pytest.raises(TrackingError, match="mkdir -p"):
        check_tracking_uri(f"sqlite:///{tmp_path}/no/such/mlflow.db")


def test_a_database_must_be_one_and_writable(tmp_path: Path, uri: str) -> None:
    check_tracking_uri(uri)
    check_tracking_uri(f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(TrackingError, match="file is not a database"):
        check_tracking_uri(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(TrackingError, match="not a regular file"):
        check_tracking_uri(f"sqlite:///{tmp_path}")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as busy:
        busy.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrackingError, match="locked"):
            check_tracking_uri(uri, timeout=0.1)


def test_a_database_that_may_only_be_read(tmp_path: Path, uri: str) -> None:
    (tmp_path / "mlflow.db").chmod(0o400)
    if os.access(tmp_path / "mlflow.db", os.W_OK):
        pytest.skip("this user (root?) may write everywhere")
    with pytest.raises(TrackingError, match="readonly"):
        check_tracking_uri(uri)
    tmp_path.chmod(0o500)
    with pytest.raises(TrackingError, match="must be writable"):
        check_tracking_uri(f"sqlite:///{tmp_path}/new.db")


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks-uc", "uc"])
def test_databricks_is_accepted_and_shown_as_it_is(uri: str) -> None:
    assert check_tracking_uri(uri) == ""
    assert ui_command(uri) == uri
    assert page_of(uri, "/#/experiments/1") == ""


def test_the_scheme_of_an_installed_plugin_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin registers its store by an entry point, as azureml-mlflow does."""
    registry = mlflow_utils._tracking_store_registry
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    with pytest.raises(TrackingError, match="install the MLflow plugin for 'azureml:'"):
        check_tracking_uri("azureml://westeurope.example/ws")
    plugin = EntryPoint("azureml", "mlflow.store.tracking.rest_store:RestStore", "mlflow.store")
    monkeypatch.setattr("mlflow.tracking.registry.get_entry_points", lambda group: [plugin])
    registry.register_entrypoints()
    assert check_tracking_uri("azureml://westeurope.example/ws") == ""


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_database_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "mlflow.db"
    uri = sqlite_uri(path)
    assert make_url(uri).database == str(path)
    assert sqlite_path(uri) == path
    assert absolute_uri(uri) == uri
    assert sqlite_path(absolute_uri(f"{uri}?timeout=9")) == path
    assert absolute_uri(f"{uri}?timeout=9").endswith("?timeout=9")


@pytest.mark.parametrize("name", ["a%20b?#ü", "plain"])
def test_a_new_database_is_created_where_it_was_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    assert check_tracking_uri(sqlite_uri(path)) == ""
    experiment = open_client(sqlite_uri(path)).create_experiment("one")
    assert open_client(sqlite_uri(path)).get_experiment(experiment).name == "one"
    assert check_tracking_uri(sqlite_uri(path)) == ""
    with closing(sqlite3.connect(path)) as database:
        assert ("one",) in database.execute("SELECT name FROM experiments").fetchall()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def unusual_file(kind: str, folder: Path) -> Path:
    """Something that is not a regular file."""
    path = folder / "mlflow.db"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
        except PermissionError:
            pytest.skip("only root creates devices")
    return path


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link to a device", "link to itself"])
def test_what_is_not_a_regular_file_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    path = unusual_file(kind, tmp_path)
    before = path.lstat()
    with pytest.raises(TrackingError, match="regular file"):
        check_tracking_uri(f"sqlite:///{path}")
    with pytest.raises(OSError, match="regular file"):
        open_client(f"sqlite:///{path}")
    after = path.lstat()
    assert (after.st_mode, after.st_ino, after.st_rdev) == (
        before.st_mode,
        before.st_ino,
        before.st_rdev,
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_link_leads_to_the_database(tmp_path: Path, empty_database: Path) -> None:
    (tmp_path / "volume").mkdir()
    link = tmp_path / "mlflow.db"
    link.symlink_to(tmp_path / "volume" / "real.db")
    for _ in range(2):  # before the database exists, and after
        assert check_tracking_uri(f"sqlite:///{link}") == ""
        open_client(f"sqlite:///{link}").search_experiments()
        assert link.is_symlink()
        assert (tmp_path / "volume" / "real.db").stat().st_size


def test_a_usual_check_does_not_import_mlflow(uri: str) -> None:
    code = (
        "import sys; from search.tracking.uri import *\n"
        "check_tracking_uri(sys.argv[1]); check_tracking_uri('postgresql://h/db')\n"
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, uri], check=True)


class Doorkeeper(http.server.BaseHTTPRequestHandler):
    """Health is public, everything else wants a password: as MLflow's basic-auth."""

    def do_GET(self) -> None:
        secret = "Basic " + base64.b64encode(b"ada:p@ss").decode()
        known = self.path == "/health" or self.headers.get("Authorization") == secret
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b"OK" if self.path == "/health" else b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_wants_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with http.server.HTTPServer(("127.0.0.1", 0), Doorkeeper) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            host = f"127.0.0.1:{server.server_port}"
            with pytest.raises(TrackingError, match=r"401.*credentials MLFLOW_TRACKING_USERNAME"):
                check_tracking_uri(f"http://{host}")
            check_tracking_uri(f"http://ada:p%40ss@{host}/")
            (tmp_path / ".mlflow").mkdir()
            (tmp_path / ".mlflow" / "credentials").write_text(
                "[mlflow]\nmlflow_tracking_username = ada\nmlflow_tracking_password = p@ss\n"
            )
            check_tracking_uri(f"http://{host}")
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "eve")
            with pytest.raises(TrackingError, match="401"):
                check_tracking_uri(f"http://{host}")
        finally:
            server.shutdown()
            thread.join()


def test_credentials_and_certificates_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error quotes no line of the credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text("mlflow_tracking_password = p@ss\n")
    with pytest.raises(TrackingError, match=r"section \[mlflow\], '.*credentials' is not") as found:
        check_tracking_uri("http://127.0.0.1:9")
    assert "p@ss" not in str(found.value)
    (tmp_path / ".mlflow" / "credentials").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "none.pem"))
    with pytest.raises(TrackingError, match="SERVER_CERT_PATH must be a file of certificates"):
        check_tracking_uri("https://127.0.0.1:9")


def test_how_to_see_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ui_command("http://host:5000") == "http://host:5000"
    assert (
        ui_command("sqlite:///a.db") == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/a.db"
    )
    assert (
        ui_command("sqlite:////x y/a.db") == "mlflow ui --backend-store-uri 'sqlite:////x y/a.db'"
    )


@pytest.mark.parametrize(
    ("uri", "printed"),
    [
        ("http://ada:se:cr@t@host:5000/x", "http://host:5000/x"),
        (
            "postgresql://ada:se:cr@t@host/m",
            "mlflow ui --backend-store-uri 'postgresql://ada:***@host/m'",
        ),
        (
            "mysql://host/m?password=se:cr@t&a=1",
            "mlflow ui --backend-store-uri 'mysql://host/m?password=***&a=1'",
        ),
    ],
)
def test_a_password_is_not_printed(uri: str, printed: str) -> None:
    assert ui_command(uri) == printed


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://", "names no host"),
        ("http://host:five", "well-formed"),
        ("http://[host", "well-formed"),
    ],
)
def test_an_address_that_can_never_answer(uri: str, why: str) -> None:
    with pytest.raises(TrackingError, match=why):
        check_tracking_uri(uri, timeout=1)


def test_a_host_that_does_not_exist() -> None:
    try:
        socket.getaddrinfo("no-such-host.invalid", 80)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            pytest.skip("no name server answers")
    with pytest.raises(TrackingError, match="reachable"):
        check_tracking_uri("http://no-such-host.invalid:5000")


class Other(http.server.BaseHTTPRequestHandler):
    """A web server that is not MLflow's: pages for everything, or errors."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>Hello</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "why"), [(200, "as MLflow does"), (404, "Give the address"), (503, ""), (504, "")]
)
def test_an_answer_that_is_not_mlflows(status: int, why: str) -> None:
    handler = type("Handler", (Other,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            uri = f"http://127.0.0.1:{server.server_port}"
            if why:
                with pytest.raises(TrackingError, match=why):
                    check_tracking_uri(uri)
            else:
                assert f"{status}" in check_tracking_uri(uri)
        finally:
            server.shutdown()
            thread.join()
