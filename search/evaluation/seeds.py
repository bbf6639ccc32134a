"""Which draws judge the winner: none that the search has seen."""

from __future__ import annotations

from collections.abc import Sequence


def fresh_seeds(used: Sequence[int], count: int) -> tuple[int, ...]:
    """The next `count` seeds after all those that the search has used."""
    return tuple(range(max(used) + 1, max(used) + 1 + count))
