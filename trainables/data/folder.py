"""The user's images: `folder:PATH`, class sub-folders, a table of paths and labels or a split file.

`PATH#fold2of5` is the second of five folds for cross-validation: every fold has other test images,
and together they are all images.

Four forms: folders `train`, `val` and `test` (see `SPELLINGS`), each with class sub-folders, of
which `val` and `test` may be absent; one folder of class sub-folders; a `.csv` or
`.parquet` table with the columns `path` (absolute, or relative to its folder) and `label`, and
optionally `split` (train, val or test; generated if absent) and `prompt` (a text for the class;
several different ones of a class are an ensemble); or a `.json` like CoOp's split files. Splits
that are absent are taken from the training images, by the rules of `lists`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainables.core.files import kind_of
from trainables.core.text import unprintable
from trainables.data.base import DataError
from trainables.data.benchmarks.coop import read_split_file
from trainables.data.image_files import folders_in, images_in, skipped_caveat
from trainables.data.lists import (
    SPLITS,
    AnySplit,
    Fold,
    ListedDataset,
    Lists,
    Row,
    checked,
    fold_by_hash,
    split_by_hash,
    split_off_by_hash,
)

COLUMNS = ("path", "label", "split", "prompt")
"""The columns of a table that are read."""
SPELLINGS: dict[AnySplit, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Split -> the names of its folder, in any case."""
MOST_FOLDS = 100
"""Largest number of folds."""
_FOLD = re.compile(r"#fold(\d+)of(\d+)$")
_TAKEN = {"val": "20 % for validation", "test": "30 % for the test"}
"""Share of the training images that a missing split takes."""


def folds_of(spec: str, total: int) -> list[str]:
    """Return the specifications of all folds of a `folder:` data set, at most `MOST_FOLDS`."""
    numbers = range(1, min(total, MOST_FOLDS) + 1)
    return [_with_fold(spec, Fold(number, total)) for number in numbers]


def _with_fold(spec: str, fold: Fold) -> str:
    return f"{spec}#fold{fold.number}of{fold.total}"


def open_folder(path: Path) -> ListedDataset:
    """Open the data set at `path`: every image is listed, none is opened. Raises `DataError`."""
    path, fold = _parse_fold(Path(os.path.abspath(os.path.expanduser(path))))
    if path.is_dir():
        return _open_folders(path, fold)
    if path.is_file() and path.suffix.lower() in (".csv", ".parquet"):
        return _open_table(path, fold)
    if fold:
        raise _has_splits(path)
    if path.is_file() and path.suffix.lower() == ".json":
        return _open_split_file(path)
    raise DataError(
        f"folder: needs a folder of images, a .csv, a .parquet or a .json: '{path}' is "
        f"{kind_of(path)}. Give the path of one."
    )


def _parse_fold(path: Path) -> tuple[Path, Fold | None]:
    """The path without its fold, and the fold."""
    if path.exists() or not (found := _FOLD.search(path.name)):
        return path, None
    return path.with_name(path.name[: found.start()]), Fold(int(found[1]), int(found[2]))


def _has_splits(path: Path) -> DataError:
    return DataError(
        "--test-folds needs images without a given split (one folder of class sub-folders, or a "
        f"table without the column split): '{path}' has one. Omit the option, or merge its splits."
    )


def _dataset(
    path: Path,
    root: Path,
    lists: Lists,
    rule: str = "",
    prompts: dict[str, list[str]] | None = None,
    skipped: Sequence[str] = (),
    fold: Fold | None = None,
) -> ListedDataset:
    """`rule` says how missing splits were made."""
    names = checked(lists, f"'{path}'")
    spec = f"folder:{path}"
    return ListedDataset(
        _with_fold(spec, fold) if fold else spec,
        root,
        names,
        lists,
        ((rule,) if rule else ()) + skipped_caveat(skipped),
        tuple(tuple(prompts[name]) for name in names) if prompts else (),
        identity="folder",
    )


# --- folders -------------------------------------------------------------------------------------


