"""VPT: learned tokens beside the image's (Jia et al., ECCV 2022, arXiv:2203.12119), with CLIP's
text features as classifier.

Notation: b batch size, c classes, s image side, k tokens, w width of the image tower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.image_tower import image_tower
from trainables.core.limits import PositiveInt
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    MethodConfig,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.classifiers import zero_shot_classifier
from trainables.methods.recipes import DASSL_CROP_SCALE, token_optim
from trainables.methods.tensor_method import TensorMethod


@dataclass(frozen=True)
class VptConfig(MethodConfig):
    """Number and places of the tokens."""

    tokens: PositiveInt = 8
    """k, per block that has its own tokens."""
    deep: bool = True
    """Whether every block has its own tokens (VPT-deep). Otherwise only the first has, and its
    outputs for them pass through the others (VPT-shallow)."""


class Vpt(TensorMethod):
    """logits = exp(logit_scale) cos(z, t): z from the image tower with learned tokens, t fixed.

    The tokens follow the image's, before the first norm and the first block (their position among
    the others does not matter to attention). In the deep variant, every other block replaces the
    outputs for the previous tokens by its own: equations 4 to 8 of the paper, and MaPLe's code for
    CLIP. The tokens' outputs are excluded from pooling.
    """

    name = "vpt"
    Config = VptConfig
    input_kind = "images"
    is_zero_shot_at_init = False
    classifier: Tensor

    def __init__(self, config: VptConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self._tower = image_tower(self.backbone)
        sets = len(self._tower.blocks) if config.deep else 1
        # N(0, 0.02) as in MaPLe's code. Jia et al. draw uniformly, by Xavier's rule for the patch
        # embedding.
        shape = (sets, config.tokens, self._tower.width)
        first = torch.empty(shape).normal_(0, 0.02, generator=context.rng)
        self.tokens = nn.Parameter(first.to(self.backbone.device))
        self.set_classes(context.classes)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The settings of MaPLe's repository (configs/trainers/VPT, arXiv:2210.03117), which tunes
        CLIP this way: Jia et al. tune other models, and search rate and decay for every task.

        `clean` uses the data set's own template and trains for at least `CLEAN_STEPS` steps: the
        published 5 epochs are ten steps at one shot of ten classes, of which two warm up.
        """
        config = VptConfig(prompts="single" if name == "clean" else "photo")
        return Recipe(config, token_optim(name, facts, 2.5e-3, epochs=5), DASSL_CROP_SCALE)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self._tower.encode(inputs, self.tokens.unbind())
        return functional.normalize(features, dim=-1) @ self.classifier.T

    def set_classes(self, classes: ClassTexts) -> None:
        """The tokens are kept: they belong to the image tower."""
        classifier = zero_shot_classifier(classes, self.backbone)
        self.register_buffer("classifier", classifier, persistent=False)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of a token; initially about 0.02 sqrt(w)."""
        return {"tokens/norm": self.tokens.norm(dim=-1).mean().item()}
