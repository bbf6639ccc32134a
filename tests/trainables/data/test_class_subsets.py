"""Base and new classes: disjoint, complete, numbered from 0, and of the published sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainables.data.listed import Listed, listed
from tests.trainables.data.shared import shared_data
from trainables.data.base import DataError, SealedError
from trainables.data.class_subsets import classes_of, half_of
from trainables.data.few_shot import draw_few_shot
from trainables.data.sealed import TestPermit, check_test_split, read_test_split

patient = settings(deadline=None, max_examples=30)


@given(st.integers(4, 1000))
def test_the_halves_share_out_all_classes(count: int) -> None:
    base, new = classes_of("base", count), classes_of("new", count)
    assert [*base, *new] == list(classes_of("all", count)) == list(range(count))
    assert len(base) - len(new) == count % 2  # the odd one is base


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("half", ["base", "new"])
def test_a_half_of_one_class_is_no_task(count: int, half: str) -> None:
    with pytest.raises(DataError, match=rf"at least 2, got {count} classes in all"):
        classes_of(half, count)
    assert len(classes_of("all", count)) == count


def test_a_half_is_a_data_set_of_its_own() -> None:
    whole = listed(classes=5)
    base, new = half_of(whole, "base"), half_of(whole, "new")
    assert half_of(whole, "all") is whole
    assert base.class_names == ("class 0", "class 1", "class 2")
    assert new.class_names == ("class 3", "class 4")
    assert new.prompts("paper").texts() == whole.prompts("paper").texts()[3:]
    assert (new.name, new.flip, new.caveats) == ("listed", True, ("A notice.",))
    images = new.split("val").images
    assert [images.name(i) for i in range(10)] == [
        f"val/c{c}/{i}.jpg" for c in (3, 4) for i in range(5)
    ]
    assert new.split("val").labels.tolist() == [0] * 5 + [1] * 5
    prints = {d.split(s).fingerprint for d in (whole, base, new) for s in ("train", "val")}
    assert len(prints) == 6


def test_a_halfs_test_images_need_the_whole_sets_permit() -> None:
    new = half_of(listed(classes=4), "new")
    reads: list[str] = []
    test = read_test_split(new, lambda: reads.append("read"))
    assert reads == ["read"]
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert test.images.name(0) == "test/c2/0.jpg"
    with pytest.raises(SealedError, match="does not open 'listed'"):
        new.sealed_split(TestPermit("digits"))


def test_a_half_without_test_images_is_refused() -> None:
    whole = listed(classes=4)
    part = replace(whole, test=whole.test[:3])
    check_test_split(half_of(part, "base"))
    with pytest.raises(DataError, match="test images: the new classes of 'listed' have none"):
        check_test_split(half_of(part, "new"))


@patient
@given(
    st.integers(4, 9), st.integers(1, 8), st.integers(0, 99), st.sampled_from(["seeded", "coop"])
)
def test_the_draw_of_a_half_is_the_whole_draw_restricted(
    classes: int, shots: int, seed: int, draws: str
) -> None:
    whole = draw_few_shot(listed(classes), shots, seed, draws)
    assert whole.half("all") is whole
    base, new = whole.half("base"), whole.half("new")
    for of in ("train", "val"):
        parts = [getattr(pair, of) for pair in (base, new)]
        names = [split.images.name(i) for split in parts for i in range(len(split.images))]
        everything = getattr(whole, of)
        # Class by class, as the rows were listed, so base and new follow each other.
        assert names == [everything.images.name(i) for i in range(len(names))]
        first = (classes + 1) // 2
        assert torch.cat([parts[0].labels, parts[1].labels + first]).equal(everything.labels)


@pytest.mark.parametrize(
    ("file", "train", "val", "test", "base", "new", "base_test"),
    [
        ("Caltech101", 4128, 1649, 2465, 50, 50, None),
        ("OxfordPets", 2944, 736, 3669, 19, 18, None),
        ("StanfordCars", 6509, 1635, 8041, 98, 98, None),
        ("OxfordFlowers", 4093, 1633, 2463, 51, 51, None),
        ("DescribableTextures", 2820, 1128, 1692, 24, 23, None),
        ("EuroSAT", 13500, 5400, 8100, 5, 5, 4200),
        ("UCF101", 7639, 1898, 3783, 51, 50, None),
    ],
)
def test_published_counts(
    file: str, train: int, val: int, test: int, base: int, new: int, base_test: int | None
) -> None:
    path = shared_data("coop-splits", f"split_zhou_{file}.json")
    lists = json.loads(path.read_text(encoding="utf-8"))
    rows = {key: tuple((name, label) for name, label, _ in part) for key, part in lists.items()}
    assert [len(rows[key]) for key in ("train", "val", "test")] == [train, val, test]
    names = {label: name for _, label, name in lists["train"]}
    whole = Listed(tuple(names[label] for label in range(len(names))), **rows)
    halves = half_of(whole, "base"), half_of(whole, "new")
    assert [len(half.class_names) for half in halves] == [base, new]
    tests = [half.sealed_split(TestPermit("listed")) for half in halves]
    assert sum(len(split.labels) for split in tests) == test
    for half, split in zip(halves, tests, strict=True):
        assert split.labels.unique().tolist() == list(range(len(half.class_names)))
    if base_test is not None:
        assert len(tests[0].labels) == base_test
