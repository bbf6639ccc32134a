"""LP++: a linear probe that blends texts in, class by class (Huang et al., CVPR 2024,
arXiv:2404.02285).

Notation: n images, c classes, d feature dimension, f features and t texts at unit length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from trainables.methods.base import MethodConfig, Preset, Recipe, Support, Tower
from trainables.methods.features import class_means, unit_texts
from trainables.methods.fitted import FittedClassifier
from trainables.optim import OptimConfig

Start = Literal["means", "sums"]


@dataclass(frozen=True)
class LpPlusPlusConfig(MethodConfig):
    """Where descent starts, how long it lasts, and what the released code does beside it."""

    iterations: int = 300
    """Full-batch steps. The authors then pick the best on the validation set; here the last one
    counts, and a search may vary their number."""
    alpha_every: int = 10
    """Every so many steps alpha moves too."""
    step: float = 1.0
    """Multiplies the step sizes that follow from the features, for the prototypes and alpha."""
    start_alpha: float = 250.0
    """alpha starts at so many times the mean cosine of an image and its class's text."""
    start: Start = "means"
    """Whether prototypes start as the means of their classes' features or, as in the released
    code, as their sums."""
    inertia: float = 0.0
    """Momentum of the prototypes' steps; the released code has 0.9, the paper none."""
    offset: bool = False
    """Whether there is a learned bias, drawn at random as in the released code."""
    summed_slopes: bool = False
    """Whether alpha moves along all gradients so far, summed: the released code never clears
    them."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        for name, usual in (("iterations", 300), ("alpha_every", 10)):
            if getattr(self, name) < 1:
                found.append(f"{name} must be at least 1, got {getattr(self, name)}: use {usual}")
        for name, usual in (("step", 1), ("start_alpha", 250)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                found.append(f"{name} must be positive and finite, got {value}: use {usual}")
        if not 0 <= self.inertia < 1:
            found.append(f"inertia must lie in 0..1, below 1, got {self.inertia}: use 0 or 0.9")
        if self.start not in get_args(Start):
            found.append(f"start must be one of {get_args(Start)}, got {self.start!r}")
        return found


class LpPlusPlus(FittedClassifier):
    """logits = f (w_k + alpha_k t_k), by block-wise majorise-minimise descent on cross entropy.

    The problem is convex and small and its step sizes are known in advance, so that it is solved
    before the first step of any training. Features are of one view: augmented where there is
    augmentation, as in the released code. New classes get the zero-shot classifier.
    """

    Config: ClassVar[type[MethodConfig]] = LpPlusPlusConfig
    kind: ClassVar[str] = "lp-plus-plus"

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The published settings; `reference` adds what only the code does."""
        del dataset, shots, images, tower
        config = LpPlusPlusConfig(prompts="clean")
        if name == "reference":
            config = LpPlusPlusConfig(
                prompts="clean", start="sums", inertia=0.9, offset=True, summed_slopes=True
            )
        optim = OptimConfig(lr=1.0, epochs=1, batch_size=256)  # nothing is trained by it
        return Recipe(config, optim, crop_scale=0.5)

    def fit(self, support: Support) -> tuple[Tensor, Tensor]:
        """Descent; w_k + alpha_k t_k is the classifier."""
        config, labels = self.config, support.labels
        features = functional.normalize(support.features(0), dim=-1)
        text = unit_texts(self.material.classes)
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
        """As a linear layer's: uniform within 1 / sqrt(d)."""
        drawn = torch.rand(len(self.bias), generator=self.material.rng) * 2 - 1
        return drawn.to(self.bias.device) / math.sqrt(self.weight.shape[1])


def step_sizes(features: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the prototypes, 4 n / lambda_max(F' F), and of alpha, n / (4 max_k sum_i (f t)^2):
    inverses of the gradients' approximate Lipschitz constants (proposition 2)."""
    count = len(features)
    largest = torch.linalg.matrix_norm(features, ord=2) ** 2
    return 4 * count / largest, count / (4 * cosines.square().sum(dim=0).max())
