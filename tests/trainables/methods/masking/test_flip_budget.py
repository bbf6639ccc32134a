"""The flip budget, and the proof that some schedules cannot move a bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainables.core.optim import OptimConfig
from trainables.methods.base import Schedule
from trainables.methods.masking.mask_method import flip_bound, flip_budget

RELEASED = OptimConfig(lr=8e-5, epochs=30, batch_size=32)


@pytest.mark.parametrize(("images", "bound"), [(32, 0.26), (64, 0.58), (96, 0.96)])
def test_bound_of_the_released_schedule(images: int, bound: float) -> None:
    schedule = Schedule(RELEASED.learning_rates(images))
    assert len(schedule.learning_rates) == images // 32 * 30
    assert flip_bound(schedule, 5e-3) == pytest.approx(bound, abs=0.005)


@pytest.mark.parametrize(
    ("images", "budget"), [(32, 0.25), (160, 1.24), (592, 4.5), (1600, 12.4), (6352, 49)]
)
def test_budget_of_the_released_schedule(images: int, budget: float) -> None:
    schedule = Schedule(RELEASED.learning_rates(images))
    assert flip_budget(schedule, 5e-3) == pytest.approx(budget, rel=0.01)


def test_bound_equals_cauchy_schwarz_written_out() -> None:
    rates, (beta1, beta2) = (3e-3, 2e-3, 1e-3, 5e-4), (0.9, 0.999)
    total = 0.0
    for t, rate in enumerate(rates, start=1):
        a = [(1 - beta1) * beta1 ** (t - i) / (1 - beta1**t) for i in range(1, t + 1)]
        b = [(1 - beta2) * beta2 ** (t - i) / (1 - beta2**t) for i in range(1, t + 1)]
        total += rate * math.sqrt(sum(x * x / y for x, y in zip(a, b, strict=True)))
    assert flip_bound(Schedule(rates), 5e-3) == pytest.approx(total / 5e-3, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30))
def test_no_gradients_carry_adam_further_than_the_bound(gradients: list[float]) -> None:
    optim = OptimConfig(lr=1e-2, epochs=len(gradients), batch_size=1)
    schedule = Schedule(optim.learning_rates(1))
    score = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.Adam([score], betas=schedule.betas)
    for rate, gradient in zip(schedule.learning_rates, gradients, strict=True):
        adam.param_groups[0]["lr"] = rate
        score.grad = torch.full_like(score, gradient)
        adam.step()
    assert abs(score.item()) <= flip_bound(schedule, 1.0) * (1 + 1e-9)


def test_constant_gradients_carry_it_exactly_as_far_as_the_budget() -> None:
    schedule = Schedule(RELEASED.learning_rates(96))
    score = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.Adam([score], betas=schedule.betas, eps=0)
    for rate in schedule.learning_rates:
        adam.param_groups[0]["lr"] = rate
        score.grad = torch.ones_like(score)
        adam.step()
    assert -score.item() == pytest.approx(flip_budget(schedule, 1.0), rel=1e-9)
