"""VPT: tokens beside the image's (Jia et al., ECCV 2022, arXiv:2203.12119), before CLIP's texts.

Notation: k tokens, w width of the image tower, c classes, d feature dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import BackboneError
from trainables.backbones.image_tower import ImageTower, image_tower
from trainables.methods.artifacts import TensorArtifact, described
from trainables.methods.autograd import LossMethod
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Tower,
)
from trainables.optim import OptimConfig

CLEAN_STEPS = 2000
"""Training steps that the `clean` preset aims at: what the published epochs and batches give at
16 shots on a data set of a hundred classes."""


@dataclass(frozen=True)
class VptConfig(MethodConfig):
    """How many tokens, and where."""

    tokens: int = 8
    """k, before each block that has tokens of its own."""
    deep: bool = True
    """Whether every block has tokens of its own (VPT-deep), or the first one alone, so that what
    becomes of them goes through the others (VPT-shallow)."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if self.tokens < 1:
            found.append(f"tokens must be at least 1, got {self.tokens}: use e.g. 8")
        return found


class Vpt(TensorArtifact, LossMethod):
    """logits = exp(logit_scale) cos(z, t): z from the image tower with learned tokens, t fixed.

    The tokens come after the image's, before the first norm and the first block (their place among
    the others makes no difference to attention), and in the deep variant anew before every other
    block, in place of what has become of the last ones: equations 4 to 8 of the paper, and MaPLe's
    code for CLIP. What has become of them is left out of the pooling.
    """

    Config: ClassVar[type[MethodConfig]] = VptConfig
    input_kind: ClassVar[Literal["features", "images"]] = "images"
    is_zero_shot_at_init: ClassVar[bool] = False
    classifier: Tensor

    def __init__(
        self,
        config: VptConfig,
        tower: ImageTower,
        scale: Tensor,
        fingerprint: str,
        rng: torch.Generator,
    ) -> None:
        """`scale` a scalar tensor: exp(logit_scale); `rng` draws the first tokens."""
        super().__init__()
        self._tower, self._scale = tower, scale
        sets = len(tower.blocks) if config.deep else 1
        # N(0, 0.02) as in MaPLe's code; Jia et al. draw uniformly, by Xavier's rule for the patch
        # embedding.
        first = torch.empty(sets, config.tokens, tower.width).normal_(0, 0.02, generator=rng)
        self.tokens = nn.Parameter(first.to(scale.device))
        self.description = described("vpt", fingerprint)

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The settings of MaPLe's repository (configs/trainers/VPT, arXiv:2210.03117), which tunes
        CLIP this way: Jia et al. tune other models, and search rate and decay for every task.

        `reference` adds the weight decay that its framework has by default. `clean` trains on for
        `CLEAN_STEPS` steps where the published 5 epochs are fewer, with the data set's own
        template: at one shot of ten classes they are ten steps, of which two warm up.
        """
        del dataset, shots, tower
        prompts: Literal["single", "photo"] = "single" if name == "clean" else "photo"
        optim = OptimConfig(
            lr=2.5e-3,
            epochs=5,
            batch_size=4,
            weight_decay=5e-4 if name == "reference" else 0.0,
            warmup_epochs=1,
            warmup_lr=1e-5,
            optimiser="sgd",
        )
        if name == "clean":
            epochs = max(optim.epochs, -(-CLEAN_STEPS // optim.steps_per_epoch(images)))
            optim = replace(optim, epochs=epochs)
        return Recipe(VptConfig(prompts=prompts), optim, crop_scale=0.08)

    @classmethod
    def build(cls, config: VptConfig, material: BuildContext) -> Self:
        """See `Method.build`; refuses image towers that are not open_clip's ViT."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        backbone = material.backbone
        try:
            tower = image_tower(backbone)
        except BackboneError as error:
            raise MethodError(str(error)) from error
        scale = backbone.logit_scale.detach()
        method = cls(config, tower, scale, backbone.fingerprint, material.rng)
        method.set_classes(material.classes)
        return method

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [b, 3, s, s] -> logits [b, c]."""
        features = self._tower.encode(inputs, self.tokens.unbind())
        return functional.normalize(features, dim=-1) @ self.classifier.T

    def set_classes(self, classes: ClassTexts) -> None:
        """The tokens stay: they belong to the image tower."""
        unit = functional.normalize(classes.features.detach(), dim=-1)
        self.register_buffer("classifier", self._scale * unit, persistent=False)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of a token; it starts near 0.02 sqrt(w)."""
        return {"tokens/norm": self.tokens.norm(dim=-1).mean().item()}
