"""Every space contains the paper's setting, and each of its parameters has an effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from search.core.shown import shown_parameters
from spaces.registry import SPACES
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.base import TaskFacts
from trainables.trainer import Trainer
from trainables.trial import PER_EPISODE, Episode, TrialConfig

SHOTS = 4
FACTS = TaskFacts("digits", SHOTS, 10 * SHOTS, "vit")

# A base on which every parameter has an effect: bits flip, weight decay and norm loss are on.
ACTIVE: dict[str, dict[str, Any]] = {
    "taskres": {"lr": 5e-2, "weight_decay": 1e-3, "epochs": 25},
    "text-adapter": {"epochs": 25, "weight_decay": 0.0},
    "linear-adapter": {"lr": 1e-3, "epochs": 25, "weight_decay": 0.0},
    "linear-probe": {},
    "clip-adapter": {"lr": 1e-3, "epochs": 25},
    "tip-adapter": {},
    "tip-adapter-f": {"epochs": 10},
    "cross-modal": {"epochs": 25, "batch_size": 4},
    "lp-plus-plus": {},
    "clap": {"epochs": 50},
    "gda": {},
    "enhanced-base": {"epochs": 10, "weight_decay": 0.0},
    "rmt": {"norm_weight": 1e-3, "leak": 0.7, "epochs": 5, "batch_size": 2, "flip_budget": 6.0},
    "fine-tuning": {"lr": 1e-4, "epochs": 5, "batch_size": 16, "weight_decay": 1e-2},
    "clip-lora": {"lr": 1e-3, "epochs": 10},
    "vpt": {"epochs": 5, "batch_size": 16},
    "maple": {"epochs": 5, "batch_size": 16, "lr": 2e-2},
    "promptsrc": {"epochs": 10, "batch_size": 16, "lr": 2e-2, "average_width": 0.5},
    "plot": {"epochs": 10, "batch_size": 16, "lr": 2e-2},
    "coop": {"epochs": 5, "weight_decay": 5e-4},
    "cocoop": {"epochs": 2},
    "prograd": {"epochs": 20, "weight_decay": 5e-4, "lr": 2e-2},
    "kgcoop": {"epochs": 5, "weight_decay": 5e-4, "lr": 2e-2},
    "rmt-variants": {"leak": 0.7, "epochs": 5, "batch_size": 2, "flip_budget": 6.0},
    "rmt-text": {"leak": 0.7, "epochs": 5, "batch_size": 2, "flip_budget": 6.0},
    "rmt-both": {"leak": 0.7, "epochs": 5, "batch_size": 2, "flip_budget": 6.0},
}
EXTRA = {
    "weight_decay": 1e-3,
    "norm_weight": 1e-3,
    "warmup_lr": 1e-5,
    "leak_kl": 1.0,
}


@pytest.fixture(scope="module")
def bench() -> EncodedTask:
    return EncodedTask("tiny", "cpu", DataSource())


def parameters(name: str) -> dict[str, Any]:
    space = SPACES[name].build(FACTS)
    return dict(space.first_parameters) | EXTRA | ACTIVE.get(name, {})


@cache
def distributions(name: str) -> dict[str, Any]:
    """All distributions of a space, including conditional ones. Tests must not change them."""
    found: dict[str, Any] = {}
    space = SPACES[name].build(FACTS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        space.suggest(trial)
        found |= trial.distributions
    return found


def cases() -> Iterator[tuple[str, str]]:
    for name in SPACES:
        # Those of a pipeline or of `auto` are those of its methods; `rmt-budget` is another name
        # of `rmt`.
        if "+" not in name and name not in ("auto", "rmt-budget"):
            for parameter, distribution in sorted(distributions(name).items()):
                if not distribution.single():
                    yield name, parameter


def other(distribution: Any, value: Any) -> Any:
    """A value of the same distribution that is far from `value`."""
    if isinstance(distribution, CategoricalDistribution):
        return next(choice for choice in distribution.choices if choice != value)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    ends = (distribution.low, distribution.high)
    far = max(ends, key=lambda end: abs(end - value))
    # Extreme learning rates ruin both models alike, and at 0 other code may run, whose rounding is
    # a difference, too: use the middle of the range.
    middle = (
        (distribution.low * distribution.high) ** 0.5 if distribution.log else (value + far) / 2
    )
    if isinstance(distribution, IntDistribution):
        middle = round(middle) if distribution.log else far
    return middle if middle != value else far


class Training:
    """A training on half of the classes that is run as far as it is needed."""

    def __init__(self, config: TrialConfig, bench: EncodedTask) -> None:
        self._trainer = Trainer(config, bench, Episode("digits", SHOTS, 1, "base"))
        self._learned: list[dict[str, torch.Tensor]] = []

    def after(self, epochs: int) -> dict[str, torch.Tensor]:
        """What it has learned after some epochs; empty if it has fewer. A method without epochs has
        learned everything before its first."""
        trainer = self._trainer
        if epochs > max(1, trainer.epochs):
            return {}
        while len(self._learned) < epochs:
            if trainer.epochs:
                trainer.run_epoch()
            # A weight that only mixes what was learned changes the logits only.
            found = trainer.method.state_dict() | {"logits": trainer.logits(trainer.val)}
            self._learned.append({name: t.detach().clone() for name, t in found.items()})
        return self._learned[epochs - 1]


@pytest.fixture(scope="module")
def trainings() -> dict[TrialConfig, Training]:
    """The trainings without a change, each of which is compared with many."""
    return {}


@pytest.mark.parametrize("name", SPACES)
def test_the_paper_is_in_the_space(name: str) -> None:
    space = SPACES[name].build(FACTS)
    config = space.suggest(FixedTrial(dict(space.first_parameters)))
    assert config == space.paper
    assert config.preset == "paper"
    for parameter, value in space.first_parameters.items():
        distribution = distributions(name)[parameter]
        assert distribution._contains(distribution.to_internal_repr(value)), parameter


DERIVED = {"flip_budget", "method"}
"""Parameters that are not fields of a configuration."""


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("tower", ["vit", "resnet", "other"])
@pytest.mark.parametrize("pixels", [True, False])
def test_parameters_are_fields(name: str, tower: Any, pixels: bool) -> None:
    """A parameter has the name, type and value of a field of its stage's configuration."""
    space = SPACES[name].build(dataclasses.replace(FACTS, tower=tower, pixels=pixels))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    points = [FixedTrial(dict(space.first_parameters)), *(study.ask() for _ in range(20))]
    for trial in points:
        stages = space.suggest(trial).stages
        assert trial.params
        for parameter, value in trial.params.items():
            method, _, field = parameter.rpartition(".")
            stage = next(s for s in stages if s.method == method) if method else stages[-1]
            own = vars(stage.method_config) | vars(stage.optim) | {"crop_scale": stage.crop_scale}
            if field not in DERIVED:
                assert own[field] == value
                assert type(own[field]) is type(value)


