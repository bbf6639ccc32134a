"""Two objectives: what is optimised, kept through a crash, and shown as a front."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.core.objectives import (
    SAMPLERS_OF_TWO,
    Objective,
    choice_problem,
    front_of,
    pareto_front,
    parse_objective,
)
from search.ledger.ledger import Ledger
from search.options import configure
from spaces.registry import SPACES
from tests.search.conftest import Sweep
from tests.search.core.test_results import RESULT_RECORD
from tests.search.driver.test_sweep import QUIET
from trainables.core.storage import LocalStorage
from trainables.methods.base import TaskFacts

SPACE = SPACES["rmt"].build(TaskFacts("digits", 4, 40, "vit"))
ALSO = "mask/sparsity:max"


def open_ledger(folder: Path, sampler: str = "tpe") -> Ledger:
    sweep = LocalStorage(folder)
    return Ledger(sweep, SPACE, sampler, "none", 0, also=ALSO)


def test_what_an_objective_is() -> None:
    also = parse_objective("mask/sparsity:max")
    assert also == Objective("mask/sparsity", "maximize")
    assert also.words == "mask/sparsity (to maximize)"
    assert (also.value({"mask/sparsity": 0.5}), also.value({})) == (0.5, None)
    assert also.value({"mask/sparsity": float("nan")}) is None
    assert parse_objective("a:b:min") == Objective("a:b", "minimize")
    for wrong in ("mask/sparsity", "mask/sparsity:up", ":max"):
        with pytest.raises(ValueError, match="METRIC:max or METRIC:min"):
            parse_objective(wrong)


def test_which_trials_can_be_chosen() -> None:
    ended = {
        0: replace(RESULT_RECORD, number=0),
        1: replace(RESULT_RECORD, number=1, state="PRUNED"),
        2: replace(RESULT_RECORD, number=2, value=0.75),
    }
    for choice in ("best", "ensemble", "0", "2", "5"):
        assert choice_problem(choice, ended, trials=6) == ""
    assert "got 1, which is PRUNED. Complete so far, the best first: 2, 0." in choice_problem(
        "1", ended, trials=6
    )
    assert "got 6, and --trials 6 ends before it." in choice_problem("6", ended, trials=6)
    assert choice_problem("6", {}, trials=6).endswith("ends before it.")


POINTS = st.dictionaries(
    st.integers(0, 40), st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1
)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: dict[int, tuple[int, int]]) -> None:
    front = pareto_front({n: (float(x), float(y)) for n, (x, y) in points.items()})
    for number, (cost, value) in points.items():
        better = [
            n
            for n, (x, y) in points.items()
            if x <= cost and y >= value and ((x, y) != (cost, value) or n < number)
        ]
        assert (number in front) == (not better)
    costs = [points[n][0] for n in front]
    assert costs == sorted(costs)


@pytest.mark.parametrize("sampler", SAMPLERS_OF_TWO)
def test_the_study_knows_both_after_a_crash(tmp_path: Path, sampler: str) -> None:
    ledger = open_ledger(tmp_path / "sweep", sampler)
    for number in range(12):  # beyond the trials that are drawn at random
        live = ledger.ask()
        values = [round(0.5 + 0.01 * number, 2)] * 2
        metrics = {"val/accuracy": values[-1], "mask/sparsity": 0.9 - 0.05 * number}
        ledger.report(number, values, metrics)
        assert ledger.prune(live.number) is None
        ledger.finish(number, "COMPLETE")
    known = [[round(0.5 + 0.01 * n, 2), 0.9 - 0.05 * n] for n in range(12)]
    shutil.copytree(tmp_path / "sweep", tmp_path / "killed")
    killed = open_ledger(tmp_path / "killed", sampler)
    for again in (ledger, killed):
        assert [frozen.values for frozen in again.frozen()] == known
        assert again.best() == again.results[11]  # the most accurate
    assert killed.ask().config == ledger.ask().config
    # The one rises as the other falls: all are on the front, the sparsest first.
    assert front_of(killed.results.values(), parse_objective(ALSO)) == list(range(12))
    assert front_of(killed.results.values(), parse_objective("mask/sparsity:min")) == [11]


def test_a_trial_without_the_second_value_has_failed(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    live = ledger.ask()
    ledger.report(live.number, [0.5], {"val/accuracy": 0.5})
    result = ledger.finish(live.number, "COMPLETE")
    assert (result.state, result.value) == ("FAIL", None)
    assert "mask/sparsity" in result.reason
    assert open_ledger(tmp_path).results[0] == result


def test_what_does_not_go_with_it() -> None:
    assert configure(["--second-objective", ALSO]).pruner == "none"
    assert configure(["--second-objective", ALSO]).problems() == []
    (stopped,) = configure(["--second-objective", ALSO, "--pruner", "asha"]).problems()
    assert "--pruner must be none" in stopped
    (sampler,) = configure(["--second-objective", ALSO, "--sampler", "cmaes"]).problems()
    assert "tpe" in sampler
    (wrong,) = configure(["--second-objective", "mask/sparsity"]).problems()
    assert "METRIC:max" in wrong
    plain = configure([])
    assert "also" not in plain.identity()  # the names of other sweeps stay what they are
    assert (
        configure(["--second-objective", ALSO]).sweep_name
        != configure(["--pruner", "none"]).sweep_name
    )


def test_a_sweep_for_two(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "two", report=True)
    options = ("--space", "taskres", "--shots", "2", "--trials", "5", "--eval-seeds", "1", *QUIET)
    options += ("--max-concurrent", "1")
    unknown = sweep.run(*options, "--second-objective", "residual/nrom:min")
    assert unknown.returncode == 2
    assert "Did you mean 'residual/norm'?" in unknown.stderr
    assert not sweep.folder.exists()
    done = sweep.run(*options, "--second-objective", "train/loss:min")
    assert done.returncode == 0, done.stdout + done.stderr
    results = sweep.results()
    points = {n: (r["metrics"]["train/loss"], r["value"]) for n, r in results.items()}
    front = ", ".join(map(str, pareto_front(points)))
    line = f"Pareto front of validation accuracy and train/loss (to minimize): {front}."
    assert line in done.stdout.replace("\n", " ")
    table = (sweep.folder / "report/tables/front.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table[1:]] == front.split(", ")
    best = max(results.values(), key=lambda r: r["value"])["value"]
    assert results[sweep.evaluation()["winner"]]["value"] == best
    assert json.loads((sweep.folder / "sweep.json").read_text())["config"]["second_objective"]
    other = sweep.run(*options, "--second-objective", "train/loss:max")
    assert other.returncode == 2
    assert "second_objective: the sweep has" in other.stderr
