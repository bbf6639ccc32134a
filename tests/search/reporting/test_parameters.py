"""Importances, slices, parallel coordinates and the trade-off."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Sequence

import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from search.core.results import Result, State
from search.reporting.parameters import importances, parameters_section, tradeoff_section
from tests.search.reporting.made import result, sweep_of


def test_importances_see_what_matters() -> None:
    grid = itertools.product(range(6), range(6))
    trials = [
        result(i, (0.1 * a + 0.001 * b,), alpha=a / 6, beta=b / 6, still=0.5)
        for i, (a, b) in enumerate(grid)
    ]
    found = importances(trials)
    assert next(iter(found)) == "alpha"
    assert found["alpha"] > 0.9
    assert set(found) == {"alpha", "beta"}
    assert sum(found.values()) == pytest.approx(1)
    assert importances(trials[:3]) == {}
    assert importances([result(i, (0.5,), alpha=i / 9) for i in range(9)]) == {}


def test_importances_of_many_trials_are_those_of_a_part() -> None:
    """Their time grows with the square of the number of trials: minutes for 10,000."""
    rng = random.Random(1)
    trials = [
        result(i, (a + 0.01 * rng.random(),), alpha=a, beta=rng.random())
        for i, a in enumerate(rng.random() for _ in range(4000))
    ]
    begun = time.process_time()
    found = importances(trials)
    assert time.process_time() - begun < 20
    assert found["alpha"] > 0.9


def mixed(count: int = 12) -> list[Result]:
    """Trials with parameters of every kind, one of them conditional; every other one is pruned."""
    kinds = {
        "lr": distribution_to_json(FloatDistribution(1e-4, 1e-1, log=True)),
        "epochs": distribution_to_json(IntDistribution(1, 5)),
        "mask": distribution_to_json(CategoricalDistribution(["<b>", "soft"])),
        "leak": distribution_to_json(FloatDistribution(0.0, 1.0)),
    }
    trials = []
    for n in range(count):
        state: State = "PRUNED" if n % 2 else "COMPLETE"
        values = {"lr": 10 ** (-4 + n / 4), "epochs": 1 + n % 5, "mask": ["<b>", "soft"][n % 2]}
        values |= {"leak": n / count} if n % 3 else {}
        found = result(n, (0.02 * n,), state)
        own = {name: kinds[name] for name in values}
        trials.append(dataclasses.replace(found, parameters=values, distributions=own))
    return trials


def test_pruned_trials_are_in_every_figure() -> None:
    section = parameters_section(sweep_of("s", trials=tuple(mixed())))
    assert section is not None
    figures = {figure.name: figure for figure in section.figures}
    slices = [f"slice-{name}" for name in ("lr", "epochs", "mask", "leak")]
    assert list(figures) == ["importances", *slices, "parallel"]
    names = [trace["name"] for trace in figures["importances"].data]
    assert names == ["completed trials", "completed and pruned"]
    for name in slices[:3]:
        points = {t["name"]: len(t["x"]) for t in figures[name].data}
        assert points == {"pruned": 6, "completed": 6}
    assert sum(len(t["x"]) for t in figures["slice-leak"].data) == 8
    assert "4 trials do not have it" in figures["slice-leak"].caption
    assert figures["slice-mask"].layout["xaxis"]["range"] == [-0.4, 1.4]  # both ticks are visible
    lines = figures["parallel"].data[0]["dimensions"]
    assert {len(axis["values"]) for axis in lines} == {12}
    assert lines[0]["ticktext"] == ["pruned", "completed"]
    assert lines[-2]["ticktext"][0] == "none"


def test_importances_are_shown_once_if_no_trial_was_pruned() -> None:
    complete = tuple(trial for trial in mixed() if trial.state == "COMPLETE")
    section = parameters_section(sweep_of("s", trials=complete))
    assert section is not None
    (trace,) = section.figures[0].data
    assert trace["name"] == "completed trials"


def test_ticks_are_round_distinct_and_escaped() -> None:
    section = parameters_section(sweep_of("s", trials=tuple(mixed())))
    assert section is not None
    axes = {f.name.removeprefix("slice-"): f.layout["xaxis"] for f in section.figures[1:-1]}
    assert axes["lr"]["ticktext"] == ["0.0001", "0.001", "0.01"]
    assert axes["epochs"]["ticktext"] == ["1", "2", "3", "4", "5"]
    assert axes["mask"]["ticktext"] == ["&lt;b&gt;", "soft"]


def test_without_pruned_or_varied_trials_the_section_still_stands() -> None:
    same = [result(n, (0.5,), alpha=0.1 * n) for n in range(5)]
    section = parameters_section(sweep_of("s", trials=tuple(same)))
    assert section is not None
    assert section.notes == ("Importances are not shown: all trials have the same value.",)
    assert parameters_section(sweep_of("s")) is None


def test_the_two_most_important_numbers_are_plotted_against_each_other() -> None:
    grid = itertools.product(range(5), range(5))
    trials = [result(i, (0.1 * a + 0.02 * b,), a=a / 5, b=b / 5) for i, (a, b) in enumerate(grid)]
    section = parameters_section(sweep_of("s", trials=tuple(trials)))
    assert section is not None
    (pair,) = (figure for figure in section.figures if figure.name == "pair")
    assert pair.title == "a and b"
    assert pair.data[0]["x"] == [trial.parameters["a"] for trial in trials]


def points(front: Sequence[tuple[float, float]]) -> list[Result]:
    return [
        dataclasses.replace(result(n, (y,)), metrics={"mask/sparsity": x})
        for n, (x, y) in enumerate(front)
    ]


def test_the_front_is_connected_and_the_paper_s_setting_marked() -> None:
    trials = points([(0.1, 0.5), (0.2, 0.6), (0.3, 0.55)])
    section = tradeoff_section(sweep_of("s", trials=tuple(trials)))
    assert section is not None
    traces = {trace["name"]: trace for trace in section.figures[0].data}
    assert traces["Pareto front"]["x"] == [10.0, 20.0]
    assert traces["the paper's setting"]["y"] == [50.0]
    assert [row[0] for row in section.tables[0].rows] == ["0", "1"]


@pytest.mark.parametrize(("cost", "shown"), [(1234567.0, "1,234,567"), (0.123456, "0.1235")])
def test_counts_are_written_as_integers(cost: float, shown: str) -> None:
    trials = points([(cost / 100, 0.5), (cost / 50, 0.6)])
    section = tradeoff_section(sweep_of("s", trials=tuple(trials)))
    assert section is not None
    assert section.tables[0].rows[0][1] == shown
