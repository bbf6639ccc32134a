"""A cache of the training set that votes by similarity (Tip-Adapter, arXiv:2207.09519).

Notation: b batch, n images, c classes, d feature dimension, z image features at unit length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.methods.artifacts import check_metadata, check_tensors, described, detached
from trainables.methods.autograd import LossMethod
from trainables.methods.base import BuildContext, ClassTexts, MethodError, Support
from trainables.methods.features import check_config, text_classifier


class KeyCache(LossMethod):
    """logits = exp(logit_scale) cos(z, t) + alpha exp(-beta (1 - z K')) L, equations 6 and 7.

    Keys K are the training images' features, values L their labels, one-hot. Until `prepare`
    there are no labels and the cache is silent.
    """

    kind: ClassVar[str]
    """Registry name."""
    learns_keys: ClassVar[bool]
    """Whether keys are trained."""
    input_kind: ClassVar[Literal["features", "images"]] = "features"
    keys: Tensor
    labels: Tensor
    classifier: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, config: Any, material: BuildContext) -> None:
        """Takes what `build` takes, checked."""
        super().__init__()
        self._backbone = material.backbone
        classifier = text_classifier(material.classes, self._backbone)
        self.register_buffer("classifier", classifier, persistent=False)
        keys = classifier.new_zeros(material.images, classifier.shape[1])
        if self.learns_keys:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        device = classifier.device
        # -1 is nobody's label.
        self.register_buffer("labels", torch.full((material.images,), -1, device=device))
        for name in ("alpha", "beta"):
            value = torch.tensor(float(getattr(config, name)), device=device)
            self.register_buffer(name, value, persistent=False)
        self._described = described(self.kind, self._backbone.fingerprint)

    @classmethod
    def build(cls, config: Any, material: BuildContext) -> Self:
        """See `Method.build`."""
        check_config(config)
        return cls(config, material)

    @torch.no_grad()
    def prepare(self, support: Support) -> None:
        """Keys are the means over all augmented views, scaled to unit length after the mean, as in
        the released code, which takes ten views."""
        total = torch.zeros_like(self.keys)
        for view in range(support.views):
            total += support.features(view)
        self.keys.copy_(functional.normalize(total, dim=-1))
        self.labels.copy_(support.labels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, c]."""
        unit = functional.normalize(inputs, dim=-1)
        # Trained keys leave unit length: the affinity is the plain product, as in the code.
        near = torch.exp(-self.beta * (1 - unit @ self.keys.T))  # [b, n]
        classes = torch.arange(len(self.classifier), device=self.labels.device)
        values = (self.labels[:, None] == classes).to(near.dtype)  # [n, c]
        return unit @ self.classifier.T + self.alpha * near @ values

    @torch.no_grad()
    def set_classes(self, classes: ClassTexts) -> None:
        """The cache votes for its own classes only: other ones get the zero-shot model."""
        self.classifier = text_classifier(classes, self._backbone)
        self.labels.fill_(-1)

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """`keys` [n, d], `labels` int64 [n], `alpha` and `beta` []."""
        names = ("keys", "labels", "alpha", "beta")
        return detached({name: getattr(self, name) for name in names}), dict(self._described)

    @torch.no_grad()
    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """See `Method.load_artifact`; the training set must have been as large as this one's."""
        check_metadata(metadata, self._described)
        names = ("keys", "labels", "alpha", "beta")
        check_tensors(tensors, {name: tuple(getattr(self, name).shape) for name in names})
        count = len(self.classifier)
        labels = tensors["labels"]
        if labels.dtype != torch.int64 or ((labels < -1) | (labels >= count)).any():
            raise MethodError(
                f"the artifact's labels must be int64 in -1..{count - 1}, got {labels.dtype} "
                f"in {labels.min()}..{labels.max()}: load it with the classes it was made with"
            )
        for name in names:
            getattr(self, name).copy_(tensors[name])


def cache_problems(alpha: float, beta: float) -> list[str]:
    """Broken rules of the two weights."""
    found = []
    if not (math.isfinite(alpha) and alpha > 0):
        found.append(f"alpha must be positive and finite, got {alpha}: use e.g. 1")
    if not (math.isfinite(beta) and beta > 0):
        found.append(f"beta must be positive and finite, got {beta}: use e.g. 5.5")
    return found


def first_weights(dataset: str) -> tuple[float, float]:
    """alpha and beta with which the released code starts its grid search on the validation set;
    of data sets whose settings it does not come with: those of most."""
    alphas = {"eurosat": 2.0, "dtd": 2.0, "fgvc_aircraft": 5.0}
    return alphas.get(dataset, 1.17), 1.0
