"""A user's own folders and tables: what is read, and one clear error for every mistake."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.trainables.data.trees import looks_like, paint, snapshot
from trainables.data.base import DataError, Split
from trainables.data.lists import Counts, ListedDataset
from trainables.data.registry import open_dataset
from trainables.data.sealed import read_test_split

CLASSES = ("Zebra", "ant", "bear cub")


def opened(path: Path) -> ListedDataset:
    dataset = open_dataset(f"folder:{path}")
    assert isinstance(dataset, ListedDataset)
    return dataset


def parts(path: Path) -> dict[str, Split]:
    dataset = opened(path)
    test = read_test_split(dataset, lambda: None)
    return {"train": dataset.split("train"), "val": dataset.split("val"), "test": test}


def rows(split: Split) -> list[tuple[str, int]]:
    return [(split.images.name(i), label) for i, label in enumerate(split.labels.tolist())]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(f"folder:{path}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders -------------------------------------------------------------------------------------


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                paint(tmp_path / "own" / part / name / f"{i}.JPG", label, i)
    return tmp_path / "own"


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    for label, name in enumerate(CLASSES):
        for i in range(10 - 3 * label):
            paint(tmp_path / "own" / name / f"{i}.jpeg", label, i)
    return tmp_path / "own"


def test_only_what_programs_leave_behind_is_no_class(flat_folder: Path) -> None:
    for name in ("@handle", "__init", "@eaDir", "__MACOSX", ".cache"):
        shutil.copytree(flat_folder / CLASSES[0], flat_folder / name)
    assert opened(flat_folder).class_names == tuple(sorted((*CLASSES, "@handle", "__init")))


def test_a_folder_that_is_split(split_folder: Path) -> None:
    (split_folder / "train" / "ant" / "notes.txt").write_text("no image")
    (split_folder / "train" / "ant" / ".hidden.jpg").write_text("no image")
    (split_folder / "README.md").write_text("no folder")
    (split_folder / "train" / "ant" / "Thumbs.db").write_text("no image")
    before = snapshot(split_folder)
    dataset = opened(split_folder)
    assert dataset.name == f"folder:{split_folder}"
    assert dataset.class_names == CLASSES
    assert dataset.flip
    (caveat,) = dataset.caveats
    assert "1 file is not used, because Pillow reads no .txt (1)" in caveat
    assert "train/ant/notes.txt" in caveat
    assert dataset.counts() == Counts(3, 9, 6, 3)
    for part, split in parts(split_folder).items():
        for i, (name, label) in enumerate(rows(split)):
            assert name.startswith(f"{part}/{CLASSES[label]}/")
            assert looks_like(label, split.images.read(i))
    texts = dataset.prompts("single").texts()
    assert texts[2] == ["a photo of a bear cub."]
    assert snapshot(split_folder) == before


def test_a_folder_of_classes_is_split(flat_folder: Path) -> None:
    dataset = opened(flat_folder)
    assert dataset.class_names == CLASSES
    assert "50 % train, 20 % val, 30 % test" in dataset.caveats[0]
    found = parts(flat_folder)
    counts = {part: Counter(split.labels.tolist()) for part, split in found.items()}
    assert [[counts[part][label] for part in found] for label in range(3)] == [
        [5, 2, 3],
        [4, 1, 2],
        [2, 1, 1],
    ]
    names = [row[0] for split in found.values() for row in rows(split)]
    assert len(set(names)) == len(names) == 21
    again = parts(flat_folder)
    assert [s.fingerprint for s in found.values()] == [s.fingerprint for s in again.values()]


def test_the_fingerprint_does_not_know_where_a_folder_lies(flat_folder: Path) -> None:
    before = [split.fingerprint for split in parts(flat_folder).values()]
    moved = flat_folder.rename(flat_folder.parent / "moved")
    assert [split.fingerprint for split in parts(moved).values()] == before
    next((moved / "ant").iterdir()).unlink()
    assert [split.fingerprint for split in parts(moved).values()] != before


def test_a_relative_path_and_a_home(flat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flat_folder.parent)
    assert opened(Path("own")).name == f"folder:{flat_folder}"
    monkeypatch.setenv("HOME", str(flat_folder.parent))
    assert opened(Path("~/own")).name == f"folder:{flat_folder}"


def test_folders_that_are_linked(flat_folder: Path, tmp_path: Path) -> None:
    (flat_folder / "ant").rename(tmp_path / "elsewhere")
    (flat_folder / "ant").symlink_to(tmp_path / "elsewhere")
    assert opened(flat_folder).class_names == CLASSES


@pytest.mark.parametrize("path", [b"ant/caf\xe9.jpg", b"caf\xe9/1.jpg"], ids=["file", "folder"])
def test_a_name_that_is_not_utf_8(path: bytes, flat_folder: Path) -> None:
    paint(flat_folder / os.fsdecode(path), 0)
    message = refused(flat_folder)
    assert "caf\\xe9" in message
    assert message.endswith("Rename it.")
    message.encode()


@pytest.mark.timeout(20)
def test_only_regular_files_are_images(flat_folder: Path) -> None:
    before = opened(flat_folder).counts()
    os.mkfifo(flat_folder / "ant" / "pipe.jpg")
    (flat_folder / "ant" / "device.png").symlink_to("/dev/zero")
    for name in ("a.heic", "b.HEIC", "c.svg"):
        (flat_folder / CLASSES[1] / name).write_bytes(b"")
    dataset = opened(flat_folder)
    assert dataset.counts() == before
    caveat = dataset.caveats[-1]
    for words in ("5 files are not used", ".heic (2)", ".svg (1)", "named pipe (1)", "device (1)"):
        assert words in caveat


def test_every_format_of_pillow_is_listed(flat_folder: Path) -> None:
    before = opened(flat_folder).counts()
    for number, suffix in enumerate((".avif", ".jfif", ".jp2", ".WebP", ".tga")):
        paint(flat_folder / "ant" / f"n{number}.png", 0)
        (flat_folder / "ant" / f"n{number}.png").rename(flat_folder / "ant" / f"n{number}{suffix}")
    after = opened(flat_folder).counts()
    assert after.train + after.val + after.test == before.train + before.val + before.test + 5


def test_a_link_to_itself_is_named(flat_folder: Path) -> None:
    for link in (flat_folder / "ant" / "7.jpg", flat_folder / "ant" / "more", flat_folder / "loop"):
        link.symlink_to(link)
        message = refused(flat_folder)
        assert f"'{link}' is a symbolic link that leads to itself" in message
        link.unlink()
    loop = flat_folder.parent / "loop"
    loop.symlink_to(loop)
    for path in (loop, loop / "below"):
        assert f"'{path}' is a symbolic link that leads to itself" in refused(path)


@pytest.mark.parametrize("name", ["a\x1b[31mred", "two\nlines", "\u202eturned", "\u2028"])
def test_class_names_must_be_printable(name: str, flat_folder: Path) -> None:
    (flat_folder / "ant").rename(flat_folder / name)
    message = refused(flat_folder)
    assert f"U+{ord(next(c for c in name if not c.isprintable())):04X}" in message
    assert message.isprintable()
    table = flat_folder.parent / "own.csv"
    rows = (f'{label}{i}.jpg,"{n}"\n' for label, n in enumerate((name, "owl")) for i in range(3))
    table.write_text("path,label\n" + "".join(rows), "utf-8")
    assert "must be" in refused(table)


@pytest.mark.parametrize("path", ["own\0", "own\udcff", "own\x1b[2J", "~no-such-user/x"])
def test_a_path_that_no_folder_has(path: str) -> None:
    refused(Path(path)).encode()


def test_a_path_that_is_nothing(tmp_path: Path) -> None:
    assert f"'{tmp_path / 'no'}' is missing" in refused(tmp_path / "no")
    (tmp_path / "a.txt").write_text("")
    assert "is a file" in refused(tmp_path / "a.txt")
    with pytest.raises(DataError, match="A path must follow 'folder:'"):
        open_dataset("folder:")


def test_too_few_classes(tmp_path: Path) -> None:
    assert "has 0" in refused(tmp_path)
    for i in range(4):
        paint(tmp_path / "own" / "ant" / f"{i}.png", 0)
    assert "at least 2 classes" in refused(tmp_path / "own")


def test_too_few_images(flat_folder: Path) -> None:
    for i in range(2):
        paint(flat_folder / "cow" / f"{i}.jpg", 3)
    assert "class 'cow'" in refused(flat_folder)
    assert "has 2" in refused(flat_folder)


def test_an_empty_class_folder(flat_folder: Path) -> None:
    (flat_folder / "cow").mkdir()
    (flat_folder / "cow" / "list.txt").write_text("")
    assert f"'{flat_folder / 'cow'}' has none" in refused(flat_folder)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_empty_class_folder_of_a_part(part: str, split_folder: Path) -> None:
    for image in (split_folder / part / "ant").iterdir():
        image.unlink()
    assert f"'{split_folder / part / 'ant'}' has none" in refused(split_folder)


def test_nested_class_folders(flat_folder: Path) -> None:
    paint(flat_folder / "ant" / "red" / "1.jpg", 0)
    assert f"'{flat_folder / 'ant' / 'red'}' is a folder in one" in refused(flat_folder)


@pytest.fixture
def larger_folder(tmp_path: Path) -> Path:
    for part, count in (("train", 10), ("val", 2), ("test", 1)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                paint(tmp_path / "own" / part / name / f"{i}.JPG", label, i)
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("missing", "counts", "rule"),
    [
        (("val",), (8, 2, 1), "no val folder"),
        (("test",), (7, 2, 3), "no test folder"),
        (("val", "test"), (5, 2, 3), "no val and no test folder"),
    ],
)
def test_splits_that_are_missing_are_taken_from_the_training_images(
    missing: Sequence[str], counts: Sequence[int], rule: str, larger_folder: Path
) -> None:
    for part in missing:
        (larger_folder / part).rename(larger_folder.parent / part)
    dataset = opened(larger_folder)
    assert dataset.counts() == Counts(3, *(3 * count for count in counts))
    (caveat,) = dataset.caveats
    assert rule in caveat
    assert "training images of each class" in caveat
    found = {part: rows(split) for part, split in parts(larger_folder).items()}
    for part in missing:
        assert all(name.startswith("train/") for name, _ in found[part])
    assert {label for _, label in found["test"]} == {0, 1, 2}
    if "test" not in missing:
        assert all(name.startswith("test/") for name, _ in found["test"])
    every = [name for part in found.values() for name, _ in part]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "valid", "TEST"), ("training", "Validation", "testing"), ("train", "dev", "test")],
)
def test_usual_spellings_of_the_splits(train: str, val: str, test: str, split_folder: Path) -> None:
    for old, new in (("train", train), ("val", val), ("test", test)):
        (split_folder / old).rename(split_folder / "moving")
        (split_folder / "moving").rename(split_folder / new)
    dataset = opened(split_folder)
    assert dataset.counts() == Counts(3, 9, 6, 3)
    assert dataset.caveats == ()


def test_two_folders_for_one_split(split_folder: Path) -> None:
    paint(split_folder / "valid" / "ant" / "1.jpg", 0)
    assert "has 'val' and 'valid' for val" in refused(split_folder)


def test_a_split_without_training_images(split_folder: Path) -> None:
    (split_folder / "train").rename(split_folder.parent / "away")
    assert "must have a folder train" in refused(split_folder)


def test_a_test_folder_without_labels(split_folder: Path) -> None:
    for name in CLASSES:
        for image in (split_folder / "test" / name).iterdir():
            image.rename(split_folder / "test" / f"{name}.jpg")
        (split_folder / "test" / name).rmdir()
    assert f"'{split_folder / 'test'}' has none" in refused(split_folder)


def test_a_class_named_train(flat_folder: Path) -> None:
    (flat_folder / "ant").rename(flat_folder / "train")
    assert opened(flat_folder).class_names == ("Zebra", "bear cub", "train")


def test_a_class_without_training_images(split_folder: Path) -> None:
    paint(split_folder / "test" / "cow" / "1.jpg", 0)
    assert "absent from" in refused(split_folder)
    assert "cow" in refused(split_folder)


def test_a_class_without_validation_images(split_folder: Path) -> None:
    (split_folder / "val" / "ant").rename(split_folder.parent / "away")
    assert "class 'ant'" in refused(split_folder)
    assert "absent from val" in refused(split_folder)


# --- split files ---------------------------------------------------------------------------------


def split_file_of(folder: Path, images: str = "") -> Path:
    """Three training, two validation and one test image of each class."""
    lists: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(CLASSES):
        for i, part in enumerate(["train"] * 3 + ["val"] * 2 + ["test"]):
            paint(folder / images / name / f"{i}.jpg", label, i)
            lists[part].append([f"{name}/{i}.jpg", label, name])
    file = folder / "split.json"
    file.write_text(json.dumps(lists))
    return file


@pytest.mark.parametrize("images", ["", "images"])
def test_a_split_file(images: str, tmp_path: Path) -> None:
    file = split_file_of(tmp_path, images)
    dataset = opened(file)
    assert (dataset.name, dataset.class_names) == (f"folder:{file}", CLASSES)
    assert dataset.counts() == Counts(3, 9, 6, 3)
    assert dataset.caveats == ()
    assert dataset.missing() == []
    for split in parts(file).values():
        for i, (_, label) in enumerate(rows(split)):
            assert looks_like(label, split.images.read(i))


def test_a_split_file_without_its_images(tmp_path: Path) -> None:
    file = split_file_of(tmp_path)
    for name in CLASSES:
        (tmp_path / name).rename(tmp_path / f"no {name}")
    with pytest.raises(DataError, match="it is missing"):
        opened(file).split("train").images.content()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[", "must be readable JSON"),
        ("{}", "three lists, train, val and test"),
        ('{"train": [["/a.jpg", 0, "a"]], "val": [], "test": []}', "inside the data set's folder"),
        ('{"train": [["a.jpg", 0, "a"]], "val": [], "test": []}', "'val' of .* has none"),
    ],
)
def test_wrong_split_files(content: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(DataError, match=match):
        opened(tmp_path / "split.json")


# --- tables --------------------------------------------------------------------------------------

Table = dict[str, Sequence[Any]]


def write(file: Path, table: Table) -> Path:
    if file.suffix == ".parquet":
        parquet.write_table(pa.table(dict(table)), file)
    else:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(table)
            writer.writerows(zip(*table.values(), strict=True))
    return file


def table_of(folder: Path, split: bool = True) -> Table:
    """Images on disk: 4 train, 2 val and 1 test of each of two classes."""
    parts = ["train"] * 4 + ["val"] * 2 + ["test"]
    paths, labels = [], []
    for label, name in enumerate(("cat", "dog")):
        for i in range(7):
            paint(folder / "images" / f"{name}{i}.jpg", label, i)
            paths.append(f"images/{name}{i}.jpg")
            labels.append(name)
    return {"path": paths, "label": labels} | ({"split": parts * 2} if split else {})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_with_a_split(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"own{suffix}", table_of(tmp_path))
    dataset = opened(file)
    assert dataset.name == f"folder:{file}"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.counts() == Counts(2, 8, 4, 2)
    assert dataset.caveats == ()
    for split in parts(file).values():
        for i, (name, label) in enumerate(rows(split)):
            assert name.startswith(f"images/{dataset.class_names[label]}")
            assert looks_like(label, split.images.read(i))
    assert rows(dataset.split("train"))[0] == ("images/cat0.jpg", 0)  # in the table's order


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_a_split_is_split(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"own{suffix}", table_of(tmp_path, split=False))
    assert opened(file).counts() == Counts(2, 8, 2, 4)
    assert "was generated" in opened(file).caveats[0]


def test_a_table_and_the_same_table_in_parquet_have_one_fingerprint(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    first = parts(write(tmp_path / "a.csv", table))
    second = parts(write(tmp_path / "b.parquet", table))
    assert [s.fingerprint for s in first.values()] == [s.fingerprint for s in second.values()]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_whole_numbers_are_class_names_in_their_order(suffix: str, tmp_path: Path) -> None:
    table = table_of(tmp_path)
    numbers = [10 if name == "cat" else 9 for name in table["label"]]
    assert opened(write(tmp_path / f"a{suffix}", table | {"label": numbers})).class_names == (
        "9",
        "10",
    )


def test_a_csv_keeps_leading_zeros(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    names = ["007" if name == "cat" else "7" for name in table["label"]]
    assert set(opened(write(tmp_path / "a.csv", table | {"label": names})).class_names) == {
        "007",
        "7",
    }


def test_a_dictionary_column_of_parquet(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    label = pa.array(table["label"]).dictionary_encode()
    assert opened(write(tmp_path / "a.parquet", table | {"label": label})).class_names == (
        "cat",
        "dog",
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_prompts_and_their_ensembles(suffix: str, tmp_path: Path) -> None:
    table = table_of(tmp_path)
    prompts = ["a cat, sitting", "a cat_asleep", *["a cat, sitting"] * 5, "one dog", *[""] * 6]
    dataset = opened(write(tmp_path / f"a{suffix}", table | {"prompt": prompts}))
    expected = [["a cat, sitting", "a cat_asleep"], ["one dog"]]
    assert dataset.prompts("paper").texts() == expected
    assert dataset.prompts("single").texts() == expected


def test_an_empty_prompt_column_is_none(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    dataset = opened(write(tmp_path / "a.csv", table | {"prompt": [""] * 14}))
    assert dataset.prompts("paper").texts() == [["a photo of a cat."], ["a photo of a dog."]]


def test_absolute_paths(tmp_path: Path) -> None:
    table = table_of(tmp_path / "images")
    inside = [str(tmp_path / "images" / path) for path in table["path"]]
    (tmp_path / "tables").mkdir()
    outside = opened(write(tmp_path / "tables" / "a.csv", table | {"path": inside}))
    assert looks_like(0, outside.split("train").images.read(0))
    above = opened(write(tmp_path / "a.csv", table | {"path": inside}))
    assert above.split("train").images.name(0) == "images/images/cat0.jpg"
    up = [f"../images/{path}" for path in table["path"]]
    assert looks_like(
        0,
        opened(write(tmp_path / "tables" / "b.csv", table | {"path": up}))
        .split("val")
        .images.read(0),
    )


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", table_of(tmp_path))
    (tmp_path / "images" / "cat2.jpg").unlink()
    images = opened(file).split("train").images
    for ask in (lambda: images.read(2), images.content):
        with pytest.raises(DataError, match=r"images/cat2\.jpg' is not \(it is missing\)"):
            ask()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"path": None}, "has no 'path'"),
        ({"label": None}, "has no 'label'"),
        ({"split": ["training"] * 14}, "row 1 of .* has 'training'"),
        ({"split": ["train"] * 13 + [""]}, "row 14 of .* has ''"),
        ({"split": ["train"] * 14}, "'val' of .* has none"),
        ({"split": (["train"] * 5 + ["val"] * 2) * 2}, "'test' of .* has none"),
        ({"label": ["cat"] * 14}, "at least 2 classes"),
        ({"label": ["cat"] * 6 + ["cow"] + ["dog"] * 7}, "class 'cow' .*absent from train"),
        ({"label": ["cat"] * 13 + [""]}, "not empty: row 14"),
        ({"path": ["images/cat0.jpg"] * 14}, "twice in train"),
        ({"prompt": ["a cat"] * 7 + [""] * 7}, "class 'dog' .* has none"),
    ],
)
def test_wrong_tables(suffix: str, change: Table, match: str, tmp_path: Path) -> None:
    table = {k: v for k, v in (table_of(tmp_path) | change).items() if v is not None}
    with pytest.raises(DataError, match=match):
        opened(write(tmp_path / f"a{suffix}", table))


def test_the_same_image_under_two_spellings_in_two_splits(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    paths = [*table["path"][:13], "./images/../images/cat0.jpg"]
    with pytest.raises(DataError, match="in train and in test"):
        opened(write(tmp_path / "a.csv", table | {"path": paths}))


def test_a_duplicate_row_without_a_split(tmp_path: Path) -> None:
    table = table_of(tmp_path, split=False)
    paths = [*table["path"][:13], "images/cat0.jpg"]
    with pytest.raises(DataError, match=r"'images/cat0\.jpg' has more"):
        opened(write(tmp_path / "a.csv", table | {"path": paths}))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("label", [0.5] * 14),
        ("label", [True] * 14),
        ("label", [None] * 14),
        ("path", [3] * 14),
        ("prompt", [3] * 14),
        ("split", [0] * 14),
        ("path", [b"images/cat0.jpg"] * 14),
    ],
)
def test_columns_of_another_type(column: str, values: list[Any], tmp_path: Path) -> None:
    message = refused(write(tmp_path / "a.parquet", table_of(tmp_path) | {column: values}))
    assert "row 1" in message


@pytest.mark.parametrize("content", [b"", b"path,label\n", b"path,label\n1\n", b"\xff\xfe\x00,"])
def test_no_table(content: bytes, tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet"):
        (tmp_path / f"a{suffix}").write_bytes(content)
        refused(tmp_path / f"a{suffix}")


def test_a_table_with_a_byte_order_mark_and_more_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", table_of(tmp_path) | {"photographer": ["me"] * 14})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert opened(file).class_names == ("cat", "dog")


# --- folds ---------------------------------------------------------------------------------------


def test_the_test_images_of_all_folds_are_all_images_once(flat_folder: Path) -> None:
    everything = Counter(
        f"{name}/{i}.jpeg" for label, name in enumerate(CLASSES) for i in range(10 - 3 * label)
    )
    tested: Counter[str] = Counter()
    for number in range(1, 4):
        path = Path(f"{flat_folder}#fold{number}of3")
        found = {part: dict(rows(split)) for part, split in parts(path).items()}
        assert sum((Counter(list(names)) for names in found.values()), Counter()) == everything
        assert set(found["train"].values()) == set(found["val"].values()) == {0, 1, 2}
        assert len(found["test"]) == 7
        tested += Counter(list(found["test"]))
        assert opened(path).name == f"folder:{path}"
        assert f"Fold {number} of 3" in opened(path).caveats[0]
    assert tested == everything
    fingerprints = {
        opened(Path(f"{flat_folder}#fold{n}of3")).split("train").fingerprint for n in (1, 2, 3)
    }
    assert len(fingerprints) == 3


def test_folds_of_a_table(flat_folder: Path) -> None:
    names = [f"own/{name}/{i}.jpeg" for name in CLASSES for i in range(4)]
    table = flat_folder.parent / "table.csv"
    lines = ["path,label", *(f"{name},{name.split('/')[1]}" for name in names)]
    table.write_text("\n".join(lines))
    tested = [name for n in (1, 2) for name, _ in rows(parts(Path(f"{table}#fold{n}of2"))["test"])]
    assert sorted(tested) == sorted(names)


def test_folds_of_images_with_a_split(split_folder: Path) -> None:
    assert "without a given split" in refused(Path(f"{split_folder}#fold1of2"))


def test_folds_of_too_few_images(flat_folder: Path) -> None:
    for image in list((flat_folder / "ant").iterdir())[2:]:
        image.unlink()
    said = refused(Path(f"{flat_folder}#fold1of2"))
    assert "at least 2 images outside a fold: class 'ant'" in said
