"""What a sweep's result consists of, from results and validation predictions in its folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from search.core.results import Result, commit, read_results, trial_folder
from search.selection.record import Selection, Share
from search.selection.selection import SELECTION, ZERO_SHOT, ensemble_problem, select
from tests.trainables.test_validation import POOLED
from tests.trainables.trials import mask_trial, residual_trial, zero_shot_trial
from trainables.core.storage import LocalStorage
from trainables.encoded_task import EncodedTask
from trainables.predictions import VALIDATION
from trainables.trial import TrialConfig
from trainables.trial_run import TrialRun


def train(
    config: TrialConfig, task: EncodedTask, folder: LocalStorage
) -> tuple[float, dict[str, float]]:
    run = TrialRun(config, POOLED, task)
    report = run.advance()
    while not run.finished:
        report = run.advance()
    run.save_predictions(folder)
    return report.values[-1], report.metrics


@pytest.fixture(scope="module")
def encoded() -> EncodedTask:
    return EncodedTask("tiny", "cpu", POOLED.source(""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, encoded: EncodedTask) -> Path:
    """Four trials of different learning rates, the second of which was pruned."""
    path = tmp_path_factory.mktemp("sweep")
    sweep = LocalStorage(path)
    for number, rate in enumerate((2e-3, 1e-3, 1e-2, 10.0)):
        config = residual_trial(8, lr=rate)
        value, metrics = train(config, encoded, sweep.child(trial_folder(number)))
        state = "PRUNED" if number == 1 else "COMPLETE"
        plain = config.to_dict()
        result = Result(number, state, value, (value,), metrics, {}, {}, {}, plain, 1, 1, 2, "h")
        commit(sweep, result, [])
    return path


@pytest.fixture
def sweep(folder: Path, encoded: EncodedTask, tmp_path: Path) -> LocalStorage:
    shutil.copytree(folder, tmp_path / "copy")
    found = LocalStorage(tmp_path / "copy")
    train(zero_shot_trial(), encoded, found.child(ZERO_SHOT))
    return found


def test_one_trial(sweep: LocalStorage) -> None:
    results = read_results(sweep)
    values = {n: r.value or 0.0 for n, r in results.items() if r.state == "COMPLETE"}
    best = max(values, key=lambda n: values[n])
    found = select(sweep, results, "best")
    assert found is not None
    assert found.is_single
    assert (found.trial, found.rule, found.sentence) == (best, "best", "")
    assert found.config(results, zero_shot_trial()) == TrialConfig.from_dict(results[best].config)
    chosen = select(sweep, results, "3")
    assert chosen is not None
    assert (chosen.trial, chosen.members) == (3, (Share(3, 1.0),))
    only = {n: results[n] for n in (0, 1)}
    alone = select(sweep, only, "ensemble")
    assert alone is not None
    assert alone.is_single
    assert select(sweep, results, "1") is None  # it was pruned
    assert select(sweep, results, "9") is None
    assert not sweep.exists(SELECTION)


def test_an_ensemble_of_complete_trials(sweep: LocalStorage) -> None:
    results = read_results(sweep)
    found = select(sweep, results, "ensemble")
    assert found is not None
    members = [share.trial for share in found.members]
    assert 1 not in members
    config = found.config(results, zero_shot_trial())
    configs = [member.config for member in config.members] or [config]
    known = {None: zero_shot_trial()} | {
        n: TrialConfig.from_dict(r.config) for n, r in results.items()
    }
    assert configs == [known[number] for number in members]
    assert select(sweep, results, "ensemble") == found


def test_it_is_stored_until_results_change(sweep: LocalStorage) -> None:
    results = read_results(sweep)
    found = select(sweep, results, "ensemble")
    stored = json.loads(sweep.read(SELECTION))
    sweep.write(SELECTION, json.dumps(stored | {"note": "stored"}).encode())
    again = select(sweep, results, "ensemble")
    assert again is not None
    assert again.note == "stored"
    fewer = {n: r for n, r in results.items() if n != 3}
    assert select(sweep, fewer, "ensemble") != again
    foreign = [{"trial": 1, "weight": 1.0}], [{"trial": 9, "weight": 1.0}]  # pruned, absent
    changed = [json.dumps(stored | {"members": members}) for members in foreign]
    for content in ("{", *changed, json.dumps(stored | {"trial": 9})):
        sweep.write(SELECTION, content.encode())
        assert select(sweep, results, "ensemble") == found


def test_without_predictions(sweep: LocalStorage) -> None:
    results = read_results(sweep)
    for number in results:
        sweep.child(trial_folder(number)).delete(VALIDATION)
    found = select(sweep, results, "ensemble")
    assert found is not None
    assert found.is_single
    assert found.note == "No validation predictions are stored."
    sweep.child(ZERO_SHOT).delete(VALIDATION)
    sweep.delete(SELECTION)
    assert select(sweep, results, "ensemble") is None


def test_words() -> None:
    shares = (Share(4, 3.0), Share(None, 1.0))
    assert Selection(4, shares, "ensemble").sentence == (
        "The result is an ensemble that adds weighted log-probabilities: trial 4 (75 %), "
        "zero-shot (25 %)."
    )
    only = Selection(4, (Share(None, 1.0),), "ensemble", "Nothing is better.")
    assert only.sentence == "The result is the model zero-shot. Nothing is better."


def test_what_cannot_be_a_member() -> None:
    assert ensemble_problem(residual_trial()) == ""
    assert "rmt changes it" in ensemble_problem(mask_trial())
    later = residual_trial().after(mask_trial())
    assert "rmt+taskres changes it" in ensemble_problem(later)
    assert ensemble_problem(replace(residual_trial(), members=())) == ""
