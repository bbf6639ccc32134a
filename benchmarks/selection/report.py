"""Figures of rules over sweeps."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.selection.candidates import GRID


@dataclass(frozen=True)
class Outcome:
    """The result that a rule chooses in a sweep. Accuracies are in per cent, on test images."""

    data_set: str
    """Origin of the images."""
    bundle: str
    """Name of the features."""
    shots: int
    """Training images per class."""
    method: str
    """What the sweep searches."""
    seed: int
    """Number of the sweep."""
    validation: str
    """What trials were validated on."""
    rule: str
    """The rule's name."""
    accuracy: float
    """Accuracy of the result."""
    zero_shot: float
    """Accuracy of the zero-shot model."""
    paper: float
    """Accuracy of the paper's setting."""
    top: float
    """Accuracy of the best trial on the test images."""
    rank_accuracy: float
    """Spearman's correlation of validation and test accuracy over the trials; NaN if all are
    equal."""
    rank_likelihood: float
    """Spearman's correlation of validation likelihood and test accuracy."""
    members: int
    """Number of members of the result."""


def spearman(first: Tensor, second: Tensor) -> float:
    """The rank correlation of two vectors, with mean ranks for ties; NaN if one is constant."""
    ranks = []
    for values in (first, second):
        _, place, counts = values.unique(return_inverse=True, return_counts=True)
        ends = counts.cumsum(0).double()
        rank = (ends - (counts.double() - 1) / 2)[place]
        ranks.append(rank - rank.mean())
    length = float(ranks[0].norm() * ranks[1].norm())
    return float(ranks[0] @ ranks[1]) / length if length else float("nan")


def interval(outcomes: Sequence[Outcome], value: Callable[[Outcome], float]) -> tuple[float, float]:
    """95 % bootstrap interval of a mean. Bundles are resampled, because tasks of the same bundle
    are related."""
    groups: dict[str, list[float]] = defaultdict(list)
    for each in outcomes:
        groups[each.bundle].append(value(each))
    sums = [(sum(found), len(found)) for found in groups.values()]
    rng = random.Random(0)
    means = []
    for _ in range(2000):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    return means[50], means[1949]


HEADER = (
    "| {} | over the paper | over zero-shot | below zero-shot | by > 0.2 | below the paper | "
    "by > 0.2 | regret | members |\n| --- |" + " ---: |" * 8
)


def row(name: str, outcomes: Sequence[Outcome]) -> str:
    """A row of the table."""

    def mean(value: Callable[[Outcome], float]) -> float:
        return statistics.fmean(value(each) for each in outcomes)

    def over_paper(each: Outcome) -> float:
        return each.accuracy - each.paper

    low, high = interval(outcomes, over_paper)
    cells = [
        name,
        f"{mean(over_paper):+.2f} [{low:+.2f}, {high:+.2f}]",
        f"{mean(lambda o: o.accuracy - o.zero_shot):+.2f}",
        *(
            f"{100 * mean(lambda o, m=margin, r=reference: getattr(o, r) - o.accuracy > m):.1f} %"
            for reference in ("zero_shot", "paper")
            for margin in (1e-6, 0.2)
        ),
        f"{mean(lambda o: o.top - o.accuracy):+.2f}",
        f"{mean(lambda o: o.members):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(
    title: str,
    outcomes: Iterable[Outcome],
    key: Callable[[Outcome], str],
    order: Sequence[str] = (),
) -> str:
    """A Markdown table with a row per value of `key`."""
    groups: dict[str, list[Outcome]] = {name: [] for name in order}
    for each in outcomes:
        groups.setdefault(key(each), []).append(each)
    rows = [row(name, found) for name, found in groups.items() if found]
    return "\n".join([HEADER.format(title), *rows])


def rank_correlations(outcomes: Iterable[Outcome]) -> str:
    """A Markdown table of mean rank correlations per validation."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for each in outcomes:
        groups[each.validation].append(each)
    lines = ["| validation | accuracy | likelihood |", "| --- | ---: | ---: |"]
    for name, found in groups.items():
        pairs = ([o.rank_accuracy for o in found], [o.rank_likelihood for o in found])
        means = [statistics.fmean(v for v in values if not math.isnan(v)) for values in pairs]
        lines.append(f"| {name} | {means[0]:.2f} | {means[1]:.2f} |")
    return "\n".join(lines)


TOLERANCE = 0.1
"""Points of mean gain that less harm may cost."""


def left_out(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], Mapping[str, str]]:
    """Outcomes of the ensemble with constants chosen on the other data sets, and which: of those
    within `TOLERANCE` of the largest mean gain over the paper's setting, the ones with the fewest
    results below zero-shot and below the paper's setting."""
    names, found, chosen = {str(c) for c in GRID}, list[Outcome](), {}
    for judge in sorted({each.data_set for each in outcomes}):
        others: dict[str, list[Outcome]] = defaultdict(list)
        for each in outcomes:
            if each.data_set != judge and each.rule in names:
                others[each.rule].append(each)
        gains = {r: statistics.fmean(o.accuracy - o.paper for o in s) for r, s in others.items()}
        harm = {r: statistics.fmean(_harm(o) for o in s) for r, s in others.items()}
        near = [rule for rule, gain in gains.items() if gain >= max(gains.values()) - TOLERANCE]
        chosen[judge] = min(near, key=lambda rule: (harm[rule], -gains[rule]))
        found += [o for o in outcomes if o.data_set == judge and o.rule == chosen[judge]]
    return found, chosen


def _harm(outcome: Outcome) -> int:
    """Number of references that it is below: zero-shot, the paper's setting."""
    return sum(outcome.accuracy < r - 1e-6 for r in (outcome.zero_shot, outcome.paper))
