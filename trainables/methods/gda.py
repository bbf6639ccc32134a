"""Gaussian discriminant analysis of the features (Wang et al., ICLR 2024, arXiv:2402.04087).

Notation: n samples, c classes, d feature dimension, t class texts at unit length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainables.methods.base import MethodConfig, Preset, Recipe, Support, Tower
from trainables.methods.features import all_views, class_means, text_classifier
from trainables.methods.fitted import FittedClassifier
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class GdaConfig(MethodConfig):
    """How much the Gaussians weigh, and how far their covariance is shrunk."""

    alpha: float = 1.0
    """Weight of the Gaussian classifier beside the zero-shot one. The authors choose among 1e-4,
    1e-3, .. 100 on the validation set and name no default: 1, the value within."""
    shrinkage: float = 1.0
    """Multiplies the trace that is added to the covariance; the paper has no such knob."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        for name in ("alpha", "shrinkage"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                found.append(f"{name} must be positive and finite, got {value}: use e.g. 1")
        return found


class Gda(FittedClassifier):
    """logits = exp(logit_scale) cos(z, t) + alpha (w z + b), in closed form.

    Samples are all augmented views. New classes get the zero-shot classifier; the paper makes up
    samples for them from their nearest neighbours, which is not done here.
    """

    Config: ClassVar[type[MethodConfig]] = GdaConfig
    kind: ClassVar[str] = "gda"

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The released code: texts at unit length before their mean, crops of half the area or
        more. It pools ten views, we as many as there are."""
        del name, dataset, shots, images, tower
        optim = OptimConfig(lr=1.0, epochs=1, batch_size=256)  # nothing is trained
        return Recipe(GdaConfig(prompts="clean"), optim, crop_scale=0.5)

    def fit(self, support: Support) -> tuple[Tensor, Tensor]:
        """Bayes' rule with equal priors, whose constant is left out, plus the texts."""
        text = text_classifier(self.material.classes, self.material.backbone)
        samples, labels = all_views(support)
        mean = class_means(samples, labels, len(text))
        precision = shrunk_precision(samples - mean[labels], self.config.shrinkage)
        weight = mean @ precision
        bias = -(weight * mean).sum(dim=-1) / 2
        return text + self.config.alpha * weight, self.config.alpha * bias


def shrunk_precision(rows: Tensor, shrinkage: float = 1.0) -> Tensor:
    """d ((n - 1) S + shrinkage tr(S) I)^-1, [d, d], of centred rows [n, d] with covariance S.

    The estimator of Kubokawa and Srivastava (2008). Rows without any spread, as at one shot
    without augmentation, say nothing of the covariance: 0, which leaves the zero-shot model.
    """
    count, side = rows.shape
    centred = rows - rows.mean(dim=0)
    scatter = centred.T @ centred  # (n - 1) S
    trace = scatter.trace() / max(1, count - 1)
    if trace <= 1e-12:
        return torch.zeros_like(scatter)
    identity = torch.eye(side, dtype=rows.dtype, device=rows.device)
    precision: Tensor = side * torch.linalg.inv(scatter + shrinkage * trace * identity)
    return precision
