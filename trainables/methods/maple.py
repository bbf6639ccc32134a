"""MaPLe: prompts in both towers, with those of the image tower computed from those of the text
tower (Khattak et al., CVPR 2023, arXiv:2210.03117).

Notation: b batch size, c classes, s image side, m context tokens, w and v widths of the text and
the image tower, J depth, P_i [m, w] the tokens before block i of the text tower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import BackboneError
from trainables.backbones.image_tower import image_tower
from trainables.core.limits import PositiveInt
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.context import RANDOM_SPREAD, PromptWriter
from trainables.methods.deep_prompts import DeepPrompts
from trainables.methods.recipes import DASSL_CROP_SCALE, token_optim
from trainables.methods.tensor_method import TensorMethod


@dataclass(frozen=True)
class MapleConfig(MethodConfig):
    """Number, depth and initial values of the tokens."""

    context_tokens: PositiveInt = 2
    """m, learned tokens per block and tower."""
    depth: PositiveInt = 9
    """J, the number of first blocks that have their own tokens; at most those that both towers
    have."""
    init_words: str = "a photo of a"
    """Words whose first m tokens are the initial values of P_1; the other tokens stay fixed before
    the class name. Empty to draw all at random."""


class Maple(TensorMethod):
    """logits = exp(logit_scale) cos(f(x, F_1(P_1), ..., F_J(P_J)), g(P_1, ..., P_J, name)).

    Every coupling F_i is a linear layer [v, w] with a bias. Before its block, each set of tokens
    replaces the outputs for the previous one; after block J the outputs continue (equations 3 to 9
    of the paper).
    """

    name: ClassVar[str] = "maple"
    Config: ClassVar[type[MethodConfig]] = MapleConfig
    input_kind: ClassVar[Literal["features", "images"]] = "images"
    is_zero_shot_at_init: ClassVar[bool] = False
    scale: Tensor

    def __init__(self, config: MapleConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        writer, rng, device = PromptWriter.of(self.backbone), context.rng, self.backbone.device
        try:
            self._tower = image_tower(self.backbone)
        except BackboneError as error:
            raise MethodError(str(error)) from error
        first, fixed = writer.opening(config.context_tokens, config.init_words, rng)
        self._prompts = DeepPrompts(writer, config.context_tokens, fixed)
        depth = min(config.depth, len(writer.tower.blocks), len(self._tower.blocks))
        self.context = nn.Parameter(first)
        shape = (depth - 1, *first.shape)
        drawn = RANDOM_SPREAD * torch.randn(shape, generator=rng)
        self.deep = nn.Parameter(drawn.to(device)) if depth > 1 else None
        # PyTorch's initial values of a linear layer. As in the code, those of the second block are
        # those of all later ones.
        bound, width = 1 / math.sqrt(writer.tower.width), self._tower.width
        weight = torch.empty(min(depth, 2), width, writer.tower.width)
        bias = torch.empty(min(depth, 2), width)
        for tensor in (weight, bias):
            tensor.uniform_(-bound, bound, generator=rng)
        layers = [min(number, 1) for number in range(depth)]
        self.weight = nn.Parameter(weight[layers].to(device))
        self.bias = nn.Parameter(bias[layers].to(device))
        scale = self.backbone.logit_scale.detach().clone()
        self.register_buffer("scale", scale, persistent=False)
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

    def contexts(self) -> list[Tensor]:
        """P_1 to P_J, [m, w] each."""
        return [self.context, *(() if self.deep is None else self.deep.unbind())]

    def image_tokens(self) -> list[Tensor]:
        """F_1(P_1) to F_J(P_J), [m, v] each."""
        layers = zip(self.contexts(), self.weight, self.bias, strict=True)
        return [functional.linear(tokens, weight, bias) for tokens, weight, bias in layers]

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [b, 3, s, s] -> logits [b, c]."""
        features = self._tower.encode(inputs, self.image_tokens())
        texts = self._texts(self.contexts())
        logits: Tensor = self.scale * functional.normalize(features, dim=-1) @ texts.T
        return logits

    def set_classes(self, classes: ClassTexts) -> None:
        """Keeps all tokens, and inserts the new names into the prompts."""
        self._texts = self._prompts.features(classes)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of the tokens in either tower."""
        return {
            "context/norm": torch.stack(self.contexts()).norm(dim=-1).mean().item(),
            "tokens/norm": torch.stack(self.image_tokens()).norm(dim=-1).mean().item(),
        }
