"""Cross-modal linear probe: texts are additional training samples (Lin et al., CVPR 2023,
arXiv:2301.06267).

Notation: b images per batch, c classes, d feature dimension, t class texts at unit length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import ShareBelowOne
from trainables.core.optim import OptimConfig
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.classifiers import unit_texts
from trainables.methods.tensor_method import TensorMethod

_STEPS, _EPOCHS = 12_800, 300


@dataclass(frozen=True)
class CrossModalConfig(MethodConfig):
    """Share of texts among the samples."""

    text_share: ShareBelowOne = 0.5
    """Share of texts in a batch, in addition to its `batch_size` images; 0 trains on images
    only."""


class CrossModal(TensorMethod):
    """logits = exp(logit_scale) w z / |z|, with w initialised from the texts and cross entropy over
    images and texts.

    A class has one text feature, the mean over its templates; in the paper every template is a
    sample, which differs on ImageNet only.
    """

    name = "cross-modal"
    Config = CrossModalConfig
    input_kind = "features"
    texts: Tensor

    def __init__(self, config: CrossModalConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        texts = unit_texts(context.classes)
        self.register_buffer("texts", texts, persistent=False)
        self.weight = nn.Parameter(texts.clone())

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """One corner of the authors' grid (rates 1e-3 and 1e-4, weight decays 0, 1e-2 and 1e-4,
        batches of 8 and 32, half of them texts), from which they select on the validation set.

        They train 12,800 steps and keep the best of every hundredth. Here the last step counts, so
        the steps are converted to at most 300 epochs: our choice. Their warm-up of 50 steps is one
        epoch. Images are centre crops, the code's default.
        """
        batch = 16
        epochs = min(_EPOCHS, max(1, round(_STEPS / max(1, facts.images // batch))))
        optim = OptimConfig(
            lr=1e-3,
            epochs=epochs,
            batch_size=batch,
            weight_decay=1e-2,
            warmup_epochs=min(1, epochs - 1),
            optimiser="adamw",
            decay="step",
        )
        config = CrossModalConfig(prompts="clean" if name == "clean" else "ensemble")
        return Recipe(config, optim, crop_scale=1.0)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * functional.normalize(inputs, dim=-1) @ self.weight.T

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross entropy over the images and texts drawn without replacement, at most one per
        class."""
        wanted = round(len(batch.labels) * self.config.text_share / (1 - self.config.text_share))
        drawn = torch.randperm(len(self.texts), generator=rng, device=rng.device)[:wanted]
        drawn = drawn.to(batch.labels.device)
        inputs = torch.cat([functional.normalize(batch.inputs, dim=-1), self.texts[drawn]])
        labels = torch.cat([batch.labels, drawn])
        return {"train/loss": functional.cross_entropy(self(inputs), labels)}

    @torch.no_grad()
    def linear_head(self) -> Head:
        return Head(self.scale * self.weight)

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """Other classes get their texts: the zero-shot classifier."""
        self.texts = unit_texts(classes)
        self.weight = nn.Parameter(self.texts.clone())
