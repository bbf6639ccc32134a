"""Methods whose gradient is that of one loss: what most of them have in common."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.base import Batch, Method


def fill_gradients(loss: Tensor, tensors: Iterable[nn.Parameter]) -> None:
    """Sets `.grad` of every tensor to d loss / d tensor, and touches no other.

    What was there before is replaced, not added to. Raises `RuntimeError` where the loss, a scalar,
    does not depend on a tensor: it would never move.
    """
    leaves = list(tensors)
    gradients = torch.autograd.grad(loss, leaves) if leaves else ()
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = gradient


class LossMethod(Method):
    """A method that moves its own parameters down the gradient of one loss."""

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name: `train/loss` is what is minimised, others are only reported.

        The mean cross entropy by default, without random numbers.
        """
        del rng
        return {"train/loss": functional.cross_entropy(self(batch.inputs), batch.labels)}

    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """See `Method.backward`."""
        losses = self.losses(batch, rng)
        fill_gradients(losses["train/loss"], self.trainable().values())
        return {name: loss.item() for name, loss in losses.items()}

    def trainable(self) -> dict[str, nn.Parameter]:
        """All of its own parameters."""
        return dict(self.named_parameters())
