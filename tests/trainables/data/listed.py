"""A data set that is only lists: names and labels, with images that carry their own number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.base import DataError, Permit, Split, SplitName, fingerprint
from trainables.data.prompts import PromptSet, PromptVariant, prompt_set

Row = tuple[str, int]


@dataclass(frozen=True)
class NamedImages:
    """Images that are nothing but their names; one in `broken` cannot be read."""

    names: tuple[str, ...]
    broken: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, position: int) -> Tensor:
        name = self.names[position]
        if name in self.broken:
            raise DataError(f"'{name}' cannot be read.")
        return torch.full((3, 2, 2), len(name), dtype=torch.uint8)

    def name(self, position: int) -> str:
        return self.names[position]

    def take(self, index: Sequence[int]) -> NamedImages:
        return NamedImages(tuple(self.names[i] for i in index), self.broken)

    def content(self) -> str:
        return fingerprint(*(name.encode() for name in self.names))


def listed_split(rows: Sequence[Row], broken: frozenset[str] = frozenset()) -> Split:
    """A split whose fingerprint is the same for every order of its rows."""
    digest = fingerprint(*(f"{name}\0{label}".encode() for name, label in sorted(rows)))
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    return Split(NamedImages(tuple(name for name, _ in rows), broken), labels, digest)


@dataclass(frozen=True)
class Listed:
    """Rows of (name, label) in each split."""

    class_names: tuple[str, ...]
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    test: tuple[Row, ...] = ()
    name: str = "listed"
    flip: bool = True
    caveats: tuple[str, ...] = ("A notice.",)
    broken: frozenset[str] = frozenset()

    def prompts(self, variant: PromptVariant) -> PromptSet:
        return prompt_set(self.name, self.class_names, variant)

    def split(self, name: SplitName) -> Split:
        return listed_split(self.train if name == "train" else self.val, self.broken)

    def sealed_split(self, permit: Permit) -> Split:
        permit.check(self.name)
        return listed_split(self.test, self.broken)


def listed(classes: int = 3, train: int = 8, val: int = 5, test: int = 2) -> Listed:
    """So many images per class, class by class, under names like `train/c1/4.jpg`."""
    rows = {
        split: tuple((f"{split}/c{c}/{i}.jpg", c) for c in range(classes) for i in range(count))
        for split, count in (("train", train), ("val", val), ("test", test))
    }
    return Listed(tuple(f"class {c}" for c in range(classes)), **rows)
