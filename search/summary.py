"""The last lines a sweep prints."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from search.config import SweepConfig
from search.evaluation import Label, Score, test_reads
from search.progress import short
from search.study import without_password
from search.sweep import Outcome
from search.tracking_uri import ui_command
from trainables.storage import LocalStorage

_NAMES: dict[Label, str] = {
    "zero-shot": "zero-shot",
    "paper": "the paper's setting",
    "winner": "the winner",
}


def print_summary(outcome: Outcome, console: Console) -> None:
    """What was found, where it is, and what to do next."""
    states = ", ".join(f"{n} {state.lower()}" for state, n in outcome.states.items() if n)
    console.print(f"Trials: {states or 'none finished'}.", highlight=False)
    if outcome.overhead is not None:
        console.print(
            f"A trial cost {outcome.overhead:.2f} s outside training (median, warm workers).",
            highlight=False,
        )
    if outcome.unfinished or outcome.interrupted:
        console.print(
            f"{outcome.unfinished} unfinished. Nothing is lost. To go on, run the same command "
            f"again, or: {_tool('python')} -m search.run --resume {outcome.config.name}"
            + _storage(outcome),
            highlight=False,
        )
    if outcome.evaluation is not None:
        _print_evaluation(outcome, console)
    if outcome.undelivered:
        console.print(
            f"{outcome.undelivered} tracking events are not delivered yet; they are kept in the "
            f"outbox. To send them: {_tool('python')} -m search.sync {outcome.config.name}"
            + _storage(outcome),
            style="yellow",
        )
    folder = without_password(outcome.sweep.location)
    if isinstance(outcome.sweep, LocalStorage):
        folder = _relative(outcome.sweep.root)
    console.print(f"Folder: {folder}", highlight=False, soft_wrap=True)
    if outcome.tracking_uri != "none":
        command = ui_command(outcome.tracking_uri)
        if command.startswith("mlflow "):
            command = f"{_tool('mlflow')}{command.removeprefix('mlflow')}"
        console.print(f"MLflow: {command}", highlight=False, soft_wrap=True)


def _print_evaluation(outcome: Outcome, console: Console) -> None:
    found = outcome.evaluation
    assert found is not None
    draws = ", ".join(map(str, found.seeds))
    table = Table(
        title=f"Test accuracy, {found.images} images, fresh draws {draws}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("", "mean", "deviation", "over zero-shot"):
        table.add_column(heading, justify="left" if not heading else "right")
    floor = found.score("zero-shot").mean
    for score in found.scores:
        table.add_row(
            _NAMES[score.label],
            f"{100 * score.mean:.1f} %",
            _deviation(score),
            "" if score.label == "zero-shot" else f"{100 * (score.mean - floor):+.1f}",
            style="bold" if score.label == "winner" else "",
        )
    console.print(table)
    assert outcome.best is not None
    console.print(
        f"The winner is trial {found.winner}, chosen on validation data "
        f"({100 * found.validation:.1f} %): {short(outcome.best.parameters)}",
        highlight=False,
    )
    reads = test_reads(outcome.sweep)
    if reads != 1:
        console.print(f"The test split has been read {reads} times.", style="yellow")


def _deviation(score: Score) -> str:
    return "-" if score.deviation is None else f"{100 * score.deviation:.1f}"


def _tool(name: str) -> str:
    """How to call a program of this environment from here."""
    if os.environ.get("VIRTUAL_ENV") == sys.prefix:  # the environment is activated
        return name
    return _relative(Path(sys.executable).parent / name)


def _storage(outcome: Outcome) -> str:
    if outcome.config.storage == SweepConfig().storage:
        return ""
    return f" --storage {shlex.quote(outcome.config.public().storage)}"


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
