"""A round: run a sweep, kill its processes by a seeded plan, repeat the command until it finishes,
and check the result.

The checks use only what a user has: result files, artifacts, MLflow, processes, exit codes and the
output. They do not depend on how the sweep stores its state.
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors import SafetensorError, safe_open

from tests.chaos.world import AGENTS, OPTIONS, TARGETS, TRIALS, Target, World
from tests.search.conftest import Sweep
from tests.search.driver.test_sweep import comparable
from tests.servers import Process, Program

HANG = 180.0
"""Seconds without a new result after which a driver counts as hanging."""
LINGER, LINGER_AGENTS = 30.0, 90.0
"""Seconds that processes of a driver may outlive it. Ray's agents wait 60 seconds for the GCS to
report the end of their raylet."""

Results = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Kill:
    """One SIGKILL in a plan."""

    target: Target
    moment: str
    """Event that triggers the kill. `start`: the latest driver has started; `trial 3`: the trial
    has started; `commit 3`: its result exists; `evaluation`: all results exist."""
    delay: float
    """Seconds after the event."""
    down: float
    """Seconds until a killed server restarts."""

    def __str__(self) -> str:
        return f"{self.target} at {self.moment} + {self.delay:.2f} s"


_DELAYS = {"start": 15.0, "trial": 2.0, "commit": 0.05, "evaluation": 8.0}
"""The longest delay after each event, in seconds."""
_COURSE = [f"{what} {n}" for n in range(TRIALS) for what in ("trial", "commit")] + ["evaluation"]


def plan(seed: int, targets: Sequence[Target] = TARGETS) -> tuple[Kill, ...]:
    """The kills of a round, in order: 2 to 5, each target at most twice, because a trial survives
    two deaths of its worker. If PostgreSQL is a target, it is always hit."""
    chance = random.Random(seed)
    chosen = chance.sample([*targets, *targets], min(chance.randint(2, 5), 2 * len(targets)))
    if "postgresql" in targets and "postgresql" not in chosen:
        chosen[chance.randrange(len(chosen))] = "postgresql"
    places = sorted(chance.choices(range(len(_COURSE)), k=len(chosen)))
    kills = []
    for target, place in zip(chosen, places, strict=True):
        moment = "start" if chance.random() < 0.25 else _COURSE[place]
        delay = chance.uniform(0, _DELAYS[moment.split()[0]])
        kills.append(Kill(target, moment, delay, down=chance.uniform(0, 20)))
    return tuple(kills)


@dataclass(frozen=True)
class Undisturbed:
    """Results of the sweep without any kills."""

    results: Results
    evaluation: dict[str, Any]

    @classmethod
    def run(cls, folder: Path) -> Undisturbed:
        folder.mkdir(parents=True)
        sweep = Sweep(folder, "calm")
        done = sweep.run(*OPTIONS, "--tracking-uri", "none")
        assert done.returncode == 0, done.stdout + done.stderr
        return cls(sweep.results(), sweep.evaluation())


@dataclass(frozen=True)
class Report:
    """Outcome of a round."""

    seed: int
    kills: tuple[Kill, ...]
    """Kills whose target was alive."""
    starts: int
    """Number of drivers started."""
    trials: int
    """Number of committed trials."""
    lost: int
    repeated: int
    breaches: tuple[str, ...]
    """Descriptions of all violations, including lost and repeated trials."""
    seconds: float

    def __str__(self) -> str:
        kills = ", ".join(map(str, self.kills))
        return (
            f"round {self.seed}: {len(self.kills)} kills ({kills}), {self.starts} drivers, "
            f"{self.trials} trials, {self.lost} lost, {self.repeated} repeated, "
            f"{self.seconds:.0f} s"
        )


def run_round(
    seed: int,
    folder: Path,
    undisturbed: Undisturbed,
    kills: Sequence[Kill],
    postgresql: bool,
    agents: bool = True,
) -> Report:
    """Run a plan in a new world at `folder`, then compare it with the undisturbed sweep. `agents`:
    wait for the end of Ray's agents, too, up to a minute after a death of the GCS."""
    start = time.monotonic()
    with World(folder, postgresql) as world:
        course = _Course(world, agents)
        try:
            course.run(kills)
            course.breaches += _end(world, undisturbed)
        except _GivenUpError as error:
            course.breaches.append(str(error))
        watch = course.watch
        return Report(
            seed,
            tuple(course.kills),
            len(world.drivers),
            len(world.sweep.results()),
            len(watch.lost),
            len(watch.repeated),
            (*course.breaches, *watch.breaches),
            time.monotonic() - start,
        )


class _GivenUpError(Exception):
    """The round cannot continue."""


