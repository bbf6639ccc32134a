"""Data sets that are lists of image files: checks of the lists, and the rule of generated splits.

Notation: n images of a class.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from trainables.core.text import unprintable
from trainables.data.base import (
    DataError,
    Permit,
    Split,
    SplitName,
    check_class_names,
    check_is_open,
    fingerprint,
)
from trainables.data.image_files import ImageFiles
from trainables.data.prompts import PromptSet, PromptVariant, prompt_set

AnySplit = Literal["train", "val", "test"]
SPLITS: tuple[AnySplit, ...] = ("train", "val", "test")


class Row(NamedTuple):
    """One image of a list."""

    path: str
    """Relative to the folder of the images, with slashes, or absolute."""
    label: int
    """A position in the class names."""
    class_name: str
    """Name of the class in the list."""


class Fold(NamedTuple):
    """One fold of a cross-validation."""

    number: int
    """From 1 to `total`."""
    total: int
    """How many folds there are."""


Lists = Mapping[AnySplit, Sequence[Row]]
"""The rows of each split, in the list's own order."""


@dataclass(frozen=True)
class Counts:
    """Numbers of classes and images of a data set."""

    classes: int
    """Classes."""
    train: int
    """Training images; 0 for a shift."""
    val: int
    """Validation images; 0 for a shift."""
    test: int
    """Test images."""

    def __str__(self) -> str:
        return (
            f"{self.classes:,} classes, {self.train:,} train, {self.val:,} val, {self.test:,} test"
        )

    def mismatch(self, published: Counts) -> str:
        """Return a caveat if these are not the published counts, else an empty string."""
        if self == published:
            return ""
        return (
            f"Published: {published}. Figures from other counts cannot be compared with published "
            "ones."
        )


