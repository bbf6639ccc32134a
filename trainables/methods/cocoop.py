"""CoCoOp: a context that depends on the image (Zhou et al., CVPR 2022, arXiv:2203.05557).

Notation: b batch, c classes, d feature dimension, m context tokens, w the text tower's width,
h = d / 16 hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones import text_tower
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
from trainables.methods.prompt_tokens import PromptWriter
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class CoCoOpConfig(MethodConfig):
    """The context, and the net that shifts it by what is in the image."""

    context_tokens: int = 4
    """m, how many vectors are learned in the place of tokens."""
    init_words: str = "a photo of a"
    """Words whose embeddings are the first values; none: drawn at random."""
    reduction: int = 16
    """d / h: how much narrower than a feature the meta-net is inside."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if self.context_tokens < 1:
            found.append(f"context_tokens must be at least 1, got {self.context_tokens}: use 4")
        if self.reduction < 1:
            found.append(f"reduction must be at least 1, got {self.reduction}: use 16")
        return found


class CoCoOp(TensorArtifact, LossMethod):
    """logits = exp(logit_scale) cos(z, g(context + net(z), class name)) (equation 3).

    Each image has a classifier of its own: b x c prompts a step, and c for every image that is
    judged, of which no more than `text_tower.AT_ONCE` are in memory at a time.
    """

    Config: ClassVar[type[MethodConfig]] = CoCoOpConfig
    input_kind: ClassVar[Literal["features", "images"]] = "features"
    is_zero_shot_at_init: ClassVar[bool] = False
    scale: Tensor

    def __init__(self, config: CoCoOpConfig, material: BuildContext) -> None:
        """Raises `MethodError` where config, backbone and classes do not fit."""
        super().__init__()
        backbone, rng = material.backbone, material.rng
        self._config = config
        self.description = described("cocoop", backbone.fingerprint)
        self._writer = PromptWriter.of(backbone)
        self._prompts = self._writer.prompts(material.classes, config.context_tokens)
        self.register_buffer("scale", backbone.logit_scale.detach().clone(), persistent=False)
        self.context = nn.Parameter(
            self._writer.context(config.context_tokens, config.init_words, rng)
        )
        features = material.classes.features.shape[1]
        hidden = max(1, features // config.reduction)
        self.narrow = _linear(features, hidden, rng).to(self.context.device)
        self.widen = _linear(hidden, self._writer.tower.width, rng).to(self.context.device)

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
        """Section 4.1: four tokens from «a photo of a», ten epochs, one image a step.

        The recipe is the same for all shots and data sets; the paper has 16 shots. `reference` adds
        what the code inherits from its framework's defaults, a weight decay of 5e-4 and random
        crops (scale 0.08-1) with flips. `clean` is `paper`: nothing of it is in dispute.
        """
        del dataset, shots, images, tower
        optim = OptimConfig(
            lr=2e-3,
            epochs=10,
            batch_size=1,
            weight_decay=5e-4 if name == "reference" else 0.0,
            warmup_epochs=1,
            optimiser="sgd",
        )
        crop_scale = 0.08 if name == "reference" else 1.0
        return Recipe(CoCoOpConfig(prompts="photo"), optim, crop_scale)

    @classmethod
    def build(cls, config: CoCoOpConfig, material: BuildContext) -> Self:
        """See `Method.build`."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        return cls(config, material)

    def shift(self, unit: Tensor) -> Tensor:
        """Image features [b, d] at unit length -> what is added to every context token, [b, w].

        The paper gives the meta-net «the output features of the image encoder» and does not say
        whether they are normalised; in the code they are.
        """
        shift: Tensor = self.widen(functional.relu(self.narrow(unit)))
        return shift

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        unit = functional.normalize(inputs, dim=-1)
        # With gradients on the tower keeps memory within bounds by itself.
        at_once = text_tower.AT_ONCE // len(self._prompts.ends)
        size = len(unit) if torch.is_grad_enabled() else max(1, at_once)
        return torch.cat([self._logits(part) for part in unit.split(size)])

    def _logits(self, unit: Tensor) -> Tensor:
        context = self.context + self.shift(unit)[:, None]  # [b, m, w]
        prompts = self._prompts.filled(context[:, None]).flatten(0, 1)  # [b c, l, w]
        features = self._writer.tower.encode(prompts, self._prompts.ends.repeat(len(unit)))
        texts = functional.normalize(features, dim=-1).unflatten(0, (len(unit), -1))
        logits: Tensor = self.scale * (texts @ unit[..., None])[..., 0]
        return logits

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """Context and meta-net stay, with the new names in the prompts."""
        self._prompts = self._writer.prompts(classes, self._config.context_tokens)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Mean length of the context's vectors; length of all weights of the meta-net."""
        weights = torch.cat([self.narrow.weight.flatten(), self.widen.weight.flatten()])
        return {
            "context/norm": self.context.norm(dim=-1).mean().item(),
            "meta_net/norm": weights.norm().item(),
        }


def _linear(inputs: int, outputs: int, rng: torch.Generator) -> nn.Linear:
    """A layer as torch begins one, U(-1/sqrt(inputs), 1/sqrt(inputs)), drawn from `rng`."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            tensor.uniform_(-(inputs**-0.5), inputs**-0.5, generator=rng)
    return layer
