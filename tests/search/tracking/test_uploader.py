"""The MLflow mirror against real stores: a sqlite file, and a server that dies and comes back."""

import json
import logging
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from search.tracking.outbox import Outbox
from search.tracking.tracker import NullTracker, Row
from search.tracking.uploader import MlflowTracker
from search.tracking.uri import TrackingError, check_tracking_uri
from tests.search.mlflow_server import TIMEOUT, Server, history, runs_of, wait_until
from trainables.storage import LocalStorage

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 configures its tables with an option that SQLAlchemy 2.1 has deprecated.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)

T0 = 1_700_000_000.0


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once; the tests copy it."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "outbox.jsonl"


@pytest.fixture
def track(uri: str, outbox: Path, tmp_path: Path) -> Iterator[Callable[[], MlflowTracker]]:
    """Trackers on one outbox, one after the other, as restarted drivers make them."""
    trackers: list[MlflowTracker] = []

    def build() -> MlflowTracker:
        trackers.append(MlflowTracker(uri, "s1", Outbox(outbox), LocalStorage(outbox.parent)))
        return trackers[-1]

    yield build
    for tracker in trackers:
        tracker.close(0)


def row(step: int, **metrics: float) -> Row:
    return Row(step, T0 + step, metrics)


def files(outbox: Path, number: int) -> list[str]:
    """Two files in the sweep's folder, by their names in it."""
    names = [f"trials/{number}-result.json", f"trials/{number}-artifact.bin"]
    for name in names:
        LocalStorage(outbox.parent).write(name, name.encode() * 100)
    return names


def refused(outbox: Path) -> list[dict[str, Any]]:
    path = outbox.with_suffix(".refused.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_sweep_is_mirrored(
    uri: str, outbox: Path, track: Callable[[], MlflowTracker], tmp_path: Path
) -> None:
    tracker = track()
    tracker.start(None, T0, {"space": "rmt", "n": None}, {"commit": "abc"})
    states = ["COMPLETE", "PRUNED", "FAIL", "INTERRUPTED"]
    for n in range(4):
        tracker.start(n, T0, {"lr": 0.1 * n, "text": "x" * 7000}, {"node": f"n{n}"})
    for step in range(3):
        for n in range(4):
            tracker.log(n, [row(step, **{"val/accuracy": n + step / 10})])
    tracker.log(None, [row(1, best=0.5), row(2, best=0.75)])
    artifacts = files(outbox, 0)
    tracker.finish(0, T0 + 100, "COMPLETE", {"note": "good"}, {"final": 0.5}, artifacts)
    for n in range(1, 4):
        tracker.finish(n, T0 + 100, states[n], {}, {}, [])
    tracker.finish(None, T0 + 100, "COMPLETE", {"done": "yes"}, {"best": 1.0}, [])
    assert tracker.close(TIMEOUT) == 0

    runs = runs_of(uri)
    parent = runs.pop("")
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"space": "rmt", "n": "None"}
    assert parent.data.tags["search.role"] == "sweep"
    assert parent.data.tags["mlflow.runName"] == "s1"
    assert {"commit": "abc", "done": "yes"}.items() <= parent.data.tags.items()
    assert history(uri, parent, "best") == [(0, 1.0), (1, 0.5), (2, 0.75)]
    assert sorted(runs) == ["0", "1", "2", "3"]
    for n, status in enumerate(["FINISHED", "FINISHED", "FAILED", "KILLED"]):
        run = runs[str(n)]
        assert run.info.status == status
        assert run.info.end_time >= run.info.start_time > 0
        assert run.data.params == {"lr": str(0.1 * n), "text": "x" * 6000}
        assert run.data.tags["search.state"] == states[n]
        assert run.data.tags["search.role"] == "trial"
        assert run.data.tags["node"] == f"n{n}"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert history(uri, run, "val/accuracy") == [(s, n + s / 10) for s in range(3)]
    assert runs["0"].data.tags["note"] == "good"
    assert runs["0"].data.metrics["final"] == 0.5
    stored = tmp_path / "mlartifacts" / runs["0"].info.run_id / "artifacts"
    assert {p.name: p.read_bytes() for p in stored.iterdir()} == {
        Path(name).name: (outbox.parent / name).read_bytes() for name in artifacts
    }
    assert not refused(outbox)


