"""Methods that end in one affine classifier of the features, fitted before any step is trained.

Notation: b batch, c classes, d feature dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from trainables.methods.artifacts import TensorArtifact, described
from trainables.methods.autograd import LossMethod
from trainables.methods.base import BuildContext, ClassTexts, Head, Support
from trainables.methods.features import check_config, text_classifier


class FittedClassifier(TensorArtifact, LossMethod):
    """logits = W z / |z| + b; the zero-shot classifier until `prepare` has fitted W and b."""

    kind: ClassVar[str]
    """Registry name."""
    input_kind: ClassVar[Literal["features", "images"]] = "features"
    training_free: ClassVar[bool] = True
    weight: Tensor
    bias: Tensor

    def __init__(self, config: Any, material: BuildContext) -> None:
        """Takes what `build` takes, checked."""
        super().__init__()
        self.config = config
        self.material = material
        weight = text_classifier(material.classes, material.backbone)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", weight.new_zeros(len(weight)))
        self.description = described(self.kind, material.backbone.fingerprint)

    @classmethod
    def build(cls, config: Any, material: BuildContext) -> Self:
        """See `Method.build`."""
        check_config(config)
        return cls(config, material)

    @abstractmethod
    def fit(self, support: Support) -> tuple[Tensor, Tensor]:
        """W [c, d] and b [c] from the whole training set; autograd is off."""

    @torch.no_grad()
    def prepare(self, support: Support) -> None:
        """Fits the classifier."""
        weight, bias = self.fit(support)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        return functional.normalize(inputs, dim=-1) @ self.weight.T + self.bias

    @torch.no_grad()
    def linear_head(self) -> Head:
        """W and b."""
        return Head(self.weight, self.bias)

    def set_classes(self, classes: ClassTexts) -> None:
        """Other classes have only their texts: the zero-shot classifier."""
        self.weight = text_classifier(classes, self.material.backbone)
        self.bias = self.weight.new_zeros(len(self.weight))

    def learned(self) -> dict[str, Tensor]:
        """`weight` [c, d] and `bias` [c]."""
        return {"weight": self.weight, "bias": self.bias}
