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
from trainables.assignment import Message
from trainables.core.storage import LocalStorage
from trainables.methods.base import TaskFacts
from trainables.report import ZERO_SHOT


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A sweep without trials."""
    space = SPACES["rmt"].build(TaskFacts("digits", 1, 10))
    return Ledger(LocalStorage(tmp_path), space, "random", "none", 0)


def end(ledger: Ledger, accuracy: float, forecast: dict[str, float] | None = None) -> None:
    live = ledger.ask()
    live.forecast = forecast or {}
    ledger.report(live.number, [accuracy], {"val/accuracy": accuracy})
    ledger.finish(live.number, "COMPLETE")


def terminal(text: io.StringIO) -> Console:
    return Console(file=text, force_terminal=True, width=100, height=30)


def lines(text: io.StringIO) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    return [" ".join(line.split()) for line in plain.splitlines()]


def rows(ledger: Ledger) -> list[str]:
    """The table's lines in a terminal."""
    text = io.StringIO()
    with Progress(terminal(text), ledger, 8):
        pass
    return lines(text)


def test_trials_stand_below_the_zero_shot_model_and_the_paper_s_setting(ledger: Ledger) -> None:
    end(ledger, 0.7, {ZERO_SHOT["accuracy"]: 0.625})
    end(ledger, 0.75)
    found = rows(ledger)
    assert any(line.startswith("1 best 75.0 %") for line in found)
    assert any(line.startswith("0 paper 70.0 %") for line in found)
    assert "zero-shot 62.5 %" in found


def test_the_zero_shot_accuracy_is_shown_before_the_first_trial_ends(ledger: Ledger) -> None:
    text = io.StringIO()
    with Progress(terminal(text), ledger, 8) as progress:
        live = ledger.ask()
        progress.started(live)
        progress.heard(
            Message(live.number, "running", None, forecast={ZERO_SHOT["accuracy"]: 0.625})
        )
    assert "zero-shot 62.5 %" in lines(text)


def test_an_unknown_zero_shot_accuracy_has_no_row(ledger: Ledger) -> None:
    end(ledger, 0.75)
    assert not any("zero-shot" in line for line in rows(ledger))
