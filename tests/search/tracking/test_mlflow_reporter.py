"""MLflow ends with the same runs despite failures of driver, server, database or disk."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from search.core.config import SweepConfig
from search.core.results import State
from search.core.sweep_folder import SweepFolder, SweepRecord
from search.ledger.ledger import Ledger, RunningTrial
from search.tracking.content import sweep_artifacts
from search.tracking.marks import SWEEP_RUN, open_marks
from search.tracking.mlflow_reporter import MlflowReporter
from search.tracking.uri import TrackingError, check_tracking_uri
from spaces.adjust import adjust
from spaces.registry import SPACES
from spaces.settings import Settings
from tests.search.in_mlflow import TIMEOUT, content, history, runs_of, wait_until
from tests.servers import Mlflow, s3_server
from trainables.assignment import Message
from trainables.core.storage import LocalStorage, Storage, open_storage
from trainables.methods.base import TaskFacts
from trainables.report import Report

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 configures its tables with an option that SQLAlchemy 2.1 has deprecated.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)

SPACE = adjust(
    SPACES["taskres"].build(TaskFacts("digits", 4, 40, "vit")), Settings(set={"epochs": 8})
)
T0 = 1_700_000_000.0
PRINTS = {"backbone": "abc", "train": "f" * 64}
ALL: tuple[State, ...] = ("COMPLETE", "PRUNED", "FAIL")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class Driver:
    """One run of a driver with given worker messages, without Ray."""

    def __init__(
        self, sweep: Storage, uri: str, name: str = "s1", patience: float = 300.0, **settings: Any
    ) -> None:
        self.sweep, self.uri = sweep, uri
        self.config = SweepConfig(name=name, **settings)
        folder = SweepFolder(sweep)
        if not folder.exists:
            record = SweepRecord(os.urandom(16).hex(), self.config, PRINTS, sweep.location)
            folder.write_record(record)
        self.id = folder.claim_id()
        self.ledger = Ledger(sweep, SPACE, "random", "none", seed=0)
        self.reporter = MlflowReporter(uri, self.config, self.id, PRINTS, sweep, patience)
        self.reporter.open_sweep(self.ledger.results)

    def undelivered(self) -> list[int]:
        marks = open_marks(self.uri, self.config, self.id, self.sweep)
        return marks.undelivered(self.ledger.results)

    def start(self) -> RunningTrial:
        live = self.ledger.ask()
        self.reporter.started(live)
        live.forecast = {"flip/budget": 2.5}
        self.reporter.heard(Message(live.number, "running", None, forecast=live.forecast))
        return live

    def train(self, live: RunningTrial, first: int, last: int, time: float = T0) -> None:
        """What is measured is always the same; when it is measured is not."""
        rows = tuple(
            {
                "epoch": float(epoch),
                "time": time + epoch,
                "val/accuracy": round((live.number + epoch) / 100, 2),
                "val/loss": float("nan") if epoch == 1 else 1 / epoch,
            }
            for epoch in range(first, last + 1)
        )
        metrics = {k: v for k, v in rows[-1].items() if k not in ("epoch", "time")}
        report = Report(1, (metrics["val/accuracy"],), rows, False, metrics)
        for row in rows:
            live.rows.setdefault(int(row["epoch"]), row)
        self.ledger.report(live.number, report.values, metrics)
        self.reporter.heard(Message(live.number, "running", report))

    def end(self, live: RunningTrial, state: State, told: bool = True) -> None:
        if state == "COMPLETE":
            folder = self.sweep.child(f"trials/{live.number:06d}")
            folder.write("artifact.safetensors", b"learned" * 100)
        result = self.ledger.finish(live.number, state, reason="it broke" * (state == "FAIL"))
        if told:
            self.reporter.ended(result, self.ledger)

    def run(self, states: tuple[State, ...] = ALL) -> None:
        for state in states:
            live = self.start()
            self.train(live, 1, 3)
            self.train(live, 4, 6)
            self.end(live, state)

    def close(self, state: str = "COMPLETE", timeout: float = TIMEOUT) -> int:
        artifacts = sweep_artifacts(self.sweep) if self.sweep.exists("evaluation.json") else []
        self.reporter.close_sweep(state, self.ledger.best(), None, artifacts)
        return self.reporter.close(timeout)

    def die(self) -> None:
        """Leave everything as it is."""
        self.reporter.close(0.0)


class World:
    """A sweep's folder and some databases."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.database = folder, database
        self.sweep: Storage = LocalStorage(folder / "sweeps" / "s1")

    @property
    def marks(self) -> Path:
        return self.folder / "sweeps" / "s1" / "tracking"

    def uri(self, name: str) -> str:
        path = self.folder / f"{name}.db"
        if not path.exists():
            shutil.copy(self.database, path)
        return f"sqlite:///{path}"

    def content(self, name: str) -> dict[str, dict[str, object]]:
        folder = self.folder / "downloads" / os.urandom(4).hex()
        return content(self.uri(name), "s1", folder)

    def driver(self, name: str) -> Driver:
        return Driver(self.sweep, self.uri(name))