class _Course:
    """A running round."""

    def __init__(self, world: World, agents: bool) -> None:
        self.world, self.watch, self._agents = world, Watch(world.sweep.folder), agents
        self.kills: list[Kill] = []
        self.breaches: list[str] = []
        self._seen: dict[str, float] = {}
        self._ends: dict[Program, float] = {}
        self._progress = self._next_look = 0.0

    def run(self, kills: Sequence[Kill]) -> None:
        """Carry out all kills, then continue until the sweep is done, MLflow is complete and no
        process is left."""
        self.world.wait_for_servers()
        self._start()
        for kill in kills:
            if self._reach(kill):
                self.world.kill(kill.target, kill.down)
                self.kills.append(kill)
                self._progress = time.monotonic()
                self.watch.look()
        while self._goes_on():
            time.sleep(0.1)
        self._deliver()
        while self._ends:
            self._check_linger()
            time.sleep(0.2)

    def _start(self) -> None:
        if len(self.world.drivers) > 2 * len(self.kills) + 2:
            raise _GivenUpError(f"{len(self.world.drivers)} drivers, and the sweep is not done")
        self.world.run_driver()
        self._progress = self._seen["start"] = time.monotonic()

    def _reach(self, kill: Kill) -> bool:
        """Wait until a kill is due and its target is alive; return False if the sweep finishes
        first."""
        while self._goes_on():
            begun = self._begun(kill.moment)
            if begun is None or time.monotonic() < begun + kill.delay:
                time.sleep(0.003)
            elif self.world.find(kill.target):
                return True
            else:
                time.sleep(0.1)
        return False

    def _begun(self, moment: str) -> float | None:
        """Time when an event was first seen, or None."""
        if moment not in self._seen:
            what, _, number = moment.partition(" ")
            trials = self.world.sweep.folder / "trials"
            numbers = [int(number)] if number else range(TRIALS)
            name = "" if what == "trial" else "result.json"
            if all((trials / f"{n:06d}" / name).exists() for n in numbers):
                self._seen[moment] = time.monotonic()
        return self._seen.get(moment)

    def _goes_on(self) -> bool:
        """Restart servers, check results, and restart a dead driver; return False when a driver has
        finished successfully."""
        for server in self.world.servers.values():
            server.tend()
        driver, now = self.world.driver, time.monotonic()
        code = driver.code
        if code is not None or now > self._next_look:
            if self.watch.look():
                self._progress = now
            self._check_linger()
            self._next_look = now + 0.5
        if code is None:
            if now > self._progress + HANG:
                self._give_up(driver)
            return True
        self._ends[driver] = now
        self.breaches += _manners(driver, code)
        if code == 0:
            return False
        if code != -signal.SIGKILL:  # it has printed what it needs, which a user would provide
            self.world.wait_for_servers()
        self._start()
        return True

    def _give_up(self, driver: Program) -> None:
        driver.signal(signal.SIGABRT)  # it prints the stacks of its threads
        time.sleep(3)
        raise _GivenUpError(f"a driver did nothing for {HANG:.0f} s:\n{driver.output()}")

    def _check_linger(self) -> None:
        now = time.monotonic()
        for driver, end in list(self._ends.items()):
            members = [p for p in driver.members() if self._agents or p.name not in AGENTS]
            late = [p.name for p in members if now > end + _patience(p)]
            if late:
                self.breaches.append(f"{now - end:.0f} s after its driver there lives: {late}")
                driver.kill()
            if late or not members:
                del self._ends[driver]

    def _deliver(self) -> None:
        """Repeat the command if a driver reports that something was not delivered."""
        if "MLflow is not up to date" in self.world.driver.output():
            self.world.tracking.wait()
            self._start()
            while self._goes_on():
                time.sleep(0.1)
            if "MLflow is not up to date" in self.world.driver.output():
                self.breaches.append("the tracking server is there, and it was not delivered")


def _patience(process: Process) -> float:
    return LINGER_AGENTS if process.name in AGENTS else LINGER


def _manners(driver: Program, code: int) -> Iterator[str]:
    """Check that a driver's output is one clear message without a traceback."""
    output = driver.output()
    if "Traceback" in output:
        yield f"a driver printed a traceback (exit code {code}):\n{output}"
    elif code not in (0, -signal.SIGKILL) and "error: " not in output:
        yield f"a driver ended with code {code} and did not say why:\n{output}"


_Stamp = tuple[int, int, bytes]


