"""What methods that read features have in common.

Notation: n images, c classes, d feature dimension, v views.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.methods.base import ClassTexts, MethodConfig, MethodError, Support


def check_config(config: MethodConfig) -> None:
    """Raises `MethodError` with every broken rule of a configuration."""
    if problems := config.problems():
        raise MethodError("; ".join(problems))


def unit_texts(classes: ClassTexts) -> Tensor:
    """The class features at unit length: t, float32 [c, d]."""
    return functional.normalize(classes.features.detach(), dim=-1)


def text_classifier(classes: ClassTexts, backbone: Backbone) -> Tensor:
    """exp(logit_scale) t, [c, d]: times features of unit length, it gives zero-shot logits."""
    return backbone.logit_scale.detach() * unit_texts(classes)


def all_views(support: Support) -> tuple[Tensor, Tensor]:
    """Features at unit length [v n, d] and labels [v n] of every view of every image."""
    views = [functional.normalize(support.features(v), dim=-1) for v in range(support.views)]
    return torch.cat(views), support.labels.repeat(support.views)


def class_means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of the `rows` [n, k] of each class: [c, k]; 0 where a class has none."""
    member = functional.one_hot(labels, classes).to(rows.dtype)  # [n, c]
    return member.T @ rows / member.sum(dim=0).clamp_min(1)[:, None]