@pytest.fixture
def world(tmp_path: Path, empty_database: Path) -> World:
    return World(tmp_path, empty_database)


def run(world: World, name: str) -> dict[str, dict[str, Any]]:
    driver = world.driver(name)
    driver.run()
    assert driver.close() == 0
    return world.content(name)


def test_the_folder_gives_the_same_runs_as_the_trials_themselves(world: World) -> None:
    live = run(world, "a")
    assert sorted(live) == ["", "0", "1", "2"]
    assert live["0"]["artifacts"].keys() == {"config.json", "artifact.safetensors"}
    statuses = {name: found["status"] for name, found in live.items()}
    assert statuses == {"": "FINISHED", "0": "FINISHED", "1": "KILLED", "2": "FAILED"}

    assert world.driver("b").close() == 0  # another address: other marks
    assert world.content("b") == live

    shutil.rmtree(world.marks)
    assert world.driver("a").close() == 0  # no marks, and everything is there
    assert world.content("a") == live


def test_a_short_trial_is_sent_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of a running trial are sent after a while, when it ends, or when someone waits."""
    monkeypatch.setattr("search.tracking.mlflow_reporter._PERIOD", 3600.0)
    driver = world.driver("a")
    driver.run(("COMPLETE",))
    assert driver.reporter.flush(TIMEOUT) == 0
    assert driver.reporter.delivered == 2  # the sweep's run, and the trial's
    driver.train(driver.start(), 1, 3)
    assert driver.reporter.flush(TIMEOUT) == 0
    assert world.content("a")["1"]["status"] == "RUNNING"
    driver.die()


@pytest.mark.parametrize("marks", ["kept", "lost", "unreachable"])
def test_no_epoch_twice_after_a_continuation(world: World, marks: str) -> None:
    uri = world.uri("a")
    if marks == "unreachable":
        (world.folder / "a.db").rename(world.folder / "hidden.db")
        (world.folder / "a.db").mkdir()
    first = Driver(world.sweep, uri)
    live = first.start()
    first.train(live, 1, 5)
    if marks != "unreachable":
        assert first.reporter.flush(TIMEOUT) == 0
        assert runs_of(uri)["0"].info.status == "RUNNING"
    first.die()
    if marks == "unreachable":
        (world.folder / "a.db").rmdir()
        (world.folder / "hidden.db").rename(world.folder / "a.db")
    if marks == "lost":
        shutil.rmtree(world.marks, ignore_errors=True)

    second = Driver(world.sweep, uri)
    live = second.start()
    assert live.number == 0
    second.train(live, 1, 8, time=T0 + 1000)
    second.end(live, "COMPLETE")
    assert second.close() == 0
    runs = runs_of(uri)
    assert {found.info.status for found in runs.values()} == {"FINISHED"}
    points = MlflowClient(uri).get_metric_history(runs["0"].info.run_id, "val/accuracy")
    early = 1000 if marks == "unreachable" else 0
    assert sorted((m.step, m.timestamp / 1000 - T0) for m in points) == [
        *((n, early + n) for n in range(1, 6)),
        *((n, 1000 + n) for n in range(6, 9)),
    ]
    assert history(uri, runs["0"], "flip/budget") == [(0, 2.5)]


def test_what_a_killed_driver_left_running_is_interrupted(world: World) -> None:
    first = world.driver("a")
    done, other = first.start(), first.start()
    first.train(done, 1, 3)
    first.end(done, "COMPLETE", told=False)  # the driver is killed right after the commit
    first.train(other, 1, 2)
    assert first.reporter.flush(TIMEOUT) == 0
    first.die()
    assert {found.info.status for found in runs_of(world.uri("a")).values()} == {"RUNNING"}

    second = world.driver("a")
    assert second.close("INTERRUPTED") == 0
    runs = runs_of(world.uri("a"))
    statuses = {number: found.info.status for number, found in runs.items()}
    assert statuses == {"": "KILLED", "0": "FINISHED", "1": "KILLED"}
    assert runs["0"].data.metrics["objective"] == pytest.approx(0.03)
    assert runs["1"].data.tags["search.state"] == "INTERRUPTED"


def test_an_interrupted_trial_is_resumed_in_its_run(world: World) -> None:
    first = world.driver("a")
    live = first.start()
    first.train(live, 1, 2)
    first.reporter.interrupted(live.number)
    assert first.close("INTERRUPTED") == 0
    runs = runs_of(world.uri("a"))
    assert {found.info.status for found in runs.values()} == {"KILLED"}
    assert {found.data.tags["search.state"] for found in runs.values()} == {"INTERRUPTED"}
    second = world.driver("a")
    live = second.start()
    assert second.reporter.flush(TIMEOUT) == 0
    assert {found.info.status for found in runs_of(world.uri("a")).values()} == {"RUNNING"}
    second.train(live, 1, 3)
    second.end(live, "COMPLETE")
    assert second.close() == 0
    assert {found.info.status for found in runs_of(world.uri("a")).values()} == {"FINISHED"}


def test_a_database_that_somebody_replaces_is_written_to(world: World) -> None:
    driver = world.driver("a")
    live = driver.start()
    driver.train(live, 1, 3)
    assert driver.reporter.flush(TIMEOUT) == 0
    shutil.copy(world.folder / "a.db", world.folder / "copy.db")
    (world.folder / "copy.db").replace(world.folder / "a.db")  # another file under the open one
    driver.train(live, 4, 6)
    driver.end(live, "COMPLETE")
    assert driver.close() == 0
    runs = runs_of(world.uri("a"))
    assert {found.info.status for found in runs.values()} == {"FINISHED"}
    points = MlflowClient(world.uri("a")).get_metric_history(runs["0"].info.run_id, "val/accuracy")
    assert sorted(point.step for point in points) == [1, 2, 3, 4, 5, 6]


def test_what_a_server_lost_is_sent_again(world: World) -> None:
    """Also a trial that has its mark, and the first epochs of one that is running."""
    driver = world.driver("a")
    driver.run(("COMPLETE",))
    live = driver.start()
    driver.train(live, 1, 3)
    assert driver.reporter.flush(TIMEOUT) == 0
    (world.folder / "a.db").unlink()
    world.uri("a")  # an empty one
    driver.train(live, 4, 6)
    driver.end(live, "COMPLETE")
    assert driver.close() == 0
    assert world.driver("b").close() == 0
    assert world.content("a") == world.content("b")

    (world.folder / "a.db").unlink()
    assert driver.undelivered() == []
    assert world.driver("a").close() == 0
    assert world.content("a") == world.content("b")


def test_a_full_disk_costs_marks_and_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    driver = world.driver("a")
    lives = [driver.start(), driver.start()]
    for live in lives:
        driver.train(live, 1, 6)
    assert driver.reporter.flush(TIMEOUT) == 0
    driver.end(lives[0], "COMPLETE", told=False)
    driver.end(lives[1], "FAIL", told=False)
    world.marks.write_text("no folder can be made here")
    for result in driver.ledger.results.values():
        driver.reporter.ended(result, driver.ledger)
    assert driver.close() == 0
    assert "could not be noted" in caplog.text
    assert driver.undelivered() == [SWEEP_RUN, 0, 1]

    world.marks.unlink()
    assert world.driver("a").close() == 0
    assert driver.undelivered() == []
    assert world.driver("b").close() == 0
    assert world.content("a") == world.content("b")


def test_a_torn_mark_does_no_harm(world: World) -> None:
    """A crash in the middle of a write leaves a part of a line."""
    driver = world.driver("a")
    driver.run(("FAIL",))
    assert driver.close() == 0
    marks = open_marks(driver.uri, driver.config, driver.id, world.sweep)
    marks.path.write_text('{"trial": 0, "ended": 17000')
    assert driver.undelivered() == [SWEEP_RUN, 0]
    assert world.driver("a").close() == 0
    assert driver.undelivered() == []
    torn, *whole = marks.path.read_text().splitlines()
    assert torn == '{"trial": 0, "ended": 17000'
    assert {json.loads(line)["trial"] for line in whole} == {SWEEP_RUN, 0}


def test_sweeps_of_the_same_name_do_not_meet(world: World) -> None:
    other = LocalStorage(world.folder / "theirs" / "s1")
    for sweep in (world.sweep, other):
        driver = Driver(sweep, world.uri("a"))
        driver.end(driver.start(), "FAIL")
        assert driver.close() == 0
    client = MlflowClient(world.uri("a"))
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(found) == 4
    assert len({one.data.tags["search.id"] for one in found}) == 2


def test_a_copied_folder_has_runs_of_its_own(world: World) -> None:
    driver = world.driver("a")
    driver.run()
    assert driver.close() == 0
    shutil.copytree(world.folder / "sweeps" / "s1", world.folder / "copies" / "s1")
    copy = Driver(LocalStorage(world.folder / "copies" / "s1"), world.uri("a"))
    assert copy.id != driver.id
    assert copy.undelivered() == [SWEEP_RUN, 0, 1, 2]
    assert copy.close() == 0
    client = MlflowClient(world.uri("a"))
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(found) == 8


def test_a_second_end_of_the_sweep_is_not_a_second_point(world: World) -> None:
    before = run(world, "a")
    assert world.driver("a").close() == 0
    assert world.content("a") == before


def test_a_report_that_changed_replaces_the_one_in_mlflow(world: World) -> None:
    world.sweep.write("evaluation.json", b"trial 15")
    world.sweep.write("report/report.html", b"trial 15")
    run(world, "a")
    world.sweep.write("evaluation.json", b"trial 14")
    world.sweep.write("report/report.html", b"trial 14")
    assert world.driver("a").close() == 0
    assert world.content("a")[""]["artifacts"] == {
        "evaluation.json": b"trial 14",
        "report/report.html": b"trial 14",
    }


def test_a_trial_that_is_run_again_ends_again(world: World) -> None:
    """A failed trial that is retried: its result is another one, and so is its run's end."""
    driver = world.driver("a")
    live = driver.start()
    driver.train(live, 1, 2)
    driver.end(live, "FAIL")
    assert driver.close() == 0
    assert runs_of(world.uri("a"))["0"].info.status == "FAILED"
    path = world.folder / "sweeps/s1/trials/000000/result.json"
    plain = json.loads(path.read_text())
    again = plain | {"state": "COMPLETE", "value": 0.5, "reason": "", "ended": plain["ended"] + 9}
    path.write_text(json.dumps(again))
    assert world.driver("a").close() == 0
    found = runs_of(world.uri("a"))["0"]
    assert (found.info.status, found.data.metrics["objective"]) == ("FINISHED", 0.5)


