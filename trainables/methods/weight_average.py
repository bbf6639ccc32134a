"""A weighted average of tensors over the epochs of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """The average so far: sum_t w_t x_t / sum_t w_t.

    Weights are given as logarithms, and their sum is kept as one, so that the tiny weights of a
    narrow Gaussian's tail give an average as well.
    """

    log_sum: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """An empty average of tensors with these names, which contain no dots, and shapes."""
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, torch.zeros_like(tensor))
        self._names = tuple(tensors)
        self.register_buffer("log_sum", torch.tensor(-math.inf, dtype=torch.float64))

    @property
    def is_set(self) -> bool:
        """Whether anything was added."""
        return math.isfinite(self.log_sum.item())

    def tensors(self) -> dict[str, Tensor]:
        """The average by name; zeros if it is empty."""
        return {name: self.get_buffer(name) for name in self._names}

    @torch.no_grad()
    def add(self, tensors: Mapping[str, Tensor], log_weight: float) -> None:
        """Adds x_t with the weight exp(log_weight)."""
        total = torch.logaddexp(self.log_sum, self.log_sum.new_tensor(log_weight))
        share = math.exp(log_weight - total.item())
        for name, average in self.tensors().items():
            average.lerp_(tensors[name], share)
        self.log_sum.copy_(total)

    @torch.no_grad()
    def clear(self) -> None:
        """Empties the average."""
        self.log_sum.fill_(-math.inf)


def gaussian(epoch: int, epochs: int, center: float, width: float) -> float:
    """log w_t up to a constant, for epoch t of T, from 1: w_t = exp(-((t - c T) / (s T))^2 / 2),
    with c the `center` and s the `width`, both as shares of T."""
    return -(((epoch / epochs - center) / width) ** 2) / 2
