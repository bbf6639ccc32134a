"""CLAP: a text-initialised linear probe with a penalty per class on leaving the texts
(Silva-Rodriguez et al., CVPR 2024, arXiv:2312.12730).

Notation: b batch size, n images, c classes, d feature dimension, t class texts, w prototypes
[c, d].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import NonNegativeFloat
from trainables.core.optim import OptimConfig
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    Preset,
    Recipe,
    Support,
    TaskFacts,
)
from trainables.methods.classifiers import class_means, zero_shot_classifier
from trainables.methods.recipes import DASSL_CROP_SCALE
from trainables.methods.tensor_method import TensorMethod


@dataclass(frozen=True)
class ClapConfig(MethodConfig):
    """The penalty."""

    penalty: NonNegativeFloat = 1.0
    """Factor of the squared distance to the texts; 1 is CLAP, 0 is ZS-LP, the probe without it."""
    per_class: bool = True
    """Whether every class has its own multiplier, rather than the mean of all (`constant` in the
    code)."""
    normalise_base: bool = False
    """Scale t to unit length first. The authors' code compares w and t as they are, which makes a
    step's rotation smaller by t's squared length."""


class Clap(TensorMethod):
    """logits = exp(logit_scale) cos(z, w); loss = CE + mean_k lambda_k |w_k - t_k|^2.

    lambda_k is the mean zero-shot probability of class k over its own training images, fixed before
    the first step: classes that their texts describe well move less.
    """

    name = "clap"
    Config = ClapConfig
    input_kind = "features"
    stackable = True
    base: Tensor
    multipliers: Tensor

    def __init__(self, config: ClapConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        base = self._base(context.classes)
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("multipliers", base.new_zeros(len(base)))
        self.prototypes = nn.Parameter(base.clone())

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The same setting for all data sets, as the paper argues for: SGD, 300 epochs, random
        crops with flips. The code samples from a pool of 20 augmented views; here a few views are
        used in turn. Its prompts are those of TaskRes's code."""
        # Texts keep their length, in `clean` too: on real CLIP features at one shot, this rate ends
        # below zero-shot when it starts from unit length, which the prompts `clean` would give.
        config = ClapConfig(prompts="reference" if name == "reference" else "paper")
        optim = OptimConfig(
            lr=0.1, epochs=300, batch_size=256, warmup_epochs=1, optimiser="sgd", momentum=0.9
        )
        return Recipe(config, optim, crop_scale=DASSL_CROP_SCALE)

    @torch.no_grad()
    def prepare(self, support: Support) -> None:
        """Computes the multipliers, over all views."""
        text = zero_shot_classifier(ClassTexts(self.base), self.backbone)
        probability = torch.zeros_like(support.labels, dtype=text.dtype)
        rows = torch.arange(len(support.labels), device=text.device)
        for view in range(support.views):
            logits = functional.normalize(support.features(view), dim=-1) @ text.T
            probability += logits.softmax(dim=-1)[rows, support.labels] / support.views
        means = class_means(probability[:, None], support.labels, len(text))[:, 0]
        self.multipliers.copy_(means if self.config.per_class else means.mean().expand_as(means))

    def forward(self, inputs: Tensor) -> Tensor:
        unit = functional.normalize(self.prototypes, dim=-1)
        return self.scale * functional.normalize(inputs, dim=-1) @ unit.mT

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross entropy and penalty: the mean over classes, as in the code; the paper sums."""
        found = super().losses(batch, rng)
        distance = (self.prototypes - self.base).square().sum(dim=-1)  # [c]
        penalty = self.config.penalty * (self.multipliers * distance).mean(dim=-1)
        return {"train/loss": found["train/loss"] + penalty, "train/penalty": penalty}

    @torch.no_grad()
    def linear_head(self) -> Head:
        return Head(self.scale * functional.normalize(self.prototypes, dim=-1))

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """Other classes get their texts: the zero-shot classifier."""
        self.base = self._base(classes)
        self.prototypes = nn.Parameter(self.base.clone())
        self.multipliers = self.base.new_zeros(len(self.base))

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean distance of the prototypes from their texts, and the mean multiplier."""
        moved = (self.prototypes - self.base).norm(dim=-1).mean().item()
        return {"prototypes/moved": moved, "prototypes/held": self.multipliers.mean().item()}

    def _base(self, classes: ClassTexts) -> Tensor:
        base = classes.features.detach().clone()
        return functional.normalize(base, dim=-1) if self.config.normalise_base else base