def test_a_learned_alpha_starts_below_one() -> None:
    space = SPACES["taskres"].build(FACTS)
    base = parameters("taskres")
    learned = space.suggest(FixedTrial(base | {"alpha": 0.9, "learn_alpha": True}))
    fixed = space.suggest(FixedTrial(base | {"alpha": 1.5, "learn_alpha": True}))
    assert vars(learned.method_config)["learn_alpha"]
    assert not vars(fixed.method_config)["learn_alpha"]


def test_all_layers_include_the_patch_embedding() -> None:
    """A parameter is suggested only if it has an effect."""
    space = SPACES["rmt"].build(FACTS)
    for masked, suggested in (("mhsa", True), ("mlp", True), ("all", False), ("dynamic", False)):
        trial = FixedTrial(parameters("rmt") | {"masked": masked, "patch_embedding": True})
        assert space.suggest(trial).problems() == []
        assert ("patch_embedding" in trial.params) is suggested


SETS = ("digits", "imagenet", "oxford_flowers")
SEVERAL = dataclasses.replace(
    FACTS,
    dataset="",
    shots=16,
    images=160,
    each=tuple(TaskFacts(dataset, shots, 100) for dataset in SETS for shots in (1, 16)),
)


@pytest.mark.parametrize("name", SPACES)
def test_the_papers_setting_is_that_of_each_data_set(name: str) -> None:
    """For every episode, the first trial equals that of a sweep on this data set alone; any other
    trial is the same for all episodes."""
    space, entry = SPACES[name].build(SEVERAL), SPACES[name]
    paper = space.suggest(FixedTrial(dict(space.first_parameters)))
    assert paper == space.paper
    assert TrialConfig.from_dict(paper.to_dict()) == paper
    assert paper.problems() == []
    for facts in SEVERAL.each:
        own = paper.for_episode(Episode(facts.dataset, facts.shots, 1))
        assert own == entry.build(facts).paper
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    other = space.suggest(study.ask())
    assert {other.for_episode(Episode(f.dataset, f.shots, 1)) for f in SEVERAL.each} == {other}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("taskres", {"alpha", "lr", "epochs"}),
        ("rmt", {"leak"}),  # the schedule of masks is no parameter of trial 0
        ("rmt+taskres", {"rmt.leak", "taskres.alpha", "taskres.lr", "taskres.epochs"}),
        ("gda", set()),
    ],
)
def test_what_differs_is_said(name: str, parameters: set[str]) -> None:
    space = SPACES[name].build(SEVERAL)
    assert per_episode(space) == parameters
    flat = space.paper.flat()
    shown = {key for key, value in flat.items() if value == PER_EPISODE}
    assert {key.rpartition(".")[2] for key in shown} >= {p.rpartition(".")[2] for p in parameters}
    assert per_episode(SPACES[name].build(FACTS)) == set()