def test_more_than_one_call_may_carry(uri: str, track: Callable[[], MlflowTracker]) -> None:
    tracker = track()
    params = {f"p{i}": i for i in range(130)}
    tags = {f"t{i}": str(i) for i in range(130)}
    tracker.start(0, T0, params, tags)
    tracker.log(0, [row(step, a=step, b=-step) for step in range(1200)])
    tracker.finish(0, T0 + 100, "COMPLETE", {f"u{i}": "" for i in range(130)}, {}, [])
    assert tracker.close(TIMEOUT) == 0
    run = runs_of(uri)["0"]
    assert len(run.data.params) == 130
    assert {"t129", "u129"} <= set(run.data.tags)
    assert history(uri, run, "b") == [(s, -s) for s in sorted(range(1200))]


def test_numbers_that_are_not_finite(uri: str, track: Callable[[], MlflowTracker]) -> None:
    tracker = track()
    tracker.start(0, T0, {}, {})
    for _ in range(2):  # a repetition of NaN is a repetition, too
        tracker.log(0, [row(1, loss=float("nan"), norm=float("inf"), val=0.5)])
    assert tracker.flush(TIMEOUT) == 0
    run = runs_of(uri)["0"]
    assert [(s, str(v)) for s, v in history(uri, run, "loss")] == [(1, "nan")]
    assert set(run.data.metrics) == {"loss", "val"}
    assert "norm=inf at step 1" in run.data.tags["search.infinite_metrics"]


def test_an_interrupted_trial_is_the_same_run_when_it_resumes(
    uri: str, track: Callable[[], MlflowTracker]
) -> None:
    tracker = track()
    tracker.start(None, T0, {"space": "rmt"}, {})
    tracker.start(0, T0, {"lr": 0.5}, {})
    tracker.log(0, [row(0, a=0.0)])
    tracker.finish(0, T0 + 100, "INTERRUPTED", {}, {}, [])
    tracker.finish(None, T0 + 100, "INTERRUPTED", {}, {}, [])
    assert tracker.close(TIMEOUT) == 0
    assert {run.info.status for run in runs_of(uri).values()} == {"KILLED"}

    tracker = track()
    tracker.start(None, T0, {"space": "rmt"}, {})
    tracker.start(0, T0, {"lr": 0.5, "new": 1}, {})
    tracker.log(0, [row(1, a=1.0)])
    assert tracker.flush(TIMEOUT) == 0
    runs = runs_of(uri)
    assert {run.info.status for run in runs.values()} == {"RUNNING"}
    assert {run.data.tags["search.state"] for run in runs.values()} == {"RUNNING"}
    assert runs["0"].data.params == {"lr": "0.5", "new": "1"}
    tracker.finish(0, T0 + 100, "COMPLETE", {}, {}, [])
    tracker.finish(None, T0 + 100, "COMPLETE", {}, {}, [])
    assert tracker.close(TIMEOUT) == 0
    runs = runs_of(uri)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert history(uri, runs["0"], "a") == [(0, 0.0), (1, 1.0)]


def test_a_second_delivery_of_everything_changes_nothing(
    uri: str, outbox: Path, track: Callable[[], MlflowTracker]
) -> None:
    tracker = track()
    tracker.start(None, T0, {"space": "rmt"}, {})
    tracker.start(0, T0, {"lr": 0.5}, {})
    tracker.log(0, [row(s, a=s) for s in range(5)])
    tracker.finish(0, T0 + 100, "PRUNED", {}, {"last": 4.0}, files(outbox, 0))
    tracker.finish(None, T0 + 100, "COMPLETE", {}, {}, [])
    assert tracker.close(TIMEOUT) == 0
    before = {n: run.to_dictionary() for n, run in runs_of(uri).items()}

    outbox.with_suffix(".delivered").unlink()
    assert track().close(TIMEOUT) == 0
    assert {n: run.to_dictionary() for n, run in runs_of(uri).items()} == before
    assert history(uri, runs_of(uri)["0"], "a") == [(s, s) for s in range(5)]
    assert not refused(outbox)


