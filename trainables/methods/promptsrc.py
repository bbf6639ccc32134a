"""PromptSRC: prompts in both towers that stay consistent with the frozen model (Khattak et al.,
ICCV 2023, arXiv:2307.06948).

Notation: b batch size, c classes, d feature dimension, s image side, m and k learned tokens per
block of the text and the image tower, w and v the towers' widths, J depth; z [b, d] and t [c, d]
the prompted features of images and texts at unit length, z' and t' those of the frozen model, p and
p' the models' predictions [b, c].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import NonNegativeFloat, PositiveFloat, PositiveInt, Share
from trainables.methods.base import (
    Batch,
    BuildContext,
    ClassTexts,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.classifiers import unit_texts
from trainables.methods.deep_prompts import DeepPrompts, DeepPromptsConfig
from trainables.methods.recipes import DASSL_CROP_SCALE, token_optim

_LATE = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
"""Data sets whose few-shot prompts are averaged over the last epochs only."""


@dataclass(frozen=True)
class PromptSrcConfig(DeepPromptsConfig):
    """The tokens, the weights of the consistency losses, and the average over epochs."""

    image_tokens: PositiveInt = 4
    """k, learned tokens per block of the image tower."""
    text_weight: NonNegativeFloat = 25.0
    """Weight of mean |t - t'|."""
    image_weight: NonNegativeFloat = 10.0
    """Weight of mean |z - z'|."""
    logits_weight: NonNegativeFloat = 1.0
    """Weight of KL(p' || p), divided by c."""
    average_center: Share = 0.75
    """Center of the Gaussian that weights the epochs' prompts, as a share of all epochs."""
    average_width: PositiveFloat = 0.05
    """Standard deviation of that Gaussian, as a share of all epochs."""


