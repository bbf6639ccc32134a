"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live as Display
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.ledger import Ledger, Live
from search.results import Result
from trainables.trainable import Message


class Progress:
    """Trials by state, the best so far, the time left."""

    def __init__(self, console: Console, ledger: Ledger, trials: int) -> None:
        self._console, self._ledger = console, ledger
        self._goal = max(trials, ledger.issued)
        self._before = len(ledger.results)
        self._start = time.monotonic()
        self._recent: list[Result] = []
        self._shares: dict[int, tuple[int, float]] = {}
        self._warned: set[str] = set()
        self._forecasts: dict[int, dict[str, float]] = {}
        self._display: Display | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._display = Display(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._display.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._display is not None:
            self._display.__exit__(kind, error, trace)
            self._display = None

    def started(self, live: Live) -> None:
        """See `Observer`."""
        self._shares[live.number] = (0, float("nan"))

    def heard(self, message: Message) -> None:
        """See `Observer`."""
        if message.report is not None:
            value = message.report.metrics["val/accuracy"]
            self._shares[message.number] = (message.report.step, value)
        if message.forecast:
            self._forecasts[message.number] = message.forecast
        for warning in message.warnings:
            # In full the first time; afterwards its headline is enough.
            headline = warning.split(":")[0]
            text = f"{headline}." if headline in self._warned else warning
            self._warned.add(headline)
            self._console.print(
                f"trial {message.number:>3} {text}", style="yellow", highlight=False
            )

    def ended(self, result: Result, ledger: Ledger) -> None:
        """See `Observer`."""
        self._shares.pop(result.number, None)
        self._forecasts.pop(result.number, None)
        self._recent = [*self._recent, result][-5:]
        if result.state == "FAIL":
            self._console.print(
                f"trial {result.number} failed: {result.reason}", style="red", markup=False
            )
        elif self._display is None:
            best = ledger.best()
            self._console.print(
                f"trial {result.number:>3} {result.state.lower():<8} "
                f"val {percent(result.value)}  best {percent(best.value if best else None)}  "
                f"({len(ledger.results)}/{self._goal})",
                highlight=False,
            )

    def _render(self) -> Group:
        ledger = self._ledger
        ended = len(ledger.results)
        states = [r.state for r in ledger.results.values()]
        line = Text.assemble(
            (f"{ended} of {self._goal} trials", "bold"),
            f"   complete {states.count('COMPLETE')}",
            f"   pruned {states.count('PRUNED')}",
            f"   failed {states.count('FAIL')}",
            f"   running {len(ledger.live)}",
            f"   {self._time_left(ended)}",
        )
        bar = Table.grid()
        bar.add_row(ProgressBar(total=self._goal, completed=ended, width=60))
        table = Table(box=None, pad_edge=False)
        for heading, width in (("trial", 5), ("state", 8), ("validation", 10), ("seconds", 7)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=width)
        room = max(20, self._console.width - 42)
        table.add_column("parameters", no_wrap=True, overflow="ellipsis", max_width=room)
        best = ledger.best()
        if best is not None:
            self._row(table, best, "best", "bold green")
        for result in reversed(self._recent):
            self._row(table, result, result.state.lower(), "")
        for number, (part, value) in sorted(self._shares.items()):
            live = ledger.live.get(number)
            chosen = short(self._forecasts.get(number, {}) | (live.trial.params if live else {}))
            shown = percent(None if part == 0 else value)
            table.add_row(str(number), f"part {part}", shown, "", chosen, style="dim")
        return Group(line, bar, table)

    def _row(self, table: Table, result: Result, state: str, style: str) -> None:
        table.add_row(
            str(result.number),
            state,
            percent(result.value),
            f"{result.train_seconds:.1f}",
            short(result.parameters),
            style=style,
        )

    def _time_left(self, ended: int) -> str:
        done = ended - self._before
        elapsed = time.monotonic() - self._start
        if done == 0:
            return f"{elapsed:.0f} s so far"
        left = elapsed / done * (self._goal - ended)
        return f"{elapsed:.0f} s so far, about {left:.0f} s left"


def percent(fraction: float | None) -> str:
    """A fraction as a person reads it; a dash for none."""
    return "    -" if fraction is None else f"{100 * fraction:5.1f} %"


def short(parameters: Mapping[str, object]) -> str:
    """Parameters on one line, numbers with three digits."""
    return "  ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in parameters.items()
    )
