"""The backbone as it is: the floor that every tuning method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.artifacts import TensorArtifact, described
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Tower,
)
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class ZeroShotConfig(MethodConfig):
    """Nothing but the prompts."""


class ZeroShot(TensorArtifact):
    """logits = exp(logit_scale) cos(z, t) (Radford et al. 2021)."""

    Config: ClassVar[type[MethodConfig]] = ZeroShotConfig
    input_kind: ClassVar[Literal["features", "images"]] = "features"
    training_free: ClassVar[bool] = True
    classifier: Tensor

    def __init__(self, class_features: Tensor, scale: Tensor, fingerprint: str) -> None:
        """`class_features` [c, d]; `scale` a scalar tensor: exp(logit_scale)."""
        super().__init__()
        self._scale = scale
        classifier = scale * functional.normalize(class_features, dim=-1)  # [c, d]
        self.register_buffer("classifier", classifier, persistent=False)
        self.description = described("zero-shot", fingerprint)

    @classmethod
    def preset(
        cls,
        name: Preset,
        *,
        dataset: str,
        shots: int,
        images: int,
        tower: Tower = "vit",
    ) -> Recipe:
        """The single-prompt protocol of both papers' zero-shot rows, or the clean ensemble."""
        del dataset, shots, images, tower
        config = ZeroShotConfig(prompts="clean" if name == "clean" else "single")
        return Recipe(config, OptimConfig(lr=2e-3, epochs=1, batch_size=256), crop_scale=1.0)

    @classmethod
    def build(cls, config: ZeroShotConfig, material: BuildContext) -> Self:
        """See `Method.build`."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        backbone = material.backbone
        return cls(material.classes.features, backbone.logit_scale.detach(), backbone.fingerprint)

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        return functional.normalize(inputs, dim=-1) @ self.classifier.T

    @torch.no_grad()
    def backward(self, batch: Batch, rng: torch.Generator) -> dict[str, float]:
        """The loss alone: there is nothing to fill."""
        del rng
        return {"train/loss": functional.cross_entropy(self(batch.inputs), batch.labels).item()}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Nothing."""
        return {}

    def set_classes(self, classes: ClassTexts) -> None:
        """See `Method.set_classes`."""
        self.classifier = self._scale * functional.normalize(classes.features, dim=-1)

    def linear_head(self) -> Head:
        """The text features."""
        return Head(self.classifier)
