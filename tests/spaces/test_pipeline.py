"""Spaces with stages: each parameter reaches its own stage, and names list the stages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from spaces.pipeline import PipelineSpace, StartedSpace
from spaces.registry import SPACES, SpaceError, find_space
from trainables.methods.base import TaskFacts
from trainables.trial import TrialConfig

FACTS = TaskFacts("digits", 4, 40, "vit")
MASKS, RESIDUAL = (SPACES[name].build(FACTS) for name in ("rmt", "taskres"))
SPACE = PipelineSpace((MASKS, RESIDUAL))


def test_the_stages_are_chained() -> None:
    paper = SPACE.paper
    assert SPACE.name == "rmt+taskres"
    assert [stage.method for stage in paper.stages] == ["rmt", "taskres"]
    assert paper.preset == "paper"
    masks, residual = (replace(stage, before=None) for stage in paper.stages)
    assert (masks, residual) == (MASKS.paper, RESIDUAL.paper)
    assert SPACE.suggest(FixedTrial(dict(SPACE.first_parameters))) == paper


def test_every_parameter_belongs_to_one_stage() -> None:
    """Names that both stages have, such as `crop_scale`, are distinguished, and changing one
    changes one stage."""
    parameters = SPACE.first_parameters
    expected = {f"rmt.{name}" for name in MASKS.first_parameters}
    expected |= {f"taskres.{name}" for name in RESIDUAL.first_parameters}
    assert parameters.keys() == expected
    assert {"rmt.crop_scale", "taskres.crop_scale", "rmt.leak", "taskres.lr"} < expected
    schedule = {f"rmt.{name}": value for name, value in MASKS.first_values.items()}
    for name, value in (
        ("rmt.leak", 0.7),
        ("taskres.lr", 1e-3),
        ("rmt.masked", "all"),
        ("taskres.alpha", 1.0),
    ):
        changed = SPACE.suggest(FixedTrial(schedule | parameters | {name: value}))
        first, second = changed.stages
        assert (first == SPACE.paper.before) is name.startswith("taskres")
        assert (replace(second, before=None) == RESIDUAL.paper) is not (
            name.startswith("taskres")
        ) or second.preset == "search"
        assert changed.preset == "search"


def test_a_stored_trial_is_the_same_again() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(50):
        trial = study.ask()
        config = SPACE.suggest(trial)
        assert config.problems() == []
        assert TrialConfig.from_dict(config.to_dict()) == config
        study.tell(trial, 0.0)
        assert SPACE.suggest(study.trials[-1]) == config


def test_three_stages_may_be_of_one_kind() -> None:
    space = find_space("rmt+rmt-budget+taskres").build(FACTS)
    assert space.name == "rmt+rmt-budget+taskres"
    assert [stage.method for stage in space.paper.stages] == ["rmt", "rmt", "taskres"]
    assert {"1.leak", "2.leak", "3.lr"} < set(space.first_parameters)
    assert space.suggest(FixedTrial(dict(space.first_parameters))) == space.paper


@pytest.mark.parametrize("name", SPACES)
def test_a_name_of_the_registry_is_found(name: str) -> None:
    assert find_space(name) is SPACES[name]


@pytest.mark.parametrize("name", [name for name in SPACES if "+" in name])
def test_known_combinations_are_what_any_would_be(name: str) -> None:
    """Combinations in the registry, listed there for the sake of its lists, behave like any
    other."""
    entry, stages = SPACES[name], [SPACES[stage] for stage in name.split("+")]
    space = entry.build(FACTS)
    assert isinstance(space, PipelineSpace)
    assert space.name == name
    assert entry.trials == max(stage.trials for stage in stages)
    assert entry.seeds == min((stage.seeds for stage in stages), key=len)
    assert space.paper.problems() == []


def test_any_combination() -> None:
    entry = find_space("rmt-budget+taskres")
    assert (entry.trials, entry.seeds) == (SPACES["taskres"].trials, SPACES["rmt-budget"].seeds)
    space: Any = entry.build(FACTS)
    assert [stage.name for stage in space.stages] == ["rmt-budget", "taskres"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rtm", ["There is no space 'rtm'", "Did you mean 'rmt'?"]),
        ("rtm+taskres", ["There is no stage 'rtm'", "Did you mean 'rmt'?"]),
        ("rmt+taskrez", ["There is no stage 'taskrez'", "Did you mean 'taskres'?"]),
        ("rmt+", ["There is no stage ''"]),
        ("+", ["There is no stage ''"]),
        ("", ["There is no space ''"]),
    ],
)
def test_an_unknown_name(name: str, words: list[str]) -> None:
    with pytest.raises(SpaceError) as error:
        find_space(name)
    for part in words:
        assert part in str(error.value)
    listed = str(error.value).partition("Known: ")[2].partition(". ")[0].split(", ")
    assert any("+" in other for other in listed) is ("space" in str(error.value)[:17])


def test_the_wrong_order_is_told() -> None:
    space = find_space("taskres+rmt").build(FACTS)
    (problem,) = space.paper.problems()
    assert "must change the backbone, and 'taskres' does not" in problem
    assert "use one of" in problem


def test_a_started_space_varies_nothing_of_its_start() -> None:
    start = replace(MASKS.paper.seeded(5), fixed=True)
    space = StartedSpace(RESIDUAL, start)
    assert space.name == "taskres"
    assert space.first_parameters == RESIDUAL.first_parameters
    assert space.suggest(FixedTrial(dict(space.first_parameters))) == space.paper
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(20):
        config = space.suggest(study.ask()).seeded(9)
        assert config.before == start
        assert config.seed == 9
        assert config.problems() == []


def test_a_started_pipeline() -> None:
    start = replace(MASKS.paper, fixed=True)
    space = StartedSpace(SPACE, start)
    methods = [(stage.method, stage.fixed) for stage in space.paper.stages]
    assert methods == [("rmt", True), ("rmt", False), ("taskres", False)]
