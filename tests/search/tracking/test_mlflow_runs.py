"""A sweep's runs in a real MLflow store: what is sent, and that sending is idempotent."""

from __future__ import annotations

import base64
import getpass
import json
import logging
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from search.tracking.content import DataInput, End, Row, RunContent
from search.tracking.mlflow_client import RefusedError
from search.tracking.mlflow_page import saved_views
from search.tracking.mlflow_runs import MlflowRuns
from tests.search.in_mlflow import history, runs_of
from trainables.core.storage import LocalStorage

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 configures its tables with an option that SQLAlchemy 2.1 has deprecated.
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)

T0 = 1_700_000_000.0
ROOT = Path(__file__).parents[3]
SWEEP = RunContent(T0, {"space": "rmt", "n": None}, {"search.columns": '["lr"]'})
TRIAL = RunContent(T0, {"lr": 0.5}, {"method": "rmt"})


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once; the tests copy it."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class World:
    """A database and a sweep's folder; every `runs()` is another process's."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.uri = f"sqlite:///{shutil.copy(database, folder / 'mlflow.db')}"
        self.client = MlflowClient(tracking_uri=self.uri)
        self.sweep = LocalStorage(folder / "s1")

    def runs(self, experiment: str = "few-shot-search") -> MlflowRuns:
        root = self.sweep.root.parent / "mlartifacts"
        found = MlflowRuns(self.uri, experiment, "s1", "an id", self.sweep, root)
        found.connect()
        return found

    def files(self, number: int) -> list[str]:
        names = [f"trials/{number}/config.json", f"trials/{number}/artifact.bin"]
        for name in names:
            self.sweep.write(name, name.encode() * 100)
        return names

    def everything(self) -> dict[str, Any]:
        return {number: run.to_dictionary() for number, run in runs_of(self.uri).items()}


@pytest.fixture
def world(tmp_path: Path, empty_database: Path) -> World:
    return World(tmp_path, empty_database)


def rows(*steps: int, **metrics: float) -> list[Row]:
    return [Row(step, T0 + step, metrics or {"val/accuracy": step / 10}) for step in steps]


def ended(content: RunContent, state: str, **fields: Any) -> RunContent:
    return replace(content, end=End(state, T0 + 100, **fields))


def test_a_sweep_and_its_trials(world: World, tmp_path: Path) -> None:
    runs = world.runs()
    runs.put(None, SWEEP)
    states = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "INTERRUPTED": "KILLED"}
    names = world.files(0)
    for number, state in enumerate(states):
        content = replace(TRIAL, params={"lr": 0.1 * number, "text": "x" * 7000})
        runs.put(number, content)
        assert runs.running() == {None, number}
        content = replace(content, rows=rows(1, 2, 3))
        runs.put(number, content)
        final = {"metrics": {"objective": 0.5}, "artifacts": names * (number == 0)}
        runs.put(number, ended(content, state, **final))
        assert runs.has_ended(number)
    runs.put(None, ended(SWEEP, "COMPLETE", metrics={"best": 1.0}))
    found = runs_of(world.uri)
    parent = found.pop("")
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"space": "rmt", "n": "None"}
    assert parent.data.tags["search.role"] == "sweep"
    assert parent.data.tags["mlflow.runName"] == "s1"
    assert history(world.uri, parent, "best") == [(0, 1.0)]
    assert sorted(found) == ["0", "1", "2", "3"]
    for number, (state, status) in enumerate(states.items()):
        run = found[str(number)]
        assert run.info.status == status  # a pruned run does not look like a complete one
        assert (run.info.start_time, run.info.end_time) == (T0 * 1000, (T0 + 100) * 1000)
        assert run.data.params == {"lr": str(0.1 * number), "text": "x" * 6000}
        assert run.data.tags["search.state"] == state
        assert run.data.tags["search.role"] == "trial"
        assert run.data.tags["method"] == "rmt"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert history(world.uri, run, "val/accuracy") == [(s, s / 10) for s in (1, 2, 3)]
        assert run.data.metrics["objective"] == 0.5
    stored = tmp_path / "mlartifacts" / found["0"].info.run_id / "artifacts"
    assert {p.name: p.read_bytes() for p in stored.iterdir()} == {
        Path(name).name: world.sweep.read(name) for name in names
    }


def test_repeating_everything_changes_nothing(world: World) -> None:
    contents = {
        None: ended(SWEEP, "COMPLETE", metrics={"best": 1.0}, artifacts=world.files(9)),
        0: ended(
            replace(TRIAL, rows=rows(0, 1, 2)),
            "PRUNED",
            metrics={"last": 4.0},
            artifacts=world.files(0),
        ),
        1: replace(TRIAL, rows=rows(1)),
    }
    runs = world.runs()
    assert [runs.put(number, content) for number, content in contents.items()] == [True] * 3
    before = world.everything()
    for again in (runs, world.runs()):
        assert [again.put(*item) for item in contents.items()] == [False] * 3
    assert world.everything() == before
    assert history(world.uri, runs_of(world.uri)["0"], "val/accuracy") == [
        (0, 0.0),
        (1, 0.1),
        (2, 0.2),
    ]


@pytest.mark.parametrize("lost", [(1,), (2,), (1, 2, 3)])
def test_steps_that_a_run_lacks_are_filled_in(world: World, lost: tuple[int, ...]) -> None:
    runs = world.runs()
    runs.put(None, SWEEP)
    runs.put(0, replace(TRIAL, rows=rows(*({1, 2, 3, 4} - set(lost)))))
    again = world.runs()
    assert again.put(0, replace(TRIAL, rows=rows(1, 2, 3, 4, 5)))
    found = history(world.uri, runs_of(world.uri)["0"], "val/accuracy")
    assert found == [(s, s / 10) for s in (1, 2, 3, 4, 5)]


def test_a_run_that_goes_on_is_the_same_run(world: World) -> None:
    runs = world.runs()
    runs.put(None, ended(SWEEP, "INTERRUPTED"))
    runs.put(0, ended(replace(TRIAL, rows=rows(1)), "INTERRUPTED"))
    assert {run.info.status for run in runs_of(world.uri).values()} == {"KILLED"}
    again = world.runs()
    again.put(None, SWEEP)
    again.put(0, replace(TRIAL, params={"lr": 0.5, "new": 1}))
    found = runs_of(world.uri)
    assert {run.info.status for run in found.values()} == {"RUNNING"}
    assert {run.data.tags["search.state"] for run in found.values()} == {"RUNNING"}
    assert found["0"].data.params == {"lr": "0.5", "new": "1"}
    again.put(0, ended(replace(TRIAL, rows=rows(1, 2)), "COMPLETE"))
    found = runs_of(world.uri)
    assert found["0"].info.status == "FINISHED"
    assert history(world.uri, found["0"], "val/accuracy") == [(1, 0.1), (2, 0.2)]


def test_a_run_that_was_left_running_is_interrupted(world: World) -> None:
    runs = world.runs()
    runs.put(None, SWEEP)
    runs.put(3, TRIAL)
    again = world.runs()
    assert again.running() == {None, 3}
    again.interrupt(3, T0 + 7)
    run = runs_of(world.uri)["3"]
    assert (run.info.status, run.info.end_time) == ("KILLED", (T0 + 7) * 1000)
    assert run.data.tags["search.state"] == "INTERRUPTED"
    assert world.runs().running() == {None}


def test_more_than_one_call_may_hold(world: World) -> None:
    runs = world.runs()
    runs.put(None, SWEEP)
    many = RunContent(
        T0,
        {f"p{i}": i for i in range(130)},
        {f"t{i}": str(i) for i in range(130)},
        [Row(step, T0 + step, {"a": step, "b": -step}) for step in range(1200)],
        end=End("COMPLETE", T0 + 1),
    )
    runs.put(0, many)
    run = runs_of(world.uri)["0"]
    assert len(run.data.params) == 130
    assert {"t0", "t129"} <= set(run.data.tags)
    assert history(world.uri, run, "b") == [(s, -s) for s in range(1200)]


def test_numbers_that_are_not_finite(world: World) -> None:
    content = replace(TRIAL, rows=rows(1, loss=float("nan"), norm=float("inf"), val=0.5))
    for _ in range(2):  # the second time is a repetition, also of NaN
        runs = world.runs()
        runs.put(None, SWEEP)
        runs.put(0, ended(content, "COMPLETE", metrics={"last": float("-inf")}))
    run = runs_of(world.uri)["0"]
    assert [(s, str(v)) for s, v in history(world.uri, run, "loss")] == [(1, "nan")]
    assert set(run.data.metrics) == {"loss", "val"}
    assert run.data.tags["search.infinite_metrics"] == "norm=inf at step 1, last=-inf at the end"


def test_names_that_mlflow_does_not_accept_are_rewritten(world: World) -> None:
    runs = world.runs()
    runs.put(None, SWEEP)
    runs.put(0, replace(TRIAL, params={"a*b": 1}, rows=rows(1, **{"no*good": 1.0, "fine": 2.0})))
    run = runs_of(world.uri)["0"]
    assert run.data.metrics == {"no_good": 1.0, "fine": 2.0}
    assert run.data.params == {"a_b": "1"}


def test_missing_artifacts_are_named_in_a_tag(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    there, _ = world.files(0)
    content = ended(TRIAL, "COMPLETE", artifacts=["gone.json", there, "trials/gone.bin"])
    runs = world.runs()
    runs.put(None, SWEEP)
    assert runs.put(0, content)
    run = runs_of(world.uri)["0"]
    assert run.data.tags["search.missing_artifacts"] == "gone.json, trials/gone.bin"
    names = world.client.list_artifacts(run.info.run_id)
    assert [file.path for file in names] == [Path(there).name]
    assert caplog.text.count("An artifact is missing in MLflow") == 2
    assert not world.runs().put(0, content)

    world.sweep.write("gone.json", b"{}")  # it was there, and could not be sent
    assert world.runs().put(0, content)
    run = runs_of(world.uri)["0"]
    assert run.data.tags["search.missing_artifacts"] == "trials/gone.bin"
    assert "gone.json" in [file.path for file in world.client.list_artifacts(run.info.run_id)]


def test_artifacts_of_the_sweep_are_replaced_when_they_change(world: World, tmp_path: Path) -> None:
    """A report of the same size as the old one is another report."""
    names = ["evaluation.json", "report/report.html", "report/figures/a.svg"]
    for name in names:
        world.sweep.write(name, b"trial 15")
    content = ended(SWEEP, "COMPLETE", artifacts=names)
    assert world.runs().put(None, content)
    assert not world.runs().put(None, content)
    world.sweep.write("report/report.html", b"trial 14")
    assert world.runs().put(None, content)
    run_id = runs_of(world.uri)[""].info.run_id
    stored = Path(world.client.download_artifacts(run_id, "", str(tmp_path)))
    assert {name: (stored / name).read_bytes() for name in names} == {
        "evaluation.json": b"trial 15",
        "report/report.html": b"trial 14",
        "report/figures/a.svg": b"trial 15",
    }
    assert not world.runs().put(None, content)


def test_data_sets_are_inputs_once(world: World) -> None:
    digits = DataInput("digits", "f" * 36, "digits", {"shots": (1, 4)})
    birds = DataInput("birds", "e" * 36, "folder:/data/birds", {})
    runs = world.runs()
    runs.put(None, replace(SWEEP, inputs=[digits]))
    runs.put(0, replace(TRIAL, inputs=[digits]))
    for _ in range(2):
        again = world.runs()
        again.put(0, replace(TRIAL, inputs=[digits, birds]))
    run = runs_of(world.uri)["0"]
    found = {given.dataset.name: given for given in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == len(found) == 2
    assert found["digits"].dataset.digest == "f" * 36
    assert json.loads(found["digits"].dataset.profile) == {"shots": [1, 4]}
    assert json.loads(found["birds"].dataset.source) == {"uri": "folder:/data/birds"}
    assert [(tag.key, tag.value) for tag in found["birds"].tags] == [
        ("mlflow.data.context", "training")
    ]
    by_data = world.client.search_runs(
        [run.info.experiment_id], "dataset.name = 'birds'", max_results=9
    )
    assert [other.info.run_id for other in by_data] == [run.info.run_id]


def test_mlflows_own_tags(world: World) -> None:
    runs = world.runs()
    runs.put(None, SWEEP)
    tags = runs_of(world.uri)[""].data.tags
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.source.type"] == "LOCAL"
    assert Path(tags["mlflow.source.name"]) == ROOT / "search" / "run.py"
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode == 0:
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()


def test_another_experiment(world: World) -> None:
    for experiment in ("few-shot-search", 'a team\'s "own" ü'):
        runs = world.runs(experiment)
        assert runs.put(None, SWEEP)
        found = world.client.get_experiment_by_name(experiment)
        assert found.experiment_id == runs.experiment_id
        assert len(world.client.search_runs([found.experiment_id])) == 1


def test_the_views_of_a_sweep(world: World) -> None:
    """One of all trials and one of complete ones, both with the state."""
    runs = world.runs()
    runs.put(None, SWEEP)
    experiment = world.client.get_experiment(runs.experiment_id)
    views = {
        key: json.loads(value)
        for key, value in experiment.tags.items()
        if key.startswith("mlflow.sharedViewState.")
    }
    assert sorted(view["name"] for view in views.values()) == ["s1", "s1: complete trials"]
    key = re.search(r"viewStateShareKey=(\w+)", runs.page)
    assert key is not None
    assert views[f"mlflow.sharedViewState.{key[1]}"]["name"] == "s1"


def test_the_best_trial_comes_first_by_what_trials_are_ranked_by() -> None:
    views = saved_views("an id", "s1", "i", "s", ["lr"], 0, "val/likelihood")
    for view in map(json.loads, views.values()):
        packed = view["state"].removeprefix("deflate;")
        state = json.loads(zlib.decompress(base64.b64decode(packed)))
        assert state["orderByKey"] == "metrics.`val/likelihood`"
        assert state["selectedColumns"] == [
            "tags.`s`",
            "metrics.`val/likelihood`",
            "metrics.`val/accuracy`",
            "params.`lr`",
        ]


def test_a_deleted_experiment_says_how_to_restore_it(world: World) -> None:
    experiment = world.client.create_experiment("few-shot-search")
    world.client.delete_experiment(experiment)
    with pytest.raises(RuntimeError, match=f"mlflow experiments restore .* {experiment}"):
        world.runs()
    world.client.restore_experiment(experiment)
    assert world.runs().put(None, SWEEP)


def test_a_run_that_somebody_deleted_is_refused_until_it_is_looked_up_again(world: World) -> None:
    runs = world.runs()
    runs.put(None, SWEEP)
    runs.put(0, TRIAL)
    world.client.delete_run(runs_of(world.uri)["0"].info.run_id)
    with pytest.raises(RefusedError):
        runs.put(0, replace(TRIAL, rows=rows(1)))
    runs.forget()
    runs.connect()
    runs.put(0, replace(TRIAL, rows=rows(1)))
    assert history(world.uri, runs_of(world.uri)["0"], "val/accuracy") == [(1, 0.1)]


def test_of_two_runs_of_a_trial_the_older_one_counts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    runs = world.runs()
    runs.put(None, SWEEP)
    runs.put(0, TRIAL)
    first = runs.run_of(0)
    tags = world.client.get_run(first).data.tags
    world.client.create_run(runs.experiment_id, start_time=int(T0 * 1000) + 5, tags=tags)
    again = world.runs()
    assert again.run_of(0) == first
    assert again.trials() == 1
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]
