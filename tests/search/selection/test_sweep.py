"""A sweep's result is an ensemble, and another choice afterwards replaces it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.core.sweep_folder import SweepFolder
from search.exporting.model import find_artifact, open_model
from tests.search.conftest import Sweep
from trainables.core.storage import LocalStorage
from trainables.ensemble import Ensemble
from trainables.trial import TrialConfig

OPTIONS = ("--space", "taskres", "--shots", "4", "--seeds", "1,2", "--eval-seeds", "1")
QUIET = ("--trials", "4", "--tracking-uri", "none", "--max-concurrent", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, str]:
    sweep = Sweep(tmp_path_factory.mktemp("ensembles"), "pool")
    done = sweep.run(*OPTIONS, *QUIET)
    assert done.returncode == 0, done.stderr
    return sweep, done.stdout


def written(sweep: Sweep) -> TrialConfig:
    return TrialConfig.from_dict(json.loads((sweep.folder / "winner/config.json").read_text()))


def test_an_ensemble_is_evaluated_and_exported(finished: tuple[Sweep, str]) -> None:
    sweep, out = finished
    selection = sweep.evaluation()["selection"]
    assert selection == json.loads((sweep.folder / "selection.json").read_text())
    assert len(selection["members"]) > 1
    assert "The result is an ensemble that adds weighted log-probabilities" in out
    assert f"The best single trial is trial {selection['trial']}" in out
    config, trials = written(sweep), sweep.results()
    for member, share in zip(config.members, selection["members"], strict=True):
        assert member.weight == share["weight"]
        if share["trial"] is None:
            assert member.config.method == "zero-shot"
        else:
            assert member.config.to_dict() == trials[share["trial"]]["config"]
    artifact = find_artifact(SweepFolder(LocalStorage(sweep.folder)), "best", "")
    model = open_model(artifact, "")
    assert isinstance(model.trained, Ensemble)
    assert "#" in artifact.source


def test_another_choice_replaces_it(finished: tuple[Sweep, str], tmp_path: Path) -> None:
    sweep, _ = finished
    done = sweep.run(*OPTIONS, *QUIET, "--select", "1")
    assert done.returncode == 0, done.stderr
    assert "The winner is trial 1, named by --select" in done.stdout
    assert sweep.evaluation()["winner"] == 1
    assert written(sweep).to_dict() == sweep.results()[1]["config"]


def test_a_choice_that_cannot_come_true_is_an_error_before_any_trial(
    finished: tuple[Sweep, str],
) -> None:
    sweep, _ = finished
    known = sorted(sweep.results())
    for options in (("--dry-run",), ("--trials", "6"), ("--eval-seeds", "0")):
        done = sweep.run(*OPTIONS, *QUIET, "--select", "9", *options)
        assert done.returncode == 2
        assert "--select must be ensemble, best or a complete trial, got 9" in done.stderr
        assert ("--eval-seeds must be at least 1" in done.stderr) == ("--eval-seeds" in options)
    assert sorted(sweep.results()) == known
