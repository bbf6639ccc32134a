"""Learned prompts in several blocks of the text tower, as in MaPLe and PromptSRC.

Notation: c classes, d feature dimension, m context tokens, w width of the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.text_tower import DeepTokens
from trainables.methods.base import ClassTexts
from trainables.methods.context import PromptWriter


@dataclass(frozen=True)
class DeepPrompts:
    """Text features of classes whose prompts have learned tokens in the first blocks."""

    writer: PromptWriter
    """Writer of the backbone."""
    tokens: int
    """m."""
    fixed: Tensor
    """int64 [f]: ids of fixed tokens between the learned ones and the name."""

    def features(self, classes: ClassTexts) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return a function from the learned tokens [m, w] of the first block, the second and so on
        to the text features of `classes` [c, d], at unit length. Raises `MethodError` if a name is
        too long."""
        prompts = self.writer.prompts(classes, self.tokens, fixed=self.fixed)

        def features(contexts: Sequence[Tensor]) -> Tensor:
            first, *others = contexts
            deep = DeepTokens(prompts.gaps, others) if others else None
            found = self.writer.tower.encode(prompts.filled(first), prompts.ends, deep)
            return functional.normalize(found, dim=-1)

        return Remembered(features)


class Remembered:
    """A function of tensors that keeps its last value without gradients, because all batches of a
    test set have the same prompts."""

    def __init__(self, compute: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self._compute = compute
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """The function's value for tensors of equal shape. While a graph is traced, which cannot
        depend on a comparison, the last value is a constant of the graph."""
        if torch.is_grad_enabled():
            return self._compute(tensors)
        if self._last is not None and torch.compiler.is_compiling():
            return self._last[1]
        # Compared by value: PyTorch's fused optimisers do not increase a tensor's version.
        state = torch.stack([tensor.detach() for tensor in tensors])
        if self._last is None or not torch.equal(self._last[0], state):
            self._last = state, self._compute(tensors)
        return self._last[1]
