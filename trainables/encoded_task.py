"""What outlives a trial in a warm worker: the backbone, and what it makes of images and texts.

Notation: b images, c classes, d feature dimension, s image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import pyarrow as pa
from torch import Tensor
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.backbones.shared_weights import fetch_weights
from trainables.data.base import Split
from trainables.data.bundle import PREFIX, Bundle
from trainables.data.class_subsets import Half
from trainables.data.prompts import PromptVariant, class_features
from trainables.data.registry import DataSource
from trainables.load_backbone import load_backbone
from trainables.methods.base import ClassTexts
from trainables.progress import Listener, Progress
from trainables.store import Store
from trainables.trial import Episode
from trainables.view import View, as_lists

Learned = tuple[dict[str, Tensor], dict[str, str]]
"""An artifact: tensors and metadata, see `Method.artifact`."""

__all__ = ["EncodedTask", "Learned", "Progress", "View", "zero_shot_logits"]


def zero_shot_logits(features: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
    """Features [n, d] and class features [c, d] -> scale * cosine, [n, c]."""
    return scale * functional.normalize(features, dim=-1) @ functional.normalize(classes, dim=-1).T


class EncodedTask:
    """One backbone on one device and everything computed from it, each at most once."""

    def __init__(
        self,
        backbone: str,
        device: str,
        source: DataSource,
        weights: str = "",
        progress: Listener | None = None,
        stages: str = "",
    ) -> None:
        """`weights`: where the files that `backbone` names were shared, if they were. `progress`
        is told how far decoding and encoding are, after every batch. `stages`: where the sweep
        keeps what fixed stages have learned, if it does."""
        if weights and backbone.startswith(PREFIX):  # a bundle is a data set too
            source = replace(source, moved={backbone: fetch_weights(backbone, weights)})
        self.spec, self.device, self.source = backbone, device, source
        self._weights, self._progress, self.stages = weights, progress, stages
        self.learned: dict[tuple[str, Episode], tuple[Learned, EncodedTask]] = {}
        """What fixed stages have learned, see `fixed.py`: by their fingerprint and cell."""
        self._store = Store.of_this_machine()
        self._views: dict[Episode, tuple[View, View]] = {}
        self._classes: dict[tuple[str, Half, PromptVariant], Tensor] = {}

    @cached_property
    def backbone(self) -> Backbone:
        """The model; raises `BackboneError`."""
        return load_backbone(fetch_weights(self.spec, self._weights), self.device)

    def views(self, episode: Episode) -> tuple[View, View]:
        """Few-shot train and validation views of one draw; raises `DataError`."""
        if episode not in self._views:
            drawn = self.source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
            flip = self.source.dataset(episode.dataset, episode.half).flip
            self._views[episode] = self._view(drawn.train, flip), self._view(drawn.val, flip)
        return self._views[episode]

    def view(self, split: Split, flip: bool) -> View:
        """Any split, whose images are decoded each time they are needed: there may be many."""
        return View(split, flip, self.backbone, self._store, self._progress)

    def _view(self, split: Split, flip: bool) -> View:
        return View(split, flip, self.backbone, self._store, self._progress, keep=True)

    def before(self, backbone: Backbone, passing: bool = True) -> EncodedTask:
        """The same data before a changed backbone. `passing`: it will not come again, so that
        nothing that it makes of them is written down."""
        return _Changed(self, backbone, passing)

    def classes(self, spec: str, half: Half, variant: PromptVariant) -> ClassTexts:
        """What a method knows of a data set's classes; raises `DataError`."""
        dataset = self.source.dataset(spec, half)
        prompts = None if isinstance(dataset, Bundle) else dataset.prompts(variant)
        return ClassTexts(self.class_features(spec, half, variant), prompts)

    def class_features(self, spec: str, half: Half, variant: PromptVariant) -> Tensor:
        """float32 [c, d], one vector a class, not normalised; raises `DataError`."""
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

    def see(self, view: View) -> View:
        """The images of `view`, which may be another workbench's, before this one's backbone."""
        return view if view.backbone is self.backbone else view.before(self.backbone)

    def zero_shot(
        self, spec: str, half: Half, variant: PromptVariant
    ) -> Callable[[Tensor], Tensor]:
        """Preprocessed images [b, 3, s, s] -> zero-shot logits [b, c], without gradient."""
        classes = self.class_features(spec, half, variant)

        def logits(images: Tensor) -> Tensor:
            features = self.backbone.encode_image(images)
            return zero_shot_logits(features, classes, self.backbone.logit_scale)

        return logits


class _Changed(EncodedTask):
    """A workbench before a backbone that another one's was changed into."""

    def __init__(self, origin: EncodedTask, backbone: Backbone, passing: bool) -> None:
        super().__init__(origin.spec, origin.device, origin.source)
        self.backbone = backbone
        self._origin, self._passing = origin, passing

    def views(self, episode: Episode) -> tuple[View, View]:
        if episode not in self._views:
            train, val = self._origin.views(episode)
            changed = self.backbone, self._passing
            self._views[episode] = train.before(*changed), val.before(*changed)
        return self._views[episode]

    def _class_features(self, spec: str, half: Half, variant: PromptVariant) -> Tensor:
        dataset = self.source.dataset(spec, half)
        if isinstance(dataset, Bundle):
            return self._origin.class_features(spec, half, variant)
        if self._passing:
            return class_features(self.backbone, dataset.prompts(variant))
        return super()._class_features(spec, half, variant)
