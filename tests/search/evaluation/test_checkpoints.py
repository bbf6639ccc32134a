"""A training of the evaluation that is killed continues from its checkpoint, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search.evaluation.workers import load_checkpoint, save_checkpoint
from trainables.core.storage import open_storage
from trainables.data.registry import DataSource
from trainables.encoded_task import EncodedTask
from trainables.methods.base import TaskFacts
from trainables.presets import preset_trial
from trainables.stages import open_training
from trainables.training import Training
from trainables.trial import Episode

NAME = "checkpoint.safetensors"
EPISODE = Episode("digits", 2, 1)


def training(methods: str, encoded: EncodedTask) -> Training:
    facts = TaskFacts("digits", 2, 20)
    config, *rest = (preset_trial(name, "paper", facts) for name in methods.split("+"))
    for stage in rest:
        config = stage.after(config)
    return open_training(config, encoded, EPISODE)


@pytest.fixture(scope="module")
def encoded() -> EncodedTask:
    return EncodedTask("tiny", "cpu", DataSource())


def learned(run: Training) -> dict[str, torch.Tensor]:
    while run.epoch < run.epochs:
        run.run_epoch(validate=False)
    return run.artifact()[0]


@pytest.mark.parametrize("methods", ["taskres", "enhanced-base+taskres"])
def test_a_killed_training_ends_with_the_same_model(
    methods: str, encoded: EncodedTask, tmp_path: Path
) -> None:
    folder = open_storage(str(tmp_path))
    first = training(methods, encoded)
    for _ in range(55):
        first.run_epoch(validate=False)
    save_checkpoint(first, folder, NAME, 12.5)
    again = training(methods, encoded)
    assert load_checkpoint(again, folder, NAME) == 12.5
    assert again.epoch == 55
    expected, found = learned(first), learned(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_damaged_checkpoint_is_ignored(encoded: EncodedTask, tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    first = training("taskres", encoded)
    first.run_epoch(validate=False)
    save_checkpoint(first, folder, NAME, 1.0)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = training("taskres", encoded)
    assert load_checkpoint(again, folder, NAME) == 0.0
    assert again.epoch == 0
