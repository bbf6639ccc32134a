"""Third-party servers that tests need, started and killed as real processes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3

S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "me",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Process:
    """A row of the process table."""

    pid: int
    parent: int
    session: int
    name: str

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def processes() -> Iterator[Process]:
    """All living processes, without zombies."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            status = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # the process has ended in the meantime
            continue
        name, fields = status.partition(" (")[2].rsplit(") ", 1)
        state, parent, _, session, *_ = fields.split()
        if state not in "ZX":
            yield Process(int(folder.name), int(parent), int(session), name)


class Program:
    """A program in a separate session, so that all its child processes can be found."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._begin = output.tell()
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | (environment or {}),
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                cwd=folder,
            )
        self.pid = self._popen.pid

    @property
    def code(self) -> int | None:
        """Exit code, or None while the program runs."""
        return self._popen.poll()

    def members(self) -> list[Process]:
        """The program and its living child processes. PostgreSQL starts each of its processes in a
        separate session."""
        return [p for p in processes() if self.pid in (p.session, p.parent)]

    def signal(self, number: int) -> None:
        """Send a signal to the program itself; does nothing if it has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL to all processes."""
        while members := self.members():
            for process in members:
                process.kill()
            time.sleep(0.01)
        self._popen.wait()

    def output(self) -> str:
        """Output so far."""
        with self.log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")


class Server(ABC):
    """A server on a port that restarts some time after it was killed."""

    def __init__(self, log: Path) -> None:
        self.port, self._log = free_port(), log
        self._program: Program | None = None
        self._back = 0.0

    @abstractmethod
    def command(self) -> list[str | Path]:
        """Start the server."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server answers."""

    environment: Mapping[str, str] = {}
    user: str | None = None
    folder: str | Path | None = None

    def members(self) -> list[Process]:
        """Processes of the server; empty while it is down."""
        return self._program.members() if self._program else []

    def start(self) -> None:
        self._program = Program(self.command(), self._log, self.environment, self.user, self.folder)

    def kill(self, down: float = 0.0) -> None:
        """Send SIGKILL to all processes; the server restarts after this many seconds."""
        if self._program is not None:
            self._program.kill()
            self._program = None
            self._back = time.monotonic() + down

    def tend(self) -> None:
        """Restart the server if it is due."""
        if self._program is None and time.monotonic() >= self._back:
            self.start()

    def wait(self, seconds: float = 300) -> None:
        """Start the server if it is due, and wait until it answers."""
        deadline = time.monotonic() + seconds
        while not self.answers():
            self.tend()
            if time.monotonic() > deadline or (self._program and self._program.code is not None):
                raise AssertionError(f"a server does not start, see {self._log}")
            time.sleep(0.1)


class Mlflow(Server):
    """`mlflow server` on a sqlite file, unless the options say otherwise."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder / "log")
        self.folder, self.options = folder, options
        self.environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | environment
        self.uri = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str | Path]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"),
            *("--artifacts-destination", f"{self.folder}/artifacts"),
            *self.options,
        ]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False


def postgresql_programs() -> Path | None:
    """The folder of PostgreSQL's server programs, or None if it is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgresql(Server):
    """PostgreSQL with its own data folder, run by an unprivileged user if we are root."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        programs = postgresql_programs()
        assert programs is not None, "PostgreSQL is not installed"
        self._programs = programs
        self.user = "postgres" if os.geteuid() == 0 else None
        self.folder = "/" if self.user else None  # the other user may not enter ours
        self.uri = f"postgresql://search@127.0.0.1:{self.port}/postgres"
        # Not below the round's folder, which the other user may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="chaos-postgresql-"))
        if self.user:
            shutil.chown(self._folder, self.user)
        subprocess.run(
            f"{programs / 'initdb'} -D {self._data} -U search -A trust -E UTF8".split(),
            stdout=subprocess.DEVNULL,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
            cwd="/",
            check=True,
        )

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def command(self) -> list[str | Path]:
        here = ("-h", "127.0.0.1", "-p", str(self.port), "-c", "unix_socket_directories=")
        return [self._programs / "postgres", "-D", self._data, *here]

    def answers(self) -> bool:
        question = f"{self._programs / 'pg_isready'} -q -h 127.0.0.1 -p {self.port}".split()
        return subprocess.run(question, check=False).returncode == 0

    def remove(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        shutil.rmtree(self._folder)


class S3(Server):
    """An S3 object store in memory; a kill deletes its content."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.address = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str | Path]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.address, timeout=5):
                return True
        except OSError:
            return False

    def location(self, path: str) -> str:
        """The URI of a folder in the bucket."""
        return f"s3://bucket/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def make_bucket(self) -> None:
        """Create the bucket, as an administrator does once."""
        client = boto3.client("s3", endpoint_url=self.address, region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        client.close()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """A running server with an empty bucket, and its credentials in the environment."""
    before = {name: os.environ.get(name) for name in S3_CREDENTIALS}
    os.environ.update(S3_CREDENTIALS)
    server = S3(folder / "s3.log")
    try:
        server.wait()
        server.make_bucket()
        yield server
    finally:
        server.kill()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def free_port() -> int:
    """Choose a port outside the range that the system gives to clients, so that it is still free
    after a kill."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
