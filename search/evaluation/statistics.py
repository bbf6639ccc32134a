"""What a few numbers allow one to say: means, paired differences, and what is only noise.

Notation: n values or images, p an accuracy as a fraction, d a difference of two.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TAIL = 0.975
"""Upper end of an interval that holds 95 % of a distribution."""


@dataclass(frozen=True)
class Summary:
    """Some values in two numbers."""

    mean: float
    """Arithmetic mean."""
    deviation: float | None
    """Sample standard deviation, with n - 1; None for a single value."""


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % confidence interval."""

    mean: float
    """Mean of the paired differences."""
    low: float | None
    """Lower end of the interval; None for a single pair."""
    high: float | None
    """Upper end."""


def summary(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation; raises `ValueError` without values."""
    if not values:
        raise ValueError("A mean needs at least one value, got none.")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), deviation)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """`values` minus `baseline`, seed by seed: mean and Student's t interval, n - 1 degrees.

    Pairs share their draw, so what a lucky draw gives to both cancels. Raises `ValueError` where
    there are no pairs or the two differ in length.
    """
    if len(values) != len(baseline):
        raise ValueError(
            f"Paired values must be of the same seeds, got {len(values)} and {len(baseline)}."
        )
    found = summary([value - base for value, base in zip(values, baseline, strict=True)])
    if found.deviation is None:
        return Difference(found.mean, None, None)
    from scipy.special import stdtrit  # half a second that only an evaluation needs

    n = len(values)
    half = float(stdtrit(n - 1, _TAIL)) * found.deviation / math.sqrt(n)
    return Difference(found.mean, found.mean - half, found.mean + half)


def harmonic(base: float, new: float) -> float:
    """Harmonic mean of two accuracies, at least 0; 0 where one of them is 0."""
    if min(base, new) < 0:
        raise ValueError(f"An accuracy is at least 0, got {min(base, new)}.")
    larger, smaller = max(base, new), min(base, new)
    # Written over the quotient, which neither overflows nor vanishes.
    return 2 * smaller / (1 + smaller / larger) if smaller else 0.0


def harmonic_of_means(base: Sequence[float], new: Sequence[float]) -> float:
    """The harmonic mean of the averages over data sets; the two row by row of the same ones."""
    _same_rows(base, new)
    return harmonic(statistics.fmean(base), statistics.fmean(new))


def mean_of_harmonics(base: Sequence[float], new: Sequence[float]) -> float:
    """The average over data sets of each one's harmonic mean; never above `harmonic_of_means`."""
    _same_rows(base, new)
    return statistics.fmean(harmonic(b, n) for b, n in zip(base, new, strict=True))


def effective_images(counts: Sequence[int]) -> int:
    """How many images make a plain mean over m cells as certain as it is: m^2 / sum(1 / n_i).

    Equal to the sum where all cells have the same number of images; a small cell, which counts as
    much as a large one, costs certainty. `counts`: at least 1 each.
    """
    return int(len(counts) ** 2 / sum(1 / count for count in counts) + 1e-9)


def indistinguishable(values: Mapping[int, float], images: int) -> tuple[int, ...]:
    """The trials that `images` validation images cannot tell apart from the best one, best first.

    `values`: trial number -> accuracy as a fraction; of equal values, the smaller number is the
    best. A trial is told apart where the 95 % interval of its difference from the best excludes
    0. The interval is that of Agresti and Caffo (The American Statistician 54, 2000, p. 280), one
    success and one failure added to each side, which holds its level for accuracies near 1:

        p' = (n p + 1) / (n + 2)
        |p1' - p2'| <= 1.96 sqrt((p1'(1 - p1') + p2'(1 - p2')) / (n + 2))

    It is that of independent samples. The trials are judged by the same images, of which the hard
    ones are hard for all; so the true interval is narrower, and what is called noise here is
    called so with care. That the best is the best of many makes it look better than it is, which
    this does not count.
    """
    ranked = sorted(values, key=lambda number: (-values[number], number))
    best, rest = ranked[0], ranked[1:]
    return tuple(number for number in rest if _noise(values[best], values[number], images))


def noise_level(best: float, images: int) -> float:
    """The largest difference below `best` (fractions) that `images` images cannot separate."""
    low, high = 0.0, best
    if _noise(best, 0.0, images):
        return best
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _noise(best, best - middle, images) else (low, middle)
    return low


def separation_note(values: Mapping[int, float], images: int) -> str | None:
    """A sentence for the person who reads the winner's number; None where the winner stands apart.

    `values`: trial number -> accuracy as a fraction. `images`: see `effective_images`.
    """
    near = indistinguishable(values, images) if values else ()
    if not near:
        return None
    others = f"{len(near)} other trial{'s' if len(near) > 1 else ''}"
    level = 100 * noise_level(max(values.values()), images)
    return (
        f"Validation ({images} image{'s' if images > 1 else ''}) cannot separate the winner from "
        f"{others}: differences up to {level:.1f} points are noise."
    )


def _same_rows(base: Sequence[float], new: Sequence[float]) -> None:
    if len(base) != len(new) or not base:
        raise ValueError(
            f"Base and new accuracies must be of the same data sets, got {len(base)} and "
            f"{len(new)}."
        )


def _noise(best: float, other: float, images: int) -> bool:
    """Whether the interval of `indistinguishable` contains 0."""
    first, second = ((images * p + 1) / (images + 2) for p in (best, other))
    variance = (first * (1 - first) + second * (1 - second)) / (images + 2)
    return abs(first - second) <= statistics.NormalDist().inv_cdf(_TAIL) * math.sqrt(variance)
