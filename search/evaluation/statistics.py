"""Summary statistics and significance tests: means, paired differences, intervals, noise.

Notation: n values or images, p an accuracy as a fraction, d a difference of two.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TAIL = 0.975
"""Upper end of an interval that contains 95 % of a distribution."""


@dataclass(frozen=True)
class Summary:
    """Mean and spread of some values."""

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
    """Upper end; None for a single pair."""


def summary(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation; raises `ValueError` without values."""
    if not values:
        raise ValueError("A mean needs at least one value, got none.")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), deviation)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """`values` minus `baseline`, pair by pair: mean and Student's t interval, n - 1 degrees.

    The two of a pair share a draw, so effects of a lucky draw cancel. Raises `ValueError` if there
    are no pairs or the lengths differ.
    """
    if len(values) != len(baseline):
        raise ValueError(
            f"Paired values must be of the same seeds, got {len(values)} and {len(baseline)}."
        )
    found = summary([value - base for value, base in zip(values, baseline, strict=True)])
    if found.deviation is None:
        return Difference(found.mean, None, None)
    from scipy.special import stdtrit  # takes half a second to import

    n = len(values)
    half = float(stdtrit(n - 1, _TAIL)) * found.deviation / math.sqrt(n)
    return Difference(found.mean, found.mean - half, found.mean + half)


def half_width_over_images(parts: Sequence[tuple[float, NDArray[np.float64]]]) -> float:
    """Half the 95 % interval of sum_k mean(d_k), where test images are the sample.

    `parts`: one per set of test images, (w_k, d_k): d_k [n_k] is each image's contribution to the
    difference of two models, w_k the largest possible |d|. With d in {-1, 0, 1} this is Agresti and
    Min's interval for paired proportions (Statistics in Medicine 24, 2005, p. 729), which adds half
    an observation to each cell of the table of both models' correctness:

        v_k = (sum d^2 + w^2) / (n + 2) - (sum d / (n + 2))^2,    1.96 sqrt(sum_k v_k / (n_k + 2))

    so two models that agree on every image are not certain to be equally good. Images of different
    sets are independent.
    """
    total = 0.0
    for weight, d in parts:
        n = len(d) + 2
        total += ((float(d @ d) + weight**2) / n - (float(d.sum()) / n) ** 2) / n
    return statistics.NormalDist().inv_cdf(_TAIL) * math.sqrt(total)


def harmonic(base: float, new: float) -> float:
    """Harmonic mean of two accuracies, at least 0; 0 if one of them is 0."""
    if min(base, new) < 0:
        raise ValueError(f"An accuracy is at least 0, got {min(base, new)}.")
    larger, smaller = max(base, new), min(base, new)
    # Written with the quotient, which neither overflows nor vanishes.
    return 2 * smaller / (1 + smaller / larger) if smaller else 0.0


def harmonic_of_means(base: Sequence[float], new: Sequence[float]) -> float:
    """The harmonic mean of the averages over data sets; `base` and `new` in the same order."""
    _check_rows(base, new)
    return harmonic(statistics.fmean(base), statistics.fmean(new))


def mean_of_harmonics(base: Sequence[float], new: Sequence[float]) -> float:
    """The average over data sets of each one's harmonic mean; never above `harmonic_of_means`."""
    _check_rows(base, new)
    return statistics.fmean(harmonic(b, n) for b, n in zip(base, new, strict=True))


def indistinguishable(values: Mapping[int, float], images: int) -> tuple[int, ...]:
    """The trials that `images` validation images cannot separate from the best one, best first.

    `values`: trial number -> accuracy as a fraction; of equal values, the smaller number is the
    best. A trial is separated if the 95 % interval of its difference from the best excludes 0. The
    interval is that of Agresti and Caffo (The American Statistician 54, 2000, p. 280), which adds
    one success and one failure to each side and keeps its level for accuracies near 1:

        p' = (n p + 1) / (n + 2)
        |p1' - p2'| <= 1.96 sqrt((p1'(1 - p1') + p2'(1 - p2')) / (n + 2))

    It assumes independent samples. The trials are validated on the same images, of which the hard
    ones are hard for all, so the true interval is narrower and this one is conservative. It ignores
    that the best of many trials is optimistically biased.
    """
    ranked = sorted(values, key=lambda number: (-values[number], number))
    best, rest = ranked[0], ranked[1:]
    return tuple(number for number in rest if _is_noise(values[best], values[number], images))


def noise_level(best: float, images: int) -> float:
    """The largest difference below `best` (fractions) that `images` images cannot separate."""
    low, high = 0.0, best
    if _is_noise(best, 0.0, images):
        return best
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _is_noise(best, best - middle, images) else (low, middle)
    return low


def separation_note(values: Mapping[int, float], images: int) -> str | None:
    """A sentence that qualifies the winner's value; None if no other trial is as good.

    `values`: trial number -> accuracy as a fraction. `images`: distinct ones, see
    `search.core.task.val_images`.
    """
    near = indistinguishable(values, images) if values else ()
    if not near:
        return None
    others = f"{len(near)} other trial{'s' if len(near) > 1 else ''}"
    level = 100 * noise_level(max(values.values()), images)
    return (
        f"Validation ({images} distinct image{'s' if images > 1 else ''}) cannot separate the "
        f"winner from {others}: differences up to {level:.1f} points are noise."
    )


def _check_rows(base: Sequence[float], new: Sequence[float]) -> None:
    if len(base) != len(new) or not base:
        raise ValueError(
            f"Base and new accuracies must be of the same data sets, got {len(base)} and "
            f"{len(new)}."
        )


def _is_noise(best: float, other: float, images: int) -> bool:
    """Whether the interval of `indistinguishable` contains 0."""
    first, second = ((images * p + 1) / (images + 2) for p in (best, other))
    variance = (first * (1 - first) + second * (1 - second)) / (images + 2)
    return abs(first - second) <= statistics.NormalDist().inv_cdf(_TAIL) * math.sqrt(variance)
