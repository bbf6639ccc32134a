"""Every space: it contains the paper's setting, and each of its parameters matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from spaces.base import TaskFacts
from spaces.registry import SPACES
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig

SHOTS = 4
SETTING = TaskFacts("digits", SHOTS, 10 * SHOTS, "vit")

# A base from which every parameter has an effect: bits flip, decay and norm loss are on.
ACTIVE: dict[str, dict[str, Any]] = {
    "taskres": {"lr": 5e-2, "decay": True, "weight_decay": 1e-3, "epochs": 25},
    "text-adapter": {"epochs": 25, "weight_decay": 0.0},
    "linear-probe": {},
    "clip-adapter": {"lr": 1e-3, "epochs": 25},
    "tip-adapter": {},
    "tip-adapter-f": {"epochs": 10},
    "cross-modal": {"epochs": 25},
    "lp-plus-plus": {},
    "clap": {"epochs": 50},
    "gda": {},
    "enhanced-base": {"epochs": 10, "weight_decay": 0.0},
    "rmt": {"lr": 1e-3, "norm_loss": True, "norm_weight": 1e-3, "epochs": 10, "batch_size": 16},
    "clip-lora": {"lr": 1e-3, "epochs": 10},
    "vpt": {"epochs": 5, "batch_size": 16},
    "coop": {"epochs": 5, "weight_decay": 5e-4},
    "cocoop": {"epochs": 2},
    "prograd": {"epochs": 5, "weight_decay": 5e-4, "lr": 2e-2},
    "rmt-variants": {"lr": 1e-3, "epochs": 10},
    "rmt-text": {"lr": 1e-3, "epochs": 10},
    "rmt-both": {"lr": 1e-3, "epochs": 10},
    "rmt-budget": {"flip_budget": 8.0, "epochs": 10, "batch_size": 16, "norm_loss": True},
}
EXTRA = {
    "weight_decay": 1e-3,
    "norm_weight": 1e-3,
    "alpha_start": 0.5,
    "warmup_lr": 1e-5,
    "leak_kl": 1.0,
}


@pytest.fixture(scope="module")
def bench() -> EncodedTask:
    return EncodedTask("tiny", "cpu", DataSource())


def parameters(name: str) -> dict[str, Any]:
    space = SPACES[name].build(SETTING)
    return dict(space.paper_parameters) | EXTRA | ACTIVE[name]


def distributions(name: str) -> dict[str, Any]:
    """All distributions of a space, those behind conditions included."""
    found: dict[str, Any] = {}
    space = SPACES[name].build(SETTING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        space.suggest(trial)
        found |= trial.distributions
    return found


def cases() -> Iterator[tuple[str, str]]:
    for name in SPACES:
        if "+" in name:  # its parameters are those of its stages
            continue
        for parameter in sorted(distributions(name)):
            # The other parameters of `rmt-budget` are those of `rmt`.
            if name != "rmt-budget" or parameter == "flip_budget":
                yield name, parameter


def other(distribution: Any, value: Any) -> Any:
    """A value of the same distribution that is far from `value`."""
    if isinstance(distribution, CategoricalDistribution):
        return next(choice for choice in distribution.choices if choice != value)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    ends = (distribution.low, distribution.high)
    far = max(ends, key=lambda end: abs(end - value))
    # Extreme learning rates wreck both models alike; the middle is far enough for those.
    middle = (distribution.low * distribution.high) ** 0.5 if distribution.log else far
    if isinstance(distribution, IntDistribution):
        middle = round(middle)
    return middle if middle != value else far


def learned(config: TrialConfig, bench: EncodedTask) -> dict[str, torch.Tensor]:
    trainer = Trainer(config, bench, Episode("digits", SHOTS, 1))
    for _ in range(trainer.epochs):
        trainer.run_epoch()
    # A weight that only mixes what was learned shows in the logits alone.
    found = trainer.method.state_dict() | {"logits": trainer.logits(trainer.val)}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize("name", SPACES)
def test_the_paper_is_in_the_space(name: str) -> None:
    space = SPACES[name].build(SETTING)
    config = space.suggest(FixedTrial(dict(space.paper_parameters)))
    assert config == space.paper
    assert config.preset == "paper"
    for parameter, value in space.paper_parameters.items():
        distribution = distributions(name)[parameter]
        assert distribution._contains(distribution.to_internal_repr(value)), parameter


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_every_point_is_valid(name: str, tower: Any) -> None:
    space = SPACES[name].build(dataclasses.replace(SETTING, tower=tower))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(100):
        trial = study.ask()
        config = space.suggest(trial)
        assert config.problems() == []
        assert TrialConfig.from_dict(config.to_dict()) == config
        # A stored trial gives the same configuration again.
        study.tell(trial, 0.0)
        assert space.suggest(study.trials[-1]) == config


@pytest.mark.parametrize(("name", "parameter"), list(cases()))
def test_parameter_reaches_training(name: str, parameter: str, bench: EncodedTask) -> None:
    base = parameters(name)
    if parameter == "alpha_start":
        base["learn_alpha"] = True
    if parameter == "leak_kl":
        base["rule"] = "sign"
    space = SPACES[name].build(SETTING)
    changed = base | {parameter: other(distributions(name)[parameter], base[parameter])}
    first, second = (space.suggest(FixedTrial(chosen)) for chosen in (base, changed))
    assert first != second
    before, after = learned(first, bench), learned(second, bench)
    assert before.keys() != after.keys() or any(
        not torch.equal(before[key], after[key]) for key in before
    )


def test_flip_budget_is_what_was_asked_for() -> None:
    space = SPACES["rmt-budget"].build(SETTING)
    config = space.suggest(FixedTrial(parameters("rmt-budget")))
    method: Any = config.method_config
    total = sum(config.optim.learning_rates(SETTING.images))
    assert total / (method.init - method.threshold) == pytest.approx(8.0)
