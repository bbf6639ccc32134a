"""Outages of a real MLflow server during real sweeps, and how `search.sync` recovers from them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from search.core.lock import SweepLock
from search.core.sweep_folder import FORMAT
from search.sync import main
from tests.search.conftest import Sweep, kill_everything
from tests.search.in_mlflow import content, runs_of
from tests.search.made import made
from tests.search.test_status import judge
from tests.servers import Mlflow
from trainables.core.optim import OptimConfig
from trainables.core.storage import LocalStorage
from trainables.methods.taskres import TaskResConfig
from trainables.trial import TaskSpec, TrialConfig

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 configures its tables with an option that SQLAlchemy 2.1 has deprecated.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)

SPACE = ("--space", "taskres", "--shots", "4", "--seeds", "1", "--eval-seeds", "1")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Mlflow]]:
    """Two real servers; neither runs."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("first", "second")}
    found = {name: Mlflow(folder) for name, folder in folders.items()}
    yield found
    for server in found.values():
        server.kill()


@dataclass(frozen=True)
class Answer:
    """The output and exit code of a synchronisation."""

    code: int
    out: str
    err: str


@pytest.fixture
def sync(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def call(sweep: Sweep, *options: str) -> Answer:
        code = main([sweep.name, "--storage", str(sweep.storage), *options])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.mark.slow
def test_a_server_down_at_the_start_and_in_the_middle_and_killed_at_the_end(
    sweep: Sweep, servers: dict[str, Mlflow], tmp_path: Path, sync: Callable[..., Answer]
) -> None:
    server, second = servers["first"], servers["second"]
    driver = sweep.start(*SPACE, "--trials", "8", "--tracking-uri", server.uri)
    try:
        sweep.wait_until(lambda: len(sweep.results()) >= 2)
        assert "is unreachable" in (sweep.storage / f"{sweep.name}.log").read_text()
        server.wait()
        time.sleep(1.0)
        server.kill()
        sweep.wait_until(lambda: len(sweep.results()) >= 5)
        server.wait()
        sweep.wait_until(lambda: len(sweep.results()) == 8)
        server.kill()
        # The driver waits a minute for the delivery, and need not be waited for.
        sweep.wait_until((sweep.folder / "evaluation.json").exists)
        time.sleep(1.0)
    finally:
        kill_everything(driver)

    waiting = sync(sweep, "--timeout", "1")
    assert waiting.code == 1
    assert "are left: MLflow at http" in waiting.err
    server.wait()
    done = sync(sweep)
    assert done.code == 0, done.err
    assert "runs brought up to date, MLflow holds 8 trials of sweep test" in done.out
    told = content(server.uri, "test", tmp_path / "told")
    assert sorted(told) == sorted(["", *map(str, range(8))])
    for number, result in sweep.results().items():
        run = told[str(number)]
        rows = (sweep.folder / f"trials/{number:06d}/metrics.jsonl").read_text().splitlines()
        assert run["status"] == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[result["state"]]
        steps = {step for step, *_ in run["metrics"]["val/accuracy"]}  # type: ignore[index]
        assert steps <= {json.loads(row)["epoch"] for row in rows}
        assert max(steps) == json.loads(rows[-1])["epoch"]
        learned = {"artifact.safetensors"} if result["state"] == "COMPLETE" else set()
        assert set(run["artifacts"]) == {"config.json"} | learned  # type: ignore[call-overload]

    again = sync(sweep, "--rebuild")
    assert "MLflow holds 8 trials" in again.out
    assert content(server.uri, "test", tmp_path / "again") == told

    shutil.rmtree(sweep.folder / "tracking")
    server.kill()
    second.wait()
    rebuilt = sync(sweep, "--rebuild", "--tracking-uri", second.uri)
    assert rebuilt.code == 0, rebuilt.err
    assert content(second.uri, "test", tmp_path / "rebuilt") == told
    assert sync(sweep, "--tracking-uri", second.uri).out.startswith("Already up to date")


@pytest.mark.slow
def test_nothing_stays_running_after_a_killed_driver(
    sweep: Sweep, servers: dict[str, Mlflow], sync: Callable[..., Answer]
) -> None:
    server = servers["second"]
    server.wait()
    sweep.name = "killed"
    driver = sweep.start(*SPACE, "--trials", "50", "--tracking-uri", server.uri)
    sweep.wait_until(lambda: len(sweep.results()) >= 2 and len(runs_of(server.uri, "killed")) > 3)
    kill_everything(driver)
    assert "RUNNING" in {run.info.status for run in runs_of(server.uri, "killed").values()}
    assert sync(sweep).code == 0
    runs = runs_of(server.uri, "killed")
    assert {run.info.status for run in runs.values()} <= {"FINISHED", "KILLED"}
    assert runs[""].info.status == "KILLED"
    for number, result in sweep.results().items():
        assert runs[str(number)].data.tags["search.state"] == result["state"]


def folder(tmp_path: Path, tracking_uri: str) -> LocalStorage:
    """A sweep that has just been made."""
    sweep = Sweep(tmp_path, "test")
    code = (
        "import sys, json; from search.core.config import SweepConfig; "
        "from search.driver.preflight import *\n"
        "print(json.dumps(SweepConfig(name='test', tracking_uri=sys.argv[1]).to_dict()))"
    )
    config = subprocess.run(
        [sys.executable, "-c", code, tracking_uri], capture_output=True, text=True, check=True
    ).stdout
    storage = LocalStorage(sweep.folder)
    record = f'{{"format": {FORMAT}, "id": "x", "config": {config}, "fingerprints": {{}}}}'
    storage.write("sweep.json", record.encode())
    return storage


def test_mistakes_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    where = ("--storage", str(tmp_path))

    def refused(*arguments: str) -> str:
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    assert "NAME" in refused()
    assert "There is no sweep 'test'" in refused("test", *where)
    sweep = folder(tmp_path, "none")
    assert "name one with --tracking-uri" in refused("test", *where)
    assert "ftp" in refused("test", *where, "--tracking-uri", "ftp://x")
    with SweepLock(sweep):
        line = refused("test", *where, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
        assert "One driver at a time" in line
    assert not (sweep.root / "tracking").exists()


def test_a_sweep_without_trials_has_nothing_but_itself_to_tell(
    tmp_path: Path, servers: dict[str, Mlflow], capsys: pytest.CaptureFixture[str]
) -> None:
    server = servers["second"]
    server.wait()
    folder(tmp_path / "empty", server.uri)
    assert main(["test", "--storage", str(tmp_path / "empty")]) == 0
    assert f"MLflow holds 0 trials of sweep test: {server.uri}" in capsys.readouterr().out


def test_the_figures_of_a_former_winner_are_not_told(
    tmp_path: Path, servers: dict[str, Mlflow], capsys: pytest.CaptureFixture[str]
) -> None:
    server = servers["second"]
    server.wait()
    trial = TrialConfig(
        "taskres", "search", TaskResConfig(), OptimConfig(lr=2e-3, epochs=2, batch_size=8)
    )
    made(tmp_path, "former", trial, TaskSpec(("digits",), "tiny", (1,), (1,)))
    judge(tmp_path / "former", winner=7)
    where = ("former", "--storage", str(tmp_path), "--tracking-uri", server.uri)
    assert main(where) == 0
    parent = runs_of(server.uri, "former")[""]
    assert parent.data.tags["search.state"] == "INTERRUPTED"
    assert not [name for name in parent.data.metrics if name.startswith("test/")]
