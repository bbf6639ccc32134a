"""History of the search: values, early stopping and cost."""

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
    "COMPLETE": ("completed", BLUE, MARKERS[0]),
    "PRUNED": ("stopped early", ORANGE, MARKERS[1]),
    "FAIL": ("failed", VERMILION, MARKERS[2]),
}


def history_section(source: Source) -> Section:
    """Build the figures of values, survival and time."""
    figures = [_history(source)]
    if max(len(r.values) for r in source.results.values()) > 1:
        figures.append(_survival(source))
    figures.append(_times(source))
    return Section("search", "The search", (_cost(source),), figures=tuple(figures))


def survivors(trials: Sequence[Result]) -> list[int]:
    """Return the numbers of trials that have reached at least 1, 2, ... report steps."""
    most = max((len(trial.values) for trial in trials), default=0)
    return [sum(len(trial.values) >= part for trial in trials) for part in range(1, most + 1)]


def _history(source: Source) -> Figure:
    def paint(axes: Axes) -> None:
        _dots(axes, source, lambda r: None if r.accuracy is None else 100 * r.accuracy)
        best, numbers, values = -math.inf, [], []
        for result in source.of("COMPLETE"):
            best = max(best, 100 * (result.accuracy or 0.0))
            numbers.append(result.number)
            values.append(best)
        if numbers:
            axes.step(numbers, values, where="post", color=GREEN, label="best so far")
        axes.set_ylabel("validation accuracy (%)")

    caption = (
        "A trial's value is its validation accuracy, averaged over data sets, shots and draws; for "
        "a trial that was stopped early, the last reported one. Trial 0 is the paper's setting."
    )
    return draw("history", "Optimisation history", caption, paint)


def _dots(axes: Axes, source: Source, height: Callable[[Result], float | None]) -> None:
    """Draw one mark per trial, styled by its state, against the trial number."""
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
        axes.set(xlabel="report step (number)", ylabel="trials that reached it (count)")
        axes.set_xticks(range(1, len(counts) + 1))
        axes.grid(axis="x", visible=False)

    caption = (
        f"{len(trials)} finished trials. After each report step, the pruner "
        f"({source.config.pruner}) may stop a trial; failed trials end there, too. A training with "
        f"too few epochs for {REPORTS_PER_TRIAL} steps has fewer."
    )
    return draw("survival", "Rung survival", caption, paint)


def _times(source: Source) -> Figure:
    def paint(axes: Axes) -> None:
        _dots(axes, source, lambda r: r.train_seconds)
        axes.set(ylabel="training and validation (s)", ylim=(0, None))

    caption = "Time in training and validation, summed over all draws, without waiting time."
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
        f"{len(trials)} of {source.config.trials} requested trials have finished ({states}), in "
        f"{sum(seconds):.1f} s of training and validation (median "
        f"{statistics.median(seconds):.2f} s per trial) on {hosts} "
        f"host{'' if hosts == 1 else 's'}. From the first start to the last end, {span:.0f} s "
        "have passed."
    )
