"""Measured numbers compared with published ones."""

from __future__ import annotations

import pytest

from search.papers.schema import AVERAGE, Published, Row, Table
from search.reproduction.comparison import Number, published_value
from search.reproduction.numbers import Place

SETS = ("dtd", "eurosat")
ROW = Row(
    "TaskRes",
    "taskres",
    published=(
        Published({"dtd": 50.0, "eurosat": 60.0, AVERAGE: 55.01}, shots=1),
        Published({"dtd": 52.0}, shots=2),
    ),
)
TABLE = Table("c", "shots", ("RN50",), SETS, (ROW,), (1, 2), average="mean")


def value(dataset: str, shots: int, datasets: tuple[str, ...] = SETS) -> float | None:
    return published_value(TABLE, ROW, Place("TaskRes", "RN50", dataset, shots), datasets, SETS)


def test_an_average_is_as_printed_or_over_the_data_sets_at_hand() -> None:
    assert value("dtd", 1) == 50.0
    assert value(AVERAGE, 1) == 55.01
    assert value(AVERAGE, 1, ("dtd",)) == 50.0
    assert value(AVERAGE, 2) is None
    assert value("eurosat", 2) is None


def test_the_interval_is_students() -> None:
    """By hand: mean 2, deviation 1, t = 4.302653 for two degrees: 2 +- 4.302653 / sqrt(3)."""
    number = Number((1.0, 2.0, 3.0), 5.0)
    assert (number.mean, number.deviation, number.difference) == (2.0, 1.0, -3.0)
    assert number.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert number.excludes
    assert not Number((1.0, 2.0, 3.0), 4.4).excludes


def test_one_draw_has_no_interval_and_no_mark() -> None:
    number = Number((1.0,), 50.0)
    assert (number.deviation, number.interval, number.excludes) == (None, None, False)


def test_numbers_of_other_settings_are_not_compared() -> None:
    number = Number((1.0, 2.0, 3.0), 50.0, is_comparable=False)
    assert number.difference is None
    assert not number.excludes
