"""What outlives a trial in a warm worker: the backbone, decoded images, features.

Notation: n images, c classes, d feature dimension, s image side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.registry import load_backbone
from trainables.backbones.shared import fetch_weights
from trainables.data.few_shot import draw_few_shot
from trainables.data.prompts import PromptVariant, class_features
from trainables.data.registry import open_dataset

_ENCODE_BATCH = 128


@dataclass(frozen=True)
class View:
    """Images of one split as the test transform shows them, with what the frozen model makes
    of them."""

    images: Tensor
    """uint8 [n, 3, s, s]."""
    features: Tensor
    """float32 [n, d], not normalised."""
    labels: Tensor
    """int64 [n]."""


def encode_images(backbone: Backbone, images: Tensor) -> Tensor:
    """uint8 [n, 3, s, s] -> float32 [n, d], in batches on the backbone's device."""
    normalise = backbone.preprocess.normalise
    batches = images.to(backbone.device).split(_ENCODE_BATCH)
    return torch.cat([backbone.encode_image(normalise(batch)) for batch in batches])


def zero_shot_logits(features: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
    """Features [n, d] and class features [c, d] -> scale * cosine, [n, c]."""
    return scale * functional.normalize(features, dim=-1) @ functional.normalize(classes, dim=-1).T


class Workbench:
    """One backbone on one device and everything computed from it, each at most once."""

    def __init__(self, backbone: str, device: str, weights: str = "") -> None:
        """`weights`: where the files that `backbone` names were shared, if they were."""
        self.spec, self.device, self._weights = backbone, device, weights
        self._views: dict[tuple[str, int, int], tuple[View, View]] = {}
        self._classes: dict[tuple[str, PromptVariant], Tensor] = {}

    @cached_property
    def backbone(self) -> Backbone:
        """The model; raises `BackboneError`."""
        return load_backbone(fetch_weights(self.spec, self._weights), self.device)

    def views(self, dataset: str, shots: int, seed: int) -> tuple[View, View]:
        """Few-shot train and validation views of one draw; raises `DataError`."""
        key = (dataset, shots, seed)
        if key not in self._views:
            drawn = draw_few_shot(open_dataset(dataset), shots, seed)
            self._views[key] = (
                self.view(drawn.train.images, drawn.train.labels),
                self.view(drawn.val.images, drawn.val.labels),
            )
        return self._views[key]

    def view(self, images: Tensor, labels: Tensor) -> View:
        """Any uint8 [n, 3, h, w] through the test transform and the image tower."""
        resized = self.backbone.preprocess.resize(images).to(self.backbone.device)
        return View(resized, encode_images(self.backbone, resized), labels.to(self.backbone.device))

    def class_features(self, dataset: str, variant: PromptVariant) -> Tensor:
        """float32 [c, d], one vector a class, not normalised."""
        key = (dataset, variant)
        if key not in self._classes:
            prompts = open_dataset(dataset).prompts(variant)
            self._classes[key] = class_features(self.backbone, prompts)
        return self._classes[key]

    def zero_shot(self, dataset: str, variant: PromptVariant) -> Callable[[Tensor], Tensor]:
        """Preprocessed images [b, 3, s, s] -> zero-shot logits [b, c], without gradient."""
        classes = self.class_features(dataset, variant)

        def logits(images: Tensor) -> Tensor:
            features = self.backbone.encode_image(images)
            return zero_shot_logits(features, classes, self.backbone.logit_scale)

        return logits
