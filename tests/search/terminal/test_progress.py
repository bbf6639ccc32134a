"""The rows of the live table that trials are compared with."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from search.ledger.ledger import Ledger
from search.terminal.progress import Progress
from spaces.registry import SPACES
from trainables.core.storage import LocalStorage
from trainables.methods.base import TaskFacts


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A sweep without trials."""
    space = SPACES["rmt"].build(TaskFacts("digits", 1, 10))
    return Ledger(LocalStorage(tmp_path), space, "random", "none", 0)


def end(ledger: Ledger, accuracy: float, trained: bool = True) -> None:
    live = ledger.ask()
    live.trained = trained
    ledger.report(live.number, [accuracy], {"val/accuracy": accuracy})
    ledger.finish(live.number, "COMPLETE")


def rows(ledger: Ledger) -> list[str]:
    """The table's lines in a terminal."""
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=True, width=100, height=30), ledger, 8):
        pass
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    return [" ".join(line.split()) for line in plain.splitlines()]


def test_a_trial_that_is_not_trained_shows_the_zero_shot_accuracy(ledger: Ledger) -> None:
    end(ledger, 0.625, trained=False)
    end(ledger, 0.75)
    found = rows(ledger)
    assert any(line.startswith("1 best 75.0 %") for line in found)
    assert any(line.startswith("0 paper 62.5 %") for line in found)
    assert "zero-shot 62.5 %" in found


def test_an_unknown_zero_shot_accuracy_has_no_row(ledger: Ledger) -> None:
    end(ledger, 0.75)
    assert not any("zero-shot" in line for line in rows(ledger))