def test_another_experiment_gets_everything(world: World) -> None:
    run(world, "a")
    driver = Driver(world.sweep, world.uri("a"), experiment="ours")
    assert driver.undelivered() == [SWEEP_RUN, 0, 1, 2]
    assert driver.close() == 0
    client = MlflowClient(world.uri("a"))
    for name in ("few-shot-search", "ours"):
        experiment = client.get_experiment_by_name(name)
        assert len(client.search_runs([experiment.experiment_id])) == 4


def test_runs_have_their_data_as_inputs(world: World) -> None:
    run(world, "a")
    for found in runs_of(world.uri("a")).values():
        (given,) = found.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("digits", "f" * 36)


def test_no_tracking(world: World) -> None:
    driver = Driver(world.sweep, "none")
    driver.run()
    assert driver.reporter.page() == ""
    driver.reporter.set_uploader(None)
    assert driver.close() == 0
    assert not world.marks.exists()


def test_marks_are_named_without_the_password(tmp_path: Path) -> None:
    sweep, config = LocalStorage(tmp_path), SweepConfig(name="s1")

    def path(uri: str, config: SweepConfig = config, identity: str = "x") -> Path:
        return open_marks(uri, config, identity, sweep).path

    same = ("http://h:1", "http://h:1/", "http://ada:one@h:1", "http://ada:two@h:1")
    assert len({path(uri) for uri in same}) == 1
    others = {path("http://h:2"), path(same[0], SweepConfig(experiment="e"))}
    assert len(others | {path(same[0]), path(same[0], identity="y")}) == 4


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """Location of an empty folder in a bucket of a real S3 server."""
    with s3_server(tmp_path) as server:
        yield server.location("sweeps")


