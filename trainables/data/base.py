"""What the project needs from a data set. The test split is not part of it: see `sealed.py`.

Notation: n images, c classes, h x w pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, Protocol

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


@dataclass(frozen=True)
class Split:
    """Images and labels that belong together."""

    images: Tensor
    """uint8 [n, 3, h, w]."""
    labels: Tensor
    """int64 [n], in 0..c-1."""
    fingerprint: str
    """Hex digest over images and labels."""

    def take(self, index: Tensor) -> Split:
        """The rows `index` (int64 [m]), in that order."""
        digest = fingerprint(self.fingerprint.encode(), index.numpy().tobytes())
        return Split(self.images[index], self.labels[index], digest)


class Dataset(Protocol):
    """A labelled image set, split once and for all."""

    @property
    def name(self) -> str:
        """The registry name."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; a label is a position in it."""

    @property
    def flip(self) -> bool:
        """Whether a mirrored image still shows its class: false for writing."""

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """The texts that describe the classes."""

    def split(self, name: SplitName) -> Split:
        """The pool that few-shot sets are drawn from."""

    def sealed_split(self, permit: TestPermit) -> Split:
        """The test split, against a permit (see `sealed.py`); raises `SealedError`."""
