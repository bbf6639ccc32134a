"""The processes of a sweep, seen from outside: find, kill and restart them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self, get_args

from tests.search.conftest import Sweep
from tests.servers import Mlflow, Postgresql, Process, Program, Server

Target = Literal["driver", "worker", "gcs", "raylet", "tracking", "postgresql"]
TARGETS: tuple[Target, ...] = get_args(Target)

OPTIONS = (
    *("--space", "taskres", "--shots", "4", "--seeds", "1,2,3,4,5,6", "--trials", "10"),
    *("--eval-seeds", "1", "--max-concurrent", "1", "--sampler", "tpe", "--pruner", "asha"),
    *("--keep-artifacts", "all"),
    *("--checkpoint-seconds", "0"),
)
"""Options of a serial sweep in which every trial, pruned or not, follows from the seed; the sampler
proposes the last two trials from the first eight."""
TRIALS = 10


class World:
    """One sweep: its folder, its successive drivers, and the servers that it uses."""

    def __init__(self, folder: Path, postgresql: bool) -> None:
        """Prepare the folder and servers without starting anything."""
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
        """The latest driver."""
        return self.drivers[-1]

    def wait_for_servers(self) -> None:
        """Wait until all servers answer; restart those that are down when they are due."""
        for server in self.servers.values():
            server.wait()

    def run_driver(self) -> None:
        """Run the same command again."""
        options = [*OPTIONS, "--tracking-uri", self.tracking.uri]
        if self.database:
            options += ["--study-storage", self.database.uri]
        environment = {
            "COLUMNS": "100",
            "PYTHONHASHSEED": "random",
            "PYTHONFAULTHANDLER": "1",
            "TMPDIR": str(self._temporary),
            "RAY_TMPDIR": str(self._temporary),
        }
        self.drivers.append(Program(self.sweep.command(*options), self._log, environment))

    def find(self, target: Target) -> list[Process]:
        """The living processes of a target."""
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
        """Send SIGKILL; a server restarts after `down` seconds."""
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


AGENTS = {"ray::DashboardA", "ray::RuntimeEnv"}  # the kernel cuts names after 15 characters
"""Ray's helper processes, which do no work for a sweep."""
_IDLE = AGENTS | {"ray::IDLE"}
