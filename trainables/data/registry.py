"""The data sets that can be named on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from trainables.data.base import DataError, Dataset, Shift
from trainables.data.benchmarks.coop import open_coop
from trainables.data.benchmarks.coop_layouts import ALL11, IMAGENET_SHIFTS, LAYOUTS
from trainables.data.benchmarks.imagenet import open_imagenet, open_imagenet_shift
from trainables.data.bundle import open_bundle
from trainables.data.digits import Digits
from trainables.data.folder import open_folder
from trainables.text import did_you_mean

Builder = Callable[[str, Path, bool], Dataset]
"""Name, root of the data sets, whether a missing split may be made -> the data set."""

DATASETS: dict[str, Builder] = {
    "digits": lambda name, root, made_split: Digits(name),
    "digits-rotated": lambda name, root, made_split: Digits(name, half_turns=1),
    "imagenet": open_imagenet,
    **dict.fromkeys(ALL11[1:], open_coop),
    **dict.fromkeys(IMAGENET_SHIFTS, open_imagenet_shift),
}

PREFIXES: dict[str, Callable[[Path], Dataset]] = {"folder:": open_folder, "bundle:": open_bundle}
"""What opens the path that follows."""

SHIFTS: dict[str, tuple[str, ...]] = {
    "imagenet": IMAGENET_SHIFTS,
    "digits": ("digits-rotated",),
}
"""Data sets that only judge a classifier of another one."""

BASE_TASKS = ALL11
"""What `all11` stands for."""


def open_dataset(spec: str, root: str = "", made_split: bool = False) -> Dataset:
    """The data set that `spec` names: a registry name, `folder:PATH` or `bundle:FILE`.

    `root` is the folder that holds the field's data sets. With `made_split`, a missing split file
    is replaced by a split made here. Raises `DataError`.
    """
    try:
        return _open(spec, root, made_split)
    except OSError as error:
        raise DataError(f"The data set '{spec}' cannot be read ({error}). Grant access.") from None


def _open(spec: str, root: str, made_split: bool) -> Dataset:
    for prefix, open_path in PREFIXES.items():
        if spec.startswith(prefix):
            path = spec.removeprefix(prefix)
            if not path:
                raise DataError(f"A path follows '{prefix}': '{spec}' has none. Give one.")
            return open_path(Path(path).expanduser())
    if spec not in DATASETS:
        raise DataError(did_you_mean("data set", spec, (*DATASETS, *PREFIXES)))
    if spec in LAYOUTS and not root:
        raise DataError(
            f"The data set '{spec}' lies in a folder of yours: none was given. Give --data ROOT "
            f"(or set FEWSHOT_DATA), the folder in which '{LAYOUTS[spec].folders[0]}' lies."
        )
    return DATASETS[spec](spec, Path(root).expanduser(), made_split)


def open_shift(name: str, root: str = "") -> Shift:
    """The shift of that name (see `SHIFTS`); raises `DataError`."""
    known = [shift for shifts in SHIFTS.values() for shift in shifts]
    if name not in known:
        raise DataError(did_you_mean("shift", name, known))
    return cast(Shift, open_dataset(name, root))
