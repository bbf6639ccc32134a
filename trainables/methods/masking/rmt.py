"""R-AMT: masks on the image tower (Zheng et al., ICCV 2023, 2307.15049)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

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
from trainables.methods.masking.layers import image_names
from trainables.methods.masking.mask_method import MaskConfig, MaskMethod
from trainables.methods.masking.mask_recipe import mask_optim, published_leak


@dataclass(frozen=True)
class MaskTuningConfig(MaskConfig):
    """Which of the image tower's layers are masked, and how the scores learn."""

    patch_embedding: bool = False
    """Mask the tower's first convolution too, as the released code always does."""


class MaskTuning(MaskMethod):
    """The image tower with W B in place of W, and the text features as fixed classifier."""

    Config: ClassVar[type[MethodConfig]] = MaskTuningConfig
    input_kind: ClassVar[Literal["features", "images"]] = "images"
    prefix: ClassVar[str] = "visual."
    classifier: Tensor

    def __init__(
        self, config: MaskTuningConfig, material: BuildContext, names: Collection[str]
    ) -> None:
        """`names`: parameters of the image tower."""
        super().__init__(config, material, names)
        self.register_buffer("classifier", self._classifier(material.classes), persistent=False)

    @classmethod
    def preset(
        cls, name: Preset, *, dataset: str, shots: int, images: int, tower: Tower = "vit"
    ) -> Recipe:
        """The published settings; `reference` adds what only the code says, `clean` is `paper`
        with the learning rate of `mask_optim`. Towers that are no ViT of open_clip's are masked
        as a whole, as the paper masks ResNets."""
        config = MaskTuningConfig(
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
    def build(cls, config: MaskTuningConfig, material: BuildContext) -> Self:
        """See `Method.build`; refuses a tower without the layers that `config` wants masked."""
        if problems := config.problems():
            raise MethodError("; ".join(problems))
        names = image_names(material.backbone, config.masked, config.patch_embedding)
        return cls(config, material, names)

    def features(self, weights: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images [b, 3, s, s] through the masked tower; see `MaskMethod`."""
        features: Tensor = functional_call(self._backbone.visual, dict(weights), (inputs,))
        return features, self.classifier

    def linear_head(self) -> Head:
        """The text features, as without masks."""
        return Head(self.classifier)

    def set_classes(self, classes: ClassTexts) -> None:
        """The masks stay: they belong to the image tower."""
        self.classifier = self._classifier(classes)

    def _classifier(self, classes: ClassTexts) -> Tensor:
        unit = functional.normalize(classes.features.detach(), dim=-1)
        return self._backbone.logit_scale.detach() * unit
