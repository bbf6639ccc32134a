"""R-AMT on both towers at once (Zheng et al., ICCV 2023, table «text encoder»; not in the released
code): 74.00 on 16-shot ImageNet, for the image tower's 73.07 alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor
from torch.func import functional_call

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
from trainables.methods.masking.layers import image_names, text_names
from trainables.methods.masking.mask_method import MaskConfig, MaskMethod
from trainables.methods.masking.mask_recipe import mask_optim, published_leak
from trainables.methods.masking.masked_text import MaskedClassifier

MaskedTextLayers = Literal["mhsa", "mlp", "all"]

_VISUAL = "visual."


@dataclass(frozen=True)
class MaskedTowersConfig(MaskConfig):
    """Which of both towers' layers are masked, and how the scores learn. `masked` is about the
    image tower; `dynamic` chooses among the wanted tensors of both."""

    patch_embedding: bool = False
    """Mask the image tower's first convolution too."""
    masked_text: MaskedTextLayers = "mhsa"
    """Which layers of the text tower are masked, see `masked`."""

    def problems(self) -> list[str]:
        """See `MethodConfig.problems`."""
        found = super().problems()
        if self.masked_text not in get_args(MaskedTextLayers):
            allowed = get_args(MaskedTextLayers)
            found.append(f"masked_text must be one of {allowed}, got {self.masked_text!r}")
        return found


class MaskedTowers(MaskMethod):
    """Both towers with W B in place of W; their names are those of the whole model."""

    Config: ClassVar[type[MethodConfig]] = MaskedTowersConfig
    input_kind: ClassVar[Literal["features", "images"]] = "images"

    def __init__(self, config: MaskedTowersConfig, material: BuildContext) -> None:
        visual = image_names(material.backbone, config.masked, config.patch_embedding)
        text = text_names(material.backbone, config.masked_text)
        super().__init__(config, material, [*(f"{_VISUAL}{name}" for name in visual), *text])
        self._classifier = MaskedClassifier(material.backbone, material.classes)

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The image tower's settings for both, see `mask_recipe.py`."""
        config = MaskedTowersConfig(
            prompts="clean" if name == "clean" else "single",
            masked="mhsa" if tower == "vit" else "all",
            patch_embedding=name == "reference" or tower == "resnet",
            leak=published_leak(dataset, shots),
            norm_weight=1e-4 if name == "reference" else 0.0,
            purity_eps=1e-8 if name == "reference" else 0.0,
        )
        optim = mask_optim(name, config.init - config.threshold, dataset, images)
        return Recipe(config, optim, crop_scale=0.5)

    @classmethod
    def build(cls, config: MaskedTowersConfig, material: BuildContext) -> Self:
        """See `Method.build`; refuses classes without texts, and a tower without the layers that
        `config` wants masked."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        return cls(config, material)

    def features(self, weights: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images [b, 3, s, s] and the classes' texts through their masked towers; see
        `MaskMethod`."""
        visual = {n.removeprefix(_VISUAL): w for n, w in weights.items() if n.startswith(_VISUAL)}
        features: Tensor = functional_call(self._backbone.visual, visual, (inputs,))
        return features, self._classifier(_of_text(weights))

    @torch.no_grad()
    def linear_head(self) -> Head:
        """The masked text tower's class features."""
        return Head(self._classifier(_of_text(self.scores.effective())))

    def set_classes(self, classes: ClassTexts) -> None:
        """The masks stay: they belong to the towers."""
        self._classifier = MaskedClassifier(self._backbone, classes)


def _of_text(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if not name.startswith(_VISUAL)}
