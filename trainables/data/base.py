"""Interface of a data set. The test split needs a permit: see `sealed.py`.

Notation: n images, c classes, h x w pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from trainables.core.text import printable, unprintable
from trainables.data.prompts import PromptSet, PromptVariant

SplitName = Literal["train", "val"]


class DataError(ValueError):
    """Data cannot be used. The message states the rule, the value and the remedy on one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class AwayError(DataError):
    """Data cannot be used now and may be usable later: a disk or the machine is at fault."""


class SealedError(RuntimeError):
    """Test data was requested by code that may not have it."""


class Permit(Protocol):
    """The right to read one data set's test split (see `sealed.py`)."""

    def check(self, dataset: str) -> None:
        """Raise `SealedError` unless the split of this data set may be read in this process."""


def check_class_names(names: Sequence[str], source: str) -> None:
    """Raise `DataError` for a name that cannot be printed or stored: names appear in terminals,
    tables and files. `source` says in the message where they come from."""
    for label, name in enumerate(names):
        if not name.strip() or (found := unprintable(name)):
            fault = f"contains {found}" if name.strip() else "is empty"
            raise DataError(
                f"Class names must be printable text: '{name}', class {label} of {source}, "
                f"{fault}. Rename it."
            )


def check_is_open(split: str) -> None:
    """Raise `SealedError` for a split other than `train` and `val`."""
    if split not in ("train", "val"):
        raise SealedError(f"Only 'train' and 'val' are open, got '{split}'.")


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names that differ: those that occur twice get their label as a number, e.g.
    `crane (134)`."""
    times, found = Counter(names), list[str]()
    for label, name in enumerate(names):
        numbered = f"{name} ({label})" if times[name] > 1 else name
        while times[name] > 1 and (numbered in times or numbered in found):
            numbered = f"{numbered} ({label})"
        found.append(numbered)
    return tuple(found)


def fingerprint(*parts: bytes) -> str:
    """Hex SHA-256 over length-prefixed byte strings."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


class Images(Protocol):
    """A sequence of images that are read on demand."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, position: int) -> Tensor:
        """uint8 [3, h, w]; raises `DataError` with the image's name if it cannot be read."""

    def name(self, position: int) -> str:
        """Name of an image within its data set, the same on every machine."""

    def take(self, index: Sequence[int]) -> Images:
        """The images at these positions, in this order."""

    def content(self) -> str:
        """Hex digest over everything that the pixels depend on, cheaper than reading them: two
        sequences with the same digest have the same pixels. Raises `DataError` for a missing
        image."""


@dataclass(frozen=True)
class PixelRows(Images):
    """Images of one size in memory."""

    pixels: Tensor
    """uint8 [n, 3, h, w]."""

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, position: int) -> Tensor:
        return self.pixels[position]

    def name(self, position: int) -> str:
        return f"{position:08d}"

    def take(self, index: Sequence[int]) -> PixelRows:
        return PixelRows(self.pixels[torch.as_tensor(index, dtype=torch.int64)])

    def content(self) -> str:
        shape = str(tuple(self.pixels.shape)).encode()
        return fingerprint(shape, self.pixels.contiguous().numpy().tobytes())


@dataclass(frozen=True)
class FeatureRows(Images):
    """Image features without the images, as stored in a bundle."""

    features: Tensor
    """float32 [n, d], not necessarily of unit length."""
    source: str
    """Name of the bundle, for messages."""

    def __len__(self) -> int:
        return len(self.features)

    def read(self, position: int) -> Tensor:
        raise DataError(
            f"'{self.source}' holds features and no images: use a method that reads features "
            "(--space taskres), or a data set with images."
        )

    def name(self, position: int) -> str:
        return f"{position:08d}"

    def take(self, index: Sequence[int]) -> FeatureRows:
        return FeatureRows(self.features[torch.as_tensor(index, dtype=torch.int64)], self.source)

    def content(self) -> str:
        return fingerprint(self.features.contiguous().numpy().tobytes())


@dataclass(frozen=True)
class Split:
    """Images with their labels."""

    images: Images
    """n images."""
    labels: Tensor
    """int64 [n], in 0..c-1."""
    fingerprint: str
    """Hex digest over the images' names and labels, the same on every machine."""

    def take(self, index: Tensor) -> Split:
        """Return the rows `index` (int64 [m]), in this order."""
        rows = index.tolist()
        # By name: two splits of the same images may list them in different orders.
        names = (self.images.name(row).encode() for row in rows)
        digest = fingerprint(self.fingerprint.encode(), *names)
        return Split(self.images.take(rows), self.labels[index], digest)

    def decode_some(self, count: int) -> None:
        """Decode about `count` evenly spread images and discard them; raises `DataError`."""
        for row in range(0, len(self.images), max(1, len(self.images) // count)):
            self.images.read(row)

    def of_classes(self, classes: Sequence[int]) -> Split:
        """Return the rows of these classes, whose labels become 0, 1, ... in this order."""
        position = torch.full((int(max(*classes, int(self.labels.max()))) + 1,), -1)
        position[list(classes)] = torch.arange(len(classes))
        index = (position[self.labels] >= 0).nonzero().flatten()
        part = self.take(index)
        digest = fingerprint(part.fingerprint.encode(), str(tuple(classes)).encode())
        return Split(part.images, position[part.labels], digest)


def image_keys(split: Split) -> list[str]:
    """Return a key per image, independent of its position in the split.

    Equal sets of keys mean the same images with the same labels. Images in memory have no names,
    so their keys are digests of their content.
    """
    images = split.images
    if isinstance(images, PixelRows | FeatureRows):
        rows = images.pixels if isinstance(images, PixelRows) else images.features
        names = [fingerprint(row.contiguous().numpy().tobytes()) for row in rows]
    else:
        names = [images.name(row) for row in range(len(images))]
    return [f"{label}/{name}" for label, name in zip(split.labels.tolist(), names, strict=True)]


class Dataset(Protocol):
    """A labelled image set with fixed training, validation and test splits."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, not always different; a label is a position in it."""

    @property
    def flip(self) -> bool:
        """Whether a mirrored image still shows its class, which writing does not."""

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that a reader of its figures should know, e.g. that the split is not the
        published one."""

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """Return the texts that describe the classes."""

    def split(self, name: SplitName) -> Split:
        """Return the pool that few-shot sets are drawn from; raises `DataError`."""

    def sealed_split(self, permit: Permit) -> Split:
        """Return the test split in exchange for a permit (see `sealed.py`); raises
        `SealedError`."""


class Shift(Dataset, Protocol):
    """Other images of another data set's classes, which only evaluate that one's classifiers."""

    @property
    def source_classes(self) -> tuple[int, ...]:
        """For each label 0..k-1, the label of the same class in the source data set; raises
        `DataError`."""
