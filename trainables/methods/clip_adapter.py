"""CLIP-Adapter: a bottleneck behind the image tower (Gao et al., arXiv:2110.04544).

Notation: b batch size, c classes, d feature dimension, h = d / reduction hidden units, z image
features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import PositiveInt, PositiveShare
from trainables.core.optim import OptimConfig
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.classifiers import zero_shot_classifier
from trainables.methods.recipes import coop_optim, dassl_crop_scale
from trainables.methods.tensor_method import TensorMethod


@dataclass(frozen=True)
class ClipAdapterConfig(MethodConfig):
    """Width of the bottleneck, and weight of its output."""

    ratio: PositiveShare = 0.2
    """alpha, the share of the adapter's output in the new features. 0.2 in the code; the paper
    selects it for each data set."""
    reduction: PositiveInt = 4
    """d / h: how many times narrower the bottleneck is than the features."""


class ClipAdapter(TensorMethod):
    """logits = exp(logit_scale) cos(r A(z) + (1 - r) z, t), A(z) = relu(relu(z W1') W2').

    Only the image adapter, as in most of the paper's tables and in the released code.
    """

    name = "clip-adapter"
    Config = ClipAdapterConfig
    input_kind = "features"
    stackable = True
    is_zero_shot_at_init = False
    classifier: Tensor

    def __init__(self, config: ClipAdapterConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self._ratio = config.ratio
        side = context.classes.features.shape[1]
        if config.reduction > side:
            raise MethodError(
                f"reduction must be at most the feature dimension, {side}, got "
                f"{config.reduction}: use e.g. 4"
            )
        self.set_classes(context.classes)
        hidden, device = side // config.reduction, self.classifier.device
        self.down = nn.Parameter(_first_layer(hidden, side, context.rng).to(device))
        self.up = nn.Parameter(_first_layer(side, hidden, context.rng).to(device))

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """`paper` and `reference` train with CoOp's recipe, as the authors' code does, which is
        run with CoOp's command: SGD at 2e-3.

        The paper gives a learning rate of 1e-5 and no optimiser. That rate cannot have produced its
        tables: in as many epochs SGD moves nothing, and Adam hardly leaves the zero-shot model
        (16-shot features of 25 Oxford Pets breeds, ViT-B/32: zero-shot 91 % of 100 validation
        images, Adam at 1e-5 92 %, this recipe 95 %). `clean` is Adam at 1e-3.
        """
        config, optim = ClipAdapterConfig(prompts="single"), coop_optim(name, facts)
        if name == "clean":
            optim = OptimConfig(lr=1e-3, epochs=optim.epochs, batch_size=optim.batch_size)
        return Recipe(config, optim, dassl_crop_scale(name))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = (inputs @ self.down.mT).relu()
        adapted = (hidden @ self.up.mT).relu()
        mixed = self._ratio * adapted + (1 - self._ratio) * inputs
        return functional.normalize(mixed, dim=-1) @ self.classifier.mT

    def set_classes(self, classes: ClassTexts) -> None:
        """The adapter is kept: it belongs to no class."""
        classifier = zero_shot_classifier(classes, self.backbone)
        self.register_buffer("classifier", classifier, persistent=False)

    def learned(self) -> dict[str, Tensor]:
        """`down` [h, d], `up` [d, h] and `ratio` []."""
        return {"down": self.down, "up": self.up, "ratio": torch.tensor(self._ratio)}

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        super().load_artifact(tensors, metadata)
        self._ratio = tensors["ratio"].item()


def _first_layer(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """PyTorch's initial values of a linear layer: uniform within 1 / sqrt(columns)."""
    return (torch.rand(rows, columns, generator=rng) * 2 - 1) / math.sqrt(columns)
