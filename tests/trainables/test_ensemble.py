"""Ensembles of trained methods: one training, one classifier where they fold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from spaces.registry import find_space
from tests.trainables.trials import TASK, residual_trial, zero_shot_trial
from trainables.encoded_task import EncodedTask
from trainables.ensemble import Ensemble
from trainables.methods.base import MethodError, TaskFacts
from trainables.stages import open_training
from trainables.trainer import Trainer
from trainables.trial import Member, TrialConfig

(EPISODE,) = TASK.episodes


def ensemble(*configs: TrialConfig) -> TrialConfig:
    members = tuple(Member(0.5 + place, config) for place, config in enumerate(configs))
    return replace(configs[0], members=members)


def paper(method: str, epochs: int = 3) -> TrialConfig:
    found = find_space(method).build(TaskFacts("digits", 2, 20)).paper
    return replace(found, optim=replace(found.optim, epochs=epochs), crop_scale=1.0)


LINEAR = ensemble(
    residual_trial(4), zero_shot_trial(), paper("gda"), paper("clap"), paper("linear-probe")
)
MIXED = ensemble(residual_trial(2), paper("tip-adapter-f"), paper("clip-adapter"))


def trained(config: TrialConfig, encoded_task: EncodedTask) -> Ensemble:
    found = open_training(config, encoded_task, EPISODE)
    assert isinstance(found, Ensemble)
    for _ in range(found.epochs):
        found.run_epoch(validate=False)
    return found


@pytest.mark.parametrize(("config", "folds"), [(LINEAR, True), (MIXED, False)])
def test_it_adds_the_logits_of_its_members(
    config: TrialConfig, folds: bool, encoded_task: EncodedTask
) -> None:
    found = trained(config, encoded_task)
    assert found.epoch == found.epochs == sum(m.config.epochs for m in config.members)
    total = torch.zeros(len(found.val), 10)
    for member in config.members:
        alone = Trainer(member.config, encoded_task, EPISODE)
        for _ in range(alone.epochs):
            alone.run_epoch()
        total += member.weight * alone.logits(alone.val)
    assert torch.allclose(found.validation_logits(), total, atol=1e-2, rtol=1e-4)
    assert torch.equal(found.validation_logits().argmax(-1), total.argmax(-1))
    head = found.method.linear_head()
    assert (head is not None) == folds
    if head is not None:
        unit = functional.normalize(found.val.features(), dim=-1)
        logits = functional.linear(unit, head.weight, head.bias)
        assert torch.equal(logits, found.validation_logits())
        assert torch.allclose(found.method(found.val.features()), logits, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("config", [LINEAR, MIXED])
def test_its_artifact_and_its_record_are_whole(
    config: TrialConfig, encoded_task: EncodedTask
) -> None:
    found = trained(config, encoded_task)
    plain = json.loads(json.dumps(config.to_dict()))
    assert TrialConfig.from_dict(plain) == config
    again = open_training(TrialConfig.from_dict(plain), encoded_task, EPISODE)
    again.load_artifact(*found.artifact())
    assert torch.equal(again.validation_logits(), found.validation_logits())
    other = open_training(ensemble(residual_trial(), residual_trial()), encoded_task, EPISODE)
    with pytest.raises(MethodError, match="must have 2 members"):
        other.load_artifact(*found.artifact())


def test_other_classes_get_what_each_member_knows_of_them(encoded_task: EncodedTask) -> None:
    """Residuals belong to their classes, so the ensemble becomes the zero-shot model."""
    found = trained(ensemble(residual_trial(4), zero_shot_trial()), encoded_task)
    before = found.validation_logits()
    found.set_classes("digits", "all")
    zero_shot = Trainer(zero_shot_trial(), encoded_task, EPISODE).validation_logits()
    assert not torch.equal(before, found.validation_logits())
    assert torch.equal(found.validation_logits().argmax(-1), zero_shot.argmax(-1))


@pytest.mark.parametrize("config", [LINEAR, MIXED])
def test_it_continues_from_its_state_bit_for_bit(
    config: TrialConfig, encoded_task: EncodedTask
) -> None:
    whole = trained(config, encoded_task)
    for epochs in (0, 3, whole.epochs - 1):
        first, second = (open_training(config, encoded_task, EPISODE) for _ in range(2))
        for _ in range(epochs):
            first.run_epoch(validate=False)
        tensors, plain = first.state()
        second.load_state(tensors, json.loads(json.dumps(plain)))
        for _ in range(epochs, whole.epochs):
            second.run_epoch(validate=False)
        assert torch.equal(second.validation_logits(), whole.validation_logits())
