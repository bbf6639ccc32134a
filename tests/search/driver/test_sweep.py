"""Whole sweeps, in real processes with a real Ray: the main job, kills, Ctrl-C, two drivers."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from search.driver import sweep as driver
from search.run import main
from tests.search.conftest import Sweep, held, kill_everything, run_here, session_members
from tests.shared_ray import share_ray

pytestmark = [
    pytest.mark.filterwarnings(
        # MLflow 3.17 configures its tables with an option that SQLAlchemy 2.1 has deprecated.
        "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
    ),
]

QUIET = ("--tracking-uri", "none")
TASKRES = (
    "--space",
    "taskres",
    "--shots",
    "4",
    "--seeds",
    "1",
    "--trials",
    "12",
    "--pruner",
    "asha",
)
ONE_BY_ONE = ("--max-concurrent", "1", "--sampler", "tpe", "--pruner", "asha")
MASKS = (
    *("--space", "rmt", "--shots", "2", "--seeds", "1", "--trials", "3", "--eval-seeds", "1"),
    *("--set", "epochs=8", "--range", "lr=1e-3:6e-3:log"),
)


def runs_of(sweep: Sweep) -> tuple[Run, list[Run]]:
    """The parent run, and the trials' runs by number."""
    client = MlflowClient(f"sqlite:///{sweep.storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("few-shot-search")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`search.sweep` = '{sweep.name}'")
    parents = [run for run in runs if "search.trial" not in run.data.tags]
    trials = [run for run in runs if "search.trial" in run.data.tags]
    assert len(parents) == 1
    return parents[0], sorted(trials, key=lambda run: int(run.data.tags["search.trial"]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, str]:
    """A sweep that has run to its end with tracking, as a user runs it, and what it printed."""
    sweep = Sweep(tmp_path_factory.mktemp("finished"), "main")
    done = sweep.run_alone(*TASKRES)
    assert done.returncode == 0, done.stdout + done.stderr
    return sweep, done.stdout


def test_every_trial_is_committed(finished: tuple[Sweep, str]) -> None:
    sweep, _ = finished
    results = sweep.results()
    assert sorted(results) == list(range(12))
    for result in results.values():
        assert result["state"] in ("COMPLETE", "PRUNED")
        assert result["value"] == result["values"][-1]
    assert results[0]["state"] == "COMPLETE"
    assert results[0]["config"]["preset"] == "paper"
    assert {r["config"]["preset"] for n, r in results.items() if n} == {"search"}
    assert any(r["state"] == "PRUNED" for r in results.values())
    assert {n for n, r in results.items() if "val/accuracy_zero_shot" in r["metrics"]} == {0}


def test_mlflow_mirrors_the_ledger(finished: tuple[Sweep, str]) -> None:
    sweep, _ = finished
    parent, trials = runs_of(sweep)
    results = sweep.results()
    assert parent.info.status == "FINISHED"
    assert len(trials) == len(results)
    client = MlflowClient(f"sqlite:///{sweep.storage / 'mlflow.db'}")
    for number, run in enumerate(trials):
        result = results[number]
        assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[result["state"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["search.state"] == result["state"]
        assert run.data.tags["preset"] == result["config"]["preset"]
        assert run.data.tags["fingerprint.backbone"]
        assert float(run.data.params["lr"]) == result["config"]["optim"]["lr"]
        assert float(run.data.params["alpha"]) == result["config"]["method_config"]["alpha"]
        assert run.data.metrics["objective"] == pytest.approx(result["value"])
        names = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert names == {"config.json", "artifact.safetensors"}
        if result["state"] == "COMPLETE":
            losses = client.get_metric_history(run.info.run_id, "train/loss")
            epochs = result["config"]["optim"]["epochs"]
            steps = [m.step for m in sorted(losses, key=lambda m: m.step)]
            # All epochs of a short training; of a longer one the reports and 32 points between.
            assert steps == list(range(1, epochs + 1)) if epochs <= 32 else steps[-1] == epochs
            assert len(steps) <= 32 + 8
            history = client.get_metric_history(run.info.run_id, "val/likelihood")
            values = [m.value for m in sorted(history, key=lambda m: m.step)]
            assert values == pytest.approx(result["values"])  # at each of at most eight reports
    evaluation = sweep.evaluation()
    winner = next(s for s in evaluation["scores"] if s["label"] == "winner")
    mean = sum(winner["values"]) / len(winner["values"])
    assert parent.data.metrics["test/accuracy_winner"] == pytest.approx(mean)


def test_the_test_split_is_read_once_per_fresh_draw(finished: tuple[Sweep, str]) -> None:
    sweep, printed = finished
    reads = (sweep.folder / "test_reads.jsonl").read_text().splitlines()
    assert len(reads) == 3  # one per draw
    evaluation = sweep.evaluation()
    assert evaluation["seeds"] == [2, 3, 4]
    assert [score["label"] for score in evaluation["scores"]] == ["zero-shot", "paper", "winner"]
    assert re.search(r"the winner +\d\d\.\d %", printed)
    assert "mlflow ui --backend-store-uri sqlite:///" in printed
    assert "\x1b" not in printed  # no terminal, no colours, no cursor movements


def test_the_same_command_again_starts_at_once_and_repeats_nothing(
    finished: tuple[Sweep, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even Ray."""
    monkeypatch.delattr(driver, "ray_session")
    sweep, printed = finished
    before = {path: path.stat().st_mtime_ns for path in sweep.folder.glob("trials/*/*")}
    again = sweep.run(*TASKRES)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in sweep.folder.glob("trials/*/*")} == before
    assert len((sweep.folder / "test_reads.jsonl").read_text().splitlines()) == 3
    table = printed[printed.index("Test accuracy") : printed.index("±: 95 %")]
    assert table in again.stdout
    assert len(runs_of(sweep)[1]) == 12


def test_trials_are_added_to_a_finished_sweep(finished: tuple[Sweep, str]) -> None:
    sweep, _ = finished
    before = sweep.results()
    share_ray()
    options = ("--storage", str(sweep.storage), "--resume", sweep.name, "--trials", "14")
    done = run_here(main, *options, "--no-report")
    assert done.returncode == 0, done.stderr
    after = sweep.results()
    assert sorted(after) == list(range(14))
    assert {number: after[number] for number in before} == before


def comparable(results: dict[int, dict[str, Any]]) -> dict[int, Any]:
    """What must be the same however often a sweep was interrupted."""
    kept = ("state", "value", "values", "parameters", "config", "metrics")
    return {number: {key: r[key] for key in kept} for number, r in results.items()}


def test_killed_and_continued_gives_the_same_trials(sweep: Sweep, tmp_path: Path) -> None:
    """After kill -9 of everything in mid-trial, the next run continues from the checkpoint."""
    calm = Sweep(tmp_path, "calm")
    done = calm.run(*MASKS, *ONE_BY_ONE, *QUIET)
    assert done.returncode == 0, done.stdout + done.stderr
    undisturbed = comparable(calm.results())
    options = (*MASKS, *ONE_BY_ONE, *QUIET, "--checkpoint-seconds", "0")
    process = sweep.start(*options)
    sweep.wait_until(lambda: any(sweep.folder.glob("trials/00000[1-9]/checkpoint.safetensors")))
    kill_everything(process)
    committed = comparable(sweep.results())
    assert 0 in committed  # one trial at a time
    done = sweep.run(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    results = comparable(sweep.results())
    assert results == undisturbed
    assert {number: results[number] for number in committed} == committed


def test_ctrl_c_stops_cleanly(sweep: Sweep) -> None:
    options = (*MASKS, *QUIET, "--checkpoint-seconds", "0")
    trained = "trials/*/checkpoint.safetensors"
    done = sweep.run_until(lambda: any(sweep.folder.glob(trained)), *options)
    assert "Nothing is lost" in done.stdout + done.stderr


def one_short_and_one_endless(folder: Path) -> tuple[str, ...]:
    """Options of a sweep whose second or third trial is still running, whenever it is stopped."""
    (folder / "first.json").write_text('[{"epochs": 2}, {"epochs": 100000}]')
    return (
        *("--space", "taskres", "--shots", "2", "--seeds", "1", "--trials", "6"),
        *("--choice", "epochs=2,100000", "--enqueue", str(folder / "first.json"), *QUIET),
    )


def test_sigterm_stops_cleanly_and_another_driver_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    concurrent = ("--max-concurrent", "2", "--checkpoint-seconds", "1000")
    options = (*one_short_and_one_endless(tmp_path), *concurrent)
    process = sweep.start(*options)
    # The other trial has been training for a while, which no checkpoint shows yet.
    sweep.wait_until(lambda: bool(sweep.results()))
    with held(process.pid):
        second = sweep.run(*options)
    assert second.returncode == 2
    assert f"being run already by process {process.pid}" in second.stderr
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 130
    log = (sweep.storage / f"{sweep.name}.log").read_text()
    assert "Stopping after the current steps; trials are kept" in log
    assert "Nothing is lost" in log
    assert f"--resume {sweep.name}" in log
    assert "Traceback" not in log
    assert "SIGTERM" not in log  # Ray's own handler prints a stack
    deadline = time.monotonic() + 20
    while any("ray" in args for args in session_members(process.pid).values()):
        assert time.monotonic() < deadline, session_members(process.pid)
        time.sleep(0.5)
    assert any(sweep.folder.glob("trials/*/checkpoint.safetensors"))  # what was trained is kept


def test_a_time_budget_leaves_unfinished_trials_to_be_continued(
    sweep: Sweep, tmp_path: Path
) -> None:
    options = (*one_short_and_one_endless(tmp_path), "--eval-seeds", "1")
    for seconds in (5, 20, 60, 200):  # until a machine has ended a trial, however busy it is
        done = sweep.run(*options, "--time-budget", f"{seconds}s")
        if sweep.results():
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert 0 < len(sweep.results()) < 6
    assert "the winner" in done.stdout
    assert "unfinished" in done.stdout
    assert f"--resume {sweep.name}" in done.stdout


def test_the_sweep_folder_holds_no_pickle(finished: tuple[Sweep, str]) -> None:
    sweep, _ = finished
    names = {path.suffix for path in Path(sweep.folder).rglob("*") if path.is_file()}
    assert names <= {".json", ".jsonl", ".safetensors", ".arrow", ".yaml", ".delivered", ""}
