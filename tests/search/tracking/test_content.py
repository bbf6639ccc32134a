"""What MLflow gets of a trial's curves."""

from __future__ import annotations

import dataclasses

import pytest

from search.tracking.content import Row, trial_content
from spaces.registry import SPACES
from trainables.methods.base import TaskFacts
from trainables.report import step_ends
from trainables.trial import TaskSpec, TrialConfig

PAPER = SPACES["taskres"].build(TaskFacts("digits", 4, 40, "vit")).paper


def config(epochs: int) -> TrialConfig:
    return dataclasses.replace(PAPER, optim=dataclasses.replace(PAPER.optim, epochs=epochs))


def rows(epochs: int) -> list[Row]:
    return [Row(e, float(e), {"train/loss": 1 / e}) for e in range(1, epochs + 1)]


def sent(epochs: int, until: int | None = None) -> list[Row]:
    return [*trial_content(config(epochs), 0.0, rows(epochs)[:until], None, [], {}).rows]


@pytest.mark.parametrize("epochs", [1, 8, 31, 32])
def test_short_curves_are_sent_whole(epochs: int) -> None:
    assert sent(epochs) == rows(epochs)


@pytest.mark.parametrize("epochs", [33, 100, 200, 1000])
def test_long_curves_keep_every_report_and_at_most_32_other_points(epochs: int) -> None:
    steps, reports = [row.step for row in sent(epochs)], step_ends(config(epochs))
    assert steps == sorted({*steps, *reports})
    assert 12 <= len({*steps} - {*reports}) <= 32


def test_draws_in_sequence_keep_the_end_of_each() -> None:
    """The curve goes through all of them: 5 draws of 33 epochs."""
    draws = TaskSpec(("digits",), "tiny", (4,), (1, 2, 3, 4, 5)).episodes
    whole = trial_content(config(33), 0.0, rows(5 * 33), None, [], {}, draws).rows
    steps = {row.step for row in whole}
    ends = {33, 66, 99, 132, 165}
    assert ends <= steps
    assert len(steps - ends) <= 32


def test_a_curve_sent_in_parts_is_the_curve_sent_at_once() -> None:
    for until in (1, 13, 50, 99):
        part = sent(100, until)
        assert part == sent(100)[: len(part)]
