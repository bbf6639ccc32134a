"""Data sets that are lists of image files: rows are checked once, and splits made by one rule.

Notation: n images of a class.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from trainables.data.base import DataError, Split, SplitName, fingerprint
from trainables.data.images import ImageFiles
from trainables.data.prompts import PromptSet, PromptVariant, prompt_set
from trainables.data.sealed import SealedError, TestPermit

Part = Literal["train", "val", "test"]
REPORTS_PER_TRIAL: tuple[Part, ...] = ("train", "val", "test")


class Row(NamedTuple):
    """One image of a list."""

    path: str
    """Relative to the folder of the images, with slashes."""
    label: int
    """A position in the class names."""
    class_name: str
    """What the list calls the class."""


Lists = Mapping[Part, Sequence[Row]]
"""The rows of each part, in the list's own order."""


@dataclass(frozen=True)
class Counts:
    """How many classes and images a data set has."""

    classes: int
    """Classes."""
    train: int
    """Training images; none for a shift."""
    val: int
    """Validation images; none for a shift."""
    test: int
    """Test images."""

    def __str__(self) -> str:
        return (
            f"{self.classes:,} classes, {self.train:,} train, {self.val:,} val, {self.test:,} test"
        )

    def beside(self, published: Counts) -> str:
        """What to know of figures where these are not the published counts; else empty."""
        if self == published:
            return ""
        return (
            f"Published: {published}. Figures from other counts cannot be compared with published "
            "ones."
        )


@dataclass(frozen=True)
class ListedDataset:
    """Images below a folder, by checked lists; implements `Dataset`."""

    name: str
    """What it is called on the command line."""
    root: Path
    """The folder of the images."""
    class_names: tuple[str, ...] = field(repr=False)
    """One name a class."""
    _lists: Lists = field(repr=False)
    notices: tuple[str, ...] = ()
    """See `Dataset`."""
    given_prompts: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    """Texts of each class, where the lists bring them."""
    identity: str = ""
    """What its fingerprints call it, where the name says where it lies."""

    @property
    def flip(self) -> bool:
        """True: photographs."""
        return True

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """The data set's templates, or the texts that came with it."""
        return prompt_set(self.name, self.class_names, variant, self.given_prompts)

    def counts(self) -> Counts:
        """What the lists hold, whether or not the images are there."""
        train, val, test = (len(self._lists[part]) for part in REPORTS_PER_TRIAL)
        return Counts(len(self.class_names), train, val, test)

    def missing(self) -> list[str]:
        """Paths of images, of all parts, that are listed and not there, in order."""
        wanted = sorted({row.path for part in REPORTS_PER_TRIAL for row in self._lists[part]})
        there: dict[Path, set[str]] = {}
        for folder in {(self.root / path).parent for path in wanted}:
            there[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        places = ((path, self.root / path) for path in wanted)
        return [path for path, place in places if place.name not in there[place.parent]]

    def split(self, name: SplitName) -> Split:
        """`train` or `val`, in the list's order; raises `SealedError` for anything else."""
        if name not in ("train", "val"):
            raise SealedError(f"Only 'train' and 'val' are open, got '{name}'.")
        return fresh(self._open[name])

    def sealed_split(self, permit: TestPermit) -> Split:
        """See `Dataset`."""
        permit.check(self.name)
        return self._rows("test")

    @cached_property
    def _open(self) -> dict[SplitName, Split]:
        """Every draw asks for both."""
        return {"train": self._rows("train"), "val": self._rows("val")}

    def _rows(self, part: Part) -> Split:
        rows = [(row.path, row.label) for row in self._lists[part]]
        return image_split(self.identity or self.name, part, self.root, rows)


def image_split(identity: str, part: Part, root: Path, rows: Sequence[tuple[str, int]]) -> Split:
    """A split of (path relative to `root`, label) rows, in their order.

    Its fingerprint is the same for every order of the rows, and wherever the images lie. Raises
    `DataError` for no rows.
    """
    if not rows:
        raise DataError(f"Every part needs images: '{part}' in '{root}' has none. Unpack it again.")
    facts = sorted(f"{path}\0{label}".encode() for path, label in rows)
    return Split(
        ImageFiles(root, tuple(path for path, _ in rows)),
        torch.tensor([label for _, label in rows], dtype=torch.int64),
        fingerprint(identity.encode(), part.encode(), *facts),
    )


def fresh(split: Split) -> Split:
    """The same split with labels of its own, which its reader may change."""
    return Split(split.images, split.labels.clone(), split.fingerprint)


# --- what every list must keep -------------------------------------------------------------------


def checked(lists: Lists, source: str) -> tuple[str, ...]:
    """The class names of lists that keep every rule; `source` says in messages whose they are.

    Raises `DataError`: labels are 0..c-1, a label has one class name and a class name one label,
    no image stands in two rows, no part is empty, and every class has images to train on and to
    be judged by.
    """
    for part in REPORTS_PER_TRIAL:
        if not lists[part]:
            raise DataError(f"Every part needs images: '{part}' of {source} has none. Add some.")
    names = _one_name_a_label(lists, source)
    _no_image_twice(lists, source)
    for part in ("train", "val"):
        absent = set(range(len(names))) - {row.label for row in lists[part]}
        if absent:
            raise DataError(
                f"Every class needs images in train and in val: class '{names[min(absent)]}' of "
                f"{source} is absent from {part}. Add some, or leave the class out."
            )
    return names


def _one_name_a_label(lists: Lists, source: str) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for part in REPORTS_PER_TRIAL:
        for row in lists[part]:
            if names.setdefault(row.label, row.class_name) != row.class_name:
                raise DataError(
                    f"A label has one class name: label {row.label} of {source} is "
                    f"'{names[row.label]}' and '{row.class_name}'. Restore the list."
                )
    for label in names:
        if not 0 <= label < len(names):
            raise DataError(
                f"Labels count from 0 to c-1 without a gap: label {label} of {source} is out of "
                f"range, as it has {len(names)} different labels. Restore the list."
            )
    labels: dict[str, int] = {}
    for label, name in sorted(names.items()):
        if labels.setdefault(name, label) != label:
            raise DataError(
                f"Class names must differ: '{name}' of {source} names labels {labels[name]} and "
                f"{label}. Rename one of them."
            )
    if len(names) < 2:
        raise DataError(
            f"A data set needs at least 2 classes: {source} has {len(names)}. Add another."
        )
    return tuple(names[label] for label in range(len(names)))


def _no_image_twice(lists: Lists, source: str) -> None:
    seen: dict[str, Part] = {}
    for part in REPORTS_PER_TRIAL:
        for row in lists[part]:
            path = os.path.normpath(row.path)
            if path in seen:
                where = "twice" if seen[path] == part else f"in {seen[path]} and"
                raise DataError(
                    f"An image has one row and belongs to one part: '{row.path}' of {source} is "
                    f"{where} in {part}. Leave one row."
                )
            seen[path] = part


# --- splits that are made here -------------------------------------------------------------------


def by_hash(paths: Iterable[str]) -> list[str]:
    """Paths by the SHA-256 of their text: an order that looks random and is the same everywhere."""
    return sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())


