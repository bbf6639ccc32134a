"""The recipe for servers that exist already: MLflow and PostgreSQL, on this machine.

MLflow stores its runs in PostgreSQL, too. The study and MLflow have a database each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.storages import RDBStorage

from tests.servers import Mlflow, Postgresql, postgresql_programs


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """The URI of a running PostgreSQL, up to the name of its databases `mlflow` and `optuna`."""
    import psycopg

    server = Postgresql(folder / "postgresql.log")
    try:
        server.wait()
        with psycopg.connect(server.uri, autocommit=True) as connection:
            connection.execute("CREATE DATABASE mlflow")
            connection.execute("CREATE DATABASE optuna")
        yield server.uri.removesuffix("postgres")
    finally:
        server.remove()


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.skipif(postgresql_programs() is None, reason="PostgreSQL is not installed")
@pytest.mark.filterwarnings("ignore")  # of Optuna, about its own storage
def test_a_sweep_with_both(tmp_path: Path) -> None:
    with database(tmp_path) as uri:
        backend = uri.replace("postgresql:", "postgresql+psycopg:") + "mlflow"
        mlflow = Mlflow(tmp_path, "--backend-store-uri", backend)
        mlflow.wait()
        try:
            ours = {"MLFLOW_TRACKING_URI": mlflow.uri, "MLFLOW_EXPERIMENT_NAME": "parts"}
            options = "--space taskres --trials 2 --shots 2 --seeds 1 --eval-seeds 1 --no-report"
            for command in (
                "-m search.doctor",
                f"-m search.run {options} --name s --study-storage {uri}optuna",
            ):
                done = subprocess.run(
                    [sys.executable, *command.split()],
                    env=os.environ | ours,
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    timeout=1200,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
            client = MlflowClient(tracking_uri=mlflow.uri)
            experiment = client.get_experiment_by_name("parts")
            assert experiment is not None
            assert len(client.search_runs([experiment.experiment_id])) == 3  # sweep and trials
        finally:
            mlflow.kill()
        assert not (tmp_path / "mlflow.db").exists()
        storage = RDBStorage(uri.replace("postgresql:", "postgresql+psycopg:") + "optuna")
        try:
            (study,) = optuna.get_all_study_summaries(storage)
        finally:
            storage.remove_session()
            storage.engine.dispose()
        assert study.study_name.startswith("s-")
        assert study.n_trials == 2
