"""The field's data sets with lists of their own: all of the eleven but ImageNet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainables.data.base import DataError
from trainables.data.benchmarks.coop_layouts import LAYOUTS, counts_notice, find_folder
from trainables.data.benchmarks.coop_official import OFFICIAL
from trainables.data.benchmarks.coop_splits import read_split_file
from trainables.data.lists import ListedDataset, checked


def open_coop(name: str, root: Path, made_split: bool = False) -> ListedDataset:
    """The data set `name` (a key of `OFFICIAL`) below `root`; its images need not be there yet.

    With `made_split`, a missing split file is replaced by a split made here by the published rule.
    Raises `DataError`.
    """
    layout = LAYOUTS[name]
    folder = find_folder(name, root)
    images, file = folder / layout.images, folder / layout.split_file
    notices: tuple[str, ...] = ()
    if not layout.split_file:
        lists, source = OFFICIAL[name](folder), f"'{folder}'"
    elif file.exists():
        lists, source = read_split_file(file, images, layout.unpacked), f"'{file}'"
    elif made_split:
        lists, source = OFFICIAL[name](folder), f"the split made of '{folder}'"
        notices = (
            f"The split of '{name}' was made here by the published rule, as '{file.name}' is "
            "missing: its figures are not comparable with published ones.",
        )
    else:
        raise DataError(
            f"The split of '{name}' is a published list: '{file}' is missing. Put it there, or "
            "let one be made by the published rule with --generate-split."
        )
    dataset = ListedDataset(name, images, checked(lists, source), lists)
    return replace(dataset, notices=notices + counts_notice(name, dataset.counts()))
