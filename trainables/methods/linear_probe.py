"""CLIP's linear probe: logistic regression on the features (Radford et al. 2021, appendix A.3).

Notation: n images, v views, c classes, d feature dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.autograd import fill_gradients
from trainables.methods.base import MethodConfig, Preset, Recipe, Support, Tower
from trainables.methods.features import all_views
from trainables.methods.fitted import FittedClassifier
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class LinearProbeConfig(MethodConfig):
    """The regression's penalty and its length."""

    inverse_penalty: float = 100.0
    """scikit-learn's C: the sum of the losses is multiplied by it, the squared weights by a half.
    The paper sweeps 96 values from 1e-6 to 1e6 on the validation set, the search does the same."""
    iterations: int = 1000
    """Most iterations of L-BFGS; it stops where the gradient vanishes."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if not (math.isfinite(self.inverse_penalty) and self.inverse_penalty > 0):
            found.append(
                f"inverse_penalty must be positive and finite, got {self.inverse_penalty}: "
                "use e.g. 100"
            )
        if self.iterations < 1:
            found.append(f"iterations must be at least 1, got {self.iterations}: use e.g. 1000")
        return found


class LinearProbe(FittedClassifier):
    """Logistic regression from zero weights, solved by L-BFGS: texts are not used.

    The paper's solver is scikit-learn's, this is PyTorch's on the same convex problem. Features
    have unit length here; CLIP's example takes them as they come, which rescales C alone. New
    classes get the zero-shot classifier.
    """

    Config: ClassVar[type[MethodConfig]] = LinearProbeConfig
    kind: ClassVar[str] = "linear-probe"

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The paper's 1000 iterations without augmentation, and a C from the middle of its sweep;
        the released example differs only in its C of 0.316, which is meant for raw features."""
        del name, dataset, shots, images, tower
        optim = OptimConfig(lr=1.0, epochs=1, batch_size=256)  # nothing is trained by it
        return Recipe(LinearProbeConfig(prompts="single"), optim, crop_scale=1.0)

    def fit(self, support: Support) -> tuple[Tensor, Tensor]:
        """The minimum of C sum loss + |W|^2 / 2, divided by C n; a view more is not a sample more,
        so that C means the same with and without augmentation."""
        features, labels = all_views(support)
        weight = nn.Parameter(torch.zeros_like(self.weight))
        bias = nn.Parameter(torch.zeros_like(self.bias))
        penalty = 1 / (2 * self.config.inverse_penalty * len(support.labels))
        solver = torch.optim.LBFGS(
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
