"""Progress bars for decoding, encoding, and training and evaluating the winner."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display

_LINE_SECONDS = 30.0  # between two lines of a task, without a terminal


class Bars:
    """A progress bar per task; without a terminal, a line from time to time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display = Display(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._rows: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()

    def tell(self, what: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` are done; `note` is shown beside it, e.g. a rate."""
        if what not in self._rows:
            self._rows[what] = self._display.add_task(what, total=total, note=note)
            self._said[what] = time.monotonic()
        self._display.update(self._rows[what], completed=done, total=total, note=note)
        if self._console.is_terminal or done >= total:
            return
        if time.monotonic() - self._said[what] >= _LINE_SECONDS:
            self._said[what] = time.monotonic()
            self._console.print(f"{what}: {done} of {total}{f', {note}' if note else ''}")
