"""The live table of trials."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from search.terminal.trial_table import TrialRow, VaryingParameters, trial_table

TRIALS = (
    {"residual": "text", "normalise_base": False, "alpha": 0.5, "epochs": 200, "lr": 0.002},
    {"residual": "both", "normalise_base": True, "alpha": 1.25, "epochs": 98, "lr": 0.0389309},
    {"residual": "image", "normalise_base": False, "alpha": 0.5, "epochs": 104, "lr": 1e-4},
)


def lines(width: int) -> list[str]:
    varying = VaryingParameters()
    for trial in TRIALS:
        varying.add({**trial, "crop_scale": 1.0})
    rows = [
        TrialRow(number, "epoch 104/200", " 91.6 %", "12 s", trial)
        for number, trial in enumerate(TRIALS)
    ]
    console = Console(file=io.StringIO(), width=width)
    console.print(trial_table(rows, varying.names, width))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_at_80_columns_numbers_are_seen_and_aligned() -> None:
    heading, *rows = lines(80)
    seen = "trial state validation time alpha lr epochs residual"
    assert heading.split() == seen.split()
    assert all(len(line) <= 80 for line in (heading, *rows))
    end = heading.index("lr") + 2
    assert [row[:end].split()[-1] for row in rows] == ["0.002", "0.0389", "0.0001"]


def test_what_never_varies_has_no_column() -> None:
    assert "crop_scale" not in lines(200)[0]
    assert "normalise_base" in lines(200)[0]


@pytest.mark.parametrize("width", range(44, 120, 7))
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    assert all(len(line) <= width for line in lines(width))
    assert len(lines(width)) == 1 + len(TRIALS)  # nothing is folded
