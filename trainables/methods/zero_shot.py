"""The backbone as it is: the floor that every tuning method is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.methods.base import (
    Batch,
    Method,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Schedule,
    Tower,
)
from trainables.optim import OptimConfig

_FORMAT = {"format": "zero-shot", "format_version": "1"}


@dataclass(frozen=True)
class ZeroShotConfig(MethodConfig):
    """Nothing but the prompts."""


class ZeroShot(Method):
    """logits = exp(logit_scale) cos(z, t) (Radford et al. 2021)."""

    Config: ClassVar[type[MethodConfig]] = ZeroShotConfig
    reads: ClassVar[Literal["features", "images"]] = "features"
    classifier: Tensor

    def __init__(self, class_features: Tensor, scale: Tensor, fingerprint: str) -> None:
        """`class_features` [c, d]; `scale` a scalar tensor: exp(logit_scale)."""
        super().__init__()
        self._scale = scale
        classifier = scale * functional.normalize(class_features, dim=-1)  # [c, d]
        self.register_buffer("classifier", classifier, persistent=False)
        self._metadata = _FORMAT | {"backbone": fingerprint}

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
    def build(
        cls,
        config: ZeroShotConfig,
        backbone: Backbone,
        class_features: Tensor,
        schedule: Schedule,
    ) -> Self:
        """See `Method.build`."""
        del schedule
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        return cls(class_features, backbone.logit_scale.detach(), backbone.fingerprint)

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

    def transfer(self, class_features: Tensor) -> None:
        """See `Method.transfer`."""
        self.classifier = self._scale * functional.normalize(class_features, dim=-1)

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """No tensors; the backbone's fingerprint."""
        return {}, dict(self._metadata)

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Checks that the artifact is one of ours; raises `MethodError`."""
        if tensors or {key: metadata.get(key) for key in self._metadata} != self._metadata:
            raise MethodError(
                f"a zero-shot artifact has no tensors and the metadata {self._metadata}; "
                f"got {sorted(tensors)} and {dict(metadata)}: load it with its own backbone"
            )
