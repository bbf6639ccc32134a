"""ImageNet and its shifts: known by WordNet id, validated on images of train, read late."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.data.trees import (
    SOME,
    TREES,
    WNIDS,
    Tree,
    imagenet,
    looks_like,
    paint,
    snapshot,
)
from trainables.data import image_files
from trainables.data.base import DataError, SealedError, Split
from trainables.data.benchmarks.imagenet import ImageNet, ImageNetShift
from trainables.data.benchmarks.layouts import IMAGENET_SHIFTS
from trainables.data.few_shot import FewShot, draw_few_shot
from trainables.data.lists import Counts
from trainables.data.registry import open_dataset
from trainables.data.sealed import TestPermit, check_test_split, read_test_split


def opened(root: Path) -> ImageNet:
    dataset = open_dataset("imagenet", str(root))
    assert isinstance(dataset, ImageNet)
    return dataset


def rows(split: Split) -> list[tuple[str, int]]:
    return [(split.images.name(i), label) for i, label in enumerate(split.labels.tolist())]


def by_the_rule(tree: Tree) -> dict[str, list[tuple[str, int]]]:
    """«Sorted by the SHA-256 of their path; the first min(50, n / 5 rounded up)», once more."""
    classes: dict[int, list[str]] = defaultdict(list)
    for path, label in tree.rows["train"]:
        classes[label].append(path)
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    for label, paths in sorted(classes.items()):
        ordered = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).hexdigest())
        cut = min(50, (len(paths) + 4) // 5)
        parts["val"] += sorted((path, label) for path in ordered[:cut])
        parts["train"] += sorted((path, label) for path in ordered[cut:])
    return parts


@pytest.mark.parametrize("inner", ["images", ""])
def test_parts_names_and_images(inner: str, tmp_path: Path) -> None:
    tree = imagenet(tmp_path, inner)
    before = snapshot(tmp_path)
    dataset = opened(tmp_path)
    assert dataset.class_names == tuple(WNIDS.values())  # duplicates are allowed here
    assert dataset.wnids == tuple(sorted(WNIDS))
    expected = by_the_rule(tree)
    assert rows(dataset.split("train")) == expected["train"]
    assert rows(dataset.split("val")) == expected["val"]
    test = read_test_split(dataset, lambda: None)
    assert rows(test) == sorted(tree.rows["test"])
    assert dataset.counts() == Counts(12, 11 * 6 + 1, 11 * 2 + 1, 24)
    assert dataset.missing() == []
    for split in (dataset.split("train"), dataset.split("val"), test):
        for i, label in enumerate(split.labels.tolist()):
            assert looks_like(label, split.images.read(i))
    assert snapshot(tmp_path) == before
    assert "carved from its training images" in dataset.caveats[0]


def test_at_most_fifty_validation_images(tmp_path: Path) -> None:
    imagenet(tmp_path)
    for i in range(8, 300):
        paint(tmp_path / "imagenet/images/train/n01440764" / f"{i}.JPEG", 0)
    labels = opened(tmp_path).split("val").labels
    assert int((labels == 0).sum()) == 50


def test_the_fingerprint_knows_neither_place_nor_inner_folder(tmp_path: Path) -> None:
    found = []
    for inner in ("images", ""):
        imagenet(tmp_path / f"in-{inner}", inner)
        dataset = opened(tmp_path / f"in-{inner}")
        splits = (dataset.split("train"), dataset.split("val"))
        found.append([s.fingerprint for s in (*splits, read_test_split(dataset, lambda: None))])
    assert found[0] == found[1]
    assert len(set(found[0])) == 3


def test_names_and_test_are_read_without_listing_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagenet(tmp_path)
    seen: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def scandir(self, path: Path) -> Any:
            seen.append(str(path))
            return os.scandir(path)

        def listdir(self, path: Path) -> Any:
            seen.append(str(path))
            return os.listdir(path)

    monkeypatch.setattr(image_files, "os", Watched())
    dataset = opened(tmp_path)
    assert len(dataset.class_names) == 12
    dataset.prompts("paper")
    read_test_split(dataset, lambda: None)
    assert seen
    assert not [path for path in seen if "train" in path]
    dataset.split("train")
    dataset.split("val")
    assert len([path for path in seen if "train" in path]) == 1 + 12  # listed once


@pytest.mark.parametrize("place", [".", "imagenet"])
def test_class_names_may_lie_in_the_root(place: str, tmp_path: Path) -> None:
    imagenet(tmp_path)
    (tmp_path / "imagenet" / "classnames.txt").rename(tmp_path / place / "classnames.txt")
    assert opened(tmp_path).class_names[0] == "tench"


def test_published_draws_have_both_parts_from_the_official_training_set(tmp_path: Path) -> None:
    """Also images of our val to train on, and the other way round; never a test image."""
    tree, file = imagenet(tmp_path), tmp_path / "list.json"
    dataset = opened(tmp_path)
    images: dict[int, list[str]] = defaultdict(list)
    for part in ("val", "train"):
        for path, label in rows(dataset.split(part)):  # type: ignore[arg-type]
            images[label].append(path)

    def drawn(train: int, val: int) -> FewShot:
        numbers = {"train": train, "val": val}
        lists = {
            part: [[f"/d/imagenet/{p[i]}", c, dataset.class_names[c]] for c, p in images.items()]
            for part, i in numbers.items()
        }
        file.write_text(json.dumps(lists))
        return draw_few_shot(dataset, 1, 1, f"file:{file}")

    found = drawn(train=0, val=-1)
    assert rows(found.train) == [(paths[0], label) for label, paths in images.items()]
    assert rows(found.val) == [(paths[-1], label) for label, paths in images.items()]
    assert looks_like(0, found.train.images.read(0))
    with pytest.raises(DataError, match="among the train and the val rows"):
        drawn(train=0, val=0)
    for path, label in tree.rows["test"]:
        images[label].append(path)
    with pytest.raises(DataError, match="it is in neither split"):
        drawn(train=0, val=-1)


# --- bad trees -----------------------------------------------------------------------------------


def test_class_names_missing_or_broken(tmp_path: Path) -> None:
    imagenet(tmp_path)
    file = tmp_path / "imagenet" / "classnames.txt"
    good = file.read_text()
    for text, match in (
        ("", "at least 2 classes"),
        ("n01440764 tench\n", "at least 2 classes"),
        (good + "n09999999\n", "each id once, got 'n09999999'"),
        (good + "n01440764 tench\n", "each id once, got 'n01440764 tench'"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=match):
            opened(tmp_path)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="must be UTF-8"):
        opened(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=f"'{file}' is missing"):
        opened(tmp_path)


def test_classes_and_folders_must_agree(tmp_path: Path) -> None:
    imagenet(tmp_path)
    train, val = (tmp_path / "imagenet/images" / part for part in ("train", "val"))
    (train / "n01440764").rename(train / "n00000001")
    with pytest.raises(DataError, match="'n01440764' has none"):
        opened(tmp_path).split("train")
    (train / "n00000001").rename(train / "n01440764")
    paint(train / "n99999999" / "1.JPEG", 0)
    with pytest.raises(DataError, match="'n99999999' is not listed"):
        opened(tmp_path).split("val")
    (val / "n01440764").rename(val / "n00000001")
    with pytest.raises(DataError, match="'n01440764' has none"):
        read_test_split(opened(tmp_path), lambda: None)


def test_a_class_with_one_training_image(tmp_path: Path) -> None:
    imagenet(tmp_path)
    next((tmp_path / "imagenet/images/train/n15075141").iterdir()).unlink()
    with pytest.raises(DataError, match=r"class 'n15075141' of .* has 1"):
        opened(tmp_path).split("train")


def test_no_training_images_at_all(tmp_path: Path) -> None:
    imagenet(tmp_path)
    (tmp_path / "imagenet/images/train").rename(tmp_path / "elsewhere")
    dataset = opened(tmp_path)
    assert len(read_test_split(dataset, lambda: None).labels) == 24
    with pytest.raises(DataError, match="imagenet/train' is not"):
        dataset.split("train")


# --- shifts --------------------------------------------------------------------------------------

OWN = {
    "imagenet_v2": tuple(WNIDS),
    "imagenet_sketch": tuple(WNIDS),
    "imagenet_a": SOME,
    "imagenet_r": SOME,
}


def test_every_shift_is_tested() -> None:
    assert set(OWN) == set(IMAGENET_SHIFTS)


@pytest.mark.parametrize("beside", [True, False], ids=["beside ImageNet", "alone"])
@pytest.mark.parametrize("name", OWN)
def test_shifts(name: str, beside: bool, tmp_path: Path) -> None:
    if beside:
        imagenet(tmp_path)
    tree = TREES[name](tmp_path)
    before = snapshot(tmp_path)
    shift = open_dataset(name, str(tmp_path))
    assert isinstance(shift, ImageNetShift)
    assert shift.wnids == OWN[name]
    assert shift.class_names == tree.class_names
    assert shift.source_classes == tuple(list(WNIDS).index(wnid) for wnid in OWN[name])
    test = read_test_split(shift, lambda: None)
    assert sorted(rows(test)) == sorted(tree.rows["test"])
    for i, label in enumerate(test.labels.tolist()):
        assert looks_like(shift.source_classes[label], test.images.read(i))
    assert shift.counts() == Counts(len(OWN[name]), 0, 0, 2 * len(OWN[name]))
    assert shift.missing() == []
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", OWN)
def test_shifts_are_for_evaluation_only(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    shift = open_dataset(name, str(tmp_path))
    for part in ("train", "val"):
        with pytest.raises(DataError, match=f"'{name}' is a shift of ImageNet.*no '{part}'"):
            shift.split(part)  # type: ignore[arg-type]
    with pytest.raises(SealedError):
        shift.sealed_split(TestPermit("imagenet"))


def test_two_classes_of_one_name_stay_apart(tmp_path: Path) -> None:
    """By name, `missile` would be found twice: n04008634 is the second."""
    TREES["imagenet_r"](tmp_path)
    shift = open_dataset("imagenet_r", str(tmp_path))
    assert isinstance(shift, ImageNetShift)
    assert shift.class_names[1] == "missile"
    assert shift.source_classes[1] == 8


def test_a_shift_of_classes_that_imagenet_lacks(tmp_path: Path) -> None:
    imagenet(tmp_path)
    TREES["imagenet_a"](tmp_path)
    names = tmp_path / "imagenet" / "classnames.txt"
    lines = names.read_text().splitlines(keepends=True)
    names.write_text("".join(line for line in lines if not line.startswith("n01443537")))
    shift = open_dataset("imagenet_a", str(tmp_path))
    assert isinstance(shift, ImageNetShift)
    with pytest.raises(DataError, match="'n01443537' is none of its 11"):
        _ = shift.source_classes


def test_folders_of_a_shift_that_are_no_classes(tmp_path: Path) -> None:
    tree = TREES["imagenet_v2"](tmp_path)
    images = tree.folder / "imagenetv2-matched-frequency-format-val"
    paint(images / "12" / "a.jpg", 0)
    with pytest.raises(DataError, match="'12' is not"):
        _ = open_dataset("imagenet_v2", str(tmp_path)).class_names
    tree = TREES["imagenet_r"](tmp_path)
    paint(tree.folder / "imagenet-r" / "cartoon" / "a.jpg", 0)
    with pytest.raises(DataError, match="'cartoon' is not"):
        _ = open_dataset("imagenet_r", str(tmp_path)).class_names


@pytest.mark.parametrize("name", ["imagenet", *OWN])
def test_a_class_folder_without_test_images(name: str, tmp_path: Path) -> None:
    tree = TREES[name](tmp_path)
    empty = next(tree.folder.rglob(tree.rows["test"][0][0])).parent
    for victim in empty.iterdir():
        victim.unlink()
    dataset = open_dataset(name, str(tmp_path))
    with pytest.raises(DataError, match=f"class folder must contain images: '{empty}' has none"):
        check_test_split(dataset)
