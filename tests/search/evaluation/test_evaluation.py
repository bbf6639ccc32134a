"""How the overall figure of a protocol is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.evaluation.record import (
    EVALUATION,
    READS,
    Evaluation,
    Score,
    list_reads,
    read_evaluation,
    reads_of_test,
    record_read,
)
from trainables.core.protocols import Protocol
from trainables.core.storage import LocalStorage


def scores(*rows: tuple[str, str, str, tuple[float, ...]]) -> tuple[Score, ...]:
    """The same for all three labels, the winner a tenth better."""
    return tuple(
        Score(label, tuple(v + gain for v in values), dataset, 16, target, part, 100)
        for label, gain in (("zero-shot", 0.0), ("paper", 0.0), ("winner", 0.1))
        for dataset, target, part, values in rows
    )


def evaluation(protocol: Protocol, *rows: tuple[str, str, str, tuple[float, ...]]) -> Evaluation:
    return Evaluation(3, 0.5, (2, 3), protocol, scores(*rows))


FEW_SHOT = evaluation("few-shot", ("a", "a", "test", (0.2, 0.4)), ("b", "b", "test", (0.6, 0.6)))
HALVES = evaluation(
    "base-to-new",
    *(("a", "a", "base", (0.8, 0.6)), ("a", "a", "new", (0.4, 0.6))),
    *(("b", "b", "base", (0.2, 0.4)), ("b", "b", "new", (0.6, 0.4))),
)
SHIFTS = evaluation(
    "domain-generalization",
    *(("a", "a", "test", (0.9, 0.9)), ("a", "v2", "shift", (0.2, 0.3))),
    ("a", "r", "shift", (0.4, 0.5)),
)
CROSS = evaluation(
    "cross-dataset", ("a", "a", "test", (0.9, 0.9)), ("a", "b", "target", (0.2, 0.3))
)


def test_few_shot_is_the_mean_over_data_sets_draw_by_draw() -> None:
    assert FEW_SHOT.figure("zero-shot") == pytest.approx((0.4, 0.5))
    assert FEW_SHOT.figure("winner") == pytest.approx((0.5, 0.6))
    assert FEW_SHOT.images == 200


def test_base_to_new_in_both_conventions() -> None:
    # Averages over data sets: base 0.5 and 0.5, new 0.5 and 0.5.
    assert HALVES.figure("zero-shot") == pytest.approx((0.5, 0.5))
    assert HALVES.harmonic_of_means("zero-shot") == pytest.approx(0.5)
    a, b = 2 * 0.7 * 0.5 / 1.2, 2 * 0.3 * 0.5 / 0.8
    assert HALVES.mean_of_harmonics("zero-shot") == pytest.approx((a + b) / 2)
    summary = HALVES.summary()
    assert summary["test/base_winner"] == pytest.approx(0.6)
    assert summary["test/a/16shot/new_zero_shot"] == pytest.approx(0.5)


def test_what_was_trained_on_is_not_part_of_generalization() -> None:
    assert SHIFTS.figure("zero-shot") == pytest.approx((0.3, 0.4))
    assert CROSS.figure("zero-shot") == pytest.approx((0.2, 0.3))


@pytest.mark.parametrize("found", [FEW_SHOT, HALVES, SHIFTS, CROSS])
def test_round_trip(found: Evaluation, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert read_evaluation(storage) is None
    storage.write(EVALUATION, found.to_json())
    assert read_evaluation(storage) == found


@pytest.mark.parametrize("content", ["", "[]", '{"winner": 3}', '{"scores": [1]}'])
def test_a_damaged_record_is_none(content: str, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write(EVALUATION, content.encode())
    assert read_evaluation(storage) is None


def test_reads_are_counted_by_data_set(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert reads_of_test(storage) == {}
    for name in ("a", "b", "a"):
        record_read(storage, name, [("winner", name, 16, 1)])
    assert reads_of_test(storage) == {"a": 2, "b": 1}
    assert [read and (read.dataset, len(read.judged)) for read in list_reads(storage)] == [
        *(("a", 1), ("b", 1), ("a", 1))
    ]


@pytest.mark.parametrize(
    "torn", [b'{"time": 1.0, "data', b"{}\n", b'{"time": 1.0, "data{"x": 1}\n']
)
def test_a_torn_line_is_a_read_of_its_own(torn: bytes, tmp_path: Path) -> None:
    """A power cut may leave a part of a line, which must not swallow the next."""
    storage = LocalStorage(tmp_path)
    record_read(storage, "a", [])
    storage.append(READS, torn)
    record_read(storage, "b", [])
    found = list_reads(storage)
    assert [read and read.dataset for read in found] == ["a", None, "b"]
    assert reads_of_test(storage) == {"a": 1, "b": 1}
