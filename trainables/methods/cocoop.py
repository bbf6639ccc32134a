"""CoCoOp: a context that depends on the image (Zhou et al., CVPR 2022, arXiv:2203.05557).

Notation: b batch size, c classes, d feature dimension, m context tokens, w width of the text tower,
h = d / reduction hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones import text_tower
from trainables.core.limits import PositiveInt
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    MethodConfig,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.context import PromptWriter
from trainables.methods.recipes import dassl_crop_scale, dassl_sgd
from trainables.methods.tensor_method import TensorMethod


@dataclass(frozen=True)
class CoCoOpConfig(MethodConfig):
    """The context, and the meta-net that shifts it depending on the image."""

    context_tokens: PositiveInt = 4
    """m, the number of learned vectors."""
    init_words: str = "a photo of a"
    """Words whose embeddings are the initial values; empty to draw them at random."""
    reduction: PositiveInt = 16
    """d / h: how many times narrower the meta-net is than a feature."""


class CoCoOp(TensorMethod):
    """logits = exp(logit_scale) cos(z, g(context + net(z), class name)) (equation 3).

    Every image has its own classifier: b x c prompts per step, and c per evaluated image, of which
    at most `text_tower.AT_ONCE` are encoded at a time.
    """

    name = "cocoop"
    Config = CoCoOpConfig
    input_kind = "features"
    is_zero_shot_at_init = False

    def __init__(self, config: CoCoOpConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self._writer = PromptWriter.of(self.backbone)
        self._prompts = self._writer.prompts(context.classes, config.context_tokens)
        rng = context.rng
        self.context = nn.Parameter(
            self._writer.context(config.context_tokens, config.init_words, rng)
        )
        features = context.classes.features.shape[1]
        hidden = max(1, features // config.reduction)
        self.narrow = _linear(features, hidden, rng).to(self.context.device)
        self.widen = _linear(hidden, self._writer.tower.width, rng).to(self.context.device)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """Section 4.1: four tokens from "a photo of a", ten epochs, one image per step, on all
        data sets and in all protocols. The paper has 16 shots only."""
        optim = dassl_sgd(name, 2e-3, epochs=10, batch_size=1)
        return Recipe(CoCoOpConfig(prompts="photo"), optim, dassl_crop_scale(name))

    def shift(self, unit: Tensor) -> Tensor:
        """Image features [b, d] at unit length -> the shift of every context token, [b, w].

        The paper feeds the meta-net "the output features of the image encoder" and does not say
        whether they are normalised; in the code they are.
        """
        shift: Tensor = self.widen(functional.relu(self.narrow(unit)))
        return shift

    def forward(self, inputs: Tensor) -> Tensor:
        unit = functional.normalize(inputs, dim=-1)
        # With gradients the tower itself limits its memory.
        at_once = text_tower.AT_ONCE // len(self._prompts.ends)
        size = len(unit) if torch.is_grad_enabled() else max(1, at_once)
        return torch.cat([self._logits(part) for part in unit.split(size)])

    def _logits(self, unit: Tensor) -> Tensor:
        context = self.context + self.shift(unit)[:, None]  # [b, m, w]
        prompts = self._prompts.filled(context[:, None]).flatten(0, 1)  # [b c, l, w]
        features = self._writer.tower.encode(prompts, self._prompts.ends.repeat(len(unit)))
        texts = functional.normalize(features, dim=-1).unflatten(0, (len(unit), -1))
        logits: Tensor = self.scale * (texts @ unit[..., None])[..., 0]
        return logits

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """Context and meta-net are kept, with the new names in the prompts."""
        self._prompts = self._writer.prompts(classes, self.config.context_tokens)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of the context's vectors; length of all the meta-net's weights."""
        weights = torch.cat([self.narrow.weight.flatten(), self.widen.weight.flatten()])
        return {
            "context/norm": self.context.norm(dim=-1).mean().item(),
            "meta_net/norm": weights.norm().item(),
        }


def _linear(inputs: int, outputs: int, rng: torch.Generator) -> nn.Linear:
    """A linear layer with PyTorch's initial values, U(-1, 1) / sqrt(inputs), drawn from `rng`."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            tensor.uniform_(-(inputs**-0.5), inputs**-0.5, generator=rng)
    return layer
