"""Cross-modal linear probe: texts are training samples too (Lin et al., CVPR 2023,
arXiv:2301.06267).

Notation: b images of a batch, c classes, d feature dimension, t class texts at unit length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.artifacts import TensorArtifact, described
from trainables.methods.autograd import LossMethod
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    Preset,
    Recipe,
    Tower,
)
from trainables.methods.features import check_config, unit_texts
from trainables.optim import OptimConfig

_STEPS, _EPOCHS = 12_800, 300


@dataclass(frozen=True)
class CrossModalConfig(MethodConfig):
    """How many texts there are among the samples."""

    text_share: float = 0.5
    """Share of texts in a batch, which has as many images beside them as `batch_size` says; 0
    trains on images alone."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if not 0 <= self.text_share < 1:
            found.append(f"text_share must lie in 0..1, below 1, got {self.text_share}: use 0.5")
        return found


class CrossModal(TensorArtifact, LossMethod):
    """logits = exp(logit_scale) w z / |z|, w from the texts, cross entropy over images and texts.

    A class has one text, the mean over its templates; the paper keeps every template as a sample
    of its own, which differs on ImageNet alone.
    """

    Config: ClassVar[type[MethodConfig]] = CrossModalConfig
    input_kind: ClassVar[Literal["features", "images"]] = "features"
    texts: Tensor
    scale: Tensor

    def __init__(self, config: CrossModalConfig, material: BuildContext) -> None:
        """Takes what `build` takes, checked."""
        super().__init__()
        self._share = config.text_share
        texts = unit_texts(material.classes)
        self.register_buffer("texts", texts, persistent=False)
        scale = material.backbone.logit_scale.detach().clone()
        self.register_buffer("scale", scale, persistent=False)
        self.weight = nn.Parameter(texts.clone())
        self.description = described("cross-modal", material.backbone.fingerprint)

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """One corner of the authors' grid (rates 1e-3 and 1e-4, decays 0, 1e-2 and 1e-4, batches of
        8 and 32, half of them texts), of which they choose on the validation set.

        They train 12,800 steps and keep the best of every hundredth; here the last one counts, so
        that epochs, 300 at most, stand for the steps: our choice. Their warm-up of 50 steps is one
        epoch. Images are centre crops, the code's default.
        """
        del name, dataset, shots, tower
        batch = 16
        epochs = min(_EPOCHS, max(1, round(_STEPS / max(1, images // batch))))
        optim = OptimConfig(
            lr=1e-3,
            epochs=epochs,
            batch_size=batch,
            weight_decay=1e-2,
            warmup_epochs=min(1, epochs - 1),
            optimiser="adamw",
            decay="step",
        )
        return Recipe(CrossModalConfig(prompts="clean"), optim, crop_scale=1.0)

    @classmethod
    def build(cls, config: CrossModalConfig, material: BuildContext) -> Self:
        """See `Method.build`."""
        check_config(config)
        return cls(config, material)

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        return self.scale * functional.normalize(inputs, dim=-1) @ self.weight.T

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross entropy over the batch and its share of texts, drawn without replacement: at most
        one of every class."""
        wanted = round(len(batch.labels) * self._share / (1 - self._share))
        drawn = torch.randperm(len(self.texts), generator=rng, device=rng.device)[:wanted]
        drawn = drawn.to(batch.labels.device)
        inputs = torch.cat([functional.normalize(batch.inputs, dim=-1), self.texts[drawn]])
        labels = torch.cat([batch.labels, drawn])
        return {"train/loss": functional.cross_entropy(self(inputs), labels)}

    @torch.no_grad()
    def linear_head(self) -> Head:
        """The weights as they are, times the logit scale."""
        return Head(self.scale * self.weight)

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """Other classes have their texts: the zero-shot classifier."""
        self.texts = unit_texts(classes)
        self.weight = nn.Parameter(self.texts.clone())
