"""CLIP's linear probe: logistic regression on features (Radford et al. 2021, appendix A.3).

Notation: n images, c classes, d feature dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import PositiveFloat, PositiveInt
from trainables.core.optim import LBFGS, OptimConfig
from trainables.methods.base import MethodConfig, Preset, Recipe, Support, TaskFacts
from trainables.methods.classifiers import FittedClassifier, all_views
from trainables.methods.tensor_method import fill_gradients


@dataclass(frozen=True)
class LinearProbeConfig(MethodConfig):
    """Penalty and number of iterations."""

    inverse_penalty: PositiveFloat = 100.0
    """scikit-learn's C: factor of the summed losses, where the squared weights have 1/2. The paper
    sweeps 96 values from 1e-6 to 1e6 on the validation set."""
    iterations: PositiveInt = 1000
    """Maximum number of L-BFGS iterations; it stops when the gradient vanishes."""


class LinearProbe(FittedClassifier):
    """Logistic regression from zero weights, solved by L-BFGS; texts are not used.

    The paper solves the same convex problem with scikit-learn. Features have unit length here;
    CLIP's example uses them unnormalised, which only rescales C. New classes get the zero-shot
    classifier.
    """

    name = "linear-probe"
    Config = LinearProbeConfig

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The paper's 1000 iterations without augmentation, and a C from the middle of its sweep.
        The released example uses C = 0.316, for unnormalised features."""
        optim = OptimConfig(lr=1.0, epochs=1, batch_size=256)  # not used: there are no steps
        return Recipe(LinearProbeConfig(prompts="single"), optim, crop_scale=1.0)

    def fit(self, support: Support) -> tuple[Tensor, Tensor]:
        """Minimises (C sum loss + |W|^2 / 2) / (C n). Views are averaged, so that C means the same
        with and without augmentation."""
        features, labels = all_views(support)
        weight = nn.Parameter(torch.zeros_like(self.weight))
        bias = nn.Parameter(torch.zeros_like(self.bias))
        penalty = 1 / (2 * self.config.inverse_penalty * len(support.labels))
        solver = LBFGS(
            [weight, bias],
            max_iter=self.config.iterations,
            max_eval=2 * self.config.iterations,
            tolerance_grad=1e-6,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def loss() -> float:
            with torch.enable_grad():
                logits = functional.linear(features, weight, bias)
                total = functional.cross_entropy(logits, labels) + penalty * weight.square().sum()
                fill_gradients(total, [weight, bias])
            return float(total.detach())

        solver.step(loss)
        return weight.detach(), bias.detach()
