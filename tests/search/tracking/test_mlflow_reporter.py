"""The mirror: whatever happens to driver, outbox or address, MLflow ends with the same runs."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from search.core.config import SweepConfig
from search.core.results import State
from search.ledger.ledger import Ledger, RunningTrial
from search.tracking.mlflow_reporter import MlflowReporter
from search.tracking.tracker import NullTracker
from search.tracking.uploader import MlflowTracker, open_tracker, outbox_path
from spaces.registry import SPACES
from tests.search.mlflow_server import TIMEOUT, content, history, runs_of
from tests.servers import s3_server
from trainables.methods.base import TaskFacts
from trainables.storage import LocalStorage, Storage, open_storage
from trainables.trainable import Message
from trainables.trial_run import Report

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 configures its tables with an option that SQLAlchemy 2.1 has deprecated.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)

SPACE = SPACES["taskres"].build(TaskFacts("digits", 4, 40, "vit"))
T0 = 1_700_000_000.0


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class Driver:
    """One run of a driver, told what workers say; Ray is left out."""

    def __init__(self, sweep: Storage, uri: str, name: str = "s1") -> None:
        self.sweep, self.uri, self.name = sweep, uri, name
        if not sweep.exists("sweep.json"):
            sweep.write("sweep.json", f'{{"id": "{sweep.location}"}}'.encode())
        self.ledger = Ledger(sweep, SPACE, "random", "none", seed=0)
        self.tracker = open_tracker(uri, name, sweep)
        self.mirror = MlflowReporter(self.tracker, SweepConfig(name=name), {"backbone": "abc"})
        self.mirror.open_sweep(self.ledger.results, sweep)

    def start(self) -> RunningTrial:
        live = self.ledger.ask()
        self.mirror.started(live)
        live.forecast = {"flip/budget": 2.5}
        self.mirror.heard(Message(live.number, "running", None, forecast=live.forecast))
        return live

    def train(self, live: RunningTrial, first: int, last: int, time: float = T0) -> None:
        """What is measured is always the same; when it is measured is not."""
        rows = tuple(
            {
                "epoch": float(epoch),
                "time": time + epoch,
                "val/accuracy": round(live.number / 10 + epoch / 100, 2),
                "val/loss": float("nan") if epoch == 1 else 1 / epoch,
            }
            for epoch in range(first, last + 1)
        )
        metrics = {k: v for k, v in rows[-1].items() if k not in ("epoch", "time")}
        report = Report(1, (metrics["val/accuracy"],), rows, False, metrics)
        for row in rows:
            live.rows.setdefault(int(row["epoch"]), row)
        self.ledger.report(live.number, report.values, metrics)
        self.mirror.heard(Message(live.number, "running", report))

    def end(self, live: RunningTrial, state: State, told: bool = True) -> None:
        if state == "COMPLETE":
            folder = self.sweep.child(f"trials/{live.number:06d}")
            folder.write("artifact.safetensors", b"learned")
        result = self.ledger.finish(live.number, state, reason="it broke" * (state == "FAIL"))
        if told:
            self.mirror.ended(result, self.ledger)

    def close(self, state: str = "COMPLETE", timeout: float = TIMEOUT) -> int:
        self.mirror.close_sweep(state, self.ledger.best(), None, [])
        return self.tracker.close(timeout)

    def die(self) -> None:
        """Leave everything as it is; but give the file back, as the system does."""
        self.mirror.catch_up()
        self.tracker.close(0.0)


class World:
    """A sweep's folder and some databases."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.database = folder, database
        self.sweep: Storage = LocalStorage(folder / "sweeps" / "s1")

    def uri(self, name: str) -> str:
        path = self.folder / f"{name}.db"
        if not path.exists():
            shutil.copy(self.database, path)
        return f"sqlite:///{path}"

    def content(self, name: str) -> dict[str, dict[str, object]]:
        folder = self.folder / "downloads" / os.urandom(4).hex()
        return content(self.uri(name), "s1", folder)

    def run(self, name: str, states: tuple[State, ...] = ("COMPLETE", "PRUNED", "FAIL")) -> None:
        driver = Driver(self.sweep, self.uri(name))
        for state in states:
            live = driver.start()
            driver.train(live, 1, 3)
            driver.train(live, 4, 6)
            driver.end(live, state)
        assert driver.close() == 0


@pytest.fixture
def world(tmp_path: Path, empty_database: Path) -> World:
    return World(tmp_path, empty_database)


