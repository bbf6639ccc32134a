"""ImageNet and its four shifts. Classes are known by their WordNet ids, never by their names.

The parts of ImageNet, fixed for ever: within each class the training images are sorted by the
SHA-256 of their path (`train/<id>/<file>`); the first min(50, n / 5 rounded up) of n are
validation images, the rest train. Test is the official validation set, which nothing is tuned on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch

from trainables.data.base import DataError, Split, SplitName, fingerprint
from trainables.data.benchmarks.coop_layouts import LAYOUTS, counts_notice, find_folder
from trainables.data.images import ImageFiles
from trainables.data.listing import folders_in, images_in, read_lines
from trainables.data.lists import Counts, by_hash, fresh, image_split
from trainables.data.prompts import PromptSet, PromptVariant, prompt_set
from trainables.data.sealed import SealedError, TestPermit

CLASS_NAMES = "classnames.txt"
MOST_VAL = 50
"""Validation images a class, at most: as many as there are test images."""


@dataclass(frozen=True)
class ImageNet:
    """ImageNet with validation images of its own; implements `Dataset`."""

    name: str
    """Registry name."""
    folder: Path
    """Holds `train` and `val`, or `images` with both."""
    names: dict[str, str]
    """Class name of each WordNet id."""

    @property
    def wnids(self) -> tuple[str, ...]:
        """Sorted; a label is a position in them."""
        return tuple(sorted(self.names))

    @property
    def class_names(self) -> tuple[str, ...]:
        """CLIP's names, of which two stand for two classes each."""
        return tuple(self.names[wnid] for wnid in self.wnids)

    @property
    def flip(self) -> bool:
        """True: photographs."""
        return True

    @property
    def notices(self) -> tuple[str, ...]:
        """That the validation images are not the official ones, nor perhaps the counts."""
        return (
            f"The validation images of '{self.name}' are carved from its training images (a fifth "
            f"of each class, at most {MOST_VAL}, by the SHA-256 of the path); its test images are "
            "the official validation set.",
            *counts_notice(self.name, self.counts()),
        )

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """CLIP's ensembles."""
        return prompt_set(self.name, self.class_names, variant)

    def split(self, name: SplitName) -> Split:
        """`train` or `val`, both of the official training set; raises `DataError`, and
        `SealedError` for anything else."""
        if name not in ("train", "val"):
            raise SealedError(f"Only 'train' and 'val' are open, got '{name}'.")
        return fresh(self._open[name])

    @property
    def official_train(self) -> Split:
        """`train` and `val` in one, as the official training set is; raises `DataError`."""
        parts = (self._open["train"], self._open["val"])
        paths = (path for part in parts for path in cast(ImageFiles, part.images).paths)
        return Split(
            ImageFiles(self._parent("train"), tuple(paths)),
            torch.cat([part.labels for part in parts]),
            fingerprint(*(part.fingerprint.encode() for part in parts)),
        )

    def sealed_split(self, permit: TestPermit) -> Split:
        """See `Dataset`; reads no training folder."""
        permit.check(self.name)
        return image_split(self.name, "test", self._parent("val"), self._test)

    def counts(self) -> Counts:
        """What there is; lists all images."""
        train, val = (len(self._open[name].labels) for name in ("train", "val"))
        return Counts(len(self.names), train, val, len(self._test))

    def missing(self) -> list[str]:
        """None: there is no list, but what is there."""
        return []

    @property
    def _test(self) -> list[tuple[str, int]]:
        listed = enumerate(self._listed("val"))
        return [(path, label) for label, paths in listed for path in paths]

    @cached_property
    def _open(self) -> dict[SplitName, Split]:
        """Both, as they come from one listing of more than a million files, which takes seconds."""
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
        """The folder in which `train` or `val` lies."""
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
                f"Every class of {CLASS_NAMES} has a folder and every folder a class: in "
                f"'{folder}', {odd}. Add the images, or adapt {CLASS_NAMES}."
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
    """The folder with one folder a class."""
    names: dict[str, str]
    """Class name of each WordNet id of ImageNet."""
    source: tuple[str, ...]
    """The sorted WordNet ids of ImageNet's own classes."""

    @cached_property
    def _folders(self) -> dict[str, str]:
        """WordNet id -> folder of each class that there is, by sorted id."""
        found = folders_in(self.images)
        wnids = sorted(self.names)
        numbered = bool(found) and all(entry.isdecimal() for entry in found)
        if numbered:  # V2: the i-th of ImageNet's classes lies in folder i
            beyond = [entry for entry in found if int(entry) >= len(wnids)]
            folders = {wnids[int(entry)]: entry for entry in found if entry not in beyond}
        else:
            beyond = [entry for entry in found if entry not in self.names]
            folders = {entry: entry for entry in found if entry not in beyond}
        if beyond or not folders:
            odd = f"'{beyond[0]}' is not" if beyond else "there is none"
            raise DataError(
                f"The class folders in '{self.images}' are classes of {CLASS_NAMES}: {odd}. "
                f"Unpack the data set again, or restore {CLASS_NAMES}."
            )
        return dict(sorted(folders.items()))

    @property
    def wnids(self) -> tuple[str, ...]:
        """Its classes; a label is a position in them. Raises `DataError`."""
        return tuple(self._folders)

    @property
    def class_names(self) -> tuple[str, ...]:
        """CLIP's names; raises `DataError`."""
        return tuple(self.names[wnid] for wnid in self.wnids)

    @property
    def source_classes(self) -> tuple[int, ...]:
        """See `Shift`."""
        labels = {wnid: label for label, wnid in enumerate(self.source)}
        for wnid in self.wnids:
            if wnid not in labels:
                raise DataError(
                    f"Every class of '{self.name}' is a class of ImageNet: '{wnid}' is none of "
                    f"its {len(labels)}. Restore ImageNet's {CLASS_NAMES}."
                )
        return tuple(labels[wnid] for wnid in self.wnids)

    @property
    def flip(self) -> bool:
        """True: pictures of things."""
        return True

    @property
    def notices(self) -> tuple[str, ...]:
        """That its counts are not the published ones, where they are not."""
        return counts_notice(self.name, self.counts())

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """ImageNet's own, for its classes."""
        return prompt_set(self.name, self.class_names, variant)

    def split(self, name: SplitName) -> Split:
        """Refused: `DataError` for `train` and `val`, `SealedError` for anything else."""
        if name not in ("train", "val"):
            raise SealedError(f"Only 'train' and 'val' are open, got '{name}'.")
        raise DataError(
            f"'{self.name}' is a shift of ImageNet, for evaluation only, and has no '{name}'. "
            "Search on --dataset imagenet with --protocol domain-generalization."
        )

    def sealed_split(self, permit: TestPermit) -> Split:
        """See `Dataset`."""
        permit.check(self.name)
        return image_split(self.name, "test", self.images, self._test)

    def counts(self) -> Counts:
        """What there is; raises `DataError`."""
        return Counts(len(self.wnids), 0, 0, len(self._test))

    def missing(self) -> list[str]:
        """None: there is no list, but what is there."""
        return []

    @property
    def _test(self) -> list[tuple[str, int]]:
        return [
            (f"{folder}/{image}", label)
            for label, folder in enumerate(self._folders.values())
            for image in images_in(self.images / folder)
        ]


def open_imagenet(name: str, root: Path, made_split: bool = False) -> ImageNet:
    """ImageNet below `root`; raises `DataError`. Its validation part is always made here, so
    `made_split` changes nothing."""
    folder = find_folder(name, root)
    return ImageNet(name, folder, _read_names(folder, root))


def open_imagenet_shift(name: str, root: Path, made_split: bool = False) -> ImageNetShift:
    """A shift below `root`, with or without ImageNet beside it; raises `DataError`."""
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
            f"ImageNet's classes are named by a file: '{folders[0] / CLASS_NAMES}' is missing. "
            "Put CoOp's there."
        )
    names: dict[str, str] = {}
    for line in read_lines(file):
        wnid, _, name = line.partition(" ")
        if not name.strip() or wnid in names:
            raise DataError(
                f"A line of '{file}' is a WordNet id and a class name, each id once: '{line}'. "
                "Fetch it again."
            )
        names[wnid] = name.strip()
    if len(names) < 2:
        raise DataError(f"'{file}' must name at least 2 classes, and names {len(names)}.")
    return names
