"""Statistics: bounds, symmetry, and published values."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.evaluation.statistics import (
    Difference,
    Summary,
    half_width_over_images,
    harmonic,
    harmonic_of_means,
    indistinguishable,
    mean_of_harmonics,
    noise_level,
    paired,
    separation_note,
    summary,
)

patient = settings(deadline=None)  # busy machines are no failure
fractions = st.floats(0, 1, allow_subnormal=False)
rows = st.lists(st.tuples(fractions, fractions), min_size=1, max_size=12)
images_ = st.integers(1, 50_000)


def test_a_summary_divides_by_n_minus_one() -> None:
    assert summary([2, 4, 4, 4, 5, 5, 7, 9]) == Summary(5, pytest.approx(math.sqrt(32 / 7)))
    assert summary([0.5]) == Summary(0.5, None)
    with pytest.raises(ValueError, match="at least one value"):
        summary([])


def test_a_paired_interval_is_students() -> None:
    # Student's t of 0.975 for 2 degrees of freedom is 4.3027; sd of (1, 2, 3) is 1.
    found = paired([11, 22, 33], [10, 20, 30])
    half = 4.302653 / math.sqrt(3)
    assert found == Difference(2, pytest.approx(2 - half, abs=1e-5), pytest.approx(2 + half))
    # Student's t of 0.975 for 1 degree of freedom is 12.7062.
    assert paired([1, 3], [0, 0]).high == pytest.approx(2 + 12.7062, abs=1e-4)


def test_a_single_pair_has_no_interval() -> None:
    assert paired([0.9], [0.5]) == Difference(pytest.approx(0.4), None, None)
    with pytest.raises(ValueError, match="same seeds, got 2 and 1"):
        paired([1, 2], [1])
    with pytest.raises(ValueError, match="at least one"):
        paired([], [])


@patient
@given(rows)
def test_an_interval_holds_its_mean_and_turns_with_the_pairs(
    pairs: list[tuple[float, float]],
) -> None:
    values, baseline = map(list, zip(*pairs, strict=True))
    forth, back = paired(values, baseline), paired(baseline, values)
    assert forth.mean == -back.mean
    if len(pairs) == 1:
        assert (forth.low, forth.high) == (None, None)
        return
    assert forth.low is not None
    assert forth.high is not None
    assert forth.low <= forth.mean <= forth.high
    assert back.low is not None
    assert forth.high == pytest.approx(-back.low)
    assert paired(values, values) == Difference(0, 0, 0)


def test_a_shift_that_all_seeds_share_is_certain() -> None:
    # The seeds differ by 30 points, the two settings by 2 on every seed.
    found = paired([0.52, 0.62, 0.82], [0.5, 0.6, 0.8])
    assert found.low == pytest.approx(0.02)
    assert found.high == pytest.approx(0.02)


def test_the_interval_over_images_is_agresti_and_min_s() -> None:
    """b = 15 and c = 5 of 100: d = 0.1, (b + c + 1 - (b - c)^2 / (n + 2)) = 20.0196."""
    d = np.array([1.0] * 15 + [-1.0] * 5 + [0.0] * 80)
    half = half_width_over_images([(1.0, d)])
    assert half == pytest.approx(1.959964 * math.sqrt(20.0196) / 102, abs=1e-5)
    assert half_width_over_images([(1.0, np.zeros(100))]) == pytest.approx(1.959964 / 102, abs=1e-5)


def test_the_interval_over_images_holds_its_level() -> None:
    """Two data sets with different differences, of which the mean is wanted."""
    rng, covered, truth = np.random.default_rng(0), 0, 0.5 * (0.10 - 0.02)
    for _ in range(2000):
        parts = []
        for n, better, worse in ((60, 0.20, 0.10), (150, 0.05, 0.07)):
            d = rng.choice([1.0, -1.0, 0.0], n, p=[better, worse, 1 - better - worse])
            parts.append((0.5, 0.5 * d))
        mean, half = sum(d.mean() for _, d in parts), half_width_over_images(parts)
        covered += abs(mean - truth) <= half
    assert 0.935 < covered / 2000 < 0.985


@patient
@given(fractions, fractions)
def test_the_harmonic_mean_lies_below_the_others(base: float, new: float) -> None:
    found = harmonic(base, new)
    assert found == harmonic(new, base)
    slack = 1e-12
    assert min(base, new) - slack <= found <= math.sqrt(base * new) + slack
    assert found <= (base + new) / 2 + slack
    assert harmonic(base, base) == pytest.approx(base)


def test_harmonic_means_of_a_paper() -> None:
    assert round(harmonic(82.69, 63.22), 2) == 71.66  # CoOp, average over eleven data sets
    assert round(harmonic(69.34, 74.22), 2) == 71.70  # CLIP's zero-shot
    assert harmonic(0, 0.7) == harmonic(0, 0) == 0
    with pytest.raises(ValueError, match="at least 0"):
        harmonic(-0.1, 0.5)


@patient
@given(rows)
def test_the_two_conventions(pairs: list[tuple[float, float]]) -> None:
    base, new = map(list, zip(*pairs, strict=True))
    mean, of_means = mean_of_harmonics(base, new), harmonic_of_means(base, new)
    assert mean <= of_means + 1e-12  # the harmonic mean is concave
    assert of_means <= statistics.fmean(base + new) + 1e-12


def test_the_two_conventions_differ() -> None:
    assert harmonic_of_means([0.9, 0.3], [0.3, 0.9]) == pytest.approx(0.6)
    assert mean_of_harmonics([0.9, 0.3], [0.3, 0.9]) == pytest.approx(0.45)
    for convention in (harmonic_of_means, mean_of_harmonics):
        with pytest.raises(ValueError, match="same data sets, got 2 and 1"):
            convention([0.5, 0.5], [0.5])
        with pytest.raises(ValueError, match="got 0 and 0"):
            convention([], [])


def test_noise_by_the_formula() -> None:
    # 40 of 40 against 36 and 35 of 40, computed by hand:
    # |41/42 - 37/42| = 0.0952 <= 1.96 * 0.0553 = 0.1083, |41/42 - 36/42| = 0.1190 > 0.1155.
    values = {7: 1.0, 3: 0.9, 5: 0.875, 9: 0.2}
    assert indistinguishable(values, 40) == (3,)
    assert 0.1 <= noise_level(1.0, 40) < 0.125


def test_the_best_comes_first_and_equals_are_noise() -> None:
    assert indistinguishable({4: 0.8, 2: 0.8, 9: 0.8}, 10**6) == (4, 9)
    assert indistinguishable({1: 0.7, 2: 0.9, 3: 0.8}, 4) == (3, 1)
    assert indistinguishable({1: 0.7}, 4) == ()


@patient
@given(
    st.dictionaries(st.integers(0, 99), fractions, min_size=1, max_size=9),
    images_,
    st.integers(2, 9),
)
def test_what_is_noise_is_near_and_more_images_leave_less(
    values: dict[int, float], images: int, factor: int
) -> None:
    near = indistinguishable(values, images)
    best = max(values.values())
    level = noise_level(best, images)
    assert 0 < level <= best or best == 0
    for number, value in values.items():
        if number in near:
            assert best - value <= level + 1e-9
        elif value < best:
            assert best - value >= level - 1e-9
    assert noise_level(best, factor * images) <= level + 1e-9
    assert [values[n] for n in near] == sorted((values[n] for n in near), reverse=True)


def test_the_note() -> None:
    note = separation_note({7: 0.95, 3: 0.95, 5: 0.925, 9: 0.9, 11: 0.2}, 40)
    assert note is not None
    level = 100 * noise_level(0.95, 40)
    assert note == (
        "Validation (40 distinct images) cannot separate the winner from 3 other trials: "
        f"differences up to {level:.1f} points are noise."
    )
    assert 15 < level < 16  # 12 points below a winner at 100 %
    single = separation_note({0: 0.5, 1: 0.5}, 1)
    assert single is not None
    assert "(1 distinct image)" in single
    assert "1 other trial:" in single
    assert separation_note({0: 0.9, 1: 0.1}, 1000) is None
    assert separation_note({0: 0.9}, 10) is None
    assert separation_note({}, 10) is None
