"""An adapter on the text features, the rival of TaskRes in its ablation (Yu et al., CVPR 2023,
arXiv:2211.10277, table 2).

Notation: t base features [c, d], phi the adapter, h its hidden width, alpha its weight, z image
features [b, d].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.artifacts import TensorArtifact, described
from trainables.methods.autograd import LossMethod
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Tower,
)
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class TextAdapterConfig(MethodConfig):
    """What the adapter is added to, and how large it is."""

    keep_base: bool = True
    """True: the classifier is t + alpha phi(t). False: phi(t) alone."""
    alpha: float = 0.5
    """Weight of the adapter beside the base; without the base it has no effect."""
    reduction: int = 4
    """d / h, rounded down. The paper does not give h: CLIP-Adapter's, whose adapter it takes."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            found.append(f"alpha must be positive and finite, got {self.alpha}: use e.g. 0.5")
        if self.reduction < 1:
            found.append(f"reduction must be at least 1, got {self.reduction}: use e.g. 4")
        return found


class TextAdapter(TensorArtifact, LossMethod):
    """logits = exp(logit_scale) cos(z, t + alpha phi(t)), with phi(t) = max(0, t A) B.

    Two linear layers without bias and a ReLU between them, which is CLIP-Adapter's formula
    (Gao et al., arXiv:2110.04544); the released code of that paper has a second ReLU at the end.
    """

    Config: ClassVar[type[MethodConfig]] = TextAdapterConfig
    input_kind: ClassVar[Literal["features", "images"]] = "features"
    is_zero_shot_at_init: ClassVar[bool] = False
    base: Tensor
    scale: Tensor

    def __init__(
        self,
        config: TextAdapterConfig,
        base: Tensor,
        scale: Tensor,
        fingerprint: str,
        rng: torch.Generator,
    ) -> None:
        """`base` [c, d], `scale` a scalar tensor: exp(logit_scale); `rng` on the CPU."""
        super().__init__()
        self.config = config
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        features = base.shape[1]
        hidden = features // config.reduction
        self.down = nn.Parameter(_first_values(features, hidden, rng).to(base.device))
        self.up = nn.Parameter(_first_values(hidden, features, rng).to(base.device))
        self.description = described("text-adapter", fingerprint)

    @classmethod
    def preset(
        cls,
        name: Preset,
        *,
        dataset: str,
        shots: int,
        images: int,
        tower: Tower = "vit",
    ) -> Recipe:
        """t + alpha phi(t), trained as TaskRes is: table 2 names alpha, and nothing else that
        would be different. The released code has no adapter: `reference` adds what its framework
        adds to everything, a weight decay of 5e-4 and random crops (scale 0.08-1) with flips."""
        del images, tower
        optim = OptimConfig(
            lr=2e-4 if dataset == "imagenet" else 2e-3,
            epochs=100 if shots <= 4 else 200,
            batch_size=256,
            weight_decay=5e-4 if name == "reference" else 0.0,
            warmup_epochs=1,
        )
        config = TextAdapterConfig(prompts=name)
        return Recipe(config, optim, crop_scale=0.08 if name == "reference" else 1.0)

    @classmethod
    def build(cls, config: TextAdapterConfig, material: BuildContext) -> Self:
        """See `Method.build`; refuses a hidden width below 1."""
        problems = config.problems()
        features = material.classes.features.shape[1]
        if config.reduction > features:
            problems.append(
                f"reduction must not exceed the {features} features of {material.backbone.name}, "
                f"got {config.reduction}: use e.g. 4"
            )
        if problems:
            raise MethodError("; ".join(problems))
        base, backbone = material.classes.features.detach().clone(), material.backbone
        scale = backbone.logit_scale.detach().clone()
        return cls(config, base, scale, backbone.fingerprint, material.rng)

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        return functional.normalize(inputs, dim=-1) @ self._classifier().T

    def _classifier(self) -> Tensor:
        adapted = (self.base @ self.down).relu() @ self.up
        if self.config.keep_base:
            adapted = self.base + self.config.alpha * adapted
        return self.scale * functional.normalize(adapted, dim=-1)

    def set_classes(self, classes: ClassTexts) -> None:
        """The adapter stays: it belongs to no class."""
        self.base = classes.features.detach().clone()

    @torch.no_grad()
    def linear_head(self) -> Head:
        """The adapted text features."""
        return Head(self._classifier())

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of phi(t) over that of t, without alpha."""
        adapted = (self.base @ self.down).relu() @ self.up
        share = adapted.norm(dim=-1) / self.base.norm(dim=-1).clamp_min(1e-12)
        return {"adapter/share": share.mean().item()}


def _first_values(inputs: int, outputs: int, rng: torch.Generator) -> Tensor:
    """[inputs, outputs], uniform within 1 / sqrt(inputs): PyTorch's start of a linear layer, which
    CLIP-Adapter's code keeps."""
    bound = 1 / math.sqrt(inputs)
    return (2 * torch.rand(inputs, outputs, generator=rng) - 1) * bound
