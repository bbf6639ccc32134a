"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels that ship inside a dependency.

The split never changes: within each class the images are sorted by the SHA-256 of their 64 pixel
bytes; the first n // 2 are test, the next n // 6 validation, the rest train. It depends on no
generator and no file order, and has 896 test, 296 validation and 605 train images.

Source: E. Alpaydin, C. Kaynak, «Optical Recognition of Handwritten Digits», UCI repository (1998).
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from trainables.data.base import Permit, PixelRows, Split, SplitName, check_is_open, fingerprint
from trainables.data.prompts import PromptSet, PromptVariant, prompt_set

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Digits:
    """The digits upright, or turned by 180 degrees (a harder task for a model that can read)."""

    name: str
    """Registry name."""
    half_turns: int = 0
    """Number of rotations by 180 degrees: 0 or 1."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The digits in words."""
        return _NAMES

    @property
    def flip(self) -> bool:
        """False: a mirrored digit is no digit."""
        return False

    @property
    def caveats(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def source_classes(self) -> tuple[int, ...]:
        """Labels of the upright digits, which are the same."""
        return tuple(range(len(_NAMES)))

    def prompts(self, variant: PromptVariant) -> PromptSet:
        """One template; the same in all variants."""
        return prompt_set(self.name, _NAMES, variant)

    def split(self, name: SplitName) -> Split:
        """`train` (605 images) or `val` (296); raises `SealedError` for anything else."""
        check_is_open(name)
        return self._rows(name)

    def sealed_split(self, permit: Permit) -> Split:
        """The 896 test images."""
        permit.check(self.name)
        return self._rows("test")

    def _rows(self, name: str) -> Split:
        pixels, labels = read_digits()
        grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
        rows = _partition(grey, labels)[name]
        images = torch.from_numpy(grey[rows]).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
        images = torch.rot90(images, 2 * self.half_turns, (2, 3)).contiguous()
        target = torch.from_numpy(labels[rows].astype(np.int64))
        return Split(
            PixelRows(images),
            target,
            fingerprint(self.name.encode(), images.numpy().tobytes(), target.numpy().tobytes()),
        )


@cache  # parsing takes 13 ms, and the checks before a sweep read the digits ten times
def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels [1797, 64] from 0 to 16 and labels [1797], both read-only, from scikit-learn's
    file, without importing scikit-learn, which takes a second and 70 MB in every process."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None, "scikit-learn is a dependency"
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0])
    table = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1].astype(np.int64)
    pixels.flags.writeable = labels.flags.writeable = False  # all callers share them
    return pixels, labels


def _partition(grey: np.ndarray, labels: np.ndarray) -> dict[str, list[int]]:
    """Row numbers of each split, by the rule at the top of this file."""
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in range(len(_NAMES)):
        members = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda row: hashlib.sha256(grey[row].tobytes()).digest())
        test, val = len(members) // 2, len(members) // 6
        rows["test"] += members[:test]
        rows["val"] += members[test : test + val]
        rows["train"] += members[test + val :]
    return rows