def test_a_sweep_in_a_bucket(world: World, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
    world.sweep = open_storage(bucket).child("s1")
    live = run(world, "a")
    assert live["0"]["artifacts"].keys() == {"config.json", "artifact.safetensors"}
    assert len(list((world.folder / "cache").rglob("*.jsonl"))) == 1
    assert not [name for name in world.sweep.files() if "tracking" in name]

    shutil.rmtree(world.folder / "cache")  # another head node
    assert world.driver("b").close() == 0
    assert world.content("b") == live


# --- outages -------------------------------------------------------------------------------------


def test_methods_are_fast_and_never_raise(world: World, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(world.sweep, "sqlite:////proc/no/such.db")
    live = driver.start()
    seconds = []
    for step in range(1, 300):
        row = {"epoch": float(step), "time": T0 + step} | {f"m{i}": 1.0 * i for i in range(10)}
        message = Message(live.number, "running", Report(1, (0.5,), (row,), False, {}))
        start = time.perf_counter()
        driver.reporter.heard(message)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 2e-3
    driver.train(live, 1, 2)
    driver.end(live, "COMPLETE")
    begin = time.monotonic()
    assert driver.reporter.flush(TIMEOUT, patience=0.5) == 2  # unreachable, and not waited for
    assert time.monotonic() - begin < TIMEOUT / 2
    assert driver.close(timeout=0.01) == 2
    assert "MLflow at sqlite:////proc/no/such.db is unreachable" in caplog.text
    assert "python -m search.sync s1" in caplog.text
    assert driver.reporter.trials() is None
    driver.reporter.heard(Message(99, "running", None))  # never started
    driver.reporter.interrupted(99)


def test_the_driver_does_not_import_mlflow() -> None:
    code = "import sys, search.tracking.mlflow_reporter; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT)


CHILD = """
import sys, time
from pathlib import Path
from tests.search.tracking.test_mlflow_reporter import Driver
from trainables.core.storage import LocalStorage
driver = Driver(LocalStorage(Path(sys.argv[2])), sys.argv[1])
print("opened", flush=True)
driver.run(("COMPLETE", "PRUNED", "FAIL") * 6)
print("ended", flush=True)
driver.close()
time.sleep(600)
"""


_slow = pytest.mark.slow


@pytest.mark.parametrize(
    "moment", [pytest.param(0.0, marks=_slow), 0.5, pytest.param(1.5, marks=_slow)]
)
def test_a_killed_driver_leaves_nothing_undone_and_nothing_twice(
    world: World, moment: float
) -> None:
    uri, folder = world.uri("a"), world.folder / "sweeps" / "s1"
    command = [sys.executable, "-c", CHILD, uri, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "opened\n"
        wait_until(lambda: len(list(folder.glob("tracking/*.jsonl"))) > 0)
        time.sleep(moment)
        child.kill()
    second = world.driver("a")
    assert second.close() == 0
    assert world.driver("b").close() == 0
    told, expected = world.content("a"), world.content("b")
    ended = {str(number) for number in second.ledger.results}
    assert expected.keys() == {"", *ended}
    assert {number: told[number] for number in ended} == {n: expected[n] for n in ended}
    running = told.keys() - expected.keys()
    assert len(running) <= 1
    assert {told[number]["status"] for number in running} <= {"KILLED"}


SECRET = "correct-horse-battery"


def server_with_a_log_in(folder: Path) -> Mlflow:
    """A server, not started, that admits `admin` with the password `SECRET`."""
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{folder}/users.db",
        "admin_username": "admin",
        "admin_password": SECRET,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": "600",  # a password's hash takes 0.1 s, for every request
    }
    folder.mkdir(exist_ok=True)
    lines = (f"{name} = {value}\n" for name, value in settings.items())
    (folder / "auth.ini").write_text("[mlflow]\n" + "".join(lines))
    return Mlflow(
        folder,
        *("--app-name", "basic-auth"),
        MLFLOW_FLASK_SERVER_SECRET_KEY="x",
        MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Mlflow]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = server_with_a_log_in(folder)
    yield server
    server.kill()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)


@pytest.mark.usefixtures("credentials")
def test_a_server_that_is_down_then_killed_then_back(
    server: Mlflow, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    driver = Driver(world.sweep, server.uri)
    driver.run()
    assert driver.reporter.flush(0.5) == 4
    assert "is unreachable" in check_tracking_uri(server.uri, timeout=1)

    server.start()
    wait_until(lambda: driver.reporter.flush(0) < 4)  # it has begun
    server.kill()
    driver.run()
    live = driver.start()
    driver.train(live, 1, 3)
    assert driver.reporter.flush(0.5) > 0

    server.start()
    driver.train(live, 4, 6)
    driver.end(live, "COMPLETE")
    assert driver.close() == 0
    assert check_tracking_uri(server.uri) == ""
    assert world.driver("b").close() == 0
    found = content(server.uri, "s1", world.folder / "found")
    assert len(found) == 8
    assert found == world.content("b")
    assert caplog.text.count("is unreachable") <= 2


def test_a_killed_first_start_leaves_a_usable_database(world: World) -> None:
    """MLflow creates its tables one by one; killed in the middle, it never starts again."""
    path = world.folder / "new" / "mlflow.db"
    path.parent.mkdir()
    code = "import sys; from search.tracking import mlflow_client as m; m.open_client(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", code, f"sqlite:///{path}"]) as child:
        wait_until(lambda: bool(list(path.parent.glob(".mlflow.db.*.new"))))  # tables are created
        time.sleep(0.3)
        child.kill()
    driver = Driver(world.sweep, f"sqlite:///{path}")
    assert driver.close() == 0


