"""Reading the field's published train, val and test lists (`split_zhou_*.json`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from trainables.data.base import DataError
from trainables.data.listing import holds_anything
from trainables.data.lists import REPORTS_PER_TRIAL, Lists, Row


def read_split_file(file: Path, images: Path, unpacked: Sequence[str] = ("",)) -> Lists:
    """The rows of a split file, in its order; `images` is the folder of the images.

    The images need not be there. Where something lies in one of the folders `unpacked` below it,
    but none of the listed images does, the file is another data set's. Raises `DataError`.
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"A split file must be readable JSON: '{file}' is not ({error}). Fetch it again."
        ) from None
    if not isinstance(plain, dict) or not all(
        isinstance(plain.get(part), list) for part in REPORTS_PER_TRIAL
    ):
        raise DataError(
            f"A split file is an object of three lists, train, val and test: '{file}' is not. "
            "Fetch it again."
        )
    lists: Lists = {
        part: [_row(entry, f"'{file}', {part}[{i}]") for i, entry in enumerate(plain[part])]
        for part in REPORTS_PER_TRIAL
    }
    rows = [row for part in REPORTS_PER_TRIAL for row in lists[part]]
    there = any(holds_anything(images / folder) for folder in unpacked)
    if rows and there and not any(os.path.exists(images / row.path) for row in rows):
        raise DataError(
            f"A split file lists its data set's images: none of the {len(rows)} in '{file}' lies "
            f"in '{images}'. It is the split file of another data set, or the images have not "
            "been unpacked: replace the one, or unpack the others."
        )
    return lists


def _row(entry: Any, place: str) -> Row:
    match entry:
        case [str(path), int(label), str(name)] if not isinstance(label, bool):
            pass
        case _:
            raise DataError(
                f"A row of a split file is [path, label, class name]: {place} is "
                f"{json.dumps(entry)[:100]}. Fetch the file again."
            )
    if not path or not name:
        raise DataError(
            f"A row of a split file has a path and a class name: {place} is {json.dumps(entry)}. "
            "Fetch the file again."
        )
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise DataError(
            f"Paths of a split file lie inside the data set's folder: {place} is '{path}'. "
            "Make it relative to the folder of the images."
        )
    return Row(path, label, name)