def per_episode(space: Any) -> set[str]:
    shown = shown_parameters(space.paper.to_dict(), space.first_parameters)
    return {name for name, value in shown.items() if value == PER_EPISODE}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_every_point_is_valid(name: str, tower: Any) -> None:
    space = SPACES[name].build(dataclasses.replace(FACTS, tower=tower))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(40):
        trial = study.ask()
        config = space.suggest(trial)
        assert config.problems() == []
        assert TrialConfig.from_dict(config.to_dict()) == config
        # A stored trial gives the same configuration again.
        assert space.suggest(study.tell(trial, 0.0)) == config


@pytest.mark.parametrize(("name", "parameter"), list(cases()))
def test_parameter_reaches_training(
    name: str, parameter: str, bench: EncodedTask, trainings: dict[TrialConfig, Training]
) -> None:
    """The two trainings differ after the first epoch, or after a later one."""
    base = parameters(name)
    if parameter == "leak_kl":
        base["rule"] = "sign"
    space = SPACES[name].build(FACTS)
    changed = base | {parameter: other(distributions(name)[parameter], base[parameter])}
    first, second = (space.suggest(FixedTrial(chosen)) for chosen in (base, changed))
    assert first != second
    if first not in trainings:
        trainings[first] = Training(first, bench)
    before, after = trainings[first], Training(second, bench)
    for epochs in count(1):
        one, two = before.after(epochs), after.after(epochs)
        assert one or two, f"{name} learns the same with another {parameter}"
        if one.keys() != two.keys() or any(not torch.equal(one[key], two[key]) for key in one):
            break


def test_flip_budget_is_what_was_asked_for() -> None:
    space = SPACES["rmt"].build(FACTS)
    config = space.suggest(FixedTrial(parameters("rmt")))
    method: Any = config.method_config
    total = sum(config.optim.learning_rates(FACTS.images))
    assert total / (method.init - method.threshold) == pytest.approx(6.0)


@pytest.mark.parametrize("name", ["rmt", "rmt-budget", "rmt-variants", "rmt-text", "rmt-both"])
@pytest.mark.parametrize("images", [10, 40, 160, 16000])
def test_every_trial_but_the_papers_can_flip_bits(name: str, images: int) -> None:
    """With so many steps that they flip one after the other."""
    space = SPACES[name].build(dataclasses.replace(FACTS, images=images))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(6):
        config = space.suggest(study.ask())
        method: Any = config.method_config
        rates = config.optim.learning_rates(images)
        gap = method.init - method.threshold
        assert len(rates) >= 100
        assert sum(rates) / gap * (1 + 1e-9) >= 1
        assert max(rates) <= 0.25 * gap