@pytest.mark.usefixtures("credentials")
def test_a_run_that_always_fails_holds_up_the_others_for_a_while_only(
    server: Mlflow, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that cannot store artifacts answers 500 to each, and everything else well."""
    server.wait()
    artifacts = Path(server.folder or "") / "artifacts"
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.write_text("a file where a folder should be")
    try:
        driver = Driver(world.sweep, server.uri, "s2", patience=2.0)
        live, other = driver.start(), driver.start()
        driver.train(live, 1, 3)
        driver.end(live, "COMPLETE")
        driver.reporter.interrupted(other.number)  # no artifacts
        assert driver.close() == 0
        runs = runs_of(server.uri, "s2")
        assert runs["1"].info.status == "KILLED"
        assert runs["0"].data.metrics["objective"] == pytest.approx(0.03)
        marks = open_marks(server.uri, driver.config, driver.id, world.sweep)
        assert marks.refused() == [0]
        assert "500" in marks.read()[0].refused
        assert "MLflow refused trial 0" in caplog.text
    finally:
        artifacts.unlink()


def test_a_server_with_a_log_in(
    server: Mlflow, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(world.folder))
    server.wait()
    with pytest.raises(TrackingError, match=r"401.*credentials MLFLOW_TRACKING_USERNAME"):
        check_tracking_uri(server.uri)
    driver = Driver(world.sweep, server.uri, "s3", patience=0.0)
    live = driver.start()
    wait_until(lambda: "401" in caplog.text or "UNAUTHENTICATED" in caplog.text.upper())
    assert driver.reporter.flush(0.0) == 2  # kept: the credentials may follow

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert check_tracking_uri(server.uri) == ""
    driver.train(live, 1, 2)
    driver.end(live, "COMPLETE")
    assert driver.close() == 0
    assert runs_of(server.uri, "s3")["0"].info.status == "FINISHED"
    assert SECRET not in caplog.text
    stored = [path for path in world.folder.rglob("*") if path.is_file()]
    assert stored
    assert not [path for path in stored if SECRET.encode() in path.read_bytes()]


class Healthy(BaseHTTPRequestHandler):
    """A server that says that it is well and answers nothing else."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send_response(200)
            self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=["nobody", "a server that drops requests"])
def deaf(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that takes nothing."""
    if request.param == "nobody":
        yield 9
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_secrets_of_the_address_are_stored_and_logged_nowhere(
    world: World, deaf: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the errors of libraries, which quote the address."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    driver = Driver(world.sweep, f"http://ada:{SECRET}@127.0.0.1:{deaf}")
    driver.run()
    wait_until(lambda: "is unreachable" in caplog.text)
    driver.die()
    assert SECRET not in caplog.text + driver.reporter.last_error
    assert not [
        path
        for path in world.folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
