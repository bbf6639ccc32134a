"""Base and new classes: the two halves of base-to-new generalisation.

By the field's rule the first half of the labels, rounded up, is base and the rest is new; within
its half every class is numbered from 0. No task contains both.

Notation: c classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.data.base import DataError, Dataset, Permit, Split, SplitName
from trainables.data.derived import DerivedDataset
from trainables.data.prompts import PromptSet, PromptVariant

Half = Literal["all", "base", "new"]
"""The classes of a data set that a task has."""


def classes_of(half: Half, count: int) -> range:
    """Return the labels of a half of `count` classes; raises `DataError` if it has fewer than 2."""
    first = (count + 1) // 2
    if half == "all":
        return range(count)
    if count - first < 2:
        raise DataError(
            f"Each half of the classes must have at least 2, got {count} classes in all: use a "
            "data set with at least 4, or --protocol few-shot."
        )
    return range(first) if half == "base" else range(first, count)


def half_of(dataset: Dataset, half: Half) -> Dataset:
    """Return the data set restricted to these classes; raises `DataError`."""
    if half == "all":
        return dataset
    return _Restricted(dataset, half, classes_of(half, len(dataset.class_names)))


@dataclass(frozen=True)
class _Restricted(DerivedDataset):
    """Some classes of a data set."""

    half: Half
    classes: range

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.whole.class_names[label] for label in self.classes)

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """The texts of these classes."""
        return self.whole.prompts(variant).of_classes(self.classes)

    def split(self, name: SplitName) -> Split:
        return self.whole.split(name).of_classes(self.classes)

    def sealed_split(self, permit: Permit) -> Split:
        """The test images of these classes; raises `DataError` if there are none."""
        part = self.whole.sealed_split(permit).of_classes(self.classes)
        if not len(part.labels):
            raise DataError(
                f"Each half of the classes needs test images: the {self.half} classes of "
                f"'{self.name}' have none. Add some, or use --protocol few-shot."
            )
        return part
