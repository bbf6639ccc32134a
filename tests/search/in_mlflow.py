"""What MLflow holds of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

TIMEOUT = 60.0


def wait_until(true: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def runs_of(uri: str, sweep: str = "s1") -> dict[str, Run]:
    """By trial number, "" for the sweep's own run; a run that exists twice fails the test."""
    client = MlflowClient(tracking_uri=uri)
    for _ in range(3):  # the server may close a connection at the moment when it is used again
        with suppress(MlflowException):
            experiment = client.get_experiment_by_name("few-shot-search")
            break
    assert experiment is not None
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`search.sweep` = '{sweep}'", max_results=1000
    )
    runs = {run.data.tags.get("search.trial", ""): run for run in found}
    assert len(runs) == len(found)
    return runs


def history(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    found = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, name)
    return sorted((m.step, m.value) for m in found)


def content(uri: str, sweep: str, folder: Path) -> dict[str, dict[str, object]]:
    """All that MLflow holds of a sweep, without the names that it gives itself. `folder` is for
    downloads."""
    client = MlflowClient(tracking_uri=uri)
    runs = runs_of(uri, sweep)
    parent = runs[""].info.run_id
    told: dict[str, dict[str, object]] = {}
    for number, run in runs.items():
        own = ("mlflow.user", "mlflow.source.")  # of the process that has created the run
        tags = {key: value for key, value in run.data.tags.items() if not key.startswith(own)}
        if number:
            assert tags.pop("mlflow.parentRunId") == parent
        download = folder / f"run-{number or 'sweep'}"
        download.mkdir(parents=True)
        client.download_artifacts(run.info.run_id, "", str(download))
        told[number] = {
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": tags,
            "metrics": {
                name: sorted(
                    (m.step, m.timestamp, repr(m.value))
                    for m in client.get_metric_history(run.info.run_id, name)
                )
                for name in run.data.metrics
            },
            "artifacts": {
                str(path.relative_to(download)): path.read_bytes()
                for path in sorted(download.rglob("*"))
                if path.is_file()
            },
        }
    return told
