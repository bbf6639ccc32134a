"""CLIP-Adapter: a bottleneck behind the image tower (Gao et al., arXiv:2110.04544).

Notation: b batch, c classes, d feature dimension, h = d / reduction hidden, z image features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.artifacts import check_metadata, check_tensors, described, detached
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
from trainables.methods.features import check_config, text_classifier
from trainables.optim import OptimConfig


@dataclass(frozen=True)
class ClipAdapterConfig(MethodConfig):
    """How narrow the bottleneck is, and how much it says."""

    ratio: float = 0.2
    """alpha, the share of the adapter's output in the new features; the rest are the old ones."""
    reduction: int = 4
    """The feature dimension over the bottleneck's."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if not 0 < self.ratio <= 1:
            found.append(f"ratio must lie in (0, 1], got {self.ratio}: use e.g. 0.2")
        if self.reduction < 1:
            found.append(f"reduction must be at least 1, got {self.reduction}: use e.g. 4")
        return found


class ClipAdapter(LossMethod):
    """logits = exp(logit_scale) cos(r A(z) + (1 - r) z, t), A(z) = relu(relu(z W1') W2').

    The adapter for images alone, as in most of the paper's tables and in the released code. It
    knows no classes: it stays where others are told apart.
    """

    Config: ClassVar[type[MethodConfig]] = ClipAdapterConfig
    input_kind: ClassVar[Literal["features", "images"]] = "features"
    is_zero_shot_at_init: ClassVar[bool] = False
    classifier: Tensor

    def __init__(self, config: ClipAdapterConfig, material: BuildContext) -> None:
        """Takes what `build` takes, checked."""
        super().__init__()
        self._backbone, self._ratio = material.backbone, config.ratio
        classifier = text_classifier(material.classes, self._backbone)
        self.register_buffer("classifier", classifier, persistent=False)
        side = classifier.shape[1]
        hidden = side // config.reduction
        self.down = nn.Parameter(_first_layer(hidden, side, material.rng).to(classifier.device))
        self.up = nn.Parameter(_first_layer(side, hidden, material.rng).to(classifier.device))
        self._described = described("clip-adapter", self._backbone.fingerprint)

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """CoOp's schedule: 50, 100 or 200 epochs in batches of 32.

        The paper gives a learning rate of 1e-5 and no optimiser: with SGD nothing would move in
        these epochs, so `paper` takes Adam. The code leaves it to CoOp's files: SGD at 2e-3, an
        epoch of warm-up, crops of at least 8 % of the area. `clean` is Adam at 1e-3.
        """
        del dataset, images, tower
        epochs = {1: 50, 2: 100, 4: 100}.get(shots, 200)
        config = ClipAdapterConfig(prompts="single")
        if name == "reference":
            optim = OptimConfig(
                lr=2e-3,
                epochs=epochs,
                batch_size=32,
                weight_decay=5e-4,
                warmup_epochs=1,
                optimiser="sgd",
            )
            return Recipe(config, optim, crop_scale=0.08)
        optim = OptimConfig(lr=1e-3 if name == "clean" else 1e-5, epochs=epochs, batch_size=32)
        return Recipe(config, optim, crop_scale=1.0)

    @classmethod
    def build(cls, config: ClipAdapterConfig, material: BuildContext) -> Self:
        """See `Method.build`; refuses a bottleneck of nothing."""
        check_config(config)
        side = material.classes.features.shape[1]
        if config.reduction > side:
            raise MethodError(
                f"reduction must be at most the feature dimension, {side}, got "
                f"{config.reduction}: use e.g. 4"
            )
        return cls(config, material)

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        hidden = functional.linear(inputs, self.down).relu()
        adapted = functional.linear(hidden, self.up).relu()
        mixed = self._ratio * adapted + (1 - self._ratio) * inputs
        return functional.normalize(mixed, dim=-1) @ self.classifier.T

    def set_classes(self, classes: ClassTexts) -> None:
        """The adapter stays."""
        self.classifier = text_classifier(classes, self._backbone)

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """`down` [h, d], `up` [d, h] and `ratio` []."""
        tensors = {"down": self.down, "up": self.up, "ratio": torch.tensor(self._ratio)}
        return detached(tensors), dict(self._described)

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """See `Method.load_artifact`."""
        check_metadata(metadata, self._described)
        shapes = {"down": tuple(self.down.shape), "up": tuple(self.up.shape), "ratio": ()}
        check_tensors(tensors, shapes)
        self.down.copy_(tensors["down"])
        self.up.copy_(tensors["up"])
        self._ratio = tensors["ratio"].item()


def _first_layer(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """PyTorch's first values of a linear layer: uniform within 1 / sqrt(columns)."""
    return (torch.rand(rows, columns, generator=rng) * 2 - 1) / math.sqrt(columns)
