"""Colours, names and ticks of figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.reporting.figures import (
    COLOURS,
    SYMBOLS,
    count_axis,
    linear_ticks,
    log_axis,
    log_ticks,
    look,
    plain,
    series,
)


def test_series_are_told_apart_without_colour() -> None:
    assert len(set(COLOURS)) == len(set(SYMBOLS)) == len(COLOURS) == len(SYMBOLS)
    assert len({look(place) for place in range(49)}) == 49


@pytest.mark.parametrize("name", ["\x1b[31mred", "<a href='x'>y</a>", "a&lt;b"])
def test_names_are_no_markup(name: str) -> None:
    shown = plain(name)
    assert not set(shown) & set("\x1b<>")
    assert series(name, [1], [2])["name"] == shown


POSITIVE = st.floats(1e-9, 1e9)


@given(POSITIVE, POSITIVE)
def test_logarithmic_ticks_are_few_and_inside(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert len(ticks) > 1 or low == high or high / low < 1.001
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)
    assert sorted(set(ticks)) == ticks


@given(st.integers(-1000, 1000), st.integers(0, 5000))
def test_ticks_of_whole_numbers_are_whole(low: int, span: int) -> None:
    ticks = linear_ticks(low, low + span, whole=True)
    assert all(float(tick).is_integer() for tick in ticks)
    assert len(ticks) <= 8


@pytest.mark.parametrize(("most", "step"), [(0, 1), (1, 1), (5, 1), (16, 5), (999, 200)])
def test_trials_are_counted_in_whole_steps(most: int, step: int) -> None:
    assert count_axis("trial", most)["dtick"] == step


def test_an_axis_with_a_zero_is_linear() -> None:
    assert "type" not in log_axis("x", [0.0, 1.0])
    assert log_axis("x", [0.1, 10.0])["ticktext"] == ["0.1", "1", "10"]
    assert "type" not in log_axis("x", [])


def test_numbers_that_json_cannot_hold_are_gaps() -> None:
    trace = series("s", [1.0, 2.0], [float("nan"), float("inf")])
    assert trace["y"] == [None, None]
