"""What MLflow gets of a trial's curves."""

from __future__ import annotations

import dataclasses

import pytest

from search.tracking.content import Row, trial_content
from spaces.registry import SPACES
from trainables.methods.base import TaskFacts
from trainables.trial import TrialConfig

PAPER = SPACES["taskres"].build(TaskFacts("digits", 4, 40, "vit")).first


def config(epochs: int) -> TrialConfig:
    return dataclasses.replace(PAPER, optim=dataclasses.replace(PAPER.optim, epochs=epochs))


def rows(epochs: int, validated: set[int]) -> list[Row]:
    return [
        Row(e, float(e), {"train/loss": 1 / e} | ({"val/accuracy": 0.5} if e in validated else {}))
        for e in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs", [1, 8, 31, 32])
def test_short_curves_are_sent_whole(epochs: int) -> None:
    measured = rows(epochs, {epochs})
    assert trial_content(config(epochs), 0.0, measured, None, [], {}).rows == measured


@pytest.mark.parametrize("epochs", [33, 100, 200, 1000])
def test_long_curves_keep_every_validation_and_at_most_32_other_points(epochs: int) -> None:
    validated = {*range(7, epochs, 31), epochs}
    sent = trial_content(config(epochs), 0.0, rows(epochs, validated), None, [], {}).rows
    steps = [row.step for row in sent]
    assert steps == sorted({*steps} | validated)
    assert 16 <= len({*steps} - validated) <= 32


def test_a_curve_sent_in_parts_is_the_curve_sent_at_once() -> None:
    measured = rows(100, {13, 26, 100})
    whole = trial_content(config(100), 0.0, measured, None, [], {}).rows
    parts = [trial_content(config(100), 0.0, measured[:n], None, [], {}).rows for n in (13, 26)]
    for part in parts:
        assert part == whole[: len(part)]