def test_what_is_told_again_from_the_folder_is_what_was_told_live(world: World) -> None:
    world.run("a")
    live = world.content("a")
    assert sorted(live) == ["", "0", "1", "2"]
    assert live["0"]["artifacts"].keys() == {"config.json", "artifact.safetensors"}  # type: ignore[attr-defined]
    assert {name: run["status"] for name, run in live.items()} == {
        "": "FINISHED",
        "0": "FINISHED",
        "1": "FINISHED",
        "2": "FAILED",
    }

    assert Driver(world.sweep, world.uri("b")).close() == 0  # another address: another outbox
    assert world.content("b") == live

    shutil.rmtree(world.folder / "sweeps" / "s1" / "outbox")
    assert Driver(world.sweep, world.uri("a")).close() == 0  # no outbox, and all is there
    assert world.content("a") == live


@pytest.mark.parametrize("outbox", ["kept", "lost", "undelivered"])
def test_no_epoch_twice_after_a_continuation(world: World, outbox: str) -> None:
    uri = world.uri("a")
    (world.folder / "a.db").rename(world.folder / "hidden.db")
    if outbox != "undelivered":
        (world.folder / "hidden.db").rename(world.folder / "a.db")
    else:
        (world.folder / "a.db").mkdir()
    first = Driver(world.sweep, uri)
    live = first.start()
    first.train(live, 1, 5)
    if outbox != "undelivered":
        assert first.tracker.flush(TIMEOUT) == 0
        assert runs_of(uri)["0"].info.status == "RUNNING"
    first.die()
    if outbox == "undelivered":
        (world.folder / "a.db").rmdir()
        (world.folder / "hidden.db").rename(world.folder / "a.db")
    if outbox == "lost":
        shutil.rmtree(world.folder / "sweeps" / "s1" / "outbox")

    second = Driver(world.sweep, uri)
    if outbox != "undelivered":
        assert second.tracker.flush(TIMEOUT) == 0
        assert {run.info.status for run in runs_of(uri).values()} == {"KILLED"}
    live = second.start()
    assert live.number == 0
    second.train(live, 1, 8, time=T0 + 1000)
    second.end(live, "COMPLETE")
    assert second.close() == 0
    runs = runs_of(uri)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    points = MlflowClient(uri).get_metric_history(runs["0"].info.run_id, "val/accuracy")
    assert sorted((m.step, m.timestamp / 1000 - T0) for m in points) == [
        *((n, n) for n in range(1, 6)),
        *((n, 1000 + n) for n in range(6, 9)),
    ]
    assert history(uri, runs["0"], "flip/budget") == [(0, 2.5)]


def test_a_database_that_somebody_replaces_is_written_to(world: World) -> None:
    driver = Driver(world.sweep, world.uri("a"))
    live = driver.start()
    driver.train(live, 1, 3)
    assert driver.tracker.flush(TIMEOUT) == 0
    shutil.copy(world.folder / "a.db", world.folder / "copy.db")
    (world.folder / "copy.db").replace(world.folder / "a.db")  # another file under the open one
    driver.train(live, 4, 6)
    driver.end(live, "COMPLETE")
    assert driver.close() == 0
    runs = runs_of(world.uri("a"))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    points = MlflowClient(world.uri("a")).get_metric_history(runs["0"].info.run_id, "val/accuracy")
    assert sorted(point.step for point in points) == [1, 2, 3, 4, 5, 6]


def test_what_a_server_lost_in_the_middle_is_told_again_from_the_folder(world: World) -> None:
    driver = Driver(world.sweep, world.uri("a"))
    live = driver.start()
    driver.train(live, 1, 3)
    assert driver.tracker.flush(TIMEOUT) == 0
    (world.folder / "a.db").unlink()
    world.uri("a")  # an empty one
    driver.train(live, 4, 6)
    driver.end(live, "COMPLETE")
    assert driver.close() == 0
    kept = history(world.uri("a"), runs_of(world.uri("a"))["0"], "val/loss")
    assert [step for step, _ in kept] == [4, 5, 6]

    shutil.rmtree(world.folder / "sweeps" / "s1" / "outbox")
    for name in ("a", "b"):
        assert Driver(world.sweep, world.uri(name)).close() == 0
    mended, whole = world.content("a")["0"], world.content("b")["0"]
    begun = ("times",)  # MLflow cannot be told when a run that it holds has begun
    assert {k: v for k, v in mended.items() if k not in begun} == {
        k: v for k, v in whole.items() if k not in begun
    }


