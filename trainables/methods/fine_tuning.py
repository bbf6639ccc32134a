"""Fine-tuning: trains every weight of the image encoder; the text features stay fixed. A baseline
of R-AMT (Zheng et al., ICCV 2023, arXiv:2307.15049, table 11).

Notation: b batch size, c classes, s image side; W the encoder's weights, W_0 the pre-trained ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from trainables.backbones.base import Backbone
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

_VISUAL = "visual."

_RATE = 1e-5
"""The rate of end-to-end fine-tuning of CLIP in WiSE-FT (Wortsman et al., arXiv:2109.01903), with
16 shots of ImageNet among others."""


@dataclass(frozen=True)
class FineTuningConfig(MethodConfig):
    """The prompts; the other settings are those of the optimiser."""


class FineTuning(TensorMethod):
    """logits = exp(logit_scale) cos(f_W(x), t): the image encoder f with trained weights W.

    Batch norms use their pre-trained statistics, and their scales and shifts are trained. Weights,
    gradients and Adam's moments take four times the encoder's memory, and checkpoints three times
    its size: 1.3 GiB and 1 GiB for a ViT-B/16.
    """

    name = "fine-tuning"
    Config = FineTuningConfig
    input_kind = "images"
    changes_backbone = True
    classifier: Tensor

    def __init__(self, config: FineTuningConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        first = self.backbone.visual.named_parameters()
        self.weights = nn.ParameterDict(
            # A key must not contain a dot.
            {name.replace(".", "/"): nn.Parameter(w.detach().clone()) for name, w in first}
        )
        self.set_classes(context.classes)

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """Neither the paper nor the code gives a recipe. Templates,
        epochs, batches and crops are those of R-AMT, the learning rate is `_RATE`."""
        config = FineTuningConfig(prompts="clean" if name == "clean" else "single")
        epochs = 10 if facts.dataset == "imagenet" else 30
        return Recipe(config, OptimConfig(_RATE, epochs, batch_size=32), crop_scale=0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        own = {name.removeprefix(_VISUAL): weight for name, weight in self.learned().items()}
        features: Tensor = functional_call(self.backbone.visual, own, (inputs,))
        return functional.normalize(features.float(), dim=-1) @ self.classifier.T

    def set_classes(self, classes: ClassTexts) -> None:
        """Keeps the weights, which belong to the image encoder."""
        classifier = zero_shot_classifier(classes, self.backbone)
        self.register_buffer("classifier", classifier, persistent=False)

    def merged_backbone(self) -> Backbone:
        return self.backbone.changed(self.learned())

    def linear_head(self) -> Head:
        return Head(self.classifier)

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """|W - W_0| / |W_0|: relative distance from the pre-trained weights."""
        first = {f"{_VISUAL}{n}": w for n, w in self.backbone.visual.named_parameters()}
        moved, size = 0.0, 0.0
        for name, weight in self.learned().items():
            moved += (weight - first[name]).square().sum().item()
            size += first[name].square().sum().item()
        return {"weights/moved": math.sqrt(moved / size)}

    def learned(self) -> dict[str, Tensor]:
        """W by the names of the model's parameters."""
        return {f"{_VISUAL}{key.replace('/', '.')}": w for key, w in self.weights.items()}
