"""Published lists of few-shot draws: every wrong list is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.data.listed import listed
from trainables.data.base import DataError
from trainables.data.few_shot import FewShot, draw_few_shot, draws_problems
from trainables.data.shots_file import shots_file

Lists = dict[str, Any]

TRAIN = [["train/c0/7.jpg", 0], ["train/c0/2.jpg", 0], ["train/c1/0.jpg", 1], ["train/c1/5.jpg", 1]]
VAL = [["val/c0/1.jpg", 0], ["val/c0/0.jpg", 0], ["val/c1/4.jpg", 1], ["val/c1/3.jpg", 1]]


def lists() -> Lists:
    """Two shots of a data set of two classes."""
    return {
        split: {
            "data": [
                {"impath": f"./data/listed/images/{path}", "label": c, "classname": f"class {c}"}
                for path, c in rows
            ],
            "indices": [0, 0, 0, 0],
        }
        for split, rows in (("train", TRAIN), ("val", VAL))
    }


def draw(path: Path, content: object, shots: int = 2) -> FewShot:
    path.write_text(json.dumps(content), encoding="utf-8")
    return draw_few_shot(listed(classes=2), shots, 1, f"file:{path}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "list.json"


def test_rows_come_in_the_lists_order(path: Path) -> None:
    drawn = draw(path, lists())
    assert [drawn.train.images.name(i) for i in range(4)] == [name for name, _ in TRAIN]
    assert [drawn.val.images.name(i) for i in range(4)] == [name for name, _ in VAL]
    assert drawn.train.labels.tolist() == [0, 0, 1, 1]


def test_plain_rows_too(path: Path) -> None:
    plain = {
        split: [[row["impath"], row["label"], row["classname"]] for row in part["data"]]
        for split, part in lists().items()
    }
    assert draw(path, plain).train.fingerprint == draw(path, lists()).train.fingerprint
    flat = {split: part["data"] for split, part in lists().items()}
    assert draw(path, flat).val.fingerprint == draw(path, lists()).val.fingerprint


def test_the_longest_end_of_a_path_counts_by_whole_folders(path: Path) -> None:
    content = lists()
    content["train"]["data"][0]["impath"] = "train/c0/7.jpg"  # without the folder of the data set
    assert draw(path, content).train.images.name(0) == "train/c0/7.jpg"
    content["train"]["data"][0]["impath"] = "data/strain/c0/7.jpg"
    with pytest.raises(DataError, match="it is in neither split"):
        draw(path, content)


def test_a_class_with_fewer_images_gives_all(path: Path) -> None:
    every = {
        "train": [[f"train/c{c}/{i}.jpg", c, f"class {c}"] for c in range(2) for i in range(8)],
        "val": [[f"val/c{c}/{i}.jpg", c, f"class {c}"] for c in range(2) for i in range(4)],
    }
    assert len(draw(path, every, shots=16).train.labels) == 16


def _set(split: str, row: int, **fields: object) -> Lists:
    content = lists()
    content[split]["data"][row] |= fields
    return content


def _add(split: str, row: dict[str, Any]) -> Lists:
    content = lists()
    content[split]["data"].append(row)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _set("train", 1, impath="x/dog.jpg"),
            r"'x/dog.jpg' .* neither split\): .* another data set",
        ),
        (_set("train", 1, impath="val/c0/0.jpg"), r"'val/c0/0.jpg' .* is in val\)"),
        (_set("val", 1, impath="train/c0/0.jpg"), r"'train/c0/0.jpg' .* is in train\)"),
        (_set("train", 1, impath="test/c0/0.jpg"), "neither split"),
        (_set("train", 2, label=0), "got 0 'class 1' in place of 1 'class 1' for '.*c1/0.jpg'"),
        (_set("val", 2, classname="cat"), "got 1 'cat' in place of 1 'class 1' for '.*c1/4.jpg'"),
        (
            _add("train", {"impath": "/y/train/c0/2.jpg", "label": 0, "classname": "class 0"}),
            "'./data/listed/images/train/c0/2.jpg' and '/y/train/c0/2.jpg' among the train rows",
        ),
        (
            _add("val", {"impath": "val/c1/0.jpg", "label": 1, "classname": "class 1"}),
            r"must have 2 val images of class 1 \('class 1'\), got 3",
        ),
        ({"train": {"data": []}, "val": {"data": []}}, "must have 2 train images of class 0"),
        (_set("train", 3, label="1"), "got .* as train row 3 of"),
        (_set("train", 3, label=True), "got .* as train row 3 of"),
        (_set("val", 0, classname=None), "got .* as val row 0 of"),
        ({"train": [["a.jpg", 0]], "val": []}, r"got \['a.jpg', 0\] as train row 0"),
        ({"train": [7], "val": []}, "got 7 as train row 0"),
        ({"train": []}, "has none under 'val'"),
        ({"train": {"rows": []}, "val": []}, "has none under 'train'"),
        ([], "has none under 'train'"),
    ],
)
def test_wrong_lists(path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        draw(path, content)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("shots", [1, 3])
def test_a_list_of_another_number_of_shots(path: Path, shots: int) -> None:
    with pytest.raises(DataError, match=f"must have {shots} train images of class 0 .* got 2"):
        draw(path, lists(), shots)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"must be JSON, '.*' cannot be read as such"):
        draw_few_shot(listed(), 1, 1, f"file:{path}")


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(DataError, match="it is missing"):
        draw_few_shot(listed(), 1, 1, f"file:{path}")


# --- the pattern ---------------------------------------------------------------------------------


def test_a_pattern_names_a_file_per_draw() -> None:
    assert shots_file("/l/{{a}}-{{seed}}-{seed}", "dtd", 4, 2) == Path("/l/{a}-{seed}-2")
    assert shots_file("/l/{dataset}", "folder:/x/{seed}", 4, 2) == Path("/l/folder:/x/{seed}")
    assert shots_file("/l/{dataset}/{shots}-{seed}.json", "dtd", 4, 2) == Path("/l/dtd/4-2.json")


@pytest.mark.parametrize(
    "pattern",
    [
        *("{data}", "{", "}", "{0}", "{}", "{shots.x}", "{seed:q}", "{seed:>1000000000}"),
        *("{seed!r}", "{seed.__class__}", "{seed[0]}", "{shots:{seed}}", "{ seed }", "{seed:}"),
        "a}{seed}",
    ],
)
def test_other_braces(pattern: str) -> None:
    with pytest.raises(DataError, match=r"may contain {dataset}, {shots} and {seed}, got"):
        shots_file(pattern, "dtd", 1, 1)
    (problem,) = draws_problems(f"file:{pattern}", ["dtd"], [1], [1])
    assert "double other braces" in problem


def test_problems_before_anything_is_opened(tmp_path: Path) -> None:
    for shots in (1, 2):
        (tmp_path / f"dtd-{shots}-1.json").write_text("{}")
    pattern = f"file:{tmp_path}/{{dataset}}-{{shots}}-{{seed}}.json"
    assert draws_problems(pattern, ["dtd"], [1, 2], [1]) == []
    (problem,) = draws_problems(pattern, ["dtd"], [1, 2], [1, 2])
    assert f"'{tmp_path}/dtd-1-2.json' is missing, as are 1 more" in problem
    (problem,) = draws_problems(f"file:{tmp_path}/dtd-1-1.json", ["dtd"], [1], [1, 2])
    assert "must contain {seed} if there are several" in problem
    assert "seed 1, 2" in problem
    for rule in ("seeded", "coop"):
        assert draws_problems(rule, ["dtd"], [1], [1]) == []
