"""CLAP: a text-initialised linear probe held near its texts, class by class (Silva-Rodriguez et
al., CVPR 2024, arXiv:2312.12730).

Notation: b batch, n images, c classes, d feature dimension, t class texts, w prototypes [c, d].
"""

from __future__ import annotations

import math
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
    Support,
    Tower,
)
from trainables.methods.features import check_config, class_means, text_classifier
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class ClapConfig(MethodConfig):
    """What the prototypes are held by."""

    penalty: float = 1.0
    """Multiplies the distance to the texts; 1 is CLAP, 0 is ZS-LP, the probe without it."""
    per_class: bool = True
    """Whether every class has a multiplier of its own; else all have the mean of them (the
    code's `constant`)."""
    normalise_base: bool = False
    """Scale t to unit length before anything; the authors' code does not, and compares w and t as
    they come, which makes a step's turn smaller by t's length squared."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            found.append(
                f"penalty must not be negative nor infinite, got {self.penalty}: use 1, or 0 for "
                "none"
            )
        return found


class Clap(TensorArtifact, LossMethod):
    """logits = exp(logit_scale) cos(z, w); loss = CE + mean_k lambda_k |w_k - t_k|^2.

    lambda_k is the mean zero-shot probability of class k among its own training images: a class
    that texts describe well may move less. It is fixed before the first step.
    """

    Config: ClassVar[type[MethodConfig]] = ClapConfig
    input_kind: ClassVar[Literal["features", "images"]] = "features"
    base: Tensor
    scale: Tensor
    multipliers: Tensor

    def __init__(self, config: ClapConfig, material: BuildContext) -> None:
        """Takes what `build` takes, checked."""
        super().__init__()
        self._config, self._backbone = config, material.backbone
        base = self._base(material.classes)
        self.register_buffer("base", base, persistent=False)
        scale = self._backbone.logit_scale.detach().clone()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("multipliers", base.new_zeros(len(base)))
        self.prototypes = nn.Parameter(base.clone())
        self.description = described("clap", self._backbone.fingerprint)

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """One setting for all data sets, which is the paper's point: SGD, 300 epochs, random crops
        with flips. The code pools 20 augmented views and draws from them; here views take turns.
        Its prompts are those of TaskRes's code."""
        del dataset, shots, images, tower
        # Texts keep their length, in the paper's preset too: measured on real CLIP features at one
        # shot, this rate from unit length ends below zero-shot. The prompts `clean` would scale
        # the one text of a class to unit length, so `clean` takes the paper's.
        config = ClapConfig(prompts="reference" if name == "reference" else "paper")
        optim = OptimConfig(
            lr=0.1, epochs=300, batch_size=256, warmup_epochs=1, optimiser="sgd", momentum=0.9
        )
        return Recipe(config, optim, crop_scale=0.08)

    @classmethod
    def build(cls, config: ClapConfig, material: BuildContext) -> Self:
        """See `Method.build`."""
        check_config(config)
        return cls(config, material)

    @torch.no_grad()
    def prepare(self, support: Support) -> None:
        """The multipliers, over all views."""
        text = text_classifier(ClassTexts(self.base), self._backbone)
        probability = torch.zeros_like(support.labels, dtype=text.dtype)
        rows = torch.arange(len(support.labels), device=text.device)
        for view in range(support.views):
            logits = functional.normalize(support.features(view), dim=-1) @ text.T
            probability += logits.softmax(dim=-1)[rows, support.labels] / support.views
        means = class_means(probability[:, None], support.labels, len(text))[:, 0]
        self.multipliers.copy_(means if self._config.per_class else means.mean().expand_as(means))

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        unit = functional.normalize(self.prototypes, dim=-1)
        return self.scale * functional.normalize(inputs, dim=-1) @ unit.T

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross entropy and the penalty; the paper sums over the classes, the code takes the mean,
        and so do we."""
        found = super().losses(batch, rng)
        distance = (self.prototypes - self.base).square().sum(dim=-1)  # [c]
        held = self._config.penalty * (self.multipliers * distance).mean()
        return {"train/loss": found["train/loss"] + held, "train/penalty": held}

    @torch.no_grad()
    def linear_head(self) -> Head:
        """The prototypes."""
        return Head(self.scale * functional.normalize(self.prototypes, dim=-1))

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """Other classes keep their texts: the zero-shot classifier."""
        self.base = self._base(classes)
        self.prototypes = nn.Parameter(self.base.clone())
        self.multipliers = self.base.new_zeros(len(self.base))

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """How far prototypes went from their texts, as a mean length, and the mean multiplier."""
        moved = (self.prototypes - self.base).norm(dim=-1).mean().item()
        return {"prototypes/moved": moved, "prototypes/held": self.multipliers.mean().item()}

    def _base(self, classes: ClassTexts) -> Tensor:
        base = classes.features.detach().clone()
        return functional.normalize(base, dim=-1) if self._config.normalise_base else base
