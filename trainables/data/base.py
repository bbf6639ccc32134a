"""What the project needs from a data set. The test split is not part of it: see `sealed.py`.

Notation: n images, c classes, h x w pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from trainables.data.prompts import PromptSet, PromptVariant
from trainables.data.sealed import TestPermit

SplitName = Literal["train", "val"]


class DataError(ValueError):
    """Data cannot be used: its message says the rule, the value and the remedy."""


def fingerprint(*parts: bytes) -> str:
    """Hex SHA-256 over length-prefixed byte strings."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


class Images(Protocol):
    """Images in a row, read when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, position: int) -> Tensor:
        """uint8 [3, h, w]; raises `DataError` with the image's name where it cannot be read."""

    def name(self, position: int) -> str:
        """What identifies an image within its data set, wherever the data set lies."""

    def take(self, index: Sequence[int]) -> Images:
        """Those at `index`, in that order."""

    def content(self) -> str:
        """Hex digest over all that the pixels depend on, cheaper than reading them: two rows of
        images with the same digest look the same. Raises `DataError` for a missing image."""


@dataclass(frozen=True)
class PixelRows:
    """Equally large images in memory."""

    pixels: Tensor
    """uint8 [n, 3, h, w]."""

    def __len__(self) -> int:
        """See `Images`."""
        return len(self.pixels)

    def read(self, position: int) -> Tensor:
        """See `Images`."""
        return self.pixels[position]

    def name(self, position: int) -> str:
        """The position: rows in memory have their order for ever."""
        return f"{position:08d}"

    def take(self, index: Sequence[int]) -> PixelRows:
        """See `Images`."""
        return PixelRows(self.pixels[torch.as_tensor(index, dtype=torch.int64)])

    def content(self) -> str:
        """Of the pixels themselves."""
        shape = str(tuple(self.pixels.shape)).encode()
        return fingerprint(shape, self.pixels.contiguous().numpy().tobytes())


@dataclass(frozen=True)
class FeatureRows:
    """Image features without the images, as a bundle holds them."""

    features: Tensor
    """float32 [n, d], not necessarily of unit length."""
    source: str
    """Where they come from, for messages."""

    def __len__(self) -> int:
        """See `Images`."""
        return len(self.features)

    def read(self, position: int) -> Tensor:
        """Refused: there are no images."""
        raise DataError(
            f"'{self.source}' holds features and no images: use a method that reads features "
            "(--space taskres), or a data set with images."
        )

    def name(self, position: int) -> str:
        """The position."""
        return f"{position:08d}"

    def take(self, index: Sequence[int]) -> FeatureRows:
        """See `Images`."""
        return FeatureRows(self.features[torch.as_tensor(index, dtype=torch.int64)], self.source)

    def content(self) -> str:
        """Of the features."""
        return fingerprint(self.features.contiguous().numpy().tobytes())


@dataclass(frozen=True)
class Split:
    """Images and labels that belong together."""

    images: Images
    """n images, not yet read."""
    labels: Tensor
    """int64 [n], in 0..c-1."""
    fingerprint: str
    """Hex digest over which images there are, with which labels; the same wherever they lie."""

    def take(self, index: Tensor) -> Split:
        """The rows `index` (int64 [m]), in that order."""
        rows = index.tolist()
        # By name: two splits of the same images may list them in different orders.
        names = (self.images.name(row).encode() for row in rows)
        digest = fingerprint(self.fingerprint.encode(), *names)
        return Split(self.images.take(rows), self.labels[index], digest)

    def decode_some(self, count: int) -> None:
        """Decode about `count` images, evenly spread, and keep none; raises `DataError`."""
        for row in range(0, len(self.images), max(1, len(self.images) // count)):
            self.images.read(row)

    def of_classes(self, classes: Sequence[int]) -> Split:
        """The rows of these classes, whose labels become 0, 1, ... in the order given."""
        position = torch.full((int(max(*classes, int(self.labels.max()))) + 1,), -1)
        position[list(classes)] = torch.arange(len(classes))
        index = (position[self.labels] >= 0).nonzero().flatten()
        part = self.take(index)
        digest = fingerprint(part.fingerprint.encode(), str(tuple(classes)).encode())
        return Split(part.images, position[part.labels], digest)


class Dataset(Protocol):
    """A labelled image set, split once and for all."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; a label is a position in it."""

    @property
    def flip(self) -> bool:
        """Whether a mirrored image still shows its class: false for writing."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of its figures should know, e.g. that a split was made here."""

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """The texts that describe the classes."""

    def split(self, name: SplitName) -> Split:
        """The pool that few-shot sets are drawn from; raises `DataError`."""

    def sealed_split(self, permit: TestPermit) -> Split:
        """The test split, against a permit (see `sealed.py`); raises `SealedError`."""


class Shift(Dataset, Protocol):
    """Other images of another data set's classes: only judged on, by a classifier of that one."""

    @property
    def source_classes(self) -> tuple[int, ...]:
        """For each of its labels 0..k-1, the label of the same class in the data set that it is a
        shift of; raises `DataError`."""
