"""Gaussian discriminant analysis of features (Wang et al., ICLR 2024, arXiv:2402.04087).

Notation: n samples, c classes, d feature dimension, t class texts at unit length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.core.limits import PositiveFloat
from trainables.core.optim import OptimConfig
from trainables.methods.base import MethodConfig, Preset, Recipe, Support, TaskFacts
from trainables.methods.classifiers import (
    FittedClassifier,
    all_views,
    class_means,
    zero_shot_classifier,
)


@dataclass(frozen=True)
class GdaConfig(MethodConfig):
    """Weight of the Gaussian classifier, and shrinkage of its covariance."""

    alpha: PositiveFloat = 1.0
    """Weight of the Gaussian classifier beside the zero-shot one. The authors select it among
    1e-4, 1e-3, ..., 100 on the validation set and name no default."""
    shrinkage: PositiveFloat = 1.0
    """Factor of the trace that is added to the covariance; 1 in the paper."""


class Gda(FittedClassifier):
    """logits = exp(logit_scale) cos(z, t) + alpha (w z + b), in closed form.

    All augmented views are samples. New classes get the zero-shot classifier; the paper's samples
    for new classes, synthesised from nearest neighbours, are not implemented.
    """

    name = "gda"
    Config = GdaConfig

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The released code: crops of at least half the area. It pools ten views; here there are
        `AUGMENTED_VIEWS`."""
        optim = OptimConfig(lr=1.0, epochs=1, batch_size=256)  # not used: there are no steps
        config = GdaConfig(prompts="clean" if name == "clean" else "ensemble")
        return Recipe(config, optim, crop_scale=0.5)

    def fit(self, support: Support) -> tuple[Tensor, Tensor]:
        """Bayes' rule with equal priors, without its constant, plus the zero-shot classifier."""
        text = zero_shot_classifier(self.context.classes, self.backbone)
        samples, labels = all_views(support)
        mean = class_means(samples, labels, len(text))
        precision = shrunk_precision(samples - mean[labels], self.config.shrinkage)
        weight = mean @ precision
        bias = -(weight * mean).sum(dim=-1) / 2
        return text + self.config.alpha * weight, self.config.alpha * bias


def shrunk_precision(rows: Tensor, shrinkage: float = 1.0) -> Tensor:
    """d ((n - 1) S + shrinkage tr(S) I)^-1, [d, d], for centred rows [n, d] with covariance S.

    The estimator of Kubokawa and Srivastava (2008). Rows without variance, as at one shot without
    augmentation, give 0, which leaves the zero-shot model.
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
