"""Split files: what a good one says, and one clear error for each that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.data.trees import TREES, Tree
from trainables.data.base import DataError
from trainables.data.benchmarks.coop import read_split_file
from trainables.data.registry import open_dataset

Plain = dict[str, Any]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return TREES["dtd"](tmp_path)


def plain(tree: Tree) -> Plain:
    """What its good split file holds."""
    names = tree.class_names
    return {part: [[path, i, names[i]] for path, i in rows] for part, rows in tree.rows.items()}


def refused(tree: Tree, content: Any) -> str:
    """The error for a split file with that content; a string is written as it is."""
    assert tree.split_file is not None
    text = content if isinstance(content, str) else json.dumps(content)
    tree.split_file.write_text(text)
    with pytest.raises(DataError) as caught:
        open_dataset("dtd", str(tree.root))
    message = str(caught.value)
    assert str(tree.split_file) in message
    assert "\n" not in message
    return message


def test_rows_keep_the_order_of_the_file(tree: Tree) -> None:
    assert tree.split_file is not None
    lists = read_split_file(tree.split_file, tree.folder / "images")
    for part, found in tree.rows.items():
        assert [(row.path, row.label) for row in lists[part]] == found  # type: ignore[index]


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "NaN,"])
def test_no_json(tree: Tree, content: str) -> None:
    assert "must be readable JSON" in refused(tree, content)


@pytest.mark.parametrize("content", [[], {}, "1", {"train": []}, {"train": {}, "val": 1}])
def test_not_three_lists(tree: Tree, content: Any) -> None:
    assert "three lists, train, val and test" in refused(tree, content)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_absent_or_empty_part(tree: Tree, part: str) -> None:
    content = plain(tree)
    content[part] = []
    assert f"'{part}'" in refused(tree, content)
    del content[part]
    assert "three lists" in refused(tree, content)


@pytest.mark.parametrize(
    "row",
    [
        *([], ["banded/x.jpg"], ["banded/x.jpg", 0], ["banded/x.jpg", 0, "banded", 1]),
        *(["banded/x.jpg", "0", "banded"], ["banded/x.jpg", 0.0, "banded"]),
        *(["banded/x.jpg", True, "banded"], [1, 0, "banded"], ["banded/x.jpg", 0, None]),
        *("banded", None, {"impath": "x"}, ["", 0, "banded"], ["banded/x.jpg", 0, ""]),
    ],
)
def test_a_row_of_another_form(tree: Tree, row: Any) -> None:
    content = plain(tree)
    content["val"].insert(3, row)
    assert "val[3]" in refused(tree, content)


@pytest.mark.parametrize("path", ["/etc/passwd.jpg", "../dtd/x.jpg", "banded/../../x.jpg"])
def test_a_path_outside_the_tree(tree: Tree, path: str) -> None:
    content = plain(tree)
    content["test"][0][0] = path
    assert f"inside the data set's folder: '{tree.split_file}', test[0]" in refused(tree, content)


@pytest.mark.parametrize("label", [-1, 4, 99])
def test_a_label_out_of_range(tree: Tree, label: int) -> None:
    content = plain(tree)
    for part in content.values():
        for row in part:
            row[1] = label if row[2] == "blotchy" else row[1]
    assert "Labels must be 0 to" in refused(tree, content)


def test_one_row_with_a_label_out_of_range(tree: Tree) -> None:
    content = plain(tree)
    content["test"][0][1] = 47
    assert "label 47" in refused(tree, content)


def test_a_label_with_two_names(tree: Tree) -> None:
    content = plain(tree)
    content["val"][0][2] = "striped"
    assert "A label must have one class name" in refused(tree, content)


def test_a_name_with_two_labels(tree: Tree) -> None:
    content = plain(tree)
    for part in content.values():
        for row in part:
            row[2] = "banded" if row[1] == 3 else row[2]
    assert "Class names must differ: 'banded'" in refused(tree, content)


def test_an_image_in_two_parts_or_twice(tree: Tree) -> None:
    content = plain(tree)
    content["test"].append(content["train"][0])
    message = refused(tree, content)
    assert f"'{content['train'][0][0]}'" in message
    assert "in train and in test" in message
    content = plain(tree)
    content["val"].append(content["val"][0])
    assert "twice in val" in refused(tree, content)
    content = plain(tree)
    content["test"].append(["./" + content["train"][0][0], *content["train"][0][1:]])
    assert "in train and in test" in refused(tree, content)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_that_is_absent(tree: Tree, part: str) -> None:
    content = plain(tree)
    content[part] = [row for row in content[part] if row[1] != 2]
    assert f"class 'polka-dotted' of '{tree.split_file}' is absent from {part}" in refused(
        tree, content
    )


def test_one_class_only(tree: Tree) -> None:
    content = {part: [r for r in rows if r[1] == 0] for part, rows in plain(tree).items()}
    assert "at least 2 classes" in refused(tree, content)


@pytest.mark.parametrize("other", ["eurosat", "oxford_pets", "stanford_cars"])
def test_the_split_file_of_another_data_set(tree: Tree, other: str, tmp_path: Path) -> None:
    wrong = TREES[other](tmp_path / "other")
    assert "split file of another data set" in refused(tree, plain(wrong))


def test_cars_with_the_split_file_of_another_data_set(tmp_path: Path, tree: Tree) -> None:
    cars = TREES["stanford_cars"](tmp_path)
    assert cars.split_file is not None
    cars.split_file.write_text(json.dumps(plain(tree)))
    with pytest.raises(DataError, match="split file of another data set"):
        open_dataset("stanford_cars", str(tmp_path))


@pytest.mark.parametrize("text", ["a\0b.jpg", "a\ud800.jpg", "a\x1b[2J.jpg"])
def test_a_path_or_a_class_that_cannot_be_printed(tree: Tree, text: str) -> None:
    for place in (0, 2):
        content = plain(tree)
        rows = content["val"]
        if place == 2:
            label = rows[0][1]
            for part in content.values():
                for row in part:
                    row[2] = text if row[1] == label else row[2]
        else:
            rows[0][0] = text
        message = refused(tree, content)
        assert "must be printable text" in message
        assert message.isprintable()


def test_a_split_file_that_is_a_folder(tree: Tree) -> None:
    assert tree.split_file is not None
    tree.split_file.unlink()
    tree.split_file.mkdir()
    with pytest.raises(DataError, match=r"must be readable.*it is a folder"):
        open_dataset("dtd", str(tree.root))
