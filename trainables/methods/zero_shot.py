"""The untuned backbone: the baseline of every tuning method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from trainables.core.optim import OptimConfig
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    Head,
    MethodConfig,
    Preset,
    Recipe,
    TaskFacts,
)
from trainables.methods.classifiers import zero_shot_classifier
from trainables.methods.tensor_method import TensorMethod


@dataclass(frozen=True)
class ZeroShotConfig(MethodConfig):
    """Only the prompts."""


class ZeroShot(TensorMethod):
    """logits = exp(logit_scale) cos(z, t) (Radford et al. 2021)."""

    name = "zero-shot"
    Config = ZeroShotConfig
    input_kind = "features"
    training_free = True
    classifier: Tensor

    def __init__(self, config: ZeroShotConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.set_classes(context.classes)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The single prompt of both papers' zero-shot rows, or the clean ensemble.

        TaskRes's own base on ImageNet is an ensemble (60.33 with RN50, where the single prompt has
        58.18): to compare with it, take the prompts of its configuration.
        """
        config = ZeroShotConfig(prompts="clean" if name == "clean" else "single")
        return Recipe(config, OptimConfig(lr=2e-3, epochs=1, batch_size=256), crop_scale=1.0)

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.normalize(inputs, dim=-1) @ self.classifier.T

    def set_classes(self, classes: ClassTexts) -> None:
        classifier = zero_shot_classifier(classes, self.backbone)
        self.register_buffer("classifier", classifier, persistent=False)

    def linear_head(self) -> Head:
        return Head(self.classifier)
