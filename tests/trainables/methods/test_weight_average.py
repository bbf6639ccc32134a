"""The weighted average of tensors: against NumPy, its extremes, its state."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.methods.weight_average import WeightAverage, gaussian


def values(count: int) -> list[dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [
        {"one": torch.randn(3, 2, generator=rng), "two": torch.randn(4, generator=rng)}
        for _ in range(count)
    ]


@given(
    epochs=st.integers(1, 30),
    center=st.floats(0, 1),
    width=st.floats(0.02, 2),
)
@settings(max_examples=50, deadline=None)
def test_is_the_gaussian_average_of_all_epochs(epochs: int, center: float, width: float) -> None:
    """In NumPy, with PromptSRC's weights: the density at t with mean c T and deviation s T."""
    steps = values(epochs)
    average = WeightAverage(steps[0])
    for epoch, tensors in enumerate(steps, start=1):
        average.add(tensors, gaussian(epoch, epochs, center, width))
    t = np.arange(1, epochs + 1)
    exponent = -0.5 * ((t - center * epochs) / (width * epochs)) ** 2
    weights = np.exp(exponent - exponent.max())
    weights /= weights.sum()
    for name, found in average.tensors().items():
        stacked = np.stack([tensors[name].numpy().astype(np.float64) for tensors in steps])
        expected = np.tensordot(weights, stacked, axes=1)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_weights_that_vanish_give_an_average() -> None:
    """exp(-2000) is 0 as a number: the first epoch alone is the average, to the last bit."""
    first, second = values(2)
    average = WeightAverage(first)
    assert not average.is_set
    average.add(first, -2000.0)
    assert average.is_set
    assert all(torch.equal(average.tensors()[name], first[name]) for name in first)
    average.add(second, -1000.0)
    assert all(torch.equal(average.tensors()[name], second[name]) for name in second)
    average.clear()
    assert not average.is_set


def test_continues_from_its_state() -> None:
    steps = values(4)
    whole, part = WeightAverage(steps[0]), WeightAverage(steps[0])
    for number, tensors in enumerate(steps):
        whole.add(tensors, -float(number))
        if number < 2:
            part.add(tensors, -float(number))
    again = WeightAverage(steps[0])
    again.load_state_dict(part.state_dict())
    for number in (2, 3):
        again.add(steps[number], -float(number))
    for name, tensor in whole.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert dict(whole.named_parameters()) == {}


def test_the_gaussian_has_its_top_at_the_center() -> None:
    assert gaussian(15, 20, 0.75, 0.05) == 0
    assert gaussian(16, 20, 0.75, 0.05) == pytest.approx(-0.5)  # one deviation, which is one epoch
    assert gaussian(14, 20, 0.75, 0.05) == pytest.approx(-0.5)