def test_a_result_that_was_committed_and_not_told_is_told_by_the_next_driver(world: World) -> None:
    first = Driver(world.sweep, world.uri("a"))
    live = first.start()
    first.train(live, 1, 3)
    first.end(live, "COMPLETE", told=False)
    other = first.start()
    first.train(other, 1, 2)
    assert first.tracker.flush(TIMEOUT) == 0
    first.die()

    second = Driver(world.sweep, world.uri("a"))
    assert second.close("INTERRUPTED") == 0
    runs = runs_of(world.uri("a"))
    assert {number: run.info.status for number, run in runs.items()} == {
        "": "KILLED",
        "0": "FINISHED",
        "1": "KILLED",
    }
    assert runs["0"].data.metrics["objective"] == pytest.approx(0.03)
    assert runs["1"].data.tags["search.state"] == "INTERRUPTED"


def test_what_a_full_disk_lost_is_told_by_the_next_driver(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver(world.sweep, world.uri("a"))
    lives = [driver.start(), driver.start()]
    driver.train(lives[0], 1, 3)
    path = outbox_path(driver.uri, world.sweep)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert driver.tracker.flush(TIMEOUT) == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, hard))
    try:
        driver.train(lives[0], 4, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    driver.train(lives[1], 1, 6)
    driver.end(lives[0], "COMPLETE")
    driver.end(lives[1], "COMPLETE")
    assert driver.close() == 0
    assert driver.tracker.unreported_trials([0, 1]) == {0}
    assert "python -m search.sync s1" in caplog.text
    assert runs_of(world.uri("a"))["0"].info.status == "RUNNING"

    assert Driver(world.sweep, world.uri("a")).close() == 0
    assert Driver(world.sweep, world.uri("b")).close() == 0
    assert world.content("a") == world.content("b")


def test_sweeps_of_the_same_name_do_not_meet(world: World) -> None:
    other = LocalStorage(world.folder / "theirs" / "s1")
    for sweep in (world.sweep, other):
        driver = Driver(sweep, world.uri("a"))
        driver.end(driver.start(), "FAIL")
        assert driver.close() == 0
    client = MlflowClient(world.uri("a"))
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(found) == 4
    assert len({run.data.tags["search.id"] for run in found}) == 2


def test_a_second_end_of_the_sweep_is_not_a_second_point(world: World) -> None:
    world.run("a")
    before = world.content("a")
    assert Driver(world.sweep, world.uri("a")).close() == 0
    assert world.content("a") == before


def test_no_tracking_where_no_outbox_can_be(world: World, caplog: pytest.LogCaptureFixture) -> None:
    outbox_path(world.uri("a"), world.sweep).mkdir(parents=True)
    driver = Driver(world.sweep, world.uri("a"))
    assert isinstance(driver.tracker, NullTracker)
    driver.end(driver.start(), "FAIL")
    assert driver.close() == 0
    assert "python -m search.sync s1" in caplog.text


def test_an_outbox_has_one_holder(world: World, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(world.sweep, world.uri("a"))
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_tracker(world.uri("a"), "s1", world.sweep), NullTracker)
    assert "another process delivers it" in caplog.text
    assert isinstance(driver.tracker, MlflowTracker)
    driver.close()


def test_an_outbox_is_named_without_the_password(tmp_path: Path) -> None:
    sweep = LocalStorage(tmp_path)
    paths = {
        outbox_path(uri, sweep)
        for uri in ("http://h:1", "http://h:1/", "http://ada:one@h:1", "http://ada:two@h:1")
    }
    assert len(paths) == 1
    assert outbox_path("http://h:2", sweep) not in paths


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """Location of an empty folder in a bucket of a real S3 server."""
    with s3_server(tmp_path) as server:
        yield server.location("sweeps")


def test_a_sweep_in_a_bucket(world: World, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
    world.sweep = open_storage(bucket).child("s1")
    world.run("a")
    live = world.content("a")
    assert live["0"]["artifacts"].keys() == {"config.json", "artifact.safetensors"}  # type: ignore[attr-defined]
    assert len(list((world.folder / "cache").rglob("*.jsonl"))) == 1
    assert not [name for name in world.sweep.files() if "outbox" in name]

    shutil.rmtree(world.folder / "cache")  # another head node
    assert Driver(world.sweep, world.uri("b")).close() == 0
    assert world.content("b") == live
