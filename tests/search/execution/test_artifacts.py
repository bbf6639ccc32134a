"""Which artifacts a sweep keeps."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from search.core.config import SweepConfig
from search.core.objectives import best_of, parse_objective
from search.core.results import Result, State, learned_files, trial_folder
from search.execution.artifacts import BestArtifacts, keeps_stopped
from search.ledger.ledger import Ledger
from trainables.core.storage import LocalStorage


def result(number: int, value: float, state: State = "COMPLETE", cost: float = 0.0) -> Result:
    metrics = {"mask/sparsity": cost, "val/loss": 1.0}
    return Result(number, state, value, (), metrics, {}, {}, {}, {}, 1.0, 0.0, 1.0, "host")


def kept(tmp_path: Path, results: list[Result], second: str = "") -> list[int]:
    """Numbers of the trials whose artifacts remain."""
    sweep = LocalStorage(tmp_path)
    listener = BestArtifacts(sweep, parse_objective(second) if second else None)
    ended: dict[int, Result] = {}
    best = partial(best_of, ended.values())
    ledger = cast(Ledger, SimpleNamespace(results=ended, best=best))
    for one in results:
        folder = sweep.child(trial_folder(one.number))
        for name in ("artifact-seed1.safetensors", "artifact-seed2.safetensors", "result.json"):
            folder.write(name, b"")
        ended[one.number] = one
        listener.ended(one, ledger)
        assert folder.exists("result.json")
    return [r.number for r in results if learned_files(sweep.child(trial_folder(r.number)))]


def test_only_the_best_trial_s_artifacts_remain(tmp_path: Path) -> None:
    results = [result(0, 0.5), result(1, 0.7), result(2, 0.6), result(3, 0.9, "PRUNED")]
    assert kept(tmp_path, results) == [1]


def test_the_front_s_artifacts_remain(tmp_path: Path) -> None:
    results = [result(0, 0.5, cost=0.9), result(1, 0.7, cost=0.1), result(2, 0.6, cost=0.05)]
    assert kept(tmp_path, results, "mask/sparsity:max") == [0, 1]


@pytest.mark.parametrize(
    ("choice", "pruner", "free", "expected"),
    [
        ("auto", "asha", 10**10, True),
        ("auto", "asha", 10**9, False),
        ("all", "asha", 10**9, True),
        ("all", "none", 10**10, False),  # no trial is stopped
        ("complete", "asha", 10**10, False),
        ("best", "asha", 10**10, False),
    ],
)
def test_stopped_trials_leave_artifacts_if_the_disk_allows(
    choice: str,
    pruner: str,
    free: int,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def usage(path: Any) -> SimpleNamespace:
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    config = SweepConfig(keep_artifacts=choice, pruner=pruner)
    assert keeps_stopped(config, LocalStorage(tmp_path)) is expected


def test_an_unknown_choice_is_an_error() -> None:
    (problem,) = SweepConfig(keep_artifacts="bets").problems()
    assert "There is no choice for --keep-artifacts 'bets'" in problem
    assert "Did you mean 'best'?" in problem
