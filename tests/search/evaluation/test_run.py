"""Whole evaluations on a real Ray: processes, what is stored, what a kill leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from mlflow import MlflowClient

from search.core.task import EvaluationSet
from search.evaluation.workers import FOLDER, EncodedTaskSpec, SplitJob, classify
from tests.search.conftest import Sweep, kill_everything
from tests.shared_ray import share_ray, travelling
from tests.trainables.data.trees import paint
from trainables.data.base import SealedError
from trainables.data.sealed import EVALUATION_PROCESS, TRAINING_PROCESS, seal_process
from trainables.trial import TaskSpec

QUIET = ("--tracking-uri", "none", "--max-concurrent", "1")
RESIDUALS = ("--space", "taskres", "--shots", "2", "--seeds", "1", "--trials", "2")


def reads(sweep: Sweep) -> list[dict[str, Any]]:
    path = sweep.folder / "test_reads.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stored(sweep: Sweep, kind: str) -> dict[str, int]:
    """Parts of an unfinished evaluation: name -> time of the write."""
    paths = (sweep.folder / FOLDER).glob(f"{kind}-*")
    return {path.name: path.stat().st_mtime_ns for path in paths}


def comparable(sweep: Sweep) -> dict[str, Any]:
    found = sweep.evaluation()
    del found["checksums"]  # files are compared by their content
    return found


def a_process(sealed: bool) -> tuple[str, str]:
    """On a worker: its id and start (ids are used again), and whether it could be sealed."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    process = f"{os.getpid()} started at {stat[19]}"
    if sealed:
        seal_process()
        return process, "training"
    try:
        seal_process()
    except RuntimeError:
        return process, "evaluation"
    return process, "broken"


def test_no_process_does_both(tmp_path: Path) -> None:
    """One at a time, so that Ray would reuse every process that it may: tasks of either kind in
    turn, and those of neither kind, such as trials, in between."""
    share_ray()
    processes: dict[str, set[str]] = {}
    kinds = {
        "training": (TRAINING_PROCESS, True),
        "evaluation": (EVALUATION_PROCESS, False),
        "trial": (None, True),
    }
    with travelling(sys.modules[__name__]):
        for name, (environment, sealed) in [*kinds.items()] * 2:
            options = {"runtime_env": {"env_vars": environment}} if environment else {}
            task = ray.remote(num_cpus=2, **options)(a_process)  # all that there are
            process, kind = ray.get(task.remote(sealed))
            assert kind == ("evaluation" if name == "evaluation" else "training")
            processes.setdefault(name, set()).add(process)
    assert not processes["evaluation"] & (processes["training"] | processes["trial"])


def test_a_read_that_is_not_on_record_is_refused(tmp_path: Path) -> None:
    """By the process that would read, whatever the driver does."""
    share_ray()
    options = {"runtime_env": {"env_vars": EVALUATION_PROCESS}}
    job = SplitJob(EvaluationSet("digits", ("digits",)), (), 0, None)
    spec = EncodedTaskSpec(TaskSpec(("digits",), "tiny", (1,), (1,)), "", "cpu", 1, "")
    with pytest.raises(SealedError, match="must be recorded first"):
        ray.get(ray.remote(**options)(classify).remote(job, spec, str(tmp_path), 1.0))


@pytest.mark.slow
def test_images_are_prepared_and_read_by_different_processes(tmp_path: Path) -> None:
    """A folder of photos is decoded on a worker before the search: that one must not evaluate."""
    for label, name in enumerate(("red", "green", "blue")):
        for number in range(8):
            paint(tmp_path / "photos" / name / f"{number}.png", label)
    options = ("--dataset", f"folder:{tmp_path / 'photos'}", "--space", "gda", "--shots", "2")
    for turn in range(4):
        sweep = Sweep(tmp_path, f"turn{turn}")
        done = sweep.run(*options, "--seeds", "1", "--eval-seeds", "1", "--trials", "1", *QUIET)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(reads(sweep)) == 1


