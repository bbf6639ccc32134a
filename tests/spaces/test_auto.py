"""The space over all methods: every method is tried, with its own parameters."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import FixedTrial

from search.core.samplers import make_sampler
from spaces.adjust import adjust
from spaces.auto import METHOD, MethodChoice
from spaces.registry import SPACES
from spaces.settings import Settings, SettingsError
from trainables.methods.base import TaskFacts
from trainables.methods.registry import METHODS

FACTS = TaskFacts("digits", 4, 40, "vit")


def auto() -> MethodChoice:
    space = SPACES["auto"].build(FACTS)
    assert isinstance(space, MethodChoice)
    return space


def test_the_sweep_begins_with_the_paper_s_setting_of_every_method() -> None:
    space = auto()
    tried = [space.suggest(FixedTrial(dict(parameters))) for parameters in space.queue]
    assert [config.method for config in tried] == [table.name for table in space.spaces]
    assert tried[0] == space.paper == space.first
    for config, table in zip(tried, space.spaces, strict=True):
        assert config == table.paper
        assert METHODS[config.method].input_kind == "features"


def test_a_trial_has_the_parameters_of_its_method_only() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space, seen = auto(), set[str]()
    for _ in range(60):
        trial = study.ask()
        config = space.suggest(trial)
        assert config.method == trial.params[METHOD]
        others = set(trial.params) - {METHOD}
        assert others
        assert {name.partition(".")[0] for name in others} == {config.method}
        assert not config.problems()
        seen.add(config.method)
    assert seen == {table.name for table in space.spaces}


def test_the_sampler_prefers_the_method_that_is_best() -> None:
    study = optuna.create_study(direction="maximize")
    for parameters in auto().queue:
        study.enqueue_trial(dict(parameters))
    for number in range(40):
        study.sampler = make_sampler("tpe", 0, number)
        trial = study.ask()
        study.tell(trial, float(auto().suggest(trial).method == "clap"))
    chosen = [trial.params[METHOD] for trial in study.trials[len(auto().queue) :]]
    assert chosen.count("clap") > len(chosen) / 2


def test_fields_are_set_by_the_method_s_name() -> None:
    found = adjust(auto(), Settings(set={"taskres.alpha": 0.7, "penalty": 2.0}))
    assert isinstance(found, MethodChoice)
    assert found.first.flat()["alpha"] == 0.7
    assert "taskres.alpha" not in found.first_parameters
    (clap,) = [own for own in found.queue if own[METHOD] == "clap"]
    assert found.suggest(FixedTrial(dict(clap))).flat()["penalty"] == 2.0
    with pytest.raises(SettingsError, match=r"taskres\.lr, clap\.lr"):
        adjust(auto(), Settings(set={"lr": 0.1}))
    with pytest.raises(SettingsError, match="need a space of one method"):
        adjust(auto(), Settings(grid={"taskres.alpha": (0.1, 0.2)}))