def _open_folders(path: Path, fold: Fold | None) -> ListedDataset:
    found, skipped = folders_in(path), list[str]()
    parts = _split_folders(path, found)
    if parts and fold:
        raise _has_splits(path)
    labels = {
        name: label
        for label, name in enumerate(folders_in(path / parts["train"]) if parts else found)
    }
    if len(labels) < 2:
        raise DataError(
            f"A folder of images must have sub-folders for at least 2 classes: "
            f"'{path / parts.get('train', '')}' has {len(labels)}. Sort the images into class "
            "sub-folders, or give a table."
        )
    rows = {
        part: _class_rows(path, f"{name}/", labels, skipped, parts["train"])
        for part, name in parts.items()
    } or {"train": _class_rows(path, "", labels, skipped)}
    lists, rule = _complete(rows, f"'{path}'", bool(parts), fold)
    return _dataset(path, path, lists, rule, skipped=skipped, fold=fold)


def _split_folders(path: Path, found: Sequence[str]) -> dict[AnySplit, str]:
    """Split -> the name of its folder; empty if the folders are classes, one of which may be named
    `train`. Raises `DataError`."""
    parts: dict[AnySplit, str] = {}
    for name in found:
        split = next((s for s, names in SPELLINGS.items() if name.lower() in names), None)
        if split in parts:
            raise DataError(
                f"A split must have one folder: '{path}' has '{parts[split]}' and '{name}' for "
                f"{split}. Merge or rename one."
            )
        if split:
            parts[split] = name
    if parts and "train" not in parts and len(parts) == len(found):
        raise DataError(
            f"A split folder must have a folder train: '{path}' has only "
            f"{' and '.join(parts.values())}. Add it, or give one folder of class sub-folders, "
            "whose split is generated."
        )
    return parts if "train" in parts and (len(parts) > 1 or len(found) == 1) else {}


def _complete(
    rows: Lists, source: str, folders: bool, fold: Fold | None = None
) -> tuple[Lists, str]:
    """Take the splits that are missing from the training images; return the rule, if any.

    `folders`: whether `source` has a folder per split.
    """
    if fold:
        return fold_by_hash(rows["train"], source, fold), (
            f"Fold {fold.number} of {fold.total} of {source}: the test images of the folds are "
            "disjoint and together all images, by the SHA-256 of their paths."
        )
    missing = [part for part in SPLITS if part not in rows]
    if not missing:
        return rows, ""
    if missing == ["val", "test"]:
        lists = split_by_hash(rows["train"], source)
    else:
        (part,) = missing
        train, other = split_off_by_hash(rows["train"], source, part)
        lists = {**rows, "train": train, part: other}
    rule = "the SHA-256 of the images' paths"
    if not folders:
        rule = f"{rule}: 50 % train, 20 % val, 30 % test of each class"
        return lists, f"The split of {source} was generated from {rule}."
    shares = " and ".join(_TAKEN[part] for part in missing)
    return lists, (
        f"{source} has no {' and no '.join(missing)} folder: chosen by {rule}, {shares} are taken "
        "from the training images of each class."
    )


def _class_rows(
    path: Path, prefix: str, labels: dict[str, int], skipped: list[str], train: str = ""
) -> list[Row]:
    """The images of every class folder in `path/prefix`, sorted; see `images_in` for `skipped`."""
    rows: list[Row] = []
    names = folders_in(path / prefix)
    if not names:
        raise DataError(
            f"A split folder must have class sub-folders: '{path / prefix}' has none. Sort its "
            "images into them, or remove the folder to have some of the training images used."
        )
    for name in names:
        folder = path / prefix / name
        if name not in labels:
            raise DataError(
                f"Every class needs training images: '{folder}' is a class that is absent from "
                f"'{path / train}'. Add it there, or remove it here."
            )
        inner = folders_in(folder)
        if inner:
            raise DataError(
                f"Images must be directly in their class folder: '{folder / inner[0]}' is a folder "
                "in one. Move its images up, or give a table."
            )
        images = images_in(folder, skipped)
        rows += [Row(f"{prefix}{name}/{image}", labels[name], name) for image in images]
    return rows


# --- split files ---------------------------------------------------------------------------------


def _open_split_file(path: Path) -> ListedDataset:
    """Its images are below its own folder, or below the folder `images` beside it."""
    lists = read_split_file(path, path.parent, unpacked=())
    rows = [row for part in SPLITS for row in lists[part]]
    places = (path.parent, path.parent / "images")
    root = max(places, key=lambda place: any((place / row.path).is_file() for row in rows))
    return _dataset(path, root, lists)


# --- tables --------------------------------------------------------------------------------------


