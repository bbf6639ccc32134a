"""What every method in `METHODS` promises; a method without cases here fails."""

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from method_world import World, open_world
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainables.methods.base import Batch, Method, MethodConfig, MethodError, Preset, Schedule
from trainables.methods.registry import METHODS
from trainables.methods.rmt import MaskTuningConfig
from trainables.methods.taskres import TaskResConfig
from trainables.methods.zero_shot import ZeroShotConfig
from trainables.optim import OptimConfig, adam

CASES: dict[str, list[MethodConfig]] = {
    "zero-shot": [ZeroShotConfig()],
    "taskres": [TaskResConfig(), TaskResConfig(learn_alpha=True), TaskResConfig(alpha=2.0)],
    "rmt": [
        MaskTuningConfig(masked="all", leak=0.3),
        MaskTuningConfig(masked="mhsa", leak=0.0),
        MaskTuningConfig(
            masked="all", patch_embedding=True, norm_weight=1e-4, purity_eps=1e-8, leak=1.0
        ),
        MaskTuningConfig(masked="dynamic"),
    ],
}
"""Configurations that fit both backbones."""

OTHER: dict[str, dict[str, object]] = {
    "zero-shot": {"prompts": "reference"},
    "taskres": {
        "prompts": "clean",
        "alpha": 1.0,
        "learn_alpha": True,
        "normalise_base": True,
    },
    "rmt": {
        "prompts": "single",
        "masked": "all",
        "patch_embedding": True,
        "init": 2e-2,
        "threshold": 9e-3,
        "leak": 0.0,
        "norm_weight": 1.0,
        "purity_eps": 10.0,
    },
}
"""For every field a value that must make a difference."""

OPTIM = OptimConfig(lr=2e-3, epochs=4, batch_size=8)


def cases() -> Iterator[Any]:
    for name in METHODS:
        for config in CASES.get(name, []):
            changed = [
                f"{field.name}={getattr(config, field.name)}"
                for field in dataclasses.fields(config)
                if getattr(config, field.name) != field.default
            ]
            yield pytest.param((name, config), id="-".join([name, *changed]))


@pytest.fixture(params=["vit", "resnet"], scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at these sizes more only wait for each other
    yield open_world(request.param)
    torch.set_num_threads(threads)


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest) -> tuple[str, MethodConfig]:
    return request.param


class Run:
    """A method with its optimiser and generator in a world."""

    def __init__(self, case: tuple[str, MethodConfig], world: World) -> None:
        name, self.config = case
        self.world = world
        schedule = Schedule(OPTIM.learning_rates(len(world.labels)))
        features = world.class_features(self.config.prompts)
        self.method: Method = METHODS[name].build(self.config, world.backbone, features, schedule)
        self.rng = torch.Generator().manual_seed(0)
        self.inputs = world.inputs(self.method.reads)
        self.adam: torch.optim.Adam | None = None

    def batch(self, step: int) -> Batch:
        rows = slice(0, 8) if step % 2 == 0 else slice(8, 16)
        teacher = self.world.zero_shot(self.config.prompts)[rows]
        given = teacher if self.method.uses_zero_shot else None
        return Batch(self.inputs[rows], self.world.labels[rows], given)

    def train(self, first: int, last: int) -> list[float]:
        """Steps `first` to `last` - 1; returns their losses."""
        if first == 0:
            self.method.prepare(self.batch(step) for step in range(2))
        losses = []
        for step in range(first, last):
            losses.append(self.method.backward(self.batch(step), self.rng)["train/loss"])
            if tensors := self.method.trainable():
                self.adam = self.adam or adam(tensors.values(), OPTIM)
                self.adam.step()
        return losses

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.method(self.inputs)

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.method.state_dict().items()}


def test_every_method_has_cases() -> None:
    assert set(CASES) == set(METHODS) == set(OTHER)


def test_logits(case: tuple[str, MethodConfig], world: World) -> None:
    logits = Run(case, world).logits()
    assert logits.shape == (16, 4)
    assert logits.dtype == torch.float32


def test_starts_as_the_zero_shot_model(case: tuple[str, MethodConfig], world: World) -> None:
    run = Run(case, world)
    torch.testing.assert_close(
        run.logits(), world.zero_shot(run.config.prompts), atol=2e-4, rtol=1e-5
    )


