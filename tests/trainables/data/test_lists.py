"""Splits that are made here: sizes, order and what they depend on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.data.base import DataError
from trainables.data.lists import SPLITS, Row, by_hash, checked, split_by_hash, split_off_by_hash

SIZES = st.lists(st.integers(3, 40), min_size=2, max_size=5)


def rows_of(sizes: list[int]) -> list[Row]:
    return [
        Row(f"{label}/{i}.jpg", label, f"class {label}")
        for label, size in enumerate(sizes)
        for i in range(size)
    ]


@given(SIZES, st.randoms())
def test_deal(sizes: list[int], rng: object) -> None:
    rows = rows_of(sizes)
    parts = split_by_hash(rows, "x")
    assert sorted(row for part in SPLITS for row in parts[part]) == sorted(rows)
    assert len(checked(parts, "x")) == len(sizes)
    for label, size in enumerate(sizes):
        train, val, test = (sum(row.label == label for row in parts[part]) for part in SPLITS)
        assert min(train, val, test) >= 1
        assert abs(train - 0.5 * size) <= 1
        assert abs(val - 0.2 * size) <= 0.5
        assert abs(test - 0.3 * size) <= 1
    shuffled = list(rows)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split_by_hash(shuffled, "x") == parts


@given(SIZES)
def test_deal_val(sizes: list[int]) -> None:
    rows = rows_of(sizes)
    train, val = split_off_by_hash(rows, "x")
    assert sorted(train + val) == sorted(rows)
    for label, size in enumerate(sizes):
        found = sum(row.label == label for row in val)
        assert found == max(1, round(0.2 * size))
        assert found < size


@given(SIZES)
def test_a_test_split_taken_from_the_training_images(sizes: list[int]) -> None:
    rows = rows_of(sizes)
    train, test = split_off_by_hash(rows, "x", "test")
    assert sorted(train + test) == sorted(rows)
    for label, size in enumerate(sizes):
        assert sum(row.label == label for row in test) == max(1, round(0.3 * size))


def test_a_class_depends_on_no_other() -> None:
    alone = [row for row in split_by_hash(rows_of([20, 3]), "x")["train"] if row.label == 0]
    assert [
        row for row in split_by_hash(rows_of([20, 40]), "x")["train"] if row.label == 0
    ] == alone


def test_too_few_images() -> None:
    with pytest.raises(DataError, match="class 'class 1' of x has 2"):
        split_by_hash(rows_of([3, 2]), "x")
    with pytest.raises(DataError, match="class 'class 0' of x has 1"):
        split_off_by_hash(rows_of([1, 5]), "x")


def test_the_order_is_for_ever() -> None:
    """Published figures on splits that were made here stay comparable."""
    numbers = [path[2] for path in by_hash(f"x/{i}.jpg" for i in range(6))]
    assert "".join(numbers) == "043251"