def _open_table(path: Path, fold: Fold | None) -> ListedDataset:
    columns = _read_columns(path)
    for need in ("path", "label"):
        if need not in columns:
            raise DataError(
                f"A table must have the columns path and label: '{path}' has no '{need}'. "
                "Rename a column, or add it."
            )
    images = [_text(value, "path", row, path) for row, value in enumerate(columns["path"], 1)]
    names = [_text(value, "label", row, path) for row, value in enumerate(columns["label"], 1)]
    if not images:
        raise DataError(f"A table must have a row per image: '{path}' has none. Add some.")
    labels = {name: label for label, name in enumerate(_in_order(names))}
    rows = [
        Row(_relative(image, path.parent), labels[name], name)
        for image, name in zip(images, names, strict=True)
    ]
    prompts = _prompts(columns["prompt"], names, path) if "prompt" in columns else None
    if "split" not in columns:
        _refuse_twice(rows, path)
        whole, rule = _complete({"train": rows}, f"'{path}'", False, fold)
        return _dataset(path, path.parent, whole, rule, prompts, fold=fold)
    if fold:
        raise _has_splits(path)
    lists: dict[AnySplit, list[Row]] = {part: [] for part in SPLITS}
    for number, (part, row) in enumerate(zip(columns["split"], rows, strict=True), 1):
        if part not in lists:
            raise DataError(
                f"A split must be train, val or test: row {number} of '{path}' has '{part}'. "
                "Correct it, or remove the column to have a split generated."
            )
        lists[part].append(row)
    _refuse_untrained(lists, path)
    return _dataset(path, path.parent, lists, prompts=prompts)


def _read_columns(path: Path) -> dict[str, list[Any]]:
    """Column -> values. All of a CSV are text, so that a label 007 keeps its zeros."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".parquet":
            file = parquet.ParquetFile(path)
            table = file.read([name for name in COLUMNS if name in file.schema_arrow.names])
        else:
            text = dict.fromkeys(COLUMNS, pa.string())
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=text))
        names = table.column_names
        return {n: table.column(names.index(n)).to_pylist() for n in COLUMNS if n in names}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"A table must be readable and have a header: '{path}' is not ({reason}). Write it "
            "again."
        ) from None


def _text(value: Any, column: str, row: int, path: Path) -> str:
    """A path (text) or a label (text or a whole number, whose digits are the class name)."""
    whole = column == "label" and isinstance(value, int) and not isinstance(value, bool)
    text = str(value) if whole or isinstance(value, str) else ""
    if not text.strip():
        rule = "text or a whole number" if column == "label" else "text"
        raise DataError(
            f"A {column} must be {rule}, not empty: row {row} of '{path}' has {value!r}. Correct "
            "it."
        )
    return text


def _in_order(names: Sequence[str]) -> list[str]:
    """Class names, sorted; numerically if all are numbers."""
    unique = sorted(set(names))
    if all(name.isdecimal() for name in unique):
        unique.sort(key=int)
    return unique


def _relative(image: str, folder: Path) -> str:
    """Make an absolute path inside the table's folder relative: the data may then move."""
    image = os.path.normpath(image)
    inside = os.path.isabs(image) and Path(image).is_relative_to(folder)
    return os.path.relpath(image, folder) if inside else image


def _refuse_twice(rows: Sequence[Row], path: Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.path in seen:
            raise DataError(
                f"An image must have one row: '{row.path}' has more in '{path}'. Keep one of them."
            )
        seen.add(row.path)


def _refuse_untrained(lists: Lists, path: Path) -> None:
    trained = {row.label for row in lists["train"]}
    for row in (*lists["val"], *lists["test"]):
        if row.label not in trained:
            raise DataError(
                f"Every class needs training images: class '{row.class_name}' of '{path}' is "
                "absent from train. Add some, or remove the class."
            )


def _prompts(column: Sequence[Any], names: Sequence[str], path: Path) -> dict[str, list[str]]:
    """Class name -> its different texts in order of appearance; empty if no class has any."""
    texts: dict[str, list[str]] = {name: [] for name in names}
    for row, (text, name) in enumerate(zip(column, names, strict=True), 1):
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"A prompt must be text: row {row} of '{path}' has {text!r}. Correct it."
            )
        if text and (fault := unprintable(text)):
            raise DataError(
                f"A prompt must be printable text: row {row} of '{path}' contains {fault}. Correct "
                "it."
            )
        if text and text.strip() and text not in texts[name]:
            texts[name].append(text)
    if not any(texts.values()):
        return {}
    for name, found in texts.items():
        if not found:
            raise DataError(
                f"Every class or no class must have a prompt: class '{name}' of '{path}' has none. "
                "Add one, or remove the column."
            )
    return texts
