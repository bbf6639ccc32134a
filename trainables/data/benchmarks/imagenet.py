"""ImageNet and its four shifts. Classes are known by their WordNet ids, never by their names.

The splits of ImageNet never change: within each class the training images are sorted by the SHA-256
of their path (`train/<id>/<file>`); the first min(50, n / 5 rounded up) of n are validation images,
the rest train. Test is the official validation set, on which nothing is tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch

from trainables.data.base import (
    DataError,
    Permit,
    Split,
    SplitName,
    check_class_names,
    check_is_open,
    fingerprint,
)
from trainables.data.benchmarks.layouts import LAYOUTS, counts_caveat, find_folder
from trainables.data.image_files import ImageFiles, folders_in, images_in, read_lines
from trainables.data.lists import Counts, by_hash, fresh, image_split
from trainables.data.prompts import PromptSet, PromptVariant, prompt_set

CLASS_NAMES = "classnames.txt"
MOST_VAL = 50
"""Validation images per class, at most: as many as there are test images."""


@dataclass(frozen=True)
class ImageNet:
    """ImageNet with validation images from its training set; implements `Dataset`."""

    name: str
    """Registry name."""
    folder: Path
    """Contains `train` and `val`, or `images` with both."""
    names: dict[str, str]
    """Class name of each WordNet id."""

    @property
    def wnids(self) -> tuple[str, ...]:
        """Sorted WordNet ids; a label is a position in them."""
        return tuple(sorted(self.names))

    @property
    def class_names(self) -> tuple[str, ...]:
        """CLIP's names, two of which name two classes each."""
        return tuple(self.names[wnid] for wnid in self.wnids)

    @property
    def flip(self) -> bool:
        """True: photographs."""
        return True

    @property
    def caveats(self) -> tuple[str, ...]:
        """The origin of the validation images, and unpublished counts."""
        return (
            f"The validation images of '{self.name}' are carved from its training images (a fifth "
            f"of each class, at most {MOST_VAL}, by the SHA-256 of the path); its test images are "
            "the official validation set.",
            *counts_caveat(self.name, self.counts()),
        )

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """CLIP's ensembles."""
        return prompt_set(self.name, self.class_names, variant)

    def split(self, name: SplitName) -> Split:
        """`train` or `val`, both of the official training set; raises `DataError`, and
        `SealedError` for anything else."""
        check_is_open(name)
        return fresh(self._open[name])

    @property
    def official_train(self) -> Split:
        """The official training set, `train` and `val` together; raises `DataError`."""
        parts = (self._open["train"], self._open["val"])
        paths = (path for part in parts for path in cast(ImageFiles, part.images).paths)
        return Split(
            ImageFiles(self._parent("train"), tuple(paths)),
            torch.cat([part.labels for part in parts]),
            fingerprint(*(part.fingerprint.encode() for part in parts)),
        )

    def sealed_split(self, permit: Permit) -> Split:
        """The official validation set; no training folder is read. Raises `SealedError`."""
        permit.check(self.name)
        return image_split(self.name, "test", self._parent("val"), self._test)

    def counts(self) -> Counts:
        """Numbers of images found; lists all of them."""
        train, val = (len(self._open[name].labels) for name in ("train", "val"))
        return Counts(len(self.names), train, val, len(self._test))

    def missing(self) -> list[str]:
        """Nothing: the images found are the list."""
        return []

    @property
    def _test(self) -> list[tuple[str, int]]:
        listed = enumerate(self._listed("val"))
        return [(path, label) for label, paths in listed for path in paths]

    @cached_property
    def _open(self) -> dict[SplitName, Split]:
        """Both pools, from one listing of more than a million files, which takes seconds."""
        train: list[tuple[str, int]] = []
        val: list[tuple[str, int]] = []
        for label, paths in enumerate(self._listed("train")):
            if len(paths) < 2:
                raise DataError(
                    f"Every class needs at least 2 training images, one of them for val: class "
                    f"'{self.wnids[label]}' of '{self.folder}' has {len(paths)}. Add some."
                )
            cut = min(MOST_VAL, -(-len(paths) // 5))
            hashed = by_hash(paths)
            val += [(path, label) for path in sorted(hashed[:cut])]
            train += [(path, label) for path in sorted(hashed[cut:])]
        root = self._parent("train")
        return {
            "train": image_split(self.name, "train", root, train),
            "val": image_split(self.name, "val", root, val),
        }

    def _parent(self, official: str) -> Path:
        """The folder that contains `train` or `val`."""
        parent = self.folder / "images"
        return parent if (parent / official).is_dir() else self.folder

    def _listed(self, official: str) -> list[list[str]]:
        """Image paths, class by class, relative to the parent of `train` or `val`."""
        folder = self._parent(official) / official
        found = folders_in(folder)
        if set(found) != set(self.names):
            absent, unknown = set(self.names) - set(found), set(found) - set(self.names)
            odd = f"'{min(absent)}' has none" if absent else f"'{min(unknown)}' is not listed"
            raise DataError(
                f"Classes of {CLASS_NAMES} and folders must correspond: in '{folder}', {odd}. Add "
                f"the images, or adapt {CLASS_NAMES}."
            )
        return [
            [f"{official}/{wnid}/{image}" for image in images_in(folder / wnid)]
            for wnid in self.wnids
        ]


@dataclass(frozen=True)
class ImageNetShift:
    """Other images of ImageNet's classes, or of some of them; implements `Shift`."""

    name: str
    """Registry name."""
    images: Path
    """The folder with one folder per class."""
    names: dict[str, str]
    """Class name of each WordNet id of ImageNet."""
    source: tuple[str, ...]
    """The sorted WordNet ids of ImageNet's classes."""

    @cached_property
    def _folders(self) -> dict[str, str]:
        """WordNet id -> folder of each class that exists, by sorted id."""
        found = folders_in(self.images)
        wnids = sorted(self.names)
        numbered = bool(found) and all(entry.isdecimal() for entry in found)
        if numbered:  # V2: folder i has the i-th of ImageNet's classes
            beyond = [entry for entry in found if int(entry) >= len(wnids)]
            folders = {wnids[int(entry)]: entry for entry in found if entry not in beyond}
        else:
            beyond = [entry for entry in found if entry not in self.names]
            folders = {entry: entry for entry in found if entry not in beyond}
        if beyond or not folders:
            odd = f"'{beyond[0]}' is not" if beyond else "there is none"
            raise DataError(
                f"The class folders in '{self.images}' must be classes of {CLASS_NAMES}: {odd}. "
                f"Unpack the data set again, or restore {CLASS_NAMES}."
            )
        return dict(sorted(folders.items()))

    @property
    def wnids(self) -> tuple[str, ...]:
        """WordNet ids of its classes; a label is a position in them. Raises `DataError`."""
        return tuple(self._folders)

    @property
    def class_names(self) -> tuple[str, ...]:
        """CLIP's names; raises `DataError`."""
        return tuple(self.names[wnid] for wnid in self.wnids)

    @property
    def source_classes(self) -> tuple[int, ...]:
        """For each class, its label in ImageNet; raises `DataError`."""
        labels = {wnid: label for label, wnid in enumerate(self.source)}
        for wnid in self.wnids:
            if wnid not in labels:
                raise DataError(
                    f"Every class of '{self.name}' must be a class of ImageNet: '{wnid}' is none "
                    f"of its {len(labels)}. Restore ImageNet's {CLASS_NAMES}."
                )
        return tuple(labels[wnid] for wnid in self.wnids)

    @property
    def flip(self) -> bool:
        """True: pictures of objects."""
        return True

    @property
    def caveats(self) -> tuple[str, ...]:
        """Counts that are not the published ones."""
        return counts_caveat(self.name, self.counts())

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """ImageNet's prompts for its classes."""
        return prompt_set(self.name, self.class_names, variant)

    def split(self, name: SplitName) -> Split:
        """Raises `DataError` for `train` and `val`, and `SealedError` for anything else."""
        check_is_open(name)
        raise DataError(
            f"'{self.name}' is a shift of ImageNet, for evaluation only, and has no '{name}'. "
            "Search on --dataset imagenet with --protocol domain-generalization."
        )

    def sealed_split(self, permit: Permit) -> Split:
        """All its images; raises `SealedError`."""
        permit.check(self.name)
        return image_split(self.name, "test", self.images, self._test)

    def counts(self) -> Counts:
        """Numbers of images found; raises `DataError`."""
        return Counts(len(self.wnids), 0, 0, len(self._test))

    def missing(self) -> list[str]:
        """Nothing: the images found are the list."""
        return []

    @property
    def _test(self) -> list[tuple[str, int]]:
        return [
            (f"{folder}/{image}", label)
            for label, folder in enumerate(self._folders.values())
            for image in images_in(self.images / folder)
        ]


def open_imagenet(name: str, root: Path, generate_split: bool = False) -> ImageNet:
    """Open ImageNet below `root`; raises `DataError`. `generate_split` has no effect."""
    folder = find_folder(name, root)
    return ImageNet(name, folder, _read_names(folder, root))


def open_imagenet_shift(name: str, root: Path, generate_split: bool = False) -> ImageNetShift:
    """Open a shift below `root`, with or without ImageNet next to it; raises `DataError`."""
    folder = find_folder(name, root)
    imagenet = root / LAYOUTS["imagenet"].folders[0]
    names = _read_names(folder, imagenet, root)
    known = _read_names(imagenet, root, folder)
    return ImageNetShift(name, folder / LAYOUTS[name].images, names, tuple(sorted(known)))


def _read_names(*folders: Path) -> dict[str, str]:
    """WordNet id -> class name, from the first folder that has the file."""
    file = next(
        (folder / CLASS_NAMES for folder in folders if (folder / CLASS_NAMES).is_file()), None
    )
    if file is None:
        raise DataError(
            f"ImageNet needs a file of class names: '{folders[0] / CLASS_NAMES}' is missing. "
            "Put CoOp's there."
        )
    names: dict[str, str] = {}
    for line in read_lines(file):
        wnid, _, name = line.partition(" ")
        if not name.strip() or wnid in names:
            raise DataError(
                f"A line of '{file}' must be a WordNet id and a class name, each id once, got "
                f"'{line}'. Fetch it again."
            )
        names[wnid] = name.strip()
    if len(names) < 2:
        raise DataError(
            f"'{file}' must name at least 2 classes, and names {len(names)}. Fetch it again."
        )
    check_class_names(list(names.values()), f"'{file}'")
    return names
