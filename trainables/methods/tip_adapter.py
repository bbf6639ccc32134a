"""Tip-Adapter and Tip-Adapter-F: the training set as a cache (Zhang et al., ECCV 2022,
arXiv:2207.09519).

Notation: b batch size, n images, c classes, d feature dimension, z image features at unit length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.core.limits import PositiveFloat
from trainables.core.optim import OptimConfig
from trainables.data.prompts import PromptVariant
from trainables.methods.base import (
    BuildContext,
    ClassTexts,
    MethodConfig,
    MethodError,
    Preset,
    Recipe,
    Support,
    TaskFacts,
)
from trainables.methods.classifiers import zero_shot_classifier
from trainables.methods.tensor_method import TensorMethod

_FIRST_ALPHAS: dict[str, float] = {
    "caltech101": 3.0,
    "dtd": 2.0,
    "eurosat": 2.0,
    "fgvc_aircraft": 5.0,
    "oxford_flowers": 10.0,
    "stanford_cars": 3.0,
    "ucf101": 3.0,
}
"""`init_alpha` in the released configurations that do not have 1.17."""


@dataclass(frozen=True)
class TipAdapterConfig(MethodConfig):
    """Weight and sharpness of the cache, in training and afterwards.

    The authors train with initial values and select others on the validation set afterwards.
    """

    alpha: PositiveFloat = 1.0
    """Weight of the cache beside the zero-shot model."""
    beta: PositiveFloat = 5.5
    """Sharpness: how fast a key's weight decreases with its distance."""


class KeyCache(TensorMethod):
    """logits = exp(logit_scale) cos(z, t) + alpha exp(-beta (1 - z K')) L, equations 6 and 7.

    Keys K are the training images' features, values L their one-hot labels. Before `prepare` the
    cache is empty and the logits are the zero-shot model's.
    """

    Config = TipAdapterConfig
    input_kind = "features"
    stackable = True
    keys: Tensor
    labels: Tensor
    classifier: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, config: TipAdapterConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        classifier = zero_shot_classifier(context.classes, self.backbone)
        self.register_buffer("classifier", classifier, persistent=False)
        keys = classifier.new_zeros(context.images, classifier.shape[1])
        if self.training_free:
            self.register_buffer("keys", keys)
        else:
            self.keys = nn.Parameter(keys)
        device = classifier.device
        # -1 is the label of no class.
        self.register_buffer("labels", torch.full((context.images,), -1, device=device))
        for name in ("alpha", "beta"):
            value = torch.tensor(float(getattr(config, name)), device=device)
            self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def prepare(self, support: Support) -> None:
        """Fills the cache. Keys are means over all augmented views, normalised afterwards, as in
        the released code, which takes ten views."""
        total = torch.zeros_like(self.keys)
        for view in range(support.views):
            total += support.features(view)
        self.keys.copy_(functional.normalize(total, dim=-1))
        self.labels.copy_(support.labels)

    def forward(self, inputs: Tensor) -> Tensor:
        unit = functional.normalize(inputs, dim=-1)
        # Trained keys leave unit length: the affinity is the plain product, as in the code.
        near = torch.exp(-self.beta * (1 - unit @ self.keys.mT))  # [b, n]
        classes = torch.arange(self.classifier.shape[-2], device=self.labels.device)
        values = (self.labels[..., None] == classes).to(near.dtype)  # [n, c]
        return unit @ self.classifier.mT + self.alpha * near @ values

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """The cache knows only its own classes: other ones get the zero-shot classifier."""
        self.classifier = zero_shot_classifier(classes, self.backbone)
        self.labels.fill_(-1)

    def learned(self) -> dict[str, Tensor]:
        """`keys` [n, d], `labels` int64 [n], `alpha` and `beta` []."""
        return {name: getattr(self, name) for name in ("keys", "labels", "alpha", "beta")}

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Restores the cache; the training set must have had the same size."""
        self.check_artifact(tensors, metadata)
        count, labels = len(self.classifier), tensors["labels"]
        if labels.dtype != torch.int64 or ((labels < -1) | (labels >= count)).any():
            raise MethodError(
                f"the artifact's labels must be int64 in -1..{count - 1}, got {labels.dtype} "
                f"in {labels.min()}..{labels.max()}: load it with the classes it was made with"
            )
        super().load_artifact(tensors, metadata)


class TipAdapter(KeyCache):
    """The cache with the training images' features as keys; nothing is trained."""

    name = "tip-adapter"
    training_free = True

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """The paper's alpha and beta, which it states for ImageNet, or the code's initial ones;
        both are then selected on the validation set (by the code's ImageNet script on the test
        set)."""
        optim = OptimConfig(lr=1e-3, epochs=1, batch_size=256)  # not used: there are no steps
        return Recipe(_preset_config(name, facts), optim, crop_scale=0.5)


class TipAdapterF(KeyCache):
    """The cache with keys that start as the training images' features and are trained."""

    name = "tip-adapter-f"

    @classmethod
    def preset(cls, name: Preset, facts: TaskFacts) -> Recipe:
        """AdamW with a large eps (the authors' weights are half precision), PyTorch's default
        weight decay and a cosine per step. The code keeps the epoch that is best on the test set,
        which its authors call a mistake; no preset does."""
        optim = OptimConfig(
            lr=1e-3,
            epochs=100 if facts.dataset == "eurosat" else 20,
            batch_size=256,
            weight_decay=1e-2,
            optimiser="adamw",
            eps=1e-4,
            decay="step",
        )
        return Recipe(_preset_config(name, facts), optim, crop_scale=0.5)


def _preset_config(name: Preset, facts: TaskFacts) -> TipAdapterConfig:
    """The prompts of the paper and its code, or R-AMT's single one after mask tuning: that paper's
    tables have Tip-Adapter with the single prompt; with seven templates it is table 9's."""
    prompts: PromptVariant = "clean" if name == "clean" else "ensemble"
    if name != "clean" and "rmt" in facts.after:
        prompts = "single"
    if name == "reference":
        return TipAdapterConfig(prompts, _FIRST_ALPHAS.get(facts.dataset, 1.17), 1.0)
    return TipAdapterConfig(prompts)
