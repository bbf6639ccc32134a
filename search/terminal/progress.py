"""Progress of a running sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.console import Console, ConsoleDimensions, Group
from rich.control import Control
from rich.live import Live as Display
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.core.results import Result
from search.core.shown import shown_parameters
from search.terminal.sweep_status import duration
from search.terminal.trial_table import TrialRow, VaryingParameters, trial_table
from trainables.assignment import Message
from trainables.core.text import printable
from trainables.report import ZERO_SHOT

if TYPE_CHECKING:
    from search.ledger.ledger import Ledger, RunningTrial

_STOPPING = "Stopping after the current steps; trials are kept. Ctrl-C again stops at once."
_MOST_RECENT = 100  # finished trials that are shown, on the tallest terminal
_LEAST_RECENT = 3
_OTHER_LINES = 6  # of a frame: three of figures, a heading, and two that stay free


@dataclass
class _Running:
    """A running trial."""

    epochs: int
    epoch: int = 0
    value: float | None = None


class Progress:
    """Display of trials by state, the best trial, running trials and remaining time."""

    def __init__(
        self,
        console: Console,
        ledger: Ledger,
        trials: int,
        rounds: int = 1,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`rounds` is the number of full trainings that a trial runs one after another; `stopping`
        returns whether the sweep has been interrupted."""
        self._console, self._ledger, self._rounds = console, ledger, rounds
        self._stopping = stopping
        self._goal = max(trials, ledger.issued(trials))
        self._trials = trials
        self._before = self._ended
        self._start = time.monotonic()
        self._recent: list[Result] = []
        self._varying = VaryingParameters()
        self._zero_shot: float | None = None
        for result in ledger.results.values():
            self._learn(result)
        self._running: dict[int, _Running] = {}
        self._warned: set[str] = set()
        self._forecasts: dict[int, dict[str, float]] = {}
        self._display: Display | None = None
        self._size = console.size
        self._said: list[Text] = []
        self._wiped = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._display = Display(
                get_renderable=self._frame,
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None
            for notice in self._said[: self._wiped]:  # the user may not have read them
                self._console.print(notice)
        if self._stopping():
            self._console.print(_STOPPING)

    def started(self, live: RunningTrial) -> None:
        """Show a trial that has started."""
        self._running[live.number] = _Running(live.config.total_epochs * self._rounds)

    def heard(self, message: Message) -> None:
        """Show a worker's report, forecast and warnings."""
        running = self._running.get(message.number)
        if running is not None and message.report is not None:
            running.value = message.report.metrics["val/accuracy"]
            epochs = [int(row["epoch"]) for row in message.report.rows]
            running.epoch = max(epochs, default=running.epoch)
        if message.forecast:
            self._forecasts[message.number] = message.forecast
            self._zero_shot = message.forecast.get(ZERO_SHOT["accuracy"], self._zero_shot)
        for warning in message.warnings:
            # Show the full text once, then only the headline.
            headline = warning.split(":")[0]
            text = f"{headline}." if headline in self._warned else warning
            self._warned.add(headline)
            self._say(f"trial {message.number:>3} {text}", "yellow")

    def ended(self, result: Result, ledger: Ledger) -> None:
        """Show a trial that has ended."""
        self._running.pop(result.number, None)
        self._forecasts.pop(result.number, None)
        self._recent = [*self._recent, result][-_MOST_RECENT:]
        self._learn(result)
        if result.state == "FAIL":
            self._say(f"trial {result.number} failed: {result.reason}", "red")
        elif self._display is None:
            best = ledger.best()
            state = result.state.lower() if result.trained else "no flip"
            value = (
                f"val {percent(result.accuracy)}  best {percent(best.accuracy if best else None)}"
            )
            if ledger.objective == "likelihood":  # by which a lower accuracy may be better
                value = (
                    f"val {percent(result.accuracy)}  likelihood {_three(result.value)}  "
                    f"best {_three(best.value if best else None)}"
                )
            self._say(f"trial {result.number:>3} {state:<8} {value}  ({self._ended}/{self._goal})")

    def _learn(self, result: Result) -> None:
        self._varying.add(_parameters(result))
        self._zero_shot = result.metrics.get(ZERO_SHOT["accuracy"], self._zero_shot)

    @property
    def _ended(self) -> int:
        return self._ledger.ended(self._trials)

    def _say(self, line: str, style: str = "") -> None:
        text = Text(printable(line), style)
        self._said.append(text)
        self._console.print(text)

    def _frame(self) -> Group:
        """Return the frame for the current size of the terminal.

        Narrowing a terminal wraps the lines of the last frame, so that its start is unknown. The
        screen is cleared in this case, and its notices are printed again at the end.
        """
        if self._console.size != self._size:
            self._size = self._console.size
            self._wiped = len(self._said)
            self._console.control(Control.clear(), Control.home())
        return self._render(self._size)

    def _render(self, size: ConsoleDimensions) -> Group:
        ledger = self._ledger
        ended = self._ended
        states = [r.state for r in ledger.results.values()]
        line = Text.assemble(
            (f"{ended} of {self._goal} trials", "bold"),
            f"  {states.count('COMPLETE')} complete",
            f"  {states.count('PRUNED')} pruned",
            f"  {states.count('FAIL')} failed",
            f"  {len(ledger.live)} running",
            no_wrap=True,
            overflow="ellipsis",
        )
        words = _STOPPING if self._stopping() else self._pace(ended)
        pace = Text(words, no_wrap=True, overflow="ellipsis")
        bar = Table.grid()  # adds the line break
        bar.add_row(ProgressBar(total=self._goal, completed=ended, width=min(60, size.width)))
        rows = self._first_rows()
        recent = max(_LEAST_RECENT, size.height - len(rows) - _OTHER_LINES)
        for result in reversed(self._recent[-recent:]):
            rows.append(_row(result, result.state.lower(), "dim"))
        return Group(line, bar, pace, trial_table(rows, self._varying.names, size.width))

    def _first_rows(self) -> list[TrialRow]:
        """The rows above those of finished trials: the best trial, what trials are compared with,
        and running trials."""
        ledger, rows = self._ledger, list[TrialRow]()
        best, paper = ledger.best(), ledger.results.get(0)
        if best is not None:
            rows.append(_row(best, "best", "bold green"))
        if paper is not None and paper is not best and paper.config.get("preset") == "paper":
            rows.append(_row(paper, "paper", "bold"))
        if self._zero_shot is not None:
            rows.append(TrialRow(None, "zero-shot", percent(self._zero_shot), "", {}, "bold"))
        for number, running in sorted(self._running.items()):
            live = ledger.live.get(number)
            chosen = shown_parameters(live.config.to_dict(), live.parameters) if live else {}
            rows.append(
                TrialRow(
                    number,
                    _epochs(running),
                    percent(running.value),
                    "",
                    {**self._forecasts.get(number, {}), **chosen},
                    "cyan",
                )
            )
        return rows

    def _pace(self, ended: int) -> str:
        done = ended - self._before
        elapsed = time.monotonic() - self._start
        if done == 0:
            return f"{duration(elapsed)} so far"
        left = elapsed / done * (self._goal - ended)
        rate = 60 * done / elapsed
        return f"{duration(elapsed)} so far, {rate:.1f} trials per minute, {duration(left)} left"


def _parameters(result: Result) -> Mapping[str, object]:
    return shown_parameters(result.config, result.parameters) if result.config else {}


def _row(result: Result, state: str, style: str) -> TrialRow:
    validation, time = percent(result.accuracy), duration(result.train_seconds)
    return TrialRow(result.number, state, validation, time, _parameters(result), style)


def _epochs(running: _Running) -> str:
    if not running.epochs:
        return "running"
    return f"epoch {running.epoch}/{running.epochs}"


def percent(fraction: float | None) -> str:
    """Format a fraction in per cent; a dash for None."""
    return "    -" if fraction is None else f"{100 * fraction:5.1f} %"


def _three(fraction: float | None) -> str:
    return "    -" if fraction is None else f"{fraction:.3f}"


def short(parameters: Mapping[str, object], config: Mapping[str, object] | None = None) -> str:
    """Format parameters on one line, numbers with three digits.

    With a trial's `config`, values that differ between its data sets are shown per data set.
    """
    if config is not None:
        parameters = shown_parameters(config, parameters)
    return "  ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in parameters.items()
    )
