"""State that a worker process reuses across trials: the backbone and its features.

Notation: b images, c classes, d feature dimension, s image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.shared_weights import fetch_weights
from trainables.core.store import Store
from trainables.data.base import Split
from trainables.data.bundle import PREFIX, Bundle
from trainables.data.class_subsets import Half
from trainables.data.prompts import PromptVariant, class_features
from trainables.data.registry import DataSource
from trainables.load_backbone import load_backbone
from trainables.methods.base import ClassTexts
from trainables.trial import Episode
from trainables.view import Listener, Progress, View, as_lists

Learned = tuple[dict[str, Tensor], dict[str, str]]
"""An artifact: tensors and metadata, see `Method.artifact`."""

__all__ = ["EncodedTask", "Learned", "Progress", "View", "zero_shot_logits"]


def zero_shot_logits(features: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
    """Features [n, d] and class features [c, d] -> scale * cosine [n, c]."""
    return scale * functional.normalize(features, dim=-1) @ functional.normalize(classes, dim=-1).T


class EncodedTask:
    """A task's data encoded by one backbone on one device, each part computed at most once."""

    def __init__(
        self,
        backbone: str,
        device: str,
        source: DataSource,
        weights: str = "",
        progress: Listener | None = None,
        stages: str = "",
    ) -> None:
        """`weights`: location of shared copies of the files that `backbone` names, or empty.
        `progress` is called after every decoded or encoded batch. `stages`: location of the
        sweep's artifacts of fixed stages, or empty."""
        if weights and backbone.startswith(PREFIX):  # a bundle is also a data set
            source = replace(source, moved={backbone: fetch_weights(backbone, weights)})
        self.spec, self.device, self.source = backbone, device, source
        self._weights, self._progress, self.stages = weights, progress, stages
        self.learned: dict[tuple[str, Episode], tuple[Learned, EncodedTask]] = {}
        """Artifacts of fixed stages by fingerprint and episode, see `fixed.py`."""
        self.pools: dict[tuple[Episode, ...], Any] = {}
        """Pooled validation images by episode and all episodes, see `validation.py`."""
        self._store = Store.of_this_machine()
        self._views: dict[Episode, tuple[View, View]] = {}
        self._classes: dict[tuple[str, Half, PromptVariant], Tensor] = {}

    @cached_property
    def backbone(self) -> Backbone:
        """The model; raises `BackboneError`."""
        return load_backbone(fetch_weights(self.spec, self._weights), self.device)

    def views(self, episode: Episode) -> tuple[View, View]:
        """Return the train and validation views of one few-shot draw; raises `DataError`."""
        if episode not in self._views:
            drawn = self.source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
            flip = self.source.dataset(episode.dataset, episode.half).flip
            self._views[episode] = self._view(drawn.train, flip), self._view(drawn.val, flip)
        return self._views[episode]

    def view(self, split: Split, flip: bool) -> View:
        """Return a view of any split, whose images may be many and are decoded on each use."""
        return View(split, flip, self.backbone, self._store, self._progress)

    def _view(self, split: Split, flip: bool) -> View:
        return View(split, flip, self.backbone, self._store, self._progress, keep=True)

    def with_backbone(self, backbone: Backbone, cache: bool = False) -> EncodedTask:
        """Return the same task encoded by a changed backbone. `cache`: whether its features are
        stored on disk, which is useless for a backbone that is not used again."""
        return _Reencoded(self, backbone, cache)

    def classes(self, spec: str, half: Half, variant: PromptVariant) -> ClassTexts:
        """Return what a method gets to know about a data set's classes; raises `DataError`."""
        dataset = self.source.dataset(spec, half)
        prompts = None if isinstance(dataset, Bundle) else dataset.prompts(variant)
        return ClassTexts(self.class_features(spec, half, variant), prompts)

    def class_features(self, spec: str, half: Half, variant: PromptVariant) -> Tensor:
        """Return float32 [c, d], one vector per class, not normalised; raises `DataError`."""
        key = (spec, half, variant)
        if key not in self._classes:
            features = self._class_features(spec, half, variant)
            self._classes[key] = features.to(self.backbone.device)
        return self._classes[key]

    def _class_features(self, spec: str, half: Half, variant: PromptVariant) -> Tensor:
        dataset = self.source.dataset(spec, half)
        if isinstance(dataset, Bundle):
            return dataset.class_features
        prompts = dataset.prompts(variant)
        facts = {
            "kind": "class features",
            "backbone": self.backbone.fingerprint,
            "device": self.backbone.device.type,
            "precision": "float32",
            "texts": prompts.texts(),
            "normalise_each": prompts.normalise_each,
        }

        def compute() -> Iterator[Mapping[str, pa.Array]]:
            yield {"features": as_lists(class_features(self.backbone, prompts))}

        rows = len(prompts.class_names)
        return self._store.get(facts, rows, compute).matrix("features")

    def reencode(self, view: View) -> View:
        """Return the images of a view, possibly of another backbone, seen by this backbone."""
        return view if view.backbone is self.backbone else view.with_backbone(self.backbone)

    def zero_shot(
        self, spec: str, half: Half, variant: PromptVariant
    ) -> Callable[[Tensor], Tensor]:
        """Return the function from preprocessed images [b, 3, s, s] to zero-shot logits [b, c]."""
        classes = self.class_features(spec, half, variant)

        def logits(images: Tensor) -> Tensor:
            features = self.backbone.encode_image(images)
            return zero_shot_logits(features, classes, self.backbone.logit_scale)

        return logits


class _Reencoded(EncodedTask):
    """A task whose backbone was changed."""

    def __init__(self, origin: EncodedTask, backbone: Backbone, cache: bool) -> None:
        super().__init__(origin.spec, origin.device, origin.source)
        self.backbone = backbone
        self._origin, self._cache = origin, cache

    def views(self, episode: Episode) -> tuple[View, View]:
        if episode not in self._views:
            train, val = self._origin.views(episode)
            changed = self.backbone, self._cache
            self._views[episode] = train.with_backbone(*changed), val.with_backbone(*changed)
        return self._views[episode]

    def _class_features(self, spec: str, half: Half, variant: PromptVariant) -> Tensor:
        dataset = self.source.dataset(spec, half)
        if isinstance(dataset, Bundle):
            return self._origin.class_features(spec, half, variant)
        if not self._cache:
            return class_features(self.backbone, dataset.prompts(variant))
        return super()._class_features(spec, half, variant)
