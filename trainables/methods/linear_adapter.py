"""A linear adapter on the features, with or without a bias: the alternative to a residual in
TaskRes's appendix C (Yu et al., CVPR 2023, arXiv:2211.10277).

Notation: b batch size, c classes, d feature dimension, t base features [c, d], z image features
[b, d], A [d, d] and v [d] the adapter, alpha its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import PositiveFloat
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.recipes import dassl_crop_scale, taskres_optim
from trainables.methods.tensor_method import TensorMethod

Adapted = Literal["text", "image"]


@dataclass(frozen=True)
class LinearAdapterConfig(MethodConfig):
    """Place and form of the adapter."""

    adapted: Adapted = "text"
    """Features that pass through the adapter: those of the classes or of the images."""
    bias: bool = True
    """Whether the adapter has a bias v, one vector for all classes or images."""
    alpha: PositiveFloat = 0.5
    """Weight of the adapter."""


class LinearAdapter(TensorMethod):
    """logits = exp(logit_scale) cos(z, t + alpha (t A + v)), or with z + alpha (z A + v).

    A and v start at 0, as TaskRes's residual does: together with the base this is any linear map,
    starting from the identity. The paper gives neither initial values nor code.
    """

    name = "linear-adapter"
    Config = LinearAdapterConfig
    input_kind = "features"
    base: Tensor

    def __init__(self, config: LinearAdapterConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.register_buffer("base", None, persistent=False)
        self.set_classes(context.classes)
        features = self.base.shape[1]
        self.matrix = nn.Parameter(self.base.new_zeros(features, features))
        self.bias = nn.Parameter(self.base.new_zeros(features)) if config.bias else None

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """Trained as TaskRes is, with its alpha of 0.5."""
        config = LinearAdapterConfig(prompts=name)
        return Recipe(config, taskres_optim(name, facts), dassl_crop_scale(name))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.config.adapted == "image":
            inputs = self._adapt(inputs)
        return functional.normalize(inputs, dim=-1) @ self._classifier().T

    def _classifier(self) -> Tensor:
        texts = self._adapt(self.base) if self.config.adapted == "text" else self.base
        return self.scale * functional.normalize(texts, dim=-1)

    def _adapt(self, features: Tensor) -> Tensor:
        change = features @ self.matrix
        if self.bias is not None:
            change = change + self.bias
        adapted: Tensor = features + self.config.alpha * change
        return adapted

    def set_classes(self, classes: ClassTexts) -> None:
        """Keeps the adapter, which belongs to no class."""
        self.base = classes.features.detach().clone()

    @torch.no_grad()
    def linear_head(self) -> Head | None:
        return Head(self._classifier()) if self.config.adapted == "text" else None

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Frobenius norm of A, and length of v; without alpha."""
        sizes = {"adapter/norm": self.matrix.norm().item()}
        if self.bias is not None:
            sizes["adapter/bias"] = self.bias.norm().item()
        return sizes

    def metadata(self) -> dict[str, str]:
        """Adds the adapted features and alpha."""
        adapted, alpha = self.config.adapted, repr(float(self.config.alpha))
        return super().metadata() | {"adapted": adapted, "alpha": alpha}
