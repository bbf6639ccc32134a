"""The learning-rate schedule against its recursion-free form, and the rules of its fields."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainables.core import optim
from trainables.core.optim import OptimConfig, make_optimiser

configs = st.builds(
    OptimConfig,
    lr=st.floats(1e-6, 1.0),
    epochs=st.integers(1, 200),
    batch_size=st.integers(1, 300),
    warmup_epochs=st.just(0),
)


@given(configs)
def test_cosine_without_warm_up_matches_torch(config: OptimConfig) -> None:
    closed = [config.lr * (1 + math.cos(math.pi * e / config.epochs)) / 2 for e in range(5)]
    assert [config.lr_at(e) for e in range(5)] == pytest.approx(closed, rel=1e-12, abs=1e-18)
    rates = config.learning_rates(config.batch_size)
    assert len(rates) == config.epochs
    assert all(first > second for first, second in itertools.pairwise(rates))
    assert rates[0] == config.lr
    # sum of (1 + cos(pi e / T)) / 2 over e < T is (T + 1) / 2
    assert math.fsum(rates) == pytest.approx(config.lr * (config.epochs + 1) / 2)


@given(configs, st.integers(0, 5))
def test_warm_up_shifts_the_cosine(config: OptimConfig, warmup: int) -> None:
    config = replace(config, epochs=config.epochs + 5)
    warm = replace(config, warmup_epochs=warmup, warmup_lr=1e-7)
    for epoch in range(config.epochs):
        expected = 1e-7 if epoch < warmup else config.lr_at(epoch - warmup)
        assert warm.lr_at(epoch) == expected


def test_published_taskres_schedule() -> None:
    config = OptimConfig(2e-3, 100, 256, warmup_epochs=1)
    assert config.lr_at(0) == 1e-5
    assert config.lr_at(1) == 2e-3
    assert config.lr_at(99) == pytest.approx(1.97e-6, rel=0.01)


@given(configs, st.integers(1, 2000))
@settings(deadline=None)
def test_only_whole_batches_are_stepped(config: OptimConfig, images: int) -> None:
    steps = config.steps_per_epoch(images)
    assert steps >= 1
    assert steps * config.batch_size <= max(images, config.batch_size)
    assert len(config.learning_rates(images)) == config.epochs * steps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("epochs", 0),
        ("batch_size", 0),
        ("weight_decay", -1e-4),
        ("warmup_epochs", 11),
        ("warmup_epochs", -1),
        ("optimiser", "lion"),
        ("decay", "linear"),
        ("momentum", 1.0),
        ("eps", 0.0),
        ("min_lr", -1.0),
        ("min_lr", 0.5),
    ],
)
def test_every_broken_rule_is_named_with_its_value(field: str, value: Any) -> None:
    config = OptimConfig(lr=1e-3, epochs=10, batch_size=4)
    assert config.problems() == []
    (problem,) = replace(config, **{field: value}).problems()
    assert field in problem
    assert str(value) in problem


def test_all_problems_at_once() -> None:
    assert len(OptimConfig(lr=0, epochs=0, batch_size=0).problems()) == 3


def test_weight_decay_is_coupled() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimiser = make_optimiser([parameter], OptimConfig(0.1, 1, 1, weight_decay=0.5))
    parameter.grad = torch.tensor([-1.0])  # -1 + 0.5 * 2 = 0: Adam stands still, AdamW would not
    optimiser.step()
    assert parameter.item() == 2.0


def test_cosine_can_move_at_every_step_and_end_above_zero() -> None:
    config = OptimConfig(1.0, 2, 10, decay="step", min_lr=0.1)
    rates = config.learning_rates(40)
    wanted = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert rates == pytest.approx(wanted)
    assert set(replace(config, decay="none").learning_rates(40)) == {1.0}


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_every_optimiser_and_its_fields(name: Any, kind: str) -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    config = OptimConfig(0.1, 1, 1, 0.5, optimiser=name, momentum=0.3, eps=1e-4)
    made = make_optimiser([parameter], config)
    assert type(made).__name__ == kind
    (group,) = made.param_groups
    assert group["weight_decay"] == 0.5
    assert group.get("momentum") == (0.3 if name == "sgd" else None)
    assert group.get("eps") == (None if name == "sgd" else 1e-4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (optim.SGD, {"momentum": 0.9, "fused": True}),
        (optim.Adam, {"fused": True}),
        (optim.AdamW, {"weight_decay": 0.1}),
        (optim.LBFGS, {"line_search_fn": "strong_wolfe"}),
    ],
)
def test_an_optimiser_is_torch_s(
    kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    def trained(kind: type[torch.optim.Optimizer]) -> torch.Tensor:
        weight = torch.linspace(-1, 1, 6).requires_grad_()
        optimiser = kind([weight], lr=0.1, **options)  # type: ignore[call-arg]

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = (weight**4 - weight).sum()
            value.backward()
            return value

        for _ in range(3):
            optimiser.step(loss)  # type: ignore[arg-type]
            optimiser.load_state_dict(optimiser.state_dict())
        assert weight.grad is not None
        return weight.detach()

    assert torch.equal(trained(kind), trained(getattr(torch.optim, kind.__name__)))