def test_a_killed_evaluation_continues(sweep: Sweep, tmp_path: Path) -> None:
    """Killed after trainings and stopped after a read: nothing stored is recomputed, and the result
    equals that of an undisturbed evaluation."""
    draws = 4  # so that a stop after the first read comes before the last
    options = (*RESIDUALS, "--eval-seeds", f"{draws}", *QUIET)
    calm = Sweep(tmp_path, "calm")
    done = calm.run(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stored(calm, "model") == stored(calm, "predictions") == {}
    assert len(reads(calm)) == draws

    process = sweep.start(*options)
    sweep.wait_until(lambda: len(stored(sweep, "model")) >= 2)
    kill_everything(process)
    models = stored(sweep, "model")
    sweep.run_until(lambda: bool(stored(sweep, "predictions")), *options)
    assert models.items() <= stored(sweep, "model").items()
    assert not (sweep.folder / "evaluation.json").exists()
    done = sweep.run(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert comparable(sweep) == comparable(calm)
    assert stored(sweep, "model") == {}
    # Every read is on record, one that was cut short twice; all belong to one evaluation.
    found = reads(sweep)
    assert draws <= len(found) <= draws + 2
    assert {read["evaluation"] for read in found} == {sweep.evaluation()["inputs"]}
    assert "have read the test split" not in done.stdout
    again = sweep.run(*options)
    assert again.returncode == 0
    assert reads(sweep) == found


def trial_workers() -> set[int]:
    """Processes of this process's Ray that train trials."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if re.match("ray::.*Trainable", " ".join(process.cmdline())):
                found.add(process.pid)
    return found


def test_a_free_slot_trains_the_paper_s_setting(sweep: Sweep, tmp_path: Path) -> None:
    """While the last trial runs: its evaluation is needed whatever that trial reaches. If that
    trial's worker dies, another continues the trial."""
    short, long = {"epochs": 2}, {"epochs": 100_000}
    (tmp_path / "first.json").write_text(json.dumps([short, long]))
    killed: set[int] = set()

    def another_continues() -> bool:
        if not stored(sweep, "model"):
            return False
        if not killed:
            killed.update(trial_workers())
            for worker in killed:
                os.kill(worker, signal.SIGKILL)
        return bool(killed) and bool(trial_workers() - killed)

    sweep.run_until(
        another_continues,
        *(*RESIDUALS, "--eval-seeds", "1", "--choice", "epochs=2,100000"),
        *("--enqueue", str(tmp_path / "first.json"), "--tracking-uri", "none"),
        *("--max-concurrent", "2"),
    )
    assert killed
    assert len(stored(sweep, "model")) == 1
    assert len(sweep.results()) == 1


def first_values(sweep: Sweep) -> dict[str, float]:
    return {score["label"]: score["values"][0] for score in sweep.evaluation()["scores"]}


def test_parts_are_used_for_what_they_are(sweep: Sweep) -> None:
    """Stopped after the read for draw 2 of three; then one draw is wanted, then two. That read
    serves both, what is damaged is trained again, and nothing of draw 3 gets into the first."""
    options = (*RESIDUALS, *QUIET)
    sweep.run_until(lambda: bool(stored(sweep, "predictions")), *options, "--eval-seeds", "3")
    before = len(reads(sweep))
    for path in (sweep.folder / FOLDER).glob("model-*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = sweep.run(*options, "--eval-seeds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sweep.evaluation()["seeds"] == [2]
    assert "one draw of training images (seed 2)" in done.stdout
    assert stored(sweep, "predictions") == {}
    assert len(reads(sweep)) == before
    one = first_values(sweep)
    done = sweep.run(*options, "--eval-seeds", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sweep.evaluation()["seeds"] == [2, 3]
    assert first_values(sweep) == one


def test_a_winner_that_is_the_papers_setting_is_trained_once(sweep: Sweep) -> None:
    options = ("--space", "taskres", "--shots", "2", "--seeds", "1", "--select", "0")
    options += ("--trials", "2", "--eval-seeds", "3", *QUIET)
    sweep.run_until(lambda: bool(stored(sweep, "predictions")), *options)  # when all are trained
    assert len(stored(sweep, "model")) == 1 + 3  # zero-shot, and per draw one for paper and winner
    done = sweep.run(*options)
    assert done.returncode == 0, done.stderr
    values = {s["label"]: s["values"] for s in sweep.evaluation()["scores"]}
    assert values["paper"] == values["winner"]
    assert "There is no gain over the paper's setting" in done.stdout


def test_a_single_training_of_the_papers_setting_has_one_row(sweep: Sweep) -> None:
    options = ("--space", "gda", "--shots", "2", "--seeds", "1", "--eval-seeds", "1")
    done = sweep.run(*options, "--trials", "1", *QUIET)
    assert done.returncode == 0, done.stderr
    assert {s["label"] for s in sweep.evaluation()["scores"]} == {"zero-shot", "winner"}
    assert "over the paper's setting" not in done.stdout


@pytest.mark.slow
def test_a_kill_after_the_last_trial_leaves_nothing_out_of_date(tmp_path: Path) -> None:
    """A finished sweep gets more trials, and dies when the last one has ended: evaluation, report
    and MLflow's copy are those of the sweep as it is now."""
    sweep = Sweep(tmp_path, "grown", report=True)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = ("--space", "taskres", "--shots", "2", "--seeds", "1", "--eval-seeds", "1")
    options += ("--tracking-uri", uri, "--max-concurrent", "1", "--pruner", "none")
    done = sweep.run(*options, "--trials", "2")
    assert done.returncode == 0, done.stderr
    page = sweep.folder / "report/report.html"
    assert "winner of 2 completed trials" in page.read_text()
    process = sweep.start(*options, "--trials", "6")
    sweep.wait_until(lambda: len(sweep.results()) == 6)
    kill_everything(process)
    assert "winner of 2 completed trials" in page.read_text()
    done = sweep.run(*options, "--trials", "6")
    assert done.returncode == 0, done.stderr
    best = max(sweep.results().values(), key=lambda r: (r["value"], -r["metrics"]["val/loss"]))
    assert sweep.evaluation()["winner"] == best["number"]
    text = page.read_text()
    assert f"Trial {best['number']} is the winner of 6 completed trials" in text
    client = MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    (own,) = (
        run for run in client.search_runs(experiments) if "test/accuracy_winner" in run.data.metrics
    )
    assert own.data.tags["search.best_trial"] == str(best["number"])
    accuracy = [s["values"][0] for s in sweep.evaluation()["scores"] if s["label"] == "winner"]
    assert own.data.metrics["test/accuracy_winner"] == pytest.approx(accuracy[0])
    copy = Path(client.download_artifacts(own.info.run_id, "report/report.html", str(tmp_path)))
    assert copy.read_text() == text
    # And a report that is up to date is not written again.
    before = page.stat().st_mtime_ns
    assert sweep.run(*options, "--trials", "6").returncode == 0
    assert page.stat().st_mtime_ns == before
