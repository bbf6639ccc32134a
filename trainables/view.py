"""One split before one backbone: its features and images, computed when they are asked for.

Features come from the store, and what is not there yet goes there: once for all processes of a
machine. While features suffice, no image is opened.

Notation: n images, b of them, d feature dimension, s image side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.data.base import FeatureRows, PixelRows, Split
from trainables.images.augment import random_cut
from trainables.images.decode import decoded, shrink
from trainables.images.resample import resample, sizes_of
from trainables.progress import Listener, counted
from trainables.store import Store, Stored

AUGMENTED_VIEWS = 8
"""V: how many augmented views of a training set there are for methods that read features. A
training takes one an epoch, in turns, where the papers' code crops anew in every epoch: each view
costs a pass through the backbone once, and an epoch nothing."""
ENCODE_BATCH = 128
"""Images that go through the backbone at a time."""
_LARGEST = 2  # kept images are at most so many times as large as what the model reads
_VERSION = 2  # of decoding, resampling and the files' layout; a new number recomputes everything


class View:
    """A split as the backbone sees it."""

    def __init__(
        self,
        split: Split,
        flip: bool,
        backbone: Backbone,
        store: Store,
        tell: Listener | None = None,
        keep: bool = False,
        passing: bool = False,
    ) -> None:
        """`flip`: whether a crop may be mirrored. `keep`: whether its decoded images are worth a
        place on the disk; otherwise they are decoded each time they are needed. `passing`: the
        backbone will not come again, so that its features are not worth one."""
        self._split, self._flip, self.backbone = split, flip, backbone
        self._store, self._tell, self._keep, self._passing = store, tell, keep, passing
        self._features: dict[tuple[int, float], Tensor] = {}
        self.labels = split.labels.to(backbone.device)
        """int64 [n], on the backbone's device."""

    def __len__(self) -> int:
        """n."""
        return len(self.labels)

    def before(self, backbone: Backbone, passing: bool = True) -> View:
        """The same images before a changed backbone, which is this very view where the image tower
        is not what was changed. `passing`: it will not come again."""
        if backbone.sees_as(self.backbone):
            return self
        return View(self._split, self._flip, backbone, self._store, self._tell, self._keep, passing)

    @property
    def has_pixels(self) -> bool:
        """Whether there are images, and not features only."""
        return not isinstance(self._split.images, FeatureRows)

    def features(self, number: int = 0, crop_scale: float = 1.0) -> Tensor:
        """float32 [n, d], not normalised, on the backbone's device; not to be changed.

        Number 0 is the test view. Numbers from 1 are random crops of at least `crop_scale` of the
        image's area; they are the same in every process and for every trial. With a scale of 1
        there is but the test view, and of features without images there is but the one they are.
        Raises `DataError` and `StorageError`.
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
        """Random crops of the rows `index` [b], mirrored half of the time where that is allowed:
        uint8 [b, 3, s, s] on the backbone's device. They are cut from the original image; one whose
        shorter side is more than twice as long as the model's is reduced to that first."""
        originals = [self._original(row) for row in index.tolist()]
        side = self.backbone.preprocess.image_size
        cut = random_cut(sizes_of(originals), side, crop_scale, self._flip, rng)
        return resample(originals, cut, side, device=self.backbone.device)

    def make(self, input_kind: Literal["features", "images"]) -> None:
        """Compute now what a training that `input_kind` these will ask for first: test features, or
        decoded images."""
        if input_kind == "features":
            self.features()
        elif self._keep and not isinstance(self._split.images, PixelRows):
            _ = self._decoded

    def _load(self, number: int, crop_scale: float) -> Tensor:
        if isinstance(self._split.images, FeatureRows):
            return self._split.images.features
        if self._passing:
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
            told = counted(views, len, name, len(self), self._tell)
            yield {"features": as_lists(torch.cat([self._encode(batch) for batch in told]))}

        return self._store.get(facts, len(self), compute).matrix("features")

    def _views(self, number: int, crop_scale: float) -> Iterator[Tensor]:
        return self._test_views() if number == 0 else self._augmented(number, crop_scale)

    def _encode(self, batch: Tensor) -> Tensor:
        return self.backbone.encode_image(self.backbone.preprocess.normalise(batch)).cpu()

    def _test_views(self) -> Iterator[Tensor]:
        """As `batches`, without making a file of decoded images for their sake."""
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
        """Test views of images that are in memory: uint8 [n, 3, s, s]."""
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
            for images in counted(batches, len, name, len(self), self._tell):
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
        return self._piece(self._views[row], self._side, self._side)

    def original(self, row: int) -> Tensor:
        """uint8 [3, h, w]."""
        return self._piece(self._originals[row], *self._sizes[row])

    def _piece(self, start: int, height: int, width: int) -> Tensor:
        return self._stored.piece(start, 3 * height * width).view(3, height, width)

    def _places(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each row's view and original start in the file, and its height and width."""
        rows = len(batch)
        views = self._stored.start(batch.column("view").buffers()[1])
        _, offsets, pixels = batch.column("original").buffers()
        starts = np.frombuffer(offsets, np.int64, rows)
        size = np.stack([batch.column(name).to_numpy() for name in ("height", "width")], 1)
        step = 3 * self._side**2
        return views + step * np.arange(rows), self._stored.start(pixels) + starts, size


def as_lists(rows: Tensor) -> pa.Array:
    """float32 [n, d] as a column of the store."""
    flat = pa.array(rows.contiguous().cpu().numpy().reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