class PromptSrc(DeepPrompts):
    """logits = exp(logit_scale) cos(z, t), with independent prompts in both towers.

    The loss is cross entropy plus three distances from the frozen model (section 3.2), whose text
    features are averages over many templates (textual diversity, section 3.4). The result is the
    Gaussian-weighted average of the prompts after every epoch (section 3.3). Validation during
    training uses the average so far.
    """

    name = "promptsrc"
    Config = PromptSrcConfig
    fixed: Tensor

    def __init__(self, config: PromptSrcConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        sets = min(config.depth, len(self._tower.blocks))
        self.tokens = self.drawn(sets, config.image_tokens, self._tower.width, context.rng)
        self.average = WeightAverage(self.trainable())
        self._averaged = False
        self.register_buffer("fixed", None, persistent=False)
        self.set_classes(context.classes)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The released configurations: four tokens in both towers, SGD at 2.5e-3, batches of four.

        Few-shot: J = 9, 50 epochs, averaged around epoch 30 with deviation 30, or 45 and 5 on five
        data sets. Base-to-new: 20 epochs, 15 and 1. From ImageNet to other data sets: J = 3, 20
        epochs, 6 and 10. `clean` trains for at least `CLEAN_STEPS` steps.
        """
        depth, epochs, center, width = 9, 50, 0.6, 0.6
        if facts.dataset in _LATE:
            center, width = 0.9, 0.1
        if facts.protocol == "base-to-new":
            epochs, center, width = 20, 0.75, 0.05
        elif facts.protocol in ("cross-dataset", "domain-generalization"):
            depth, epochs, center, width = 3, 20, 0.3, 0.5
        config = PromptSrcConfig(
            prompts="diverse", depth=depth, average_center=center, average_width=width
        )
        return Recipe(config, token_optim(name, facts, 2.5e-3, epochs), DASSL_CROP_SCALE)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [b, 3, s, s] -> logits [b, c]; with gradients those of the latest prompts,
        otherwise of their average."""
        if not torch.compiler.is_compiling():  # a traced graph keeps what was used last
            self._averaged = self.average.is_set and not torch.is_grad_enabled()
        images, texts = self._features(inputs, self.average.tensors() if self._averaged else None)
        logits: Tensor = self.scale * images @ texts.T
        return logits

    def image_tokens(self) -> list[Tensor]:
        """The latest tokens of each block, [k, v]."""
        return list(self.tokens.unbind())

    def _features(
        self, inputs: Tensor, tokens: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """z [b, d] and t [c, d] with the latest or with other prompts."""
        tokens = self.trainable() if tokens is None else tokens
        features = self._tower.encode(inputs, tokens["tokens"].unbind())
        deep = tokens["deep"].unbind() if "deep" in tokens else ()
        return functional.normalize(features, dim=-1), self._texts([tokens["context"], *deep])

    def losses(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Cross entropy and the three distances, without their weights."""
        images, texts = self._features(batch.inputs)
        frozen = functional.normalize(self.backbone.encode_image(batch.inputs), dim=-1)
        logits = self.scale * images @ texts.T
        teacher = self.scale * frozen @ self.fixed.T
        parts = {
            "cross_entropy": functional.cross_entropy(logits, batch.labels),
            "text": functional.l1_loss(texts, self.fixed),
            "image": functional.l1_loss(images, frozen),
            "logits": divergence(logits, teacher),
        }
        config = self.config
        weights = (1.0, config.text_weight, config.image_weight, config.logits_weight)
        products = [w * part for w, part in zip(weights, parts.values(), strict=True)]
        total = torch.stack(products).sum()
        return {"train/loss": total} | {f"train/{name}": part for name, part in parts.items()}

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Adds the latest prompts to the average."""
        config = self.config
        weight = gaussian(epoch, epochs, config.average_center, config.average_width)
        self.average.add(self.trainable(), weight)

    def set_classes(self, classes: ClassTexts) -> None:
        super().set_classes(classes)
        self.fixed = unit_texts(classes)

    def learned(self) -> dict[str, Tensor]:
        """The average of the tokens, or the tokens before the end of the first epoch."""
        return self.average.tensors() if self.average.is_set else dict(self.trainable())

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        self.check_artifact(tensors, metadata)
        for name, own in self.trainable().items():
            own.copy_(tensors[name])
        self.average.clear()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || model), the mean over rows [b, c] divided by c: a scalar. The released code
    divides by both; the paper does not mention a division."""
    model, target = logits.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    return functional.kl_div(model, target, reduction="sum", log_target=True) / logits.numel()


class WeightAverage(nn.Module):
    """The average so far: sum_t w_t x_t / sum_t w_t.

    Weights are given as logarithms, and their sum is kept as one, so that the tiny weights of a
    narrow Gaussian's tail give an average as well.
    """

    log_sum: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """An empty average of tensors with these names, which contain no dots, and shapes."""
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, torch.zeros_like(tensor))
        self._names = tuple(tensors)
        self.register_buffer("log_sum", torch.tensor(-math.inf, dtype=torch.float64))

    @property
    def is_set(self) -> bool:
        """Whether anything was added."""
        return math.isfinite(self.log_sum.item())

    def tensors(self) -> dict[str, Tensor]:
        """The average by name; zeros if it is empty."""
        return {name: self.get_buffer(name) for name in self._names}

    @torch.no_grad()
    def add(self, tensors: Mapping[str, Tensor], log_weight: float) -> None:
        """Adds x_t with the weight exp(log_weight)."""
        total = torch.logaddexp(self.log_sum, self.log_sum.new_tensor(log_weight))
        share = math.exp(log_weight - total.item())
        for name, average in self.tensors().items():
            average.lerp_(tensors[name], share)
        self.log_sum.copy_(total)

    @torch.no_grad()
    def clear(self) -> None:
        """Empties the average."""
        self.log_sum.fill_(-math.inf)


def gaussian(epoch: int, epochs: int, center: float, width: float) -> float:
    """log w_t up to a constant, for epoch t of T, from 1: w_t = exp(-((t - c T) / (s T))^2 / 2),
    with c the `center` and s the `width`, both as shares of T."""
    return -(((epoch / epochs - center) / width) ** 2) / 2