def test_training_changes_what_is_trainable_and_nothing_else(
    case: tuple[str, MethodConfig], world: World
) -> None:
    weights = {k: v.clone() for k, v in world.backbone.model.state_dict().items()}
    random_state = torch.get_rng_state()
    run = Run(case, world)
    run.train(0, 0)
    before = run.state()
    # Two steps: the gradient of a learned alpha is zero while the residual is.
    run.train(1, 3)
    trained = {id(tensor) for tensor in run.method.trainable().values()}
    for name, tensor in run.method.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name]) == (id(tensor) not in trained), name
    for name, tensor in world.backbone.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert not any(p.requires_grad for p in world.backbone.model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state), "drew from the global generator"


@pytest.mark.parametrize("world", ["vit"], indirect=True)
def test_loss_falls(case: tuple[str, MethodConfig], world: World) -> None:
    run = Run(case, world)  # the random ResNet has nothing to teach: see the golden runs
    losses = run.train(0, 24)
    if run.method.trainable():
        assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


def test_continues_from_its_state_bit_for_bit(case: tuple[str, MethodConfig], world: World) -> None:
    whole, first, second = (Run(case, world) for _ in range(3))
    losses = whole.train(0, 8)
    first.train(0, 4)
    second.method.load_state_dict(first.state())
    second.rng.set_state(first.rng.get_state())
    if first.adam is not None:
        second.adam = adam(second.method.trainable().values(), OPTIM)
        second.adam.load_state_dict(first.adam.state_dict())
    assert second.train(4, 8) == losses[4:]
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_artifact_gives_the_same_logits(
    case: tuple[str, MethodConfig], world: World, tmp_path: Path
) -> None:
    trained, loaded = Run(case, world), Run(case, world)
    trained.train(0, 8)
    tensors, metadata = trained.method.artifact()
    assert {"format", "format_version"} <= metadata.keys()
    save_file(tensors, tmp_path / "artifact.safetensors", metadata)
    with safe_open(tmp_path / "artifact.safetensors", "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        loaded.method.load_artifact(stored, file.metadata())
    assert torch.equal(loaded.logits(), trained.logits())
    assert trained.method.progress().keys() == loaded.method.progress().keys()


def test_refuses_a_foreign_artifact(case: tuple[str, MethodConfig], world: World) -> None:
    run = Run(case, world)
    tensors, metadata = run.method.artifact()
    for wrong in ({"format": "x"}, {"format_version": "999"}, {"backbone": "x"}):
        with pytest.raises(MethodError):
            run.method.load_artifact(tensors, metadata | wrong)
    with pytest.raises(MethodError):
        run.method.load_artifact(tensors | {"other": torch.zeros(3)}, metadata)


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_documented(name: str) -> None:
    config = METHODS[name].Config
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().prompts = "clean"  # type: ignore[misc]
    documented = set()
    for kind in (MethodConfig, config):
        body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                documented.add(field.target.id)  # type: ignore[union-attr]
    assert documented == {field.name for field in dataclasses.fields(config)}


FIELDS = [(n, f.name) for n in METHODS for f in dataclasses.fields(METHODS[n].Config)]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_field_matters(name: str, field: str, world: World) -> None:
    config = METHODS[name].Config()
    other = dataclasses.replace(config, **{field: OTHER[name][field]})
    assert getattr(other, field) != getattr(config, field)
    runs = [Run((name, c), world) for c in (config, other)]
    outcomes = []
    for run in runs:
        run.train(0, 4)
        outcomes.append((run.state() | run.method.artifact()[0], run.logits()))
    (one, logits), (two, other_logits) = outcomes
    assert (
        one.keys() != two.keys()
        or not all(torch.equal(one[key], two[key]) for key in one)
        or not torch.equal(logits, other_logits)
    )


@pytest.mark.parametrize("preset", get_args(Preset))
@pytest.mark.parametrize("shots", [1, 4, 16])
@pytest.mark.parametrize("dataset", ["digits", "imagenet", "oxford_flowers"])
@pytest.mark.parametrize("name", METHODS)
def test_presets_are_valid(
    name: str, dataset: str, shots: int, preset: Preset, world: World
) -> None:
    config, optim, crop_scale = METHODS[name].preset(
        preset, dataset=dataset, shots=shots, images=10 * shots, tower=world.backbone.tower
    )
    assert type(config) is METHODS[name].Config
    assert config.problems() == optim.problems() == []
    assert 0 < crop_scale <= 1
    schedule = Schedule(optim.learning_rates(10 * shots))
    METHODS[name].build(config, world.backbone, torch.ones(4, 128), schedule)


def test_refuses_an_unknown_prompt_variant(case: tuple[str, MethodConfig], world: World) -> None:
    name, config = case
    broken = dataclasses.replace(config, prompts="none")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="prompts must be one of"):
        METHODS[name].build(broken, world.backbone, torch.ones(4, 128), Schedule(()))