@dataclass(frozen=True)
class ListedDataset:
    """Images below a folder, in checked lists; implements `Dataset`."""

    name: str
    """Name on the command line."""
    root: Path
    """The folder of the images."""
    class_names: tuple[str, ...] = field(repr=False)
    """One name per class."""
    _lists: Lists = field(repr=False)
    caveats: tuple[str, ...] = ()
    """What a reader of its figures should know."""
    given_prompts: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    """Texts of each class, if the lists provide them."""
    identity: str = ""
    """Name in its fingerprints, if `name` contains a path."""

    @property
    def flip(self) -> bool:
        """True: photographs."""
        return True

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """The data set's templates, or the texts that its lists provide."""
        return prompt_set(self.name, self.class_names, variant, self.given_prompts)

    def counts(self) -> Counts:
        """Numbers in the lists, whether or not the images exist."""
        train, val, test = (len(self._lists[part]) for part in SPLITS)
        return Counts(len(self.class_names), train, val, test)

    def class_counts(self) -> dict[str, list[int]]:
        """Split -> the number of images of each class in its list."""
        found = {part: Counter(row.label for row in self._lists[part]) for part in SPLITS}
        labels = range(len(self.class_names))
        return {part: [counts[label] for label in labels] for part, counts in found.items()}

    def missing(self) -> list[str]:
        """Return the paths of listed images that do not exist, sorted."""
        wanted = sorted({row.path for part in SPLITS for row in self._lists[part]})
        there: dict[Path, set[str]] = {}
        for folder in {(self.root / path).parent for path in wanted}:
            there[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        places = ((path, self.root / path) for path in wanted)
        return [path for path, place in places if place.name not in there[place.parent]]

    def split(self, name: SplitName) -> Split:
        """`train` or `val`, in the list's order; raises `SealedError` for anything else."""
        check_is_open(name)
        return fresh(self._open[name])

    def sealed_split(self, permit: Permit) -> Split:
        """The test split; raises `SealedError`."""
        permit.check(self.name)
        return self._rows("test")

    @cached_property
    def _open(self) -> dict[SplitName, Split]:
        """Both pools, which every draw needs."""
        return {"train": self._rows("train"), "val": self._rows("val")}

    def _rows(self, part: AnySplit) -> Split:
        rows = [(row.path, row.label) for row in self._lists[part]]
        return image_split(self.identity or self.name, part, self.root, rows)


def image_split(
    identity: str, part: AnySplit, root: Path, rows: Sequence[tuple[str, int]]
) -> Split:
    """Return a split of (path relative to `root`, label) rows, in this order.

    Its fingerprint is the same for every order of the rows and on every machine. Raises `DataError`
    if there are no rows.
    """
    if not rows:
        raise DataError(
            f"Every split needs images: '{part}' of '{root}' has none. Unpack it again."
        )
    facts = sorted(f"{path}\0{label}".encode() for path, label in rows)
    return Split(
        ImageFiles(root, tuple(path for path, _ in rows)),
        torch.tensor([label for _, label in rows], dtype=torch.int64),
        fingerprint(identity.encode(), part.encode(), *facts),
    )


def fresh(split: Split) -> Split:
    """Return the split with a copy of its labels, which the caller may change."""
    return Split(split.images, split.labels.clone(), split.fingerprint)


# --- rules that every list must follow -----------------------------------------------------------


def checked(lists: Lists, source: str) -> tuple[str, ...]:
    """Return the class names of lists that follow every rule; `source` names them in messages.

    Raises `DataError` unless labels are 0..c-1, each label has one printable class name and each
    class name one label, no image is in two rows, no split is empty, and every class has training
    and validation images.
    """
    for part in SPLITS:
        if not lists[part]:
            raise DataError(f"Every split needs images: '{part}' of {source} has none. Add some.")
        for number, row in enumerate(lists[part], 1):
            if found := unprintable(row.path):
                raise DataError(
                    f"Paths must be printable text: '{row.path}', {part} row {number} of {source}, "
                    f"contains {found}. Rename the file."
                )
    names = _one_name_a_label(lists, source)
    _no_image_twice(lists, source)
    for part in ("train", "val"):
        absent = set(range(len(names))) - {row.label for row in lists[part]}
        if absent:
            raise DataError(
                f"Every class needs images in train and in val: class '{names[min(absent)]}' of "
                f"{source} is absent from {part}. Add some, or remove the class."
            )
    check_class_names(names, source)
    return names


def _one_name_a_label(lists: Lists, source: str) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for part in SPLITS:
        for row in lists[part]:
            if names.setdefault(row.label, row.class_name) != row.class_name:
                raise DataError(
                    f"A label must have one class name: label {row.label} of {source} is "
                    f"'{names[row.label]}' and '{row.class_name}'. Restore the list."
                )
    for label in names:
        if not 0 <= label < len(names):
            raise DataError(
                f"Labels must be 0 to {len(names) - 1}, as {source} has {len(names)} different "
                f"ones, got label {label}. Restore the list."
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
    seen: dict[str, AnySplit] = {}
    for part in SPLITS:
        for row in lists[part]:
            path = os.path.normpath(row.path)
            if path in seen:
                where = "twice" if seen[path] == part else f"in {seen[path]} and"
                raise DataError(
                    f"An image must have one row, in one split: '{row.path}' of {source} is "
                    f"{where} in {part}. Keep one row."
                )
            seen[path] = part


# --- generated splits ----------------------------------------------------------------------------


def by_hash(paths: Iterable[str]) -> list[str]:
    """Sort paths by the SHA-256 of their text: the order looks random and is always the same."""
    return sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())


def split_by_hash(rows: Iterable[Row], source: str) -> Lists:
    """Assign 50 % of each class to train, 20 % to val and the rest to test, in `by_hash` order.

    Counts are rounded; val and test get at least one image, so a class needs three. Splits are
    sorted by label and path. Raises `DataError`.
    """
    parts: dict[AnySplit, list[Row]] = {part: [] for part in SPLITS}
    for members in _classes(rows):
        n = len(members)
        if n < 3:
            raise DataError(
                f"Every class needs at least 3 images, one per split: class "
                f"'{members[0].class_name}' of {source} has {n}. Add some, or remove the class."
            )
        val = max(1, round(0.2 * n))
        train = min(round(0.5 * n), n - val - 1)
        parts["train"] += members[:train]
        parts["val"] += members[train : train + val]
        parts["test"] += members[train + val :]
    return {part: sorted(found, key=_by_label) for part, found in parts.items()}


def fold_by_hash(rows: Iterable[Row], source: str, fold: Fold) -> Lists:
    """Assign every `total`-th image of each class, in `by_hash` order, to test, 20 % of the class
    to val and the rest to train.

    The test images of all folds are disjoint and together all images. Which fold begins differs
    between classes, so that folds of small classes are of similar size. Counts are rounded; val and
    train get at least one image. Splits are sorted by label and path. Raises `DataError`.
    """
    parts: dict[AnySplit, list[Row]] = {part: [] for part in SPLITS}
    for place, members in enumerate(_classes(rows)):
        first = (fold.number - 1 + place) % fold.total
        test = members[first :: fold.total]
        rest = [row for i, row in enumerate(members) if i % fold.total != first]
        if len(rest) < 2:
            raise DataError(
                f"Every class needs at least 2 images outside a fold: class "
                f"'{members[0].class_name}' of {source} has {len(members)} images. Add some, or "
                "remove the class."
            )
        val = min(len(rest) - 1, max(1, round(0.2 * len(members))))
        parts["test"] += test
        parts["val"] += rest[:val]
        parts["train"] += rest[val:]
    return {part: sorted(found, key=_by_label) for part, found in parts.items()}


def split_off_by_hash(
    rows: Iterable[Row], source: str, part: AnySplit = "val"
) -> tuple[list[Row], list[Row]]:
    """Split an official training set: 20 % of each class to val, or 30 % to test, in `by_hash`
    order.

    The count is rounded and at least 1, so a class needs two images. Both splits are sorted by
    label and path. Raises `DataError`.
    """
    train: list[Row] = []
    other: list[Row] = []
    for members in _classes(rows):
        n = len(members)
        if n < 2:
            raise DataError(
                f"Every class needs at least 2 training images, one of them for {part}: class "
                f"'{members[0].class_name}' of {source} has 1. Add some."
            )
        cut = min(n - 1, max(1, round((0.3 if part == "test" else 0.2) * n)))
        other += members[:cut]
        train += members[cut:]
    return sorted(train, key=_by_label), sorted(other, key=_by_label)


def _classes(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each class, classes by label and rows in `by_hash` order."""
    classes: dict[int, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        classes[row.label][row.path] = row
    return [[members[path] for path in by_hash(members)] for _, members in sorted(classes.items())]


def _by_label(row: Row) -> tuple[int, str]:
    return row.label, row.path
