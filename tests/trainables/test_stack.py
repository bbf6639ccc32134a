"""Trainings that take their steps together learn what each of them learns alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spaces.registry import find_space
from trainables.core.protocols import Validation
from trainables.core.storage import LocalStorage
from trainables.encoded_task import EncodedTask
from trainables.folds import FoldedTraining
from trainables.methods.base import TaskFacts
from trainables.methods.registry import METHODS
from trainables.methods.taskres import TaskResConfig
from trainables.methods.tensor_method import TensorMethod
from trainables.stack import Lockstep, Stack
from trainables.stages import open_training
from trainables.trainer import Trainer
from trainables.training import Training
from trainables.trial import TaskSpec, TrialConfig
from trainables.trial_run import TrialRun

SEEDS = (1, 2, 3)
STACKABLE = [
    name
    for name, method in METHODS.items()
    if issubclass(method, TensorMethod) and method.stackable and not method.training_free
]


@pytest.fixture(scope="module")
def encoded() -> EncodedTask:
    return EncodedTask("tiny", "cpu", task().source(""))


def task(validation: Validation = "held-out", shots: int = 4) -> TaskSpec:
    return TaskSpec(("digits",), "tiny", (shots,), SEEDS, validation=validation)


def config_of(method: str, epochs: int = 6, batch_size: int = 16) -> TrialConfig:
    paper = find_space(method).build(TaskFacts("digits", 4, 40)).paper
    optim = replace(paper.optim, epochs=epochs, batch_size=batch_size, lr=0.01)
    return replace(paper, optim=optim, crop_scale=1.0)


def opened(config: TrialConfig, encoded: EncodedTask, spec: TaskSpec) -> list[Training]:
    if spec.validation == "folds":
        return [FoldedTraining(config, encoded, episode) for episode in spec.episodes]
    return [open_training(config, encoded, episode) for episode in spec.episodes]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of trainings in each epoch of a stack."""
    sizes: list[int] = []
    inner = Stack.run_epoch

    def run_epoch(stack: Stack, validate: bool) -> None:
        sizes.append(len(stack.trainers))
        inner(stack, validate)

    monkeypatch.setattr(Stack, "run_epoch", run_epoch)
    return sizes


def assert_same(found: Training, wanted: Training) -> None:
    """Bit for bit but for the rounding of matrix products, which a library may batch otherwise."""
    (own, metadata), (other, other_metadata) = found.artifact(), wanted.artifact()
    assert metadata == other_metadata
    assert own.keys() == other.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)
    (tensors, plain), (other_tensors, other_plain) = found.state(), wanted.state()
    assert plain == other_plain
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, other_tensors[name], rtol=1e-3, atol=1e-6)


CONFIGS = [
    *(pytest.param(config_of(method), id=method) for method in STACKABLE),
    *(
        pytest.param(replace(config_of("taskres"), method_config=own), id=f"taskres-{name}")
        for name, own in {
            "image": TaskResConfig(residual="image"),
            "both": TaskResConfig(residual="both", learn_alpha=True, normalise_base=True),
        }.items()
    ),
]


@pytest.mark.parametrize("validation", ["held-out", "folds"])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_stack_learns_what_its_trainings_learn_alone(
    config: TrialConfig,
    validation: Validation,
    encoded: EncodedTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = task(validation)
    stacked, alone = opened(config, encoded, spec), opened(config, encoded, spec)
    sizes, lockstep = counted(monkeypatch), Lockstep()
    for _ in range(config.epochs):
        rows = lockstep.run_epoch(stacked, validate=True)
        for row, training in zip(rows, alone, strict=True):
            wanted = training.run_epoch(validate=True)
            assert row.keys() == wanted.keys()
            for name, value in wanted.items():
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    per_epoch = [3] if validation == "held-out" else [12, 3]
    assert sizes == per_epoch * config.epochs
    for training, other in zip(stacked, alone, strict=True):
        assert_same(training, other)


def test_a_continued_trial_learns_the_same_bit_for_bit(
    encoded: EncodedTask, tmp_path: Path
) -> None:
    config, folder = config_of("taskres", epochs=8), LocalStorage(tmp_path)

    def run() -> TrialRun:
        return TrialRun(config, task(), encoded)

    whole, cut = run(), run()
    while not whole.finished:
        report = whole.advance()
    for _ in range(4):
        cut.advance()
        cut.save(folder)
        cut = run()
        assert cut.load(folder)
    while not cut.finished:
        continued = cut.advance()
    assert continued.values == report.values
    assert continued.metrics == report.metrics
    for one, other in zip(cut.episodes, whole.episodes, strict=True):
        for name, tensor in other.state()[0].items():
            assert torch.equal(one.state()[0][name], tensor), name


def test_a_run_that_goes_back_to_a_checkpoint_learns_the_same(
    encoded: EncodedTask, tmp_path: Path
) -> None:
    folder = LocalStorage(tmp_path)
    run = TrialRun(config_of("taskres", epochs=8), task(), encoded)
    run.advance()
    run.save(folder)
    first = [run.advance().metrics for _ in range(3)]
    assert run.load(folder)
    assert [run.advance().metrics for _ in range(3)] == first


def test_other_shapes_and_settings_are_not_stacked(
    encoded: EncodedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = task(shots=1), task(shots=4)
    slow = replace(config_of("taskres"), optim=replace(config_of("taskres").optim, lr=1e-4))
    trainings = [
        Trainer(config_of("taskres"), encoded, few.episodes[0]),
        Trainer(config_of("taskres"), encoded, many.episodes[0]),
        Trainer(slow, encoded, many.episodes[1]),
    ]
    sizes = counted(monkeypatch)
    Lockstep().run_epoch(trainings, validate=False)
    assert sizes == []
