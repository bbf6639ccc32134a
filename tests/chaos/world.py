"""The processes of a sweep, seen from outside: found, killed without warning, started again."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

from tests.search.conftest import Sweep

Target = Literal["driver", "worker", "gcs", "raylet", "tracking", "postgresql"]
TARGETS: tuple[Target, ...] = get_args(Target)

OPTIONS = (
    *("--space", "taskres", "--shots", "4", "--seeds", "1,2,3,4,5,6", "--trials", "10"),
    *("--eval-seeds", "1", "--max-concurrent", "1", "--sampler", "tpe", "--pruner", "asha"),
    *("--checkpoint-seconds", "0"),
)
"""A serial sweep whose every trial, pruned or not, follows from its seed; the last two trials are
proposed from what the sampler knows of the first eight."""
TRIALS = 10


@dataclass(frozen=True)
class Process:
    """A line of the table of processes."""

    pid: int
    parent: int
    session: int
    name: str

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def processes() -> Iterator[Process]:
    """All that live: a zombie does not."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            status = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended in the meantime
            continue
        name, fields = status.partition(" (")[2].rsplit(") ", 1)
        state, parent, _, session, *_ = fields.split()
        if state not in "ZX":
            yield Process(int(folder.name), int(parent), int(session), name)


class Program:
    """A program in a session of its own, where all that it starts can be found."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
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
                cwd=None if user is None else "/",  # it may not look into ours
            )
        self.pid = self._popen.pid

    @property
    def code(self) -> int | None:
        """Its exit code; none while it runs."""
        return self._popen.poll()

    def members(self) -> list[Process]:
        """Itself and what it has started, as far as they live. PostgreSQL gives each of its
        processes a session of its own."""
        return [p for p in processes() if self.pid in (p.session, p.parent)]

    def signal(self, number: int) -> None:
        """To the program itself; nothing where it has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        while members := self.members():
            for process in members:
                process.kill()
            time.sleep(0.01)
        self._popen.wait()

    def output(self) -> str:
        """What it has printed."""
        with self.log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")


class Server:
    """A program that answers on a port, and comes back some time after it was killed."""

    def __init__(self, log: Path) -> None:
        self.port, self._log = _free_port(), log
        self._program: Program | None = None
        self._back = 0.0

    def command(self) -> list[str | Path]:
        """How it is started."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it does its work."""
        raise NotImplementedError

    environment: Mapping[str, str] = {}
    user: str | None = None

    def members(self) -> list[Process]:
        """Its processes; none while it is away."""
        return self._program.members() if self._program else []

    def start(self) -> None:
        self._program = Program(self.command(), self._log, self.environment, self.user)

    def kill(self, down: float = 0.0) -> None:
        """SIGKILL to all of its processes; it stays away for so many seconds."""
        if self._program is not None:
            self._program.kill()
            self._program = None
            self._back = time.monotonic() + down

    def tend(self) -> None:
        """Start it again when its time has come."""
        if self._program is None and time.monotonic() >= self._back:
            self.start()

    def wait(self, seconds: float = 120) -> None:
        """Until it answers."""
        deadline = time.monotonic() + seconds
        while not self.answers():
            self.tend()
            if time.monotonic() > deadline or (self._program and self._program.code is not None):
                raise AssertionError(f"a server does not start, see {self._log}")
            time.sleep(0.1)


class Mlflow(Server):
    """`mlflow server` on a sqlite file."""

    environment: Mapping[str, str] = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(folder / "log")
        self._folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str | Path]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"),
            *("--artifacts-destination", self._folder / "artifacts"),
        ]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False


def postgresql_programs() -> Path | None:
    """The folder of PostgreSQL's server programs; none where it is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgresql(Server):
    """PostgreSQL with a data folder of its own, under a user without rights if we are root."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        programs = postgresql_programs()
        assert programs is not None, "PostgreSQL is not installed"
        self._programs = programs
        self.user = "postgres" if os.geteuid() == 0 else None
        self.uri = f"postgresql://search@127.0.0.1:{self.port}/postgres"
        # Not below the round's folder: the other user may not look into that.
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


class World:
    """One sweep: its folder, its drivers one after the other, the servers that it talks to."""

    def __init__(self, folder: Path, postgresql: bool) -> None:
        """Nothing runs yet when it returns."""
        folder.mkdir(parents=True)
        self.sweep = Sweep(folder / "sweeps", "chaos")
        self.sweep.storage.mkdir()
        self._log = folder / "drivers.log"
        self.tracking = Mlflow(folder / "mlflow")
        self.database = Postgresql(folder / "postgresql.log") if postgresql else None
        # Ray's sockets need a short path, and killed drivers leave temporary files.
        self._temporary = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.servers: dict[Target, Server] = {"tracking": self.tracking}
        if self.database:
            self.servers["postgresql"] = self.database
        self.drivers: list[Program] = []

    @property
    def driver(self) -> Program:
        """The latest."""
        return self.drivers[-1]

    def wait_for_servers(self) -> None:
        """Until all answer; those that are away are started now or when their time has come."""
        for server in self.servers.values():
            server.wait()

    def run_driver(self) -> None:
        """The same command, again."""
        options = [*OPTIONS, "--tracking-uri", self.tracking.uri]
        if self.database:
            options += ["--ledger", self.database.uri]
        environment = {
            "COLUMNS": "100",
            "PYTHONHASHSEED": "random",
            "PYTHONFAULTHANDLER": "1",
            "TMPDIR": str(self._temporary),
            "RAY_TMPDIR": str(self._temporary),
        }
        self.drivers.append(Program(self.sweep.command(*options), self._log, environment))

    def find(self, target: Target) -> list[Process]:
        """The processes that are meant by a target, as far as they live."""
        if server := self.servers.get(target):
            return server.members()
        named: dict[Target, Callable[[Process], bool]] = {
            "driver": lambda process: process.pid == self.driver.pid,
            "worker": lambda process: (
                process.name.startswith("ray::") and process.name not in _IDLE
            ),
            "gcs": lambda process: process.name == "gcs_server",
            "raylet": lambda process: process.name == "raylet",
        }
        return [process for process in self.driver.members() if named[target](process)]

    def kill(self, target: Target, down: float) -> None:
        """SIGKILL; a server stays away for `down` seconds."""
        if server := self.servers.get(target):
            server.kill(down)
        for process in self.find(target):
            process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self.drivers:
            driver.kill()
        self.tracking.kill()
        if self.database:
            self.database.remove()
        shutil.rmtree(self._temporary, ignore_errors=True)


AGENTS = {"ray::DashboardA", "ray::RuntimeEnv"}  # names are cut after 15 characters
"""Ray's own helpers, which do nothing for a sweep."""
_IDLE = AGENTS | {"ray::IDLE"}


def _free_port() -> int:
    """Not one of those that the system gives to clients: it must still be free after a kill."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
