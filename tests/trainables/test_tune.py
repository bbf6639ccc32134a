"""The trainable in a user's script: Tune's schedulers, searchers and callbacks use it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from mlflow import MlflowClient
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch
from safetensors import safe_open

from tests.shared_ray import share_ray
from trainables.trainable import FewShotTrainable

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's, about itself

TASK: dict[str, Any] = {"method": "taskres", "dataset": "digits", "shots": 2, "device": "cpu"}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    share_ray()


def fit(
    space: dict[str, Any],
    folder: Path,
    trainable: type[FewShotTrainable] = FewShotTrainable,
    run: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> tune.ResultGrid:
    given = {"metric": "val/accuracy", "mode": "max", "reuse_actors": True} | settings
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space=TASK | space,
        tune_config=tune.TuneConfig(**given),
        run_config=tune.RunConfig(storage_path=str(folder), name="own", verbose=0, **run),
    )
    return tuner.fit()


def artifacts(result: tune.Result) -> list[str]:
    return sorted(path.name for path in Path(result.path).glob("artifact*.safetensors"))


def test_asha_stops_trials_by_plain_metrics(tmp_path: Path) -> None:
    grid = fit(
        {"epochs": 8, "lr": tune.grid_search([2e-2, 1e-2, 5e-3, 1e-6, 1e-7, 1e-8])},
        tmp_path,
        metric="val/loss",
        mode="min",
        scheduler=ASHAScheduler(max_t=8, grace_period=1, reduction_factor=2),
    )
    assert not grid.errors
    steps = [result.metrics["training_iteration"] for result in grid]
    assert max(steps) == 8
    assert min(steps) < 8
    best = grid.get_best_result()
    assert best.metrics["epoch"] == 8
    assert {"val/accuracy", "val/loss", "train/loss", "train/lr"} <= set(best.metrics)
    # Stopped trials, too, and each in its own folder.
    assert all(artifacts(result) == ["artifact.safetensors"] for result in grid)
    assert len({result.path for result in grid}) == 6
    assert len({result.metrics["pid"] for result in grid}) <= 2  # warm workers


def test_population_based_training_changes_rate_and_leak_in_mid_training(tmp_path: Path) -> None:
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=4,
        synch=True,  # else a trial may finish before the other one has begun
        hyperparam_mutations={"lr": tune.choice([1e-3, 4e-3]), "leak": tune.uniform(0, 1)},
        quantile_fraction=0.5,
        resample_probability=1.0,
    )
    space = {"method": "rmt", "epochs": 8, "batch_size": 8, "crop_scale": 1.0}
    grid = fit(
        space | {"lr": tune.grid_search([1e-9, 4e-3]), "leak": 0.5},
        tmp_path,
        scheduler=scheduler,
    )
    assert not grid.errors
    assert [result.metrics["epoch"] for result in grid] == [8, 8]
    configs = [result.metrics["config"] for result in grid]
    changed = [config for config in configs if config["leak"] != 0.5]
    assert changed
    assert all(config["lr"] in (1e-3, 4e-3) for config in changed)
    for result in grid:
        with safe_open(Path(result.path) / "artifact.safetensors", framework="pt") as file:
            assert "format" in file.metadata()


def test_optuna_searches_mlflow_logs_and_tune_keeps_the_checkpoint(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    grid = fit(
        {"alpha": tune.uniform(0.1, 2), "lr": tune.loguniform(1e-3, 1e-1), "epochs": 2},
        tmp_path,
        search_alg=OptunaSearch(seed=0),
        num_samples=3,
        max_concurrent_trials=1,
        run={
            "checkpoint_config": tune.CheckpointConfig(checkpoint_at_end=True),
            "callbacks": [MLflowLoggerCallback(tracking_uri=uri, experiment_name="own")],
        },
    )
    assert not grid.errors
    alphas = {result.metrics["config"]["alpha"] for result in grid}
    assert len(alphas) == 3
    best = grid.get_best_result()
    assert best.checkpoint is not None
    with best.checkpoint.as_directory() as folder:
        assert [path.name for path in Path(folder).glob("*.safetensors")]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("own")
    runs = client.search_runs([experiment.experiment_id])
    assert {float(run.data.params["alpha"]) for run in runs} == alphas
    for run in runs:
        assert run.data.params["method"] == "taskres"
        assert 0 < run.data.metrics["val/accuracy"] <= 1


def test_an_unknown_parameter_is_one_clear_error(tmp_path: Path) -> None:
    grid = fit({"lrr": 0.1}, tmp_path)
    (error,) = grid.errors
    assert "There is no parameter 'lrr' of taskres. Did you mean lr" in str(error)


def test_workers_receive_plugins(tmp_path: Path) -> None:
    """Of which their environment has neither the variable nor the file."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from trainables.data.digits import Digits\n"
        "DATASETS = {'my-digits': lambda name, root, generate_split: Digits('digits')}\n"
    )
    before = os.environ.get("FEWSHOT_PLUGINS")
    trainable = FewShotTrainable.with_plugins(str(plugin))
    plugin.unlink()
    space = {"dataset": "my-digits", "epochs": 2}
    grid = fit(space, tmp_path / "own", trainable=trainable)
    assert not grid.errors
    assert all(artifacts(result) == ["artifact.safetensors"] for result in grid)
    assert os.environ.get("FEWSHOT_PLUGINS") == before
