"""An adapter on the text features, the alternative in TaskRes's ablation (Yu et al., CVPR 2023,
arXiv:2211.10277, table 2).

Notation: b batch size, c classes, d feature dimension, t base features [c, d], phi the adapter, h
its hidden units, alpha its weight, z image features [b, d].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import PositiveFloat, PositiveInt
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.recipes import dassl_crop_scale, taskres_optim
from trainables.methods.tensor_method import TensorMethod


@dataclass(frozen=True)
class TextAdapterConfig(MethodConfig):
    """Place and size of the adapter."""

    keep_base: bool = True
    """True: the classifier is t + alpha phi(t). False: phi(t) alone."""
    alpha: PositiveFloat = 0.5
    """Weight of the adapter beside the base; no effect without the base."""
    reduction: PositiveInt = 4
    """d / h, rounded down. The paper does not give h; this is the value of CLIP-Adapter, whose
    adapter it uses."""


class TextAdapter(TensorMethod):
    """logits = exp(logit_scale) cos(z, t + alpha phi(t)), with phi(t) = max(0, t A) B.

    Two linear layers without bias and a ReLU between them: CLIP-Adapter's formula (Gao et al.,
    arXiv:2110.04544), whose released code has a second ReLU at the end.
    """

    name = "text-adapter"
    Config = TextAdapterConfig
    input_kind = "features"
    stackable = True
    is_zero_shot_at_init = False
    base: Tensor

    def __init__(self, config: TextAdapterConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        base = context.classes.features.detach().clone()
        features = base.shape[1]
        if config.reduction > features:
            raise MethodError(
                f"reduction must not exceed the {features} features of {self.backbone.name}, got "
                f"{config.reduction}: use e.g. 4"
            )
        self.register_buffer("base", base, persistent=False)
        hidden = features // config.reduction
        self.down = nn.Parameter(_first_values(features, hidden, context.rng).to(base.device))
        self.up = nn.Parameter(_first_values(hidden, features, context.rng).to(base.device))

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """t + alpha phi(t), trained as TaskRes is: table 2 gives alpha and nothing else that
        differs. The released code has no adapter; `reference` adds the defaults of its
        framework."""
        config = TextAdapterConfig(prompts=name)
        return Recipe(config, taskres_optim(name, facts), dassl_crop_scale(name))

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.normalize(inputs, dim=-1) @ self._classifier().mT

    def _classifier(self) -> Tensor:
        adapted = (self.base @ self.down).relu() @ self.up
        if self.config.keep_base:
            adapted = self.base + self.config.alpha * adapted
        return self.scale * functional.normalize(adapted, dim=-1)

    def set_classes(self, classes: ClassTexts) -> None:
        """The adapter is kept: it belongs to no class."""
        self.base = classes.features.detach().clone()

    @torch.no_grad()
    def linear_head(self) -> Head:
        return Head(self._classifier())

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of phi(t) relative to t, without alpha."""
        adapted = (self.base @ self.down).relu() @ self.up
        share = adapted.norm(dim=-1) / self.base.norm(dim=-1).clamp_min(1e-12)
        return {"adapter/share": share.mean().item()}


def _first_values(inputs: int, outputs: int, rng: torch.Generator) -> Tensor:
    """[inputs, outputs], uniform within 1 / sqrt(inputs): PyTorch's initial values of a linear
    layer, which CLIP-Adapter's code keeps."""
    bound = 1 / math.sqrt(inputs)
    return (2 * torch.rand(inputs, outputs, generator=rng) - 1) * bound
