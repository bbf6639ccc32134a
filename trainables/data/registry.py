"""The data sets that can be named on the command line, and the few-shot sets drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainables.core.files import expanded
from trainables.core.plugins import Registry
from trainables.core.text import did_you_mean, unprintable
from trainables.data.base import DataError, Dataset, Split
from trainables.data.benchmarks.coop import open_coop
from trainables.data.benchmarks.imagenet import open_imagenet, open_imagenet_shift
from trainables.data.benchmarks.layouts import ALL11, IMAGENET_SHIFTS, LAYOUTS
from trainables.data.bundle import open_bundle
from trainables.data.class_subsets import Half, half_of
from trainables.data.derived import described
from trainables.data.digits import Digits
from trainables.data.few_shot import JOINED, FewShot, draw_few_shot, readable, size_caveat
from trainables.data.folder import open_folder

Builder = Callable[[str, Path, bool], Dataset]
"""Name, root of the data sets, whether a missing split is generated -> the data set."""

_OWN: dict[str, Builder] = {
    "digits": lambda name, root, generate_split: Digits(name),
    "digits-rotated": lambda name, root, generate_split: Digits(name, half_turns=1),
    "imagenet": open_imagenet,
    **dict.fromkeys(ALL11[1:], open_coop),
    **dict.fromkeys(IMAGENET_SHIFTS, open_imagenet_shift),
}

DATASETS: Mapping[str, Builder] = Registry("DATASETS", _OWN)
"""Registry name -> how the data set is opened, including those of plugins."""

PREFIXES: dict[str, Callable[[Path], Dataset]] = {"folder:": open_folder, "bundle:": open_bundle}
"""Prefix of a path -> the function that opens it."""

SHIFTS: dict[str, tuple[str, ...]] = {
    "imagenet": IMAGENET_SHIFTS,
    "digits": ("digits-rotated",),
}
"""Data sets that only evaluate classifiers of another one."""

BASE_TASKS = ALL11
"""The data sets that `all11` abbreviates."""


def open_dataset(spec: str, root: str = "", generate_split: bool = False) -> Dataset:
    """Open the data set that `spec` names: a registry name, `folder:PATH` or `bundle:FILE`.

    `root` is the folder of the benchmark data sets. With `generate_split`, a missing split file is
    replaced by a split that follows the published rule. Raises `DataError`.
    """
    for what, text in (("The name of a data set", spec), ("--data", root)):
        if found := unprintable(text):
            raise DataError(f"{what} must be printable text: '{text}' contains {found}. Rename it.")
    try:
        return _open(spec, root, generate_split)
    except OSError as error:
        raise DataError(f"The data set '{spec}' cannot be read ({error}). Grant access.") from None


def _open(spec: str, root: str, generate_split: bool) -> Dataset:
    for prefix, open_path in PREFIXES.items():
        if spec.startswith(prefix):
            path = spec.removeprefix(prefix)
            if not path.strip():
                raise DataError(f"A path must follow '{prefix}', got '{spec}'. Add one.")
            return open_path(expanded(path))
    if spec not in DATASETS:
        raise DataError(did_you_mean("data set", spec, (*DATASETS, *PREFIXES)))
    if spec in LAYOUTS and not root:
        raise DataError(
            f"The data set '{spec}' needs --data ROOT (or FEWSHOT_DATA), the folder that contains "
            f"'{LAYOUTS[spec].folders[0]}', and none was given. Add it."
        )
    return DATASETS[spec](spec, expanded(root), generate_split)


@dataclass(frozen=True)
class DataSource:
    """Opens data sets and draws few-shot sets, each only once."""

    root: str = ""
    """Folder of the benchmark data sets; unused by the others."""
    generate_split: bool = False
    """Whether a missing split file is replaced by a split that follows the published rule."""
    draws: str = "seeded"
    """Rule of the few-shot draws, see `few_shot.draw_few_shot`."""
    skip_unreadable: bool = False
    """Whether unreadable images are left out instead of refusing the data set."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in place of the data set's."""
    prompts: tuple[str, ...] = ()
    """Templates in place of those of the data sets."""
    moved: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Specification of a data set -> that of its copy on this machine."""
    _open: dict[tuple[str, Half], Dataset] = field(default_factory=dict, repr=False, compare=False)
    _drawn: dict[tuple[str, int, int, Half], FewShot] = field(
        default_factory=dict, repr=False, compare=False
    )

    def dataset(self, spec: str, half: Half = "all") -> Dataset:
        """Return the data set, or its base or new classes; raises `DataError`."""
        key = (spec, half)
        if key not in self._open:
            whole = self._described(spec)
            self._open[key] = whole if half == "all" else half_of(whole, half)
        return self._open[key]

    def _described(self, spec: str) -> Dataset:
        dataset = open_dataset(self.moved.get(spec, spec), self.root, self.generate_split)
        is_shift = any(spec in shifts for shifts in SHIFTS.values())
        return dataset if is_shift else described(dataset, self.class_names, self.prompts)

    def draw(self, spec: str, shots: int, seed: int, half: Half = "all") -> FewShot:
        """Return one few-shot set; raises `DataError`.

        As in the field, the base classes' set is the whole data set's, restricted to them.
        """
        key = (spec, shots, seed, half)
        if key not in self._drawn:
            drawn = draw_few_shot(self.dataset(spec), shots, seed, self.draws, self.skip_unreadable)
            self._drawn[key] = drawn.half(half)
        return self._drawn[key]

    def caveats(self, spec: str, shots: int, seed: int) -> tuple[str, ...]:
        """Return what a reader of figures from this draw should know; raises `DataError`."""
        dataset, drawn = self.dataset(spec), self.draw(spec, shots, seed)
        joined = (
            f"{len(drawn.train.labels):,} labelled images of '{dataset.name}' are trained on, also "
            "those for validation: each is validated by a model that was trained without it.",
        )
        found = (*dataset.caveats, *size_caveat(dataset, drawn, shots))
        return found + (joined if self.draws == JOINED else ())

    def readable(self, split: Split) -> Split:
        """Return the split, without unreadable images if they are to be skipped."""
        return readable(split) if self.skip_unreadable else split
