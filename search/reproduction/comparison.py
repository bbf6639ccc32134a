"""Comparison of measured and published numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from search.evaluation.statistics import paired
from search.papers.schema import AVERAGE, Row, Table
from search.reproduction.numbers import Place


@dataclass(frozen=True)
class Number:
    """Measured values of one cell, and the number that the paper prints."""

    values: tuple[float, ...]
    """One per draw; empty if nothing was measured."""
    published: float | None = None
    """The paper's number; None if it is not known."""
    is_comparable: bool = True
    """Whether the published number was measured in the same setting."""
    is_drawn: bool = True
    """Whether the number may differ between draws; False for the zero-shot model."""

    @property
    def depends_on_draws(self) -> bool:
        """Whether the number was measured and may differ between draws."""
        return self.is_drawn and bool(self.values)

    @property
    def mean(self) -> float | None:
        """Mean over draws; None if nothing was measured."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over draws; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Measured minus published; None if there is nothing to compare."""
        if self.mean is None or self.published is None or not self.is_comparable:
            return None
        return self.mean - self.published

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean over draws; None for fewer than two."""
        if len(self.values) < 2:
            return None
        found = paired(self.values, [0.0] * len(self.values))
        return None if found.low is None or found.high is None else (found.low, found.high)

    @property
    def excludes(self) -> bool:
        """Whether the interval excludes the published number."""
        if self.difference is None or self.interval is None or self.published is None:
            return False
        low, high = self.interval
        return not low <= self.published <= high


def published_value(
    table: Table, row: Row, place: Place, datasets: Sequence[str], whole: Sequence[str]
) -> float | None:
    """Return the number that the paper prints at a place; None if it is not known.

    `datasets` are averaged over, `whole` are those of the paper's average. An average over some of
    them is the mean of the printed numbers.
    """
    for own in row.published:
        if own.measure != place.measure or own.part != place.part:
            continue
        if own.backbone not in ("", place.backbone) or own.shots not in (None, place.shots):
            continue
        if place.dataset != AVERAGE:
            value = own.values.get(place.dataset)
        elif tuple(datasets) == tuple(whole) and AVERAGE in own.values:
            value = own.values[AVERAGE]
        else:
            value = _mean_of([own.values.get(name) for name in datasets])
        if value is not None:
            return value
    return None


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
