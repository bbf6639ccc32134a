"""LP++: a linear probe with a learned share of the text feature per class (Huang et al., CVPR 2024,
arXiv:2404.02285).

Notation: n images, c classes, d feature dimension, f image features and t texts at unit length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainables.core.limits import PositiveFloat, PositiveInt, ShareBelowOne
from trainables.core.optim import OptimConfig
from trainables.methods.base import MethodConfig, Preset, Recipe, Support, TaskFacts
from trainables.methods.classifiers import FittedClassifier, class_means, unit_texts

Start = Literal["means", "sums"]


@dataclass(frozen=True)
class LpPlusPlusConfig(MethodConfig):
    """Start and length of the descent, and what only the released code does."""

    iterations: PositiveInt = 300
    """Full-batch steps; the last one counts. The authors select the best on the validation set."""
    alpha_every: PositiveInt = 10
    """Number of steps after which alpha is updated, too."""
    step: PositiveFloat = 1.0
    """Factor of the step sizes that are derived from the features."""
    start_alpha: PositiveFloat = 250.0
    """Initial alpha, in multiples of the mean cosine of an image and its class's text."""
    start: Start = "means"
    """Initial prototypes: the means of their classes' features or, as in the released code, their
    sums."""
    inertia: ShareBelowOne = 0.0
    """Momentum of the prototypes; 0.9 in the released code, none in the paper."""
    offset: bool = False
    """Whether to learn a bias, drawn at random as in the released code."""
    summed_slopes: bool = False
    """Whether alpha's step uses the sum of all gradients so far: the released code never clears
    them."""


class LpPlusPlus(FittedClassifier):
    """logits = f (w_k + alpha_k t_k), by block-wise majorise-minimise descent on cross entropy.

    The problem is convex and small and its step sizes are known in advance, so it is solved in
    `prepare`. It uses one view: an augmented one if there is augmentation, as in the released
    code. New classes get the zero-shot classifier.
    """

    name = "lp-plus-plus"
    Config = LpPlusPlusConfig

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The published settings; `reference` adds what only the code does."""
        config = LpPlusPlusConfig(prompts="clean" if name == "clean" else "ensemble")
        if name == "reference":
            config = LpPlusPlusConfig(
                prompts="ensemble", start="sums", inertia=0.9, offset=True, summed_slopes=True
            )
        optim = OptimConfig(lr=1.0, epochs=1, batch_size=256)  # not used: there are no steps
        return Recipe(config, optim, crop_scale=0.5)

    def fit(self, support: Support) -> tuple[Tensor, Tensor]:
        """The classifier w_k + alpha_k t_k after the descent, and the bias."""
        config, labels = self.config, support.labels
        features = functional.normalize(support.features(0), dim=-1)
        text = unit_texts(self.context.classes)
        cosines = features @ text.T  # [n, c]
        target = functional.one_hot(labels, len(text)).to(features.dtype)
        weight = class_means(features, labels, len(text))
        if config.start == "sums":
            weight = weight * target.sum(dim=0)[:, None]
        own = class_means(cosines, labels, len(text)).diagonal()
        alpha = (config.start_alpha * own.mean()).expand(len(text)).clone()
        bias = self._first_bias() if config.offset else torch.zeros_like(alpha)
        weight_rate, alpha_rate = (config.step * rate for rate in step_sizes(features, cosines))
        velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
        climb = torch.zeros_like(alpha)
        for step in range(1, config.iterations + 1):
            logits = features @ weight.T + alpha * cosines + bias
            slope = (logits.softmax(dim=-1) - target) / len(labels)  # [n, c]
            velocity.mul_(config.inertia).add_(slope.T @ features)
            weight = weight - weight_rate * velocity
            if config.offset:
                bias_velocity.mul_(config.inertia).add_(slope.sum(dim=0))
                bias = bias - weight_rate * bias_velocity
            if config.summed_slopes or step % config.alpha_every == 0:
                alpha_slope = (slope * cosines).sum(dim=0)
                climb = climb + alpha_slope if config.summed_slopes else alpha_slope
            if step % config.alpha_every == 0:
                alpha = alpha - alpha_rate * climb
        return weight + alpha[:, None] * text, bias

    def _first_bias(self) -> Tensor:
        """That of a linear layer in PyTorch: uniform within 1 / sqrt(d)."""
        drawn = torch.rand(len(self.bias), generator=self.context.rng) * 2 - 1
        return drawn.to(self.bias.device) / math.sqrt(self.weight.shape[1])


def step_sizes(features: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
    """For the prototypes, 4 n / lambda_max(F' F), and for alpha, n / (4 max_k sum_i (f_i t_k)^2):
    inverse approximate Lipschitz constants of the gradients (proposition 2)."""
    count = len(features)
    largest = torch.linalg.matrix_norm(features, ord=2) ** 2
    return 4 * count / largest, count / (4 * cosines.square().sum(dim=0).max())
