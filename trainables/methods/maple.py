"""MaPLe: prompts in both towers, with those of the image tower computed from those of the text
tower (Khattak et al., CVPR 2023, arXiv:2210.03117).

Notation: b batch size, c classes, s image side, m context tokens, w and v widths of the text and
the image tower, J depth, P_i [m, w] the tokens before block i of the text tower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import PositiveInt
from trainables.methods.base import BuildContext, Preset, Recipe, TaskFacts
from trainables.methods.deep_prompts import DeepPrompts, DeepPromptsConfig
from trainables.methods.recipes import DASSL_CROP_SCALE, token_optim


@dataclass(frozen=True)
class MapleConfig(DeepPromptsConfig):
    """Number, depth and initial values of the tokens, which both towers share."""

    context_tokens: PositiveInt = 2
    """m, learned tokens per block and tower."""


class Maple(DeepPrompts):
    """logits = exp(logit_scale) cos(f(x, F_1(P_1), ..., F_J(P_J)), g(P_1, ..., P_J, name)).

    Every coupling F_i is a linear layer [v, w] with a bias (equations 3 to 9 of the paper).
    """

    name = "maple"
    Config = MapleConfig
    coupled = True

    def __init__(self, config: MapleConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        # PyTorch's initial values of a linear layer. As in the code, those of the second block are
        # those of all later ones.
        bound, width = 1 / math.sqrt(self.context.shape[1]), self._tower.width
        weight = torch.empty(min(self._depth, 2), width, self.context.shape[1])
        bias = torch.empty(min(self._depth, 2), width)
        for tensor in (weight, bias):
            tensor.uniform_(-bound, bound, generator=context.rng)
        layers = [min(number, 1) for number in range(self._depth)]
        self.weight = nn.Parameter(weight[layers].to(self.context.device))
        self.bias = nn.Parameter(bias[layers].to(self.context.device))
        self.set_classes(context.classes)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The released configurations: two tokens from "a photo of a", J = 9, SGD at 3.5e-3 for
        five epochs; J = 3, 2.6e-3 and two epochs for ImageNet's cross-dataset and domain
        generalisation experiments. All have 16 shots and batches of four.

        `clean` trains for at least `CLEAN_STEPS` steps.
        """
        transfer = facts.protocol in ("cross-dataset", "domain-generalization")
        lr, epochs = (2.6e-3, 2) if transfer else (3.5e-3, 5)
        config = MapleConfig(prompts="photo", depth=3 if transfer else 9)
        return Recipe(config, token_optim(name, facts, lr, epochs), DASSL_CROP_SCALE)

    def image_tokens(self) -> list[Tensor]:
        """F_1(P_1) to F_J(P_J), [m, v] each."""
        layers = zip(self.contexts(), self.weight, self.bias, strict=True)
        return [functional.linear(tokens, weight, bias) for tokens, weight, bias in layers]

    def forward(self, inputs: Tensor) -> Tensor:
        features = self._tower.encode(inputs, self.image_tokens())
        texts = self._texts(self.contexts())
        logits: Tensor = self.scale * functional.normalize(features, dim=-1) @ texts.T
        return logits
