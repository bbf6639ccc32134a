"""R-AMT on the text tower (Zheng et al., ICCV 2023, table «text encoder»): masks on the text
transformer, whose class features are computed anew in every step.

The paper masks its attention and reports 73.05 on 16-shot ImageNet, the image tower's 73.07; the
released code has no such option. Everything else is taken over from the image tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

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
from trainables.methods.masking.layers import text_names
from trainables.methods.masking.mask_method import MaskConfig, MaskMethod
from trainables.methods.masking.mask_recipe import mask_optim, published_leak
from trainables.methods.masking.masked_text import MaskedClassifier


class MaskedText(MaskMethod):
    """Image features as they are, and the text tower with W B in place of W."""

    Config: ClassVar[type[MethodConfig]] = MaskConfig
    input_kind: ClassVar[Literal["features", "images"]] = "features"

    def __init__(self, config: MaskConfig, material: BuildContext) -> None:
        super().__init__(config, material, text_names(material.backbone, config.masked))
        self._classifier = MaskedClassifier(material.backbone, material.classes)

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The image tower's settings, see `mask_recipe.py`. Crops are those of a few augmented
        views in turn, since features are read."""
        del tower
        config = MaskConfig(
            prompts="clean" if name == "clean" else "single",
            leak=published_leak(dataset, shots),
            norm_weight=1e-4 if name == "reference" else 0.0,
            purity_eps=1e-8 if name == "reference" else 0.0,
        )
        optim = mask_optim(name, config.init - config.threshold, dataset, images)
        return Recipe(config, optim, crop_scale=0.5)

    @classmethod
    def build(cls, config: MaskConfig, material: BuildContext) -> Self:
        """See `Method.build`; refuses classes without texts, and a text tower without the layers
        that `config` wants masked."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        return cls(config, material)

    def features(self, weights: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Image features [b, d] as they are, and the masked tower's class features; see
        `MaskMethod`."""
        return inputs, self._classifier(weights)

    @torch.no_grad()
    def linear_head(self) -> Head:
        """The masked tower's class features."""
        return Head(self._classifier(self.scores.effective()))

    def set_classes(self, classes: ClassTexts) -> None:
        """The masks stay: they belong to the text tower, which encodes the other classes."""
        self._classifier = MaskedClassifier(self._backbone, classes)
