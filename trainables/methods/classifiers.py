"""Linear classifiers of image features: the zero-shot one, and those fitted in closed form.

Notation: b batch size, n images, c classes, d feature dimension, v views.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.methods.base import BuildContext, ClassTexts, Head, Support
from trainables.methods.tensor_method import TensorMethod


def unit_texts(classes: ClassTexts) -> Tensor:
    """The class features at unit length: t, float32 [c, d]."""
    return functional.normalize(classes.features.detach(), dim=-1)


def zero_shot_classifier(classes: ClassTexts, backbone: Backbone) -> Tensor:
    """exp(logit_scale) t, [c, d]: multiplied by unit image features, the zero-shot logits."""
    return backbone.logit_scale.detach() * unit_texts(classes)


def all_views(support: Support) -> tuple[Tensor, Tensor]:
    """Unit features [v n, d] and labels [v n] of every view of every image."""
    views = [functional.normalize(support.features(v), dim=-1) for v in range(support.views)]
    return torch.cat(views), support.labels.repeat(support.views)


def class_means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean of the `rows` [n, k] of each class: [c, k]; 0 for a class without rows."""
    member = functional.one_hot(labels, classes).to(rows.dtype)  # [n, c]
    return member.T @ rows / member.sum(dim=0).clamp_min(1)[:, None]


class FittedClassifier(TensorMethod):
    """logits = W z / |z| + b; the zero-shot classifier until `prepare` has fitted W and b."""

    input_kind = "features"
    training_free = True
    weight: Tensor
    bias: Tensor

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.context = context
        weight = zero_shot_classifier(context.classes, context.backbone)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", weight.new_zeros(len(weight)))

    @abstractmethod
    def fit(self, support: Support) -> tuple[Tensor, Tensor]:
        """W [c, d] and b [c] for the whole training set; called without autograd."""

    @torch.no_grad()
    def prepare(self, support: Support) -> None:
        weight, bias = self.fit(support)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.normalize(inputs, dim=-1) @ self.weight.T + self.bias

    @torch.no_grad()
    def linear_head(self) -> Head:
        return Head(self.weight, self.bias)

    def set_classes(self, classes: ClassTexts) -> None:
        """Other classes have only texts: they get the zero-shot classifier."""
        self.weight = zero_shot_classifier(classes, self.backbone)
        self.bias = self.weight.new_zeros(len(self.weight))

    def learned(self) -> dict[str, Tensor]:
        """`weight` [c, d] and `bias` [c]."""
        return {"weight": self.weight, "bias": self.bias}
