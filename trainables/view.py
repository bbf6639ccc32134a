"""One split encoded by one backbone: its features and images, computed on demand.

Features are computed once per machine and kept in the store. While features suffice, no image is
opened.

Notation: n images, b of them, d feature dimension, s image side.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.core.store import Store, Stored
from trainables.data.base import FeatureRows, PixelRows, Split
from trainables.images.decode import decoded, shrink
from trainables.images.resample import random_crop, resample, sizes_of

B = TypeVar("B", Tensor, list[Tensor])

AUGMENTED_VIEWS = 8
"""V: augmented views of a training set for methods that read features. A training uses one per
epoch, in turns, while the papers' code draws new crops in every epoch: each view costs one pass
through the backbone, and an epoch costs nothing."""
ENCODE_BATCH = 128
"""Images per pass through the backbone."""
_LARGEST = 2  # limit of a kept image's shorter side, in sides of the model's input
_VERSION = 2  # of decoding, resampling and the files' layout; a new number recomputes everything


@dataclass(frozen=True)
class Progress:
    """Progress of a long computation."""

    what: str
    """What is computed, e.g. `features of 592 images`."""
    done: int
    """Images that are done."""
    total: int
    """All images."""
    seconds: float
    """Time since the start, in seconds."""


Listener = Callable[[Progress], None]
"""Called after every batch."""


class View:
    """A split as the backbone sees it."""

    def __init__(
        self,
        split: Split,
        flip: bool,
        backbone: Backbone,
        store: Store,
        listener: Listener | None = None,
        keep: bool = False,
        cache: bool = True,
    ) -> None:
        """`flip`: whether a crop may be mirrored. `keep`: whether decoded images are stored on disk
        instead of being decoded each time. `cache`: whether features are stored on disk, which is
        useless for a backbone that is not used again."""
        self._split, self._flip, self.backbone = split, flip, backbone
        self._store, self._listener, self._keep, self._cache = store, listener, keep, cache
        self._features: dict[tuple[int, float], Tensor] = {}
        self.labels = split.labels.to(backbone.device)
        """int64 [n], on the backbone's device."""

    def __len__(self) -> int:
        return len(self.labels)

    def with_backbone(self, backbone: Backbone, cache: bool = False) -> View:
        """Return the same images seen by a changed backbone: this view if its image tower is the
        same. `cache`: whether its features are stored on disk."""
        if backbone.sees_as(self.backbone):
            return self
        listener, keep = self._listener, self._keep
        return View(self._split, self._flip, backbone, self._store, listener, keep, cache)

    @property
    def has_pixels(self) -> bool:
        """Whether there are images and not only features."""
        return not isinstance(self._split.images, FeatureRows)

    def features(self, number: int = 0, crop_scale: float = 1.0) -> Tensor:
        """Return float32 [n, d], not normalised, on the backbone's device; do not change it.

        Number 0 is the test view. Numbers from 1 are random crops of at least `crop_scale` of the
        image's area, the same in every process and for every trial. With a scale of 1, or without
        images, all numbers are the test view. Raises `DataError` and `StorageError`.
        """
        key = (number, crop_scale)
        if number == 0 or crop_scale == 1 or isinstance(self._split.images, FeatureRows):
            key = (0, 1.0)
        if key not in self._features:
            self._features[key] = self._load(*key).to(self.backbone.device)
        return self._features[key]

    def images(self, index: Tensor) -> Tensor:
        """Test views of the rows `index` [b]: uint8 [b, 3, s, s] on the backbone's device."""
        rows = index.tolist()
        if isinstance(self._split.images, PixelRows):
            return self._pixels[index.to(self._pixels.device)]
        if not self._keep:
            return self._resized([self._split.images.read(row) for row in rows])
        return torch.stack([self._decoded.view(row) for row in rows]).to(self.backbone.device)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All test views in order, uint8 [b, 3, s, s], at most `size` at a time."""
        known = isinstance(self._split.images, PixelRows) or self._keep
        if known:
            yield from map(self.images, torch.arange(len(self)).split(size))
        else:
            yield from self._streamed(size)

    def crops(self, index: Tensor, crop_scale: float, rng: torch.Generator) -> Tensor:
        """Random crops of the rows `index` [b], mirrored half of the time if that is allowed: uint8
        [b, 3, s, s] on the backbone's device. They are cut from the original image, whose shorter
        side is first reduced to at most twice the model's."""
        originals = [self._original(row) for row in index.tolist()]
        side = self.backbone.preprocess.image_size
        crop = random_crop(sizes_of(originals), side, crop_scale, self._flip, rng)
        return resample(originals, crop, side, device=self.backbone.device)

    def materialize(self, input_kind: Literal["features", "images"]) -> None:
        """Compute what a training on this kind of input needs first: test features, or decoded
        images."""
        if input_kind == "features":
            self.features()
        elif self._keep and not isinstance(self._split.images, PixelRows):
            _ = self._decoded

    def _load(self, number: int, crop_scale: float) -> Tensor:
        if isinstance(self._split.images, FeatureRows):
            return self._split.images.features
        if not self._cache:
            return torch.cat([self._encode(batch) for batch in self._views(number, crop_scale)])
        facts = self._facts(
            kind="image features",
            backbone=self.backbone.fingerprint,
            device=self.backbone.device.type,  # which rounds in its own way
            precision="float32",
            view=number,
            crop_scale=crop_scale,
            flip=self._flip and number > 0,
        )

        def compute() -> Iterator[Mapping[str, pa.Array]]:
            views = self._views(number, crop_scale)
            name = f"features of {len(self)} images" + (f", view {number}" if number else "")
            batches = self._counted(views, name)
            yield {"features": as_lists(torch.cat([self._encode(batch) for batch in batches]))}

        return self._store.get(facts, len(self), compute).matrix("features")

    def _counted(self, batches: Iterable[B], what: str) -> Iterator[B]:
        """Yield `batches`, and call the listener after each has been used."""
        start, done = time.monotonic(), 0
        for batch in batches:
            yield batch
            done += len(batch)
            if self._listener is not None:
                self._listener(Progress(what, done, len(self), time.monotonic() - start))

    def _views(self, number: int, crop_scale: float) -> Iterator[Tensor]:
        return self._test_views() if number == 0 else self._augmented(number, crop_scale)

    def _encode(self, batch: Tensor) -> Tensor:
        return self.backbone.encode_image(self.backbone.preprocess.normalise(batch)).cpu()

    def _test_views(self) -> Iterator[Tensor]:
        """As `batches`, but without storing decoded images if they are not stored yet."""
        there = self._keep and self._store.find(self._decoded_facts, len(self)) is not None
        if there or isinstance(self._split.images, PixelRows):
            return self.batches(ENCODE_BATCH)
        return self._streamed(ENCODE_BATCH)

    def _augmented(self, number: int, crop_scale: float) -> Iterator[Tensor]:
        key = f"{self._split.fingerprint}/{number}/{crop_scale}/{self._flip}"
        digest = hashlib.sha256(key.encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        for index in torch.arange(len(self)).split(ENCODE_BATCH):
            yield self.crops(index, crop_scale, rng)

    def _streamed(self, size: int) -> Iterator[Tensor]:
        threads = max(2, torch.get_num_threads())
        yield from map(self._resized, decoded(self._split.images, size, threads))

    def _resized(self, images: list[Tensor]) -> Tensor:
        return self.backbone.preprocess.resize(images, self.backbone.device)

    @cached_property
    def _pixels(self) -> Tensor:
        """Test views of images in memory: uint8 [n, 3, s, s]."""
        return torch.cat(list(self._streamed(ENCODE_BATCH)))

    def _original(self, row: int) -> Tensor:
        if isinstance(self._split.images, PixelRows):
            return self._split.images.read(row)
        return self._decoded.original(row)

    @cached_property
    def _decoded(self) -> _Decoded:
        side = self.backbone.preprocess.image_size

        def compute() -> Iterator[Mapping[str, pa.Array]]:
            threads = max(2, torch.get_num_threads())
            batches = decoded(self._split.images, ENCODE_BATCH, threads)
            name = f"{len(self)} images decoded"
            for images in self._counted(batches, name):
                small = [shrink(image, _LARGEST * side) for image in images]
                sizes = sizes_of(small).int().numpy()
                views = self._resized(images).cpu().numpy()
                yield {
                    "view": pa.array([v.tobytes() for v in views], pa.binary(3 * side * side)),
                    "original": pa.array([i.numpy().tobytes() for i in small], pa.large_binary()),
                    "height": pa.array(sizes[:, 0]),
                    "width": pa.array(sizes[:, 1]),
                }

        return _Decoded(self._store.get(self._decoded_facts, len(self), compute), side)

    @property
    def _decoded_facts(self) -> dict[str, Any]:
        return self._facts(kind="decoded images", largest=_LARGEST)

    @cached_property
    def _content(self) -> str:
        return self._split.images.content()

    def _facts(self, **facts: object) -> dict[str, Any]:
        transform = asdict(self.backbone.preprocess)
        split = {"split": self._split.fingerprint, "content": self._content}
        return split | {"transform": transform, "version": _VERSION} | facts


class _Decoded:
    """Decoded images in a file of the store, mapped into memory."""

    def __init__(self, stored: Stored, side: int) -> None:
        self._stored, self._side = stored, side
        columns = [self._places(batch) for batch in stored.batches]
        self._views, self._originals, self._sizes = (
            np.concatenate(column).tolist() for column in zip(*columns, strict=True)
        )

    def view(self, row: int) -> Tensor:
        """uint8 [3, s, s]."""
        return self._pixels(self._views[row], self._side, self._side)

    def original(self, row: int) -> Tensor:
        """uint8 [3, h, w]."""
        return self._pixels(self._originals[row], *self._sizes[row])

    def _pixels(self, start: int, height: int, width: int) -> Tensor:
        return self._stored.slice(start, 3 * height * width).view(3, height, width)

    def _places(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offsets of each row's view and original in the file, and its height and width."""
        rows = len(batch)
        views = self._stored.start(batch.column("view").buffers()[1])
        _, offsets, pixels = batch.column("original").buffers()
        starts = np.frombuffer(offsets, np.int64, rows)
        size = np.stack([batch.column(name).to_numpy() for name in ("height", "width")], 1)
        step = 3 * self._side**2
        return views + step * np.arange(rows), self._stored.start(pixels) + starts, size


def as_lists(rows: Tensor) -> pa.Array:
    """Return float32 [n, d] as a column of the store."""
    flat = pa.array(rows.contiguous().cpu().numpy().reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


class ViewRows(View):
    """Rows of the concatenation of views of one backbone."""

    def __init__(self, views: Sequence[View], rows: Tensor) -> None:
        """`rows`: int64 [n], positions in the concatenation of `views`, at least one of each."""
        self._parts, self._rows = tuple(views), rows
        self._known: dict[tuple[int, float], Tensor] = {}
        self.backbone = views[0].backbone
        labels = torch.cat([view.labels for view in views])
        self.labels = labels[rows.to(labels.device)]

    def with_backbone(self, backbone: Backbone, cache: bool = False) -> View:
        if backbone.sees_as(self.backbone):
            return self
        return ViewRows([view.with_backbone(backbone, cache) for view in self._parts], self._rows)

    @property
    def has_pixels(self) -> bool:
        return self._parts[0].has_pixels

    def features(self, number: int = 0, crop_scale: float = 1.0) -> Tensor:
        key = (number, crop_scale)
        if key not in self._known:
            whole = torch.cat([view.features(number, crop_scale) for view in self._parts])
            self._known[key] = whole[self._rows.to(whole.device)]
        return self._known[key]

    def images(self, index: Tensor) -> Tensor:
        return torch.cat([view.images(row) for view, row in self._located(index)])

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from map(self.images, torch.arange(len(self)).split(size))

    def crops(self, index: Tensor, crop_scale: float, rng: torch.Generator) -> Tensor:
        if len(self._parts) == 1:
            return self._parts[0].crops(self._rows[index.cpu()], crop_scale, rng)
        return torch.cat([v.crops(row, crop_scale, rng) for v, row in self._located(index)])

    def materialize(self, input_kind: Literal["features", "images"]) -> None:
        for view in self._parts:
            view.materialize(input_kind)

    def _located(self, index: Tensor) -> Iterator[tuple[View, Tensor]]:
        """The views of some rows and their positions in them; neighbours of one view together."""
        rows = self._rows[index.cpu()]
        ends = torch.tensor([len(view) for view in self._parts]).cumsum(0)
        owners = torch.bucketize(rows, ends, right=True)
        counts = owners.unique_consecutive(return_counts=True)[1].tolist()
        for part, owner in zip(rows.split(counts), owners.split(counts), strict=True):
            number = int(owner[0])
            yield self._parts[number], part - (ends[number] - len(self._parts[number]))
