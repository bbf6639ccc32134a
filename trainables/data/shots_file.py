"""Published few-shot draws: lists of images, matched to a data set's pools.

A file is JSON, `{"train": ROWS, "val": ROWS}`. ROWS is a list, or an object with the list under
`data`; a row is `{"impath": PATH, "label": LABEL, "classname": NAME}` or `[PATH, LABEL, NAME]`. An
image is recognised by the end of its path.

Notation: m listed images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainables.core.files import expanded, kind_of
from trainables.core.text import unprintable
from trainables.data.base import DataError, Dataset, Split, SplitName
from trainables.data.image_files import read_list

_KEYS = ("impath", "label", "classname")
_BRACES = re.compile(r"\{\{|\}\}|\{(dataset|shots|seed)\}|[{}]")
"""What is replaced in a pattern; the last alternative is an error."""


@dataclass(frozen=True)
class _Row:
    """One listed image."""

    path: str
    label: int
    name: str


def shots_file(pattern: str, dataset: str, shots: int, seed: int) -> Path:
    """Return the file that `pattern` names; it may contain {dataset}, {shots} and {seed}, and
    doubled braces are literal ones. Format specifications and conversions are never evaluated.
    Raises `DataError` for anything else in braces.
    """
    values = {"dataset": dataset, "shots": str(shots), "seed": str(seed)}

    def replaced(found: re.Match[str]) -> str:
        if found[1]:
            return values[found[1]]
        if len(found[0]) == 2:
            return found[0][0]
        raise DataError(
            f"--shots-file may contain {{dataset}}, {{shots}} and {{seed}}, got '{pattern}': write "
            "these without a format, and double other braces."
        )

    path = _BRACES.sub(replaced, pattern)
    if fault := unprintable(path):
        raise DataError(
            f"--shots-file must be printable text, '{pattern}' contains {fault}: rename the file."
        )
    return expanded(path)


def shots_file_problems(
    pattern: str, datasets: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> list[str]:
    """Return the errors of `pattern` for all these draws, before any file is read."""
    chosen = {"dataset": datasets, "shots": shots, "seed": seeds}
    try:
        wanted = [
            shots_file(pattern, d, k, seed) for d in datasets for k in shots for seed in seeds
        ]
    except DataError as error:
        return [str(error)]
    found = [
        f"--shots-file must contain {{{key}}} if there are several, got '{pattern}' for "
        f"{key} {', '.join(map(str, values))}: name a file for each."
        for key, values in chosen.items()
        if len(set(values)) > 1 and f"{{{key}}}" not in pattern
    ]
    missing = [path for path in dict.fromkeys(wanted) if kind_of(path) != "a file"]
    if missing:
        more = f", as are {len(missing) - 1} more" if len(missing) > 1 else ""
        found.append(
            f"--shots-file must name a file for every draw, '{missing[0]}' is "
            f"{kind_of(missing[0])}{more}: check the pattern, or choose the shots and seeds that "
            "were published."
        )
    return found


def listed_shots(
    path: Path, dataset: Dataset, pools: Mapping[SplitName, Split], shots: Mapping[SplitName, int]
) -> dict[SplitName, Tensor]:
    """Return the positions of the listed images in each of the data set's `pools`, int64 [m].

    Both may be one pool. `shots`: images per class of each; a smaller class has all of its images.
    Raises `DataError` if the list belongs to another data set, split or number of shots.
    """
    different = {id(pool): pool.images for pool in pools.values()}
    positions = {
        key: {images.name(position): position for position in range(len(images))}
        for key, images in different.items()
    }
    names = {split: positions[id(pool)] for split, pool in pools.items()}
    found = {}
    for split, rows in _read(path).items():
        index = _match(path, dataset, pools[split].labels, split, rows, names)
        _check_counts(path, dataset, pools[split].labels, split, index, shots[split])
        found[split] = index
    train, val = ({pools[s].images.name(i) for i in index.tolist()} for s, index in found.items())
    if twice := train & val:
        raise DataError(
            f"An image must be drawn once, got '{min(twice)}' among the train and the val rows of "
            f"'{path}': remove one."
        )
    return found


def _match(
    path: Path,
    dataset: Dataset,
    labels: Tensor,
    split: SplitName,
    rows: Sequence[_Row],
    names: Mapping[SplitName, Mapping[str, int]],
) -> Tensor:
    found: dict[int, str] = {}
    for row in rows:
        position = _find(row.path, names[split])
        if position is None:
            other = [s for s, pool in names.items() if _find(row.path, pool) is not None]
            where = f"it is in {other[0]}" if other else "it is in neither split"
            raise DataError(
                f"Listed {split} images must be in the {split} split of '{dataset.name}', got "
                f"'{row.path}' in '{path}' ({where}): this is a list of another data set or split."
            )
        label = int(labels[position])
        name = dataset.class_names[label]
        if (label, name) != (row.label, row.name):
            raise DataError(
                f"Listed images must have the label and class name of '{dataset.name}', got "
                f"{row.label} '{row.name}' in place of {label} '{name}' for '{row.path}' in "
                f"'{path}': this is a list of another version of the data set."
            )
        if position in found:
            raise DataError(
                f"An image must be drawn once, got '{found[position]}' and '{row.path}' among the "
                f"{split} rows of '{path}': remove one."
            )
        found[position] = row.path
    return torch.tensor(list(found), dtype=torch.int64)


def _check_counts(
    path: Path, dataset: Dataset, labels: Tensor, split: SplitName, index: Tensor, shots: int
) -> None:
    count = len(dataset.class_names)
    listed = labels[index].bincount(minlength=count)
    wanted = labels.bincount(minlength=count).clamp(max=shots)
    wrong = (listed != wanted).nonzero().flatten().tolist()
    if wrong:
        label = wrong[0]
        raise DataError(
            f"A list must have {int(wanted[label])} {split} images of class {label} "
            f"('{dataset.class_names[label]}'), got {int(listed[label])} in '{path}': take the "
            "list of this number of shots."
        )


def _find(path: str, pool: Mapping[str, int]) -> int | None:
    """Position of the image whose name is the longest end of `path`, in whole folders."""
    return next((pool[end] for end in _ends(path) if end in pool), None)


def _ends(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _read(path: Path) -> dict[SplitName, list[_Row]]:
    text = read_list(path, "A list of shots")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"A list of shots must be JSON, '{path}' cannot be read as such "
            f"({str(error)[:200]}): check --shots-file."
        ) from error
    return {"train": _rows(path, "train", content), "val": _rows(path, "val", content)}


def _rows(path: Path, split: str, content: object) -> list[_Row]:
    rows = content.get(split) if isinstance(content, dict) else None
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list):
        raise DataError(
            f"A list of shots must have rows under 'train' and 'val', '{path}' has none under "
            f"'{split}': check --shots-file."
        )
    return [_row(path, split, number, row) for number, row in enumerate(rows)]


def _row(path: Path, split: str, number: int, row: object) -> _Row:
    match [row.get(key) for key in _KEYS] if isinstance(row, dict) else row:
        case [str(image), int(label), str(name)] if not isinstance(label, bool):
            return _Row(image, label, name)
        case _:
            raise DataError(
                f"A listed image must be {{impath, label, classname}} or [path, label, name], got "
                f"{str(row)[:100]} as {split} row {number} of '{path}': check --shots-file."
            )