class Watch:
    """Checks that committed files never change, neither in content nor in inode."""

    def __init__(self, folder: Path) -> None:
        self._trials = folder / "trials"
        self._committed: dict[int, dict[str, _Stamp]] = {}
        self.lost: set[int] = set()
        self.repeated: set[int] = set()
        self.breaches: list[str] = []

    def look(self) -> bool:
        """Compare with the last check; return whether a trial has been committed since."""
        for number, before in self._committed.items():
            now = self._files(number)
            if before.keys() - now.keys() - {_CHECKPOINT}:
                self._note(number, self.lost, "is lost")
            elif any(before.get(name) != stamp for name, stamp in now.items()):
                self._note(number, self.repeated, "was trained after its commit")
        numbers = {int(path.parent.name) for path in self._trials.glob("*/result.json")}
        new = numbers - self._committed.keys()
        for number in new:
            self._committed[number] = self._files(number)
            try:
                json.loads(self._committed[number]["result.json"][2])
            except (KeyError, ValueError) as error:
                self._note(number, self.lost, f"has half a result ({error})")
        return bool(new)

    def _note(self, number: int, trials: set[int], what: str) -> None:
        if number not in trials:
            trials.add(number)
            self.breaches.append(f"trial {number} {what}")

    def _files(self, number: int) -> dict[str, _Stamp]:
        """Files that training writes and that must not change after the commit."""
        found: dict[str, _Stamp] = {}
        for path in (self._trials / f"{number:06d}").glob("*"):
            if path.name in ("result.json", _CHECKPOINT) or path.name.startswith("artifact"):
                try:
                    status = path.stat()
                    found[path.name] = (status.st_mtime_ns, status.st_ino, path.read_bytes())
                except FileNotFoundError:  # a checkpoint is deleted after the commit
                    continue
        return found


_CHECKPOINT = "checkpoint.safetensors"


def _end(world: World, undisturbed: Undisturbed) -> Iterator[str]:
    """Check everything that must hold when the sweep has finished."""
    sweep = world.sweep
    results = sweep.results()
    if sorted(results) != list(range(TRIALS)):
        yield f"there are {TRIALS} trials, but these are committed: {sorted(results)}"
    calm, now = comparable(undisturbed.results), comparable(results)
    for number in calm.keys() & now.keys():
        for key, value in calm[number].items():
            if now[number][key] != value:
                yield f"trial {number}, {key}: {now[number][key]} instead of {value}"
    if not (sweep.folder / "evaluation.json").exists():
        yield "there is no evaluation"
    elif sweep.evaluation() != undisturbed.evaluation:
        yield f"the evaluation is {sweep.evaluation()} instead of {undisturbed.evaluation}"
    yield from _half_files(sweep.folder)
    yield from _mirror(world, results)


def _half_files(folder: Path) -> Iterator[str]:
    """Check that there are no temporary files and that every file can be read."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.name.startswith("."):
            yield f"a temporary file is left: {name}"
            continue
        try:
            match path.suffix:
                case ".json":
                    json.loads(path.read_text())
                case ".jsonl":
                    for line in path.read_text().splitlines():
                        json.loads(line)
                case ".safetensors":
                    with safe_open(path, framework="pt") as file:
                        file.keys()
        except (ValueError, SafetensorError) as error:
            yield f"half a file: {name} ({error})"
    for path in folder.glob("trials/*"):
        if not (path / "config.json").exists():
            yield f"trial {int(path.name)} has no config.json"
        if (path / _CHECKPOINT).exists():
            yield f"trial {int(path.name)} is finished and still has a checkpoint"


_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def _mirror(world: World, results: Results) -> Iterator[str]:
    """Check that MLflow has each trial once, with the ledger's data."""
    client = MlflowClient(world.tracking.uri)
    experiment = client.get_experiment_by_name("few-shot-search")
    if experiment is None:
        yield "MLflow has no experiment"
        return
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    numbers = Counter(run.data.tags.get("search.trial", "sweep") for run in runs)
    if numbers != Counter(["sweep", *map(str, results)]):
        yield f"MLflow's runs are {dict(numbers)}"
    for run in runs:
        result = results.get(int(run.data.tags.get("search.trial", "-1")))
        status = _STATUS[result["state"]] if result else "FINISHED"
        if run.info.status != status:
            yield f"In MLflow '{run.info.run_name}' is {run.info.status} instead of {status}"
        if result:
            yield from _mirrored(client, run, result)


def _mirrored(client: MlflowClient, run: Run, result: dict[str, Any]) -> Iterator[str]:
    optim = result["config"]["optim"]
    part = math.ceil(optim["epochs"] / 8)  # epochs
    trained = min(optim["epochs"], part * len(result["values"]))
    steps = range(1, len(result["values"]) + 1)
    reports = [min(part * n, trained) for n in steps]
    stride = math.ceil(optim["epochs"] / 32)  # MLflow gets at most 32 points between reports
    history = {
        name: sorted(point.step for point in client.get_metric_history(run.info.run_id, name))
        for name in ("train/loss", "val/accuracy")
    }
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    seeds = range(1, 7) if result["state"] != "FAIL" else ()
    for what, found, expected in (
        ("state", run.data.tags.get("search.state"), result["state"]),
        ("objective", run.data.metrics.get("objective"), result["value"]),
        ("learning rate", float(run.data.params.get("lr", "nan")), optim["lr"]),
        ("epochs", history["train/loss"], sorted({*range(stride, trained + 1, stride), *reports})),
        ("validations", history["val/accuracy"], reports),
        ("files", files, {"config.json", *(f"artifact-seed{n}.safetensors" for n in seeds)}),
    ):
        if found != expected:
            yield f"MLflow, trial {result['number']}, {what}: {found} instead of {expected}"
