"""Learned prompts in several blocks of the text tower, as in MaPLe and PromptSRC.

Notation: m context tokens, w width of the text tower, J depth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.image_tower import image_tower
from trainables.backbones.text_tower import DeepTokens
from trainables.core.limits import PositiveInt
from trainables.methods.base import BuildContext, ClassTexts, MethodConfig
from trainables.methods.context import RANDOM_SPREAD, PromptWriter
from trainables.methods.tensor_method import TensorMethod


@dataclass(frozen=True)
class DeepPromptsConfig(MethodConfig):
    """Number, depth and initial values of the tokens."""

    context_tokens: PositiveInt = 4
    """m, learned tokens per block of the text tower."""
    depth: PositiveInt = 9
    """J, the number of first blocks that have their own tokens; all if a tower has fewer."""
    init_words: str = "a photo of a"
    """Words whose first m tokens are the initial values of the first block's; the others stay fixed
    before the class name. Empty to draw all at random."""


class DeepPrompts(TensorMethod):
    """Learned tokens in the first blocks of both towers; every set of tokens replaces the outputs
    for the previous one, and after block J the outputs continue."""

    input_kind = "images"
    is_zero_shot_at_init = False
    coupled: ClassVar[bool] = False
    """Whether the towers have tokens in equally many blocks."""

    def __init__(self, config: DeepPromptsConfig, context: BuildContext) -> None:
        """Subclasses add the tokens of the image tower, then call `set_classes`."""
        super().__init__(config, context)
        self._writer, self._tower = PromptWriter.of(self.backbone), image_tower(self.backbone)
        tokens, blocks = config.context_tokens, len(self._writer.tower.blocks)
        self._depth = min(config.depth, blocks, *[len(self._tower.blocks)] * self.coupled)
        first, self._fixed_words = self._writer.opening(tokens, config.init_words, context.rng)
        self.context = nn.Parameter(first)
        self.deep: nn.Parameter | None = None
        if self._depth > 1:
            self.deep = self.drawn(self._depth - 1, tokens, first.shape[1], context.rng)

    def drawn(self, sets: int, tokens: int, width: int, rng: torch.Generator) -> nn.Parameter:
        """Random tokens [sets, tokens, width] of N(0, 0.02^2)."""
        values = RANDOM_SPREAD * torch.randn(sets, tokens, width, generator=rng)
        return nn.Parameter(values.to(self.backbone.device))

    def contexts(self) -> list[Tensor]:
        """The tokens of the text tower's blocks, [m, w] each."""
        return [self.context, *(() if self.deep is None else self.deep.unbind())]

    @abstractmethod
    def image_tokens(self) -> list[Tensor]:
        """The tokens of the image tower's blocks."""

    def set_classes(self, classes: ClassTexts) -> None:
        """Keeps all tokens, and inserts the new names into the prompts; raises `MethodError` if a
        name is too long."""
        prompts = self._writer.prompts(classes, self.config.context_tokens, fixed=self._fixed_words)

        def features(contexts: Sequence[Tensor]) -> Tensor:
            first, *others = contexts
            deep = DeepTokens(prompts.gaps, others) if others else None
            found = self._writer.tower.encode(prompts.filled(first), prompts.ends, deep)
            return functional.normalize(found, dim=-1)

        self._texts = Remembered(features)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of the tokens in either tower."""
        return {
            "context/norm": torch.stack(self.contexts()).norm(dim=-1).mean().item(),
            "tokens/norm": torch.stack(self.image_tokens()).norm(dim=-1).mean().item(),
        }


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
