"""Gradients of one loss: set, not added, for the tensors that are named and no others."""

import pytest
import torch
from torch import nn

from trainables.methods.tensor_method import fill_gradients


def test_gradients_are_set_and_not_added() -> None:
    one, two = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0))
    for _ in range(2):
        fill_gradients((one * two).sum(), [one, two])
    assert one.grad is not None
    assert two.grad is not None
    assert one.grad.tolist() == [3, 3]
    assert two.grad.item() == 3


def test_other_tensors_are_left_alone() -> None:
    one, two = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    fill_gradients(one * two, [one])
    assert two.grad is None


def test_a_tensor_that_would_never_move_is_an_error() -> None:
    one, two = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    with pytest.raises(RuntimeError):
        fill_gradients(one * one, [one, two])
    fill_gradients(torch.tensor(1.0), [])
