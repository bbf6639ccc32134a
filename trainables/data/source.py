"""Where a task's data comes from: which tree, which split, which rule of drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainables.data.base import Dataset, Split
from trainables.data.class_subsets import Half, half_of
from trainables.data.few_shot import FewShot, draw_few_shot, readable
from trainables.data.registry import open_dataset


@dataclass(frozen=True)
class DataSource:
    """How data sets are opened and few-shot sets drawn: each only once."""

    root: str = ""
    """Folder that holds the field's data sets; unused by those that need none."""
    made_split: bool = False
    """Make the split of a data set whose split file is missing, by the published rule."""
    draws: str = "seeded"
    """Rule of the few-shot draws, see `few_shot.draw_few_shot`."""
    skip_unreadable: bool = False
    """Leave unreadable images out, instead of refusing the data set."""
    moved: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where a file that a data set is has been copied to on this machine: specification there by
    specification as asked for."""
    _open: dict[tuple[str, Half], Dataset] = field(default_factory=dict, repr=False, compare=False)
    _drawn: dict[tuple[str, int, int, Half], FewShot] = field(
        default_factory=dict, repr=False, compare=False
    )

    def dataset(self, spec: str, half: Half = "all") -> Dataset:
        """The data set, or its base or new classes; raises `DataError`."""
        key = (spec, half)
        if key not in self._open:
            whole = open_dataset(self.moved.get(spec, spec), self.root, self.made_split)
            self._open[key] = whole if half == "all" else half_of(whole, half)
        return self._open[key]

    def draw(self, spec: str, shots: int, seed: int, half: Half = "all") -> FewShot:
        """One few-shot set; raises `DataError`.

        The base classes' set is the whole data set's, restricted to them, as in the field.
        """
        key = (spec, shots, seed, half)
        if key not in self._drawn:
            drawn = draw_few_shot(self.dataset(spec), shots, seed, self.draws)
            drawn = FewShot(self.readable(drawn.train), self.readable(drawn.val))
            self._drawn[key] = drawn.half(half)
        return self._drawn[key]

    def readable(self, split: Split) -> Split:
        """The split, without the images that cannot be read if they are to be skipped."""
        return readable(split) if self.skip_unreadable else split
