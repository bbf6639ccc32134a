"""A sweep from Python: one real run, then what can be asked of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

from search import FewShotTrainable, Sweep
from search.api import command_line
from search.core.problems import UsageError
from search.evaluation.predictions import read_predictions
from trainables.data.digits import Digits

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]  # Ray's own


@dataclass(frozen=True)
class AnyDataSet:
    """A permit of the test itself."""

    def check(self, dataset: str) -> None:
        return


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A finished sweep of two trials."""
    found = Sweep(
        space="taskres",
        dataset="digits",
        shots=4,
        seeds=[1],
        trials=1,
        eval_seeds=1,
        max_concurrent=1,
        tracking_uri="none",
        no_report=True,
        name="own",
        storage=tmp_path_factory.mktemp("sweeps"),
    )
    assert found.run(quiet=True).states["COMPLETE"] == 1
    assert found.resume(trials=2, quiet=True).states["COMPLETE"] == 2
    return found


def test_trials_are_a_table(sweep: Sweep) -> None:
    table = sweep.trials()
    assert table.index.tolist() == [0, 1]
    assert table["state"].tolist() == ["COMPLETE", "COMPLETE"]
    assert table["value"].between(0, 1).all()
    assert {"parameters.lr", "metrics.val/accuracy", "train_seconds"} <= set(table.columns)
    assert sweep.best_trial is not None
    assert table["value"].idxmax() == sweep.best_trial.number
    rows = sweep.epochs(0)
    assert rows.index[-1] == sweep.results[0].config["optim"]["epochs"]
    assert rows["train/loss"].notna().all()


def test_the_study_is_optuna_s(sweep: Sweep) -> None:
    study = sweep.study
    assert isinstance(study, optuna.Study)
    assert sweep.best_trial is not None
    assert study.best_value == sweep.best_trial.value
    assert [trial.params for trial in study.trials] == [
        result.parameters for result in sweep.results.values()
    ]


def test_a_sweep_is_opened_by_name(sweep: Sweep) -> None:
    again = Sweep.open("own", sweep.storage)
    assert repr(again) == repr(sweep)
    assert again.config == sweep.config
    assert again.evaluation is not None
    with pytest.raises(UsageError, match="There is no sweep 'other' in"):
        Sweep.open("other", sweep.storage)


def test_a_sweep_is_made_from_its_file(sweep: Sweep, tmp_path: Path) -> None:
    file = Path(sweep.storage) / sweep.name / "sweep.yaml"
    again = Sweep.from_yaml(file, storage=tmp_path, name="again")
    assert (again.name, again.storage) == ("again", str(tmp_path))
    (tmp_path / "wrong.yaml").write_text("space: taskres\ntrails: 3\n")
    with pytest.raises(UsageError, match="Did you mean --trials"):
        Sweep.from_yaml(tmp_path / "wrong.yaml")
    with pytest.raises(UsageError, match=r"none\.yaml"):
        Sweep.from_yaml(tmp_path / "none.yaml")


def test_the_loaded_model_predicts_what_the_evaluation_did(sweep: Sweep, tmp_path: Path) -> None:
    """On the same test images, from files."""
    images = Digits("digits").sealed_split(AnyDataSet()).images
    assert sweep.evaluation is not None
    (table,) = read_predictions(sweep.folder.files, sweep.evaluation)
    (winner,) = (answers for answers in table.answers if answers.label == "winner")
    files = [tmp_path / f"{row:03}.png" for row in range(len(images))]
    for row, file in enumerate(files):
        Image.fromarray(images.read(row).permute(1, 2, 0).numpy()).save(file)
    labels, probabilities = sweep.load().predict(files)
    assert labels == [table.classes[place] for place in winner.prediction]
    np.testing.assert_allclose(probabilities.max(1), winner.confidence, atol=1e-5)
    assert sweep.load(trial=1).classes == table.classes


def test_errors_have_the_commands_texts_and_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        Sweep(space="taskrez", trials=0, sampler="best", storage=tmp_path)
    assert len(error.value.problems) == 3
    assert "There is no space 'taskrez'" in str(error.value)
    with pytest.raises(UsageError, match="Did you mean --trials"):
        Sweep(trails=3)
    with pytest.raises(UsageError, match="per_task makes several sweeps"):
        Sweep(per_task=True, shots=[1, 2])
    with pytest.raises(UsageError, match="--data"):
        Sweep(dataset="dtd", storage=tmp_path, tracking_uri="none").run(quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"time_budget": 90.0, "shots": [1, 4]}, ["--time-budget=90.0", "--shots=1,4"]),
        ({"no_report": True, "per_task": False, "name": None}, ["--no-report"]),
        ({"set": {"leak": 0.3, "deep": True}}, ["--set=leak=0.3", "--set=deep=true"]),
        ({"range": {"lr": (1e-4, 0.1, "log")}}, ["--range=lr=0.0001:0.1:log"]),
        ({"grid": {"matrices": ["q,v", "q"]}}, ["--grid=matrices=q,v|q"]),
        ({"storage": Path("/a b")}, ["--storage=/a b"]),
    ],
)
def test_keyword_arguments_are_the_options(options: dict[str, Any], expected: list[str]) -> None:
    assert command_line(options) == expected


def test_the_package_is_imported_quickly() -> None:
    code = "import search, sys; assert not {'torch', 'ray', 'optuna'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert FewShotTrainable.__module__ == "trainables.trainable"
    with pytest.raises(AttributeError, match="has no attribute 'Sweeps'"):
        getattr(__import__("search"), "Sweeps")  # noqa: B009