def test_a_refused_event_does_not_hold_up_the_others(
    uri: str, outbox: Path, track: Callable[[], MlflowTracker], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = track()
    tracker.start(0, T0, {"lr": 1}, {})
    assert tracker.flush(TIMEOUT) == 0
    for step in range(20):
        tracker.log(0, [row(step, **({"no*good": 1.0} if step == 13 else {"a": step}))])
    tracker.start(0, T0, {"lr": 2}, {})  # a param cannot change
    tracker.log(0, [row(20, a=20.0)])
    tracker.finish(0, T0 + 100, "COMPLETE", {}, {"no*good": 1.0}, [])
    assert tracker.close(TIMEOUT) == 0
    run = runs_of(uri)["0"]
    assert history(uri, run, "a") == [(s, s) for s in range(21) if s != 13]
    assert run.data.params == {"lr": "1"}
    assert run.info.status == "FINISHED"
    assert [note["event"]["kind"] for note in refused(outbox)] == ["log", "start", "finish"]
    assert "no*good" in refused(outbox)[0]["reason"]
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_missing_artifacts_are_named_in_a_tag(
    uri: str, outbox: Path, track: Callable[[], MlflowTracker], tmp_path: Path
) -> None:
    tracker = track()
    there, _ = files(outbox, 0)
    tracker.start(0, T0, {}, {})
    tracker.finish(0, T0 + 100, "COMPLETE", {}, {}, ["gone.json", there, "trials/gone.bin"])
    assert tracker.close(TIMEOUT) == 0
    run = runs_of(uri)["0"]
    missing = run.data.tags["search.missing_artifacts"]
    assert missing == "gone.json, trials/gone.bin"
    names = MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id)
    assert [file.path for file in names] == [Path(there).name]


def test_a_run_that_someone_deleted_is_refused_and_the_rest_goes_on(
    uri: str, outbox: Path, track: Callable[[], MlflowTracker]
) -> None:
    tracker = track()
    tracker.start(0, T0, {}, {})
    tracker.start(1, T0, {}, {})
    assert tracker.flush(TIMEOUT) == 0
    MlflowClient(tracking_uri=uri).delete_run(runs_of(uri)["0"].info.run_id)
    tracker.log(0, [row(0, a=1.0)])
    tracker.log(1, [row(0, a=1.0)])
    assert tracker.close(TIMEOUT) == 0
    runs = runs_of(uri)
    assert history(uri, runs["0"], "a") == [(0, 1.0)]  # a new run: the second try looks again
    assert history(uri, runs["1"], "a") == [(0, 1.0)]
    assert not refused(outbox)


