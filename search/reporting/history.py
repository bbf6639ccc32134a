"""How the search went: its values, what was stopped early, what it cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from search.core.results import Result, State
from search.reporting.figures import BLUE, GREEN, MARKERS, ORANGE, VERMILION, Figure, draw
from search.reporting.section import Section
from search.reporting.source import Source
from trainables.trial_run import REPORTS_PER_TRIAL

_STATES: dict[State, tuple[str, str, str]] = {
    "COMPLETE": ("complete", BLUE, MARKERS[0]),
    "PRUNED": ("stopped early", ORANGE, MARKERS[1]),
    "FAIL": ("failed", VERMILION, MARKERS[2]),
}


def history_section(source: Source) -> Section:
    """Values, survival and cost."""
    figures = [_history(source)]
    if max(len(r.values) for r in source.results.values()) > 1:
        figures.append(_survival(source))
    figures.append(_times(source))
    return Section("search", "The search", (_cost(source),), figures=tuple(figures))


def survivors(trials: Sequence[Result]) -> list[int]:
    """How many trials have reported at least 1, 2, ... parts."""
    most = max((len(trial.values) for trial in trials), default=0)
    return [sum(len(trial.values) >= part for trial in trials) for part in range(1, most + 1)]


def _history(source: Source) -> Figure:
    def paint(axes: Axes) -> None:
        _dots(axes, source, lambda r: None if r.value is None else 100 * r.value)
        best, numbers, values = -math.inf, [], []
        for result in source.of("COMPLETE"):
            best = max(best, 100 * (result.value or 0.0))
            numbers.append(result.number)
            values.append(best)
        if numbers:
            axes.step(numbers, values, where="post", color=GREEN, label="best so far")
        axes.set_ylabel("validation accuracy (%)")

    caption = (
        "A trial's value is its validation accuracy, the mean over data sets, shots and draws; of "
        "one that was stopped early, its last. Trial 0 is the paper's setting."
    )
    return draw("history", "Optimisation history", caption, paint)


def _dots(axes: Axes, source: Source, height: Callable[[Result], float | None]) -> None:
    """One mark a trial, by its state, over the trials' numbers."""
    axes.set_xlabel("trial (number)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for state, (label, colour, marker) in _STATES.items():
        found = {r.number: y for r in source.of(state) if (y := height(r)) is not None}
        if found:
            axes.scatter(
                list(found),
                list(found.values()),
                s=24,
                color=colour,
                marker=marker,
                label=label,
                alpha=0.8,
                linewidths=0,
            )


def _survival(source: Source) -> Figure:
    trials = list(source.results.values())

    def paint(axes: Axes) -> None:
        counts = survivors(trials)
        axes.bar(range(1, len(counts) + 1), counts, color=BLUE, width=0.7)
        for part, count in enumerate(counts, start=1):
            axes.annotate(str(count), (part, count), ha="center", va="bottom", fontsize=9)
        axes.set(xlabel="part of the training (number)", ylabel="trials that finished it (count)")
        axes.set_xticks(range(1, len(counts) + 1))
        axes.grid(axis="x", visible=False)

    caption = (
        f"Of {len(trials)} ended trials. After every part the pruner "
        f"({source.config.pruner}) may stop a trial; one that failed stops there too. A training "
        f"whose epochs do not divide into {REPORTS_PER_TRIAL} has fewer parts."
    )
    return draw("survival", "Rung survival", caption, paint)


def _times(source: Source) -> Figure:
    def paint(axes: Axes) -> None:
        _dots(axes, source, lambda r: r.train_seconds)
        axes.set(ylabel="training and validation (s)", ylim=(0, None))

    caption = "Time in training and validation, all draws together; waiting is not counted."
    return draw("times", "Time per trial", caption, paint)


def _cost(source: Source) -> str:
    trials = list(source.results.values())
    states = ", ".join(
        f"{len(source.of(state))} {label}" for state, (label, _, _) in _STATES.items()
    )
    seconds = [r.train_seconds for r in trials]
    hosts = len({r.host for r in trials if r.host})
    span = max(r.ended for r in trials) - min(r.begun for r in trials)
    return (
        f"{len(trials)} trials have ended ({states}) of {source.config.trials} asked for, in "
        f"{sum(seconds):.1f} s of training and validation (median "
        f"{statistics.median(seconds):.2f} s a trial) on {hosts} host{'' if hosts == 1 else 's'}; "
        f"between the first start and the last end lie {span:.0f} s."
    )
