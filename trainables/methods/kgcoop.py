"""KgCoOp: CoOp with text features close to those of a written prompt (Yao et al., CVPR 2023,
arXiv:2303.13283).

Notation: c classes, d feature dimension, w the text features of the learned prompts, t those of the
written ones, both of unit length [c, d].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from trainables.core.limits import NonNegativeFloat
from trainables.methods.base import Batch, BuildContext, Preset, Recipe, TaskFacts
from trainables.methods.classifiers import unit_texts
from trainables.methods.context import ContextConfig, ContextMethod
from trainables.methods.recipes import coop_optim, dassl_crop_scale


@dataclass(frozen=True)
class KgCoOpConfig(ContextConfig):
    """The context, and the weight of the distance from the written prompts."""

    knowledge_weight: NonNegativeFloat = 8.0
    """lambda, the weight of the distance; 0 is CoOp."""


class KgCoOp(ContextMethod):
    """Cross entropy + lambda mean_c (1 - cos(w_c, t_c)).

    This is the distance of the released code. The paper has |w_c - t_c|^2, which is twice as large
    for unit vectors.
    """

    name = "kgcoop"
    Config = KgCoOpConfig
    texts: Tensor

    def __init__(self, config: KgCoOpConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.register_buffer("texts", unit_texts(context.classes), persistent=False)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """Section 4: lambda 8, four tokens from "a photo of a", 100 epochs at any number of shots;
        t has the data set's template. Batches of 128 are the code's, whose rate and schedule are
        CoOp's. `clean` has CoOp's batches and epochs: the published ones are a hundred steps on
        small data sets, which hardly change the context.
        """
        config = KgCoOpConfig(prompts="single", context_tokens=4, init_words="a photo of a")
        optim = coop_optim(name, facts)
        if name != "clean":
            optim = replace(optim, epochs=100, batch_size=128)
        return Recipe(config, optim, dassl_crop_scale(name))

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross entropy and distance from one forward pass of the text tower."""
        classifier = self.classifier()
        unit = functional.normalize(batch.inputs, dim=-1)
        loss = functional.cross_entropy(self.scale * unit @ classifier.T, batch.labels)
        away = distance(classifier, self.texts)
        total = loss + self.config.knowledge_weight * away
        return {"train/loss": total, "train/cross_entropy": loss, "train/distance": away}


def distance(features: Tensor, texts: Tensor) -> Tensor:
    """mean_c (1 - cos) of unit vectors [c, d]: a scalar in 0..2."""
    return 1 - (features * texts).sum(dim=-1).mean()
