"""What a user fixes and searches: by name, checked before any work, in every trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from spaces.adjust import adjust
from spaces.auto import MethodChoice
from spaces.declared import DeclaredSpace
from spaces.pipeline import PipelineSpace, StartedSpace
from spaces.registry import SPACES, find_space
from spaces.settings import Settings, SettingsError
from trainables.fields import values_of
from trainables.methods.base import TaskFacts
from trainables.trial import Episode, TrialConfig

FACTS = TaskFacts("digits", 16, 160, "vit")
SETS = ("digits", "imagenet", "oxford_flowers")
SEVERAL = replace(FACTS, dataset="", each=tuple(TaskFacts(name, 16, 160) for name in SETS))


def adjusted(name: str, facts: TaskFacts = FACTS, **settings: Any) -> Any:
    return adjust(find_space(name).build(facts), Settings(**settings))


def problems(name: str, facts: TaskFacts = FACTS, **settings: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        adjusted(name, facts, **settings)
    return caught.value.problems


def drawn(space: Any, count: int = 40) -> list[tuple[TrialConfig, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    return [(space.suggest(trial), trial) for trial in trials]


def test_nothing_changes_without_settings() -> None:
    space = SPACES["rmt"].build(FACTS)
    assert adjust(space, Settings()) is space
    assert space.first == space.paper


def test_a_fixed_field_has_its_value_in_every_trial() -> None:
    space = adjusted("rmt", set={"leak": 0.7, "prompts": "clean", "batch_size": 16.0})
    for config, trial in drawn(space):
        values = values_of(config)
        assert (values["leak"], values["prompts"], values["batch_size"]) == (0.7, "clean", 16)
        assert not {"leak", "batch_size"} & trial.params.keys()
        assert config.problems() == []
    assert space.paper == SPACES["rmt"].build(FACTS).paper
    assert space.first.preset == "search"
    assert adjusted("rmt", set={"leak": 0.3}).first == space.paper  # its value already


@pytest.mark.parametrize("preset", ["reference", "clean"])
@pytest.mark.parametrize("name", SPACES)
def test_the_search_starts_from_a_preset(name: str, preset: Any) -> None:
    space = adjusted(name, preset=preset)
    assert {stage.preset for stage in space.first.stages} == {preset}
    assert space.suggest(FixedTrial(dict(space.first_parameters))) == space.first
    assert space.paper == SPACES[name].build(FACTS).paper
    if isinstance(space, MethodChoice):  # each trial may have another method
        return
    fields = (space if isinstance(space, DeclaredSpace) else space.stages[-1]).ranges
    searched, kept = drawn(space, 1)[0][0].flat(), space.first.flat()
    assert {n: v for n, v in searched.items() if n not in (*fields, "lr", "preset")} == {
        n: v for n, v in kept.items() if n not in (*fields, "lr", "preset")
    } or isinstance(space, PipelineSpace)


def test_ranges_are_searched_as_they_are_typed() -> None:
    space = adjusted(
        "rmt",
        range={"lr": "1e-5:1e-2:log", "epochs": "10:20:5", "temperature": "1:4"},
        choice={"batch_size": (8, 64), "rule": ("sign", "gradient-dropout")},
    )
    found = drawn(space)
    assert {trial.params["epochs"] for _, trial in found} == {10, 15, 20}
    assert {trial.params["batch_size"] for _, trial in found} == {8, 64}
    assert {values_of(config)["rule"] for config, _ in found} == {"sign", "gradient-dropout"}
    lr = found[0][1].distributions["lr"]
    assert (lr.low, lr.high, lr.log) == (1e-5, 1e-2, True)
    assert all(1 <= values_of(config)["temperature"] <= 4 for config, _ in found)
    # Trial 0 takes the nearest values: the paper has 30 epochs and batches of 32.
    assert (space.first_parameters["epochs"], space.first_parameters["batch_size"]) == (20, 8)
    assert space.suggest(FixedTrial(dict(space.first_parameters))) == space.first


def test_stages_have_their_own_fields() -> None:
    space = adjusted(
        "rmt+taskres", set={"rmt.leak": 0.5, "alpha": 0.7}, range={"taskres.lr": "0.01:0.1"}
    )
    assert space.first.preset == "search"
    for config, trial in drawn(space, 10):
        masks, residual = config.stages
        assert (values_of(masks)["leak"], values_of(residual)["alpha"]) == (0.5, 0.7)
        assert 0.01 <= trial.params["taskres.lr"] <= 0.1
        assert "rmt.leak" not in trial.params
    assert problems("rmt+taskres", set={"lr": 1.0}) == (
        "--set lr must name one stage. Use one of rmt.lr, taskres.lr.",
    )
    assert "There is no stage 'mask'" in problems("rmt+taskres", set={"mask.lr": 1.0})[0]
    twice = adjusted("rmt+rmt-budget", set={"1.leak": 0.5, "rmt-budget.leak": 0.7})
    assert [values_of(stage)["leak"] for stage in twice.first.stages] == [0.5, 0.7]
    assert problems("rmt+rmt-budget", set={"rmt.leak": 1.0}) == (
        "--set rmt.leak must name one stage. Use one of 1.leak, 2.leak.",
    )


def test_methods_of_auto_have_their_own_fields() -> None:
    (problem,) = problems("auto", set={"alpha": 1.0})
    assert problem.startswith("--set alpha must name one method. Use one of taskres.alpha, ")


def test_settings_of_a_start_are_kept() -> None:
    start = replace(SPACES["rmt"].build(FACTS).paper, fixed=True)
    space = StartedSpace(adjusted("taskres", set={"alpha": 0.7}), start)
    assert values_of(space.first)["alpha"] == 0.7
    assert space.first.before == space.paper.before == start


def test_settings_per_data_set_respect_what_is_fixed() -> None:
    """The paper trains ImageNet with another learning rate and Flowers with another alpha."""
    plain = SPACES["taskres"].build(SEVERAL)
    space = adjusted("taskres", SEVERAL, set={"lr": 0.01})
    rates, alphas = set(), set()
    for name in SETS:
        own = space.first.for_episode(Episode(name, 16, 1))
        rates.add(own.optim.lr)
        alphas.add(values_of(own)["alpha"])
    assert (rates, alphas) == ({0.01}, {0.5, 1.0})
    assert len(plain.first.per_episode) == 3
    alike = adjusted("taskres", SEVERAL, set={"lr": 0.01, "alpha": 0.5, "epochs": 50})
    assert alike.first.per_episode == ()
    assert alike.first.optim.epochs == 50


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"set": {"lr": 0.01, "flip_budget": 2.0}}, "--set lr and --set flip_budget"),
        (
            {"range": {"lr": "1e-4:1e-2"}, "choice": {"flip_budget": (1.0, 2.0)}},
            "--range lr and --choice flip_budget",
        ),
        ({"grid": {"flip_budget": (1.0, 2.0), "lr": (0.1, 0.2)}}, "--grid lr and --grid flip_b"),
    ],
)
@pytest.mark.parametrize("name", ["rmt", "rmt-variants", "rmt-text", "rmt-both"])
def test_a_learning_rate_and_a_flip_budget_exclude_each_other(
    name: str, given: dict[str, Any], named: str
) -> None:
    (problem,) = problems(name, **given)
    assert problem.startswith(named)
    assert "must not both be given" in problem
    stages = {kind: {f"rmt.{k}": v for k, v in own.items()} for kind, own in given.items()}
    assert len(problems("rmt+taskres", **stages)) == 1


@pytest.mark.parametrize("name", ["rmt", "rmt+taskres", "taskres"])
@pytest.mark.parametrize("kind", ["set", "choice", "grid", "range"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("epochs", 0), ("epochs", 10**9), ("threshold", 0.01), ("init", 0.005)],
)
def test_values_that_break_a_rule_are_reported_and_not_computed_with(
    name: str, kind: str, field: str, value: float
) -> None:
    if name == "taskres" and field in ("threshold", "init"):
        return
    typed = f"rmt.{field}" if "+" in name else field
    given = {
        "set": value,
        "choice": (value,),
        "grid": (value,),
        "range": f"{value}:{2 * value or 1}" if field != "init" else "0.001:0.005",
    }
    found = problems(name, **{kind: {typed: given[kind]}})
    assert all(line.startswith(f"--{kind}: ") for line in found)
    assert any(field in line for line in found)


def test_a_flip_budget_can_be_fixed() -> None:
    space = adjusted("rmt-budget", set={"flip_budget": 8.0}, choice={"epochs": (10, 30)})
    for config, _ in drawn(space, 10):
        assert space.values(config)["flip_budget"] == pytest.approx(8)
    space = adjusted("rmt", set={"lr": 1e-3})
    for config, trial in drawn(space, 10):
        assert config.optim.lr == 1e-3
        assert "flip_budget" not in trial.params


def test_a_grid_has_every_combination() -> None:
    space = adjusted("rmt", grid={"threshold": (0.001, 0.003), "leak": (0, 0.3, 1)})
    assert space.grid == {"threshold": (0.001, 0.003), "leak": (0.0, 0.3, 1.0)}
    assert space.queue == ()
    config, trial = drawn(space, 1)[0]
    assert trial.params.keys() == {"threshold", "leak"}
    assert values_of(config)["masked"] == "mhsa"
    void = adjusted("rmt", grid={"rule": ("none", "sign"), "leak": (0, 1)})
    assert all(len(trial.params) == 2 for _, trial in drawn(void))


def test_what_is_enqueued_follows_trial_zero() -> None:
    space = adjusted(
        "taskres",
        choice={"alpha": (0.1, 0.5)},
        enqueue=({"alpha": 0.1}, {"lr": 0.01, "epochs": 50}),
    )
    first, second, third = space.queue
    assert first == space.first_parameters
    assert second == {**first, "alpha": 0.1, "warmup_lr": 1e-5}
    assert (third["lr"], third["epochs"], third["alpha"]) == (0.01, 50, 0.5)
    again = ({"alpha": 0.5}, {"alpha": 0.7}, {"alpha": 0.7})
    assert len(adjusted("taskres", enqueue=again).queue) == 2  # trial 0, and no trial twice
    staged = adjusted("rmt+taskres", enqueue=({"1.leak": 0.5, "taskres.alpha": 1.5},))
    assert staged.queue[1]["rmt.leak"] == 0.5
    assert staged.queue[1]["taskres.alpha"] == 1.5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"set": {"leek": 1}}, ["There is no field 'leek'. Known: ", "Did you mean 'leak'?"]),
        ({"set": {"leak": 2}}, ["--set: leak must be in [0, 1], got 2.0"]),
        ({"set": {"leak": "x"}}, ["--set leak must be a finite number, got x."]),
        ({"set": {"epochs": 1.5}}, ["--set epochs must be a whole number, got 1.5."]),
        ({"set": {"patch_embedding": 3}}, ["--set patch_embedding must be false or true, got 3."]),
        ({"set": {"prompts": "own"}}, ["--set prompts must be paper, reference, ", "got own."]),
        ({"set": {"crop_scale": 2}}, ["--set: crop_scale must be in (0, 1], got 2.0"]),
        ({"range": {"lr": "1"}}, ["--range lr must be LOW:HIGH, LOW:HIGH:log or LOW:HIGH:STEP"]),
        ({"range": {"lr": "2:1"}}, ["LOW < HIGH, got '2:1'"]),
        ({"range": {"lr": "0:1:log"}}, ["must be positive"]),
        ({"range": {"epochs": "1:9:20"}}, ["a step between 0 and HIGH - LOW"]),
        ({"range": {"epochs": "1.5:9"}}, ["must be whole numbers, got '1.5' in '1.5:9'"]),
        ({"range": {"lr": "nan:1"}}, ["must be finite numbers, got 'nan'"]),
        ({"range": {"rule": "1:2"}}, ["--range rule must be a number", "Use --choice"]),
        ({"range": {"leak": "0:2"}}, ["--range: leak must be in [0, 1], got 2.0"]),
        ({"choice": {"rule": ("sum", "x")}}, ["--choice rule must be none, sum, ", "got x."]),
        ({"choice": {"leak": (0, 0)}}, ["--choice leak must have different values."]),
        ({"grid": {"leak": (0, 1), "init": (0.01, 0.001)}}, ["init must be greater", "0.001"]),
        ({"set": {"leak": 1}, "range": {"leak": "0:1"}}, ["--set and --range must not both"]),
        ({"set": {"leak": 1, "rmt.leak": 1}}, ["--set must not both be given for 'rmt.leak'"]),
        ({"set": {"rule": "none"}, "range": {"leak": "0:1"}}, ["no effect", "if rule is grad"]),
        ({"set": {"masked": "all"}, "choice": {"patch_embedding": (True,)}}, ["has no effect"]),
        ({"grid": {"leak": (0, 1)}, "range": {"lr": "1:2"}}, ["--grid cannot be used with"]),
        ({"grid": {"epochs": tuple(range(1, 20_000))}}, ["at most 10,000 combinations"]),
        ({"preset": "cleen"}, ["There is no preset 'cleen'", "Did you mean 'clean'?"]),
        ({"enqueue": ({"leek": 1},)}, ["--enqueue: There is no field 'leek'"]),
        ({"enqueue": ({"init": 9},)}, ["--enqueue init must be in the searched range, got 9"]),
        ({"enqueue": ({"rule": "sum"},)}, ["--enqueue rule must be searched, and is fixed"]),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], told: list[str]) -> None:
    found = problems("rmt", **settings)
    assert len(found) == 1, found
    assert all(words in found[0] for words in told), found
    assert found[0].startswith("--") or "preset" in settings


def test_all_mistakes_are_told_at_once() -> None:
    found = problems("rmt", set={"leek": 1, "epochs": "x"}, range={"lr": "2:1"})
    assert len(found) == 3


def test_features_cannot_be_cropped() -> None:
    facts = replace(FACTS, pixels=False)
    (found,) = problems("taskres", facts, choice={"crop_scale": (0.5, 1.0)})
    assert "--choice crop_scale needs images" in found
