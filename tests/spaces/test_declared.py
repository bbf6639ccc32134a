"""Declarative spaces: every row is a field, and its range contains the paper's value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from spaces.declared import CROPS, Categorical, DeclaredSpace, Float, Int, Range
from trainables.methods.base import TaskFacts
from trainables.trial import TrialConfig

FACTS = TaskFacts("digits", 16, 160, "vit")
RANGES: dict[str, Range] = {
    "alpha": Float(0.1, 1.0, log=True),
    "lr": Float(1e-4, 1e-3, log=True),
    "weight_decay": Float(1e-4, 1e-2),
    "epochs": Int(10, 100),
    "learn_alpha": Categorical((True,)),
    **CROPS,
}
SPACE = DeclaredSpace(FACTS, "table", "taskres", RANGES)


def chosen(space: DeclaredSpace, seed: int, count: int = 50) -> list[TrialConfig]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.suggest(study.ask()) for _ in range(count)]


def test_the_papers_values_are_within() -> None:
    """Ranges without these values are extended: 2e-3, no decay, 200 epochs, a fixed alpha."""
    paper = SPACE.paper
    assert SPACE.first_parameters == {
        "alpha": 0.5,
        "lr": 2e-3,
        "weight_decay": 0.0,
        "epochs": 200,
        "learn_alpha": False,
        "crop_scale": 1.0,
    }
    trial = FixedTrial(dict(SPACE.first_parameters))
    assert SPACE.suggest(trial) == paper
    for name, value in SPACE.first_parameters.items():
        distribution = trial.distributions[name]
        assert distribution._contains(distribution.to_internal_repr(value)), name


def test_every_row_is_a_field_and_nothing_else_changes() -> None:
    paper = SPACE.paper
    found = chosen(SPACE, seed=0)
    for config in found:
        assert config.problems() == []
        flat, before = config.flat(), paper.flat()
        assert {n for n in flat if flat[n] != before[n]} <= {*RANGES, "preset"}
    for name in RANGES:
        assert len({config.flat()[name] for config in found}) > 1, name
    assert {config.preset for config in found} == {"search"}


@pytest.mark.parametrize("name", RANGES)
def test_one_change_changes_one_field(name: str) -> None:
    other: dict[str, Any] = {
        "alpha": 0.9,
        "lr": 1e-3,
        "weight_decay": 1e-3,
        "epochs": 11,
        "learn_alpha": True,
        "crop_scale": 0.5,
    }
    config = SPACE.suggest(FixedTrial(dict(SPACE.first_parameters) | {name: other[name]}))
    flat, paper = config.flat(), SPACE.paper.flat()
    assert {n for n in flat if flat[n] != paper[n]} == {name, "preset"}
    assert flat[name] == other[name]


def test_features_are_not_cropped() -> None:
    space = replace(SPACE, facts=replace(FACTS, pixels=False))
    assert "crop_scale" not in space.first_parameters
    assert {config.crop_scale for config in chosen(space, seed=1)} == {1.0}


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.booleans())
def test_reals_hold_the_paper(first: float, second: float, paper: float, log: bool) -> None:
    low, high = sorted((first, second))
    trial = FixedTrial({"x": paper})
    assert Float(low, high, log).suggest(trial, "x", paper) == paper
    assert (trial.distributions["x"].low, trial.distributions["x"].high) == (
        min(low, paper),
        max(high, paper),
    )


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 200))
def test_whole_numbers_hold_the_paper(first: int, second: int, paper: int) -> None:
    low, high = sorted((first, second))
    trial = FixedTrial({"x": paper})
    assert Int(low, high).suggest(trial, "x", paper) == paper
    assert trial.distributions["x"].low <= low
    assert trial.distributions["x"].high >= high


@given(st.lists(st.integers(0, 5), min_size=1, unique=True), st.integers(0, 9))
def test_choices_hold_the_paper_once(values: list[int], paper: int) -> None:
    trial = FixedTrial({"x": paper})
    assert Categorical(tuple(values)).suggest(trial, "x", paper) == paper
    choices = trial.distributions["x"].choices
    assert sorted(choices) == sorted({*values, paper})


def test_a_row_that_is_no_field() -> None:
    space = DeclaredSpace(FACTS, "table", "taskres", {"alfa": Float(0, 1)})
    with pytest.raises(KeyError, match="alfa"):
        chosen(space, seed=0, count=1)
