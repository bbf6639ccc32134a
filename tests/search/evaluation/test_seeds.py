"""Draws that the search has not seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from search.evaluation.seeds import fresh_seeds


@given(st.lists(st.integers(0, 1000), min_size=1, unique=True), st.integers(1, 20))
def test_fresh_seeds_are_new_and_follow(used: list[int], count: int) -> None:
    found = fresh_seeds(used, count)
    assert len(found) == count
    assert not set(found) & set(used)
    assert found[0] == max(used) + 1
    assert list(found) == sorted(found)