def test_a_deleted_experiment_keeps_the_events_waiting(
    uri: str, outbox: Path, track: Callable[[], MlflowTracker], caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("few-shot-search")
    client.delete_experiment(experiment)
    tracker = track()
    tracker.start(0, T0, {}, {})
    wait_until(lambda: "mlflow experiments restore" in caplog.text)
    assert tracker.flush(0) == 1
    client.restore_experiment(experiment)
    assert tracker.close(TIMEOUT) == 0
    assert sorted(runs_of(uri)) == ["", "0"]
    assert not refused(outbox)


def test_calls_are_fast_and_never_raise(
    tmp_path: Path, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(
        "sqlite:////proc/no/such.db", "s1", Outbox(outbox), LocalStorage(tmp_path)
    )
    seconds = []
    for step in range(300):
        start = time.perf_counter()
        tracker.log(0, [row(step, **{f"m{i}": i for i in range(10)})])
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 2e-3
    tracker.finish(0, T0 + 100, "COMPLETE", {}, {"x": "not a number"}, [])  # type: ignore[dict-item]
    begin = time.monotonic()
    assert tracker.flush(TIMEOUT, patience=0.5) == 300  # away, and not waited for
    assert time.monotonic() - begin < TIMEOUT / 2
    assert tracker.close(0.01) == 300
    tracker.log(0, [row(0, a=1.0)])
    assert tracker.close(0.0) == 300
    assert "could not be kept" in caplog.text

    outbox.unlink()
    assert tracker.close(0.0) == 1

    nobody = NullTracker()
    nobody.start(None, T0, {}, {})
    nobody.settle(T0)
    nobody.log(0, [])
    nobody.finish(0, T0, "FAIL", {}, {}, ["result.json"])
    assert nobody.unreported_trials([0]) == set()
    assert nobody.flush(1.0) == nobody.close(1.0) == 0


def test_an_import_of_this_module_is_not_an_import_of_mlflow() -> None:
    code = (
        "import sys; from search.tracking.uri import check_tracking_uri as c; "
        "c('sqlite:///new.db'); sys.exit('mlflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT)


CHILD = """
import sys, time
from pathlib import Path
from search.tracking.outbox import Outbox
from search.tracking.tracker import Row
from search.tracking.uploader import MlflowTracker
from trainables.storage import LocalStorage
uri, outbox = sys.argv[1:]
path = Path(outbox)
tracker = MlflowTracker(uri, "s1", Outbox(path), LocalStorage(path.parent))
T0 = 1.7e9
tracker.start(None, T0, {"space": "rmt"}, {})
for n in range(30):
    tracker.start(n, T0, {"n": n}, {})
    for step in range(3):
        tracker.log(n, [Row(step, 1.7e9 + step, {"a": n + step})])
    tracker.finish(n, T0 + 100, "COMPLETE", {}, {}, [])
tracker.finish(None, T0 + 100, "COMPLETE", {}, {}, [])
print("appended", flush=True)
time.sleep(600)
"""


def test_a_killed_driver_leaves_nothing_undone_and_nothing_twice(
    uri: str, outbox: Path, track: Callable[[], MlflowTracker]
) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, uri, outbox], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"appended\n"
        mark = outbox.with_suffix(".delivered")
        wait_until(lambda: mark.exists() and int(mark.read_text() or 0) > 1500)
        child.kill()
    with outbox.open("ab") as file:
        file.write(b'{"kind": "log", "tri')  # as if in the middle of a write
    assert int(mark.read_text()) < outbox.stat().st_size

    assert track().close(TIMEOUT) == 0
    runs = runs_of(uri)
    assert sorted(runs) == sorted(["", *map(str, range(30))])
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for n in range(30):
        assert history(uri, runs[str(n)], "a") == [(s, n + s) for s in range(3)]
    assert not refused(outbox)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()


def test_a_server_that_is_down_then_killed_then_back(
    server: Server, outbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(server.uri, "away", Outbox(outbox), LocalStorage(outbox.parent))

    def run_trial(n: int) -> None:
        tracker.start(n, T0, {"n": n}, {})
        for step in range(10):
            tracker.log(n, [row(step, a=n + step)])
        tracker.finish(n, T0 + 100, "COMPLETE", {}, {"last": n}, files(outbox, n))

    tracker.start(None, T0, {"space": "rmt"}, {})
    for n in range(4):
        run_trial(n)
    assert tracker.flush(0.5) > 0
    assert "is away" in check_tracking_uri(server.uri, timeout=1)

    server.start(wait=False)
    wait_until(lambda: tracker.flush(0) < 40)  # it has begun
    server.kill()
    for n in range(4, 8):
        run_trial(n)
    assert tracker.flush(0.5) > 0

    server.start(wait=False)
    tracker.finish(None, T0 + 100, "COMPLETE", {}, {}, [])
    assert tracker.close(TIMEOUT) == 0

    assert check_tracking_uri(server.uri) == ""
    runs = runs_of(server.uri, "away")
    assert sorted(runs) == ["", *map(str, range(8))]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    client = MlflowClient(tracking_uri=server.uri)
    for n in range(8):
        assert history(server.uri, runs[str(n)], "a") == [(s, n + s) for s in range(10)]
        assert runs[str(n)].data.metrics["last"] == n
        stored = client.download_artifacts(runs[str(n)].info.run_id, "", str(tmp_path))
        for name in files(outbox, n):
            assert (Path(stored) / Path(name).name).read_bytes() == name.encode() * 100
    assert not refused(outbox)
    assert caplog.text.count("is away") <= 2


def test_a_killed_first_start_leaves_a_usable_database(tmp_path: Path) -> None:
    """MLflow makes its tables one by one; killed in the middle, it never starts again."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from search.tracking.outbox import Outbox\n"
        "from search.tracking.uploader import MlflowTracker\n"
        "from trainables.storage import LocalStorage\n"
        "path = Path(sys.argv[2])\n"
        "t = MlflowTracker(sys.argv[1], 's', Outbox(path), LocalStorage(path.parent))\n"
        "t.start(None, 1.0, {}, {}); print('started', flush=True); time.sleep(60)"
    )
    outbox = tmp_path / "outbox.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", code, uri, str(outbox)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".mlflow.db.*.new")):  # the tables are being made
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()
    tracker = MlflowTracker(uri, "s", Outbox(outbox), LocalStorage(tmp_path))
    assert tracker.close(60) == 0


def test_an_event_that_always_fails_holds_up_the_others_for_a_while_only(
    tmp_path: Path, empty_database: Path, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that cannot keep artifacts answers 500 to each, and everything else well."""
    (tmp_path / "artifacts").write_text("a file where a folder should be")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    server.start()
    try:
        storage = LocalStorage(outbox.parent)
        tracker = MlflowTracker(server.uri, "s1", Outbox(outbox), storage, patience=2.0)
        for n in range(2):
            tracker.start(n, T0, {}, {})
            tracker.finish(n, T0 + 1, "COMPLETE", {}, {"last": n}, files(outbox, n) * (n == 0))
        assert tracker.close(TIMEOUT) == 0
        runs = runs_of(server.uri)
        assert [runs[n].info.status for n in "01"] == ["FINISHED", "FINISHED"]
        assert [runs[n].data.metrics["last"] for n in "01"] == [0, 1]
        (note,) = refused(outbox)
        assert note["event"]["kind"] == "finish"
        assert "500" in note["reason"]
    finally:
        server.kill()


def test_a_server_with_a_log_in(
    tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    secret = "correct-horse-battery"
    server = Server(
        tmp_path,
        *("--app-name", "basic-auth"),
        MLFLOW_FLASK_SERVER_SECRET_KEY="x",
        MLFLOW_AUTH_ADMIN_USERNAME="admin",
        MLFLOW_AUTH_ADMIN_PASSWORD=secret,
    )
    server.start()
    try:
        with pytest.raises(TrackingError, match=r"401.*credentials MLFLOW_TRACKING_USERNAME"):
            check_tracking_uri(server.uri)
        storage = LocalStorage(outbox.parent)
        tracker = MlflowTracker(server.uri, "s1", Outbox(outbox), storage, patience=0.0)
        tracker.start(0, T0, {"lr": 1}, {})
        wait_until(lambda: "401" in caplog.text or "UNAUTHENTICATED" in caplog.text.upper())
        assert tracker.close(0.0) == 1  # kept: somebody may let us in

        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
        assert check_tracking_uri(server.uri) == ""
        tracker = MlflowTracker(server.uri, "s1", Outbox(outbox), storage)
        tracker.finish(0, T0 + 1, "COMPLETE", {}, {}, files(outbox, 0))
        assert tracker.close(TIMEOUT) == 0
        assert runs_of(server.uri)["0"].info.status == "FINISHED"
        assert not refused(outbox)
        assert secret not in caplog.text
    finally:
        server.kill()