def split_by_hash(rows: Iterable[Row], source: str) -> Lists:
    """50 % of each class to train, 20 % to val, the rest to test, by `by_hash`.

    Counts are rounded; val and test get at least one image, so a class needs three. Raises
    `DataError`. Parts are sorted by label and path.
    """
    parts: dict[Part, list[Row]] = {part: [] for part in REPORTS_PER_TRIAL}
    for members in _classes(rows):
        n = len(members)
        if n < 3:
            raise DataError(
                f"Every class needs at least 3 images, one for each part: class "
                f"'{members[0].class_name}' of {source} has {n}. Add some, or leave the class out."
            )
        val = max(1, round(0.2 * n))
        train = min(round(0.5 * n), n - val - 1)
        parts["train"] += members[:train]
        parts["val"] += members[train : train + val]
        parts["test"] += members[train + val :]
    return {part: sorted(found, key=_by_label) for part, found in parts.items()}


def split_val_by_hash(rows: Iterable[Row], source: str) -> tuple[list[Row], list[Row]]:
    """Train and val of an official training set: 20 % of each class to val, by `by_hash`.

    The count is rounded and at least 1, so a class needs two images. Raises `DataError`. Both are
    sorted by label and path.
    """
    train: list[Row] = []
    val: list[Row] = []
    for members in _classes(rows):
        if len(members) < 2:
            raise DataError(
                f"Every class needs at least 2 training images, one of them for val: class "
                f"'{members[0].class_name}' of {source} has 1. Add some."
            )
        cut = max(1, round(0.2 * len(members)))
        val += members[:cut]
        train += members[cut:]
    return sorted(train, key=_by_label), sorted(val, key=_by_label)


def _classes(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each class, by label, within it by `by_hash`."""
    classes: dict[int, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        classes[row.label][row.path] = row
    return [[members[path] for path in by_hash(members)] for _, members in sorted(classes.items())]


def _by_label(row: Row) -> tuple[int, str]:
    return row.label, row.path
