"""Trade-off between accuracy and the second objective, mask sparsity or learned numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from search.core.objectives import Objective, front_of, pareto_front, parse_objective
from search.core.results import Result
from search.reporting.artifacts import numbers_learned
from search.reporting.figures import (
    BLUE,
    MARKERS,
    ORANGE,
    VERMILION,
    Figure,
    draw,
    logarithmic,
)
from search.reporting.mask_figures import SPARSITY
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table, percent

MOST_ARTIFACTS = 200
"""Number of (best) trials whose artifacts are read."""


def tradeoff_section(source: Source) -> Section | None:
    """Plot accuracy against cost, with the Pareto front.

    The cost is the second objective if the sweep has one, else the sparsity if trials have masks,
    else the number of learned numbers. None with fewer than two trials to compare.
    """
    complete = source.of("COMPLETE")
    if source.config.second_objective:
        return _second(parse_objective(source.config.second_objective), complete)
    sparse = {
        r.number: (100 * r.metrics[SPARSITY], r.accuracy) for r in complete if SPARSITY in r.metrics
    }
    if len(sparse) > 1:
        note = "The cost is the sparsity: the share of the masked weights that a trial drops."
        return _section(sparse, "sparsity (% of the masked weights dropped)", "sparsity", note)
    ranked = sorted(complete, key=lambda r: (-(r.accuracy or 0.0), r.number))[:MOST_ARTIFACTS]
    sizes = numbers_learned(source, ranked)
    counted = {r.number: (float(sizes[r.number]), r.accuracy) for r in ranked if r.number in sizes}
    if len(counted) < 2:
        return None
    left_out = (
        f" Only the best {MOST_ARTIFACTS} of {len(complete)} completed trials are shown."
        if len(complete) > MOST_ARTIFACTS
        else ""
    )
    note = (
        "The cost is the count of numbers in the artifact of the trial's first training, "
        f"including those that stay fixed.{left_out}"
    )
    return _section(counted, "numbers in the artifact (count)", "numbers", note)


def _second(also: Objective, complete: Sequence[Result]) -> Section | None:
    found = {}
    for result in complete:
        if (second := also.value(result.metrics)) is not None:
            found[result.number] = second, result.accuracy
    if not found:
        return None
    note = (
        f"The sweep optimised two objectives: validation accuracy and {also.words}. The winner is "
        "the most accurate trial."
    )
    return _section(found, also.words, also.metric, note, front_of(complete, also))


def _section(
    found: Mapping[int, tuple[float, float | None]],
    cost: str,
    short: str,
    note: str,
    front: Sequence[int] = (),
) -> Section:
    points = {n: (x, 100 * y) for n, (x, y) in found.items() if y is not None}
    front = front or pareto_front(points)
    rows = tuple((str(n), f"{points[n][0]:.4g}", percent(points[n][1] / 100)) for n in front)
    table = Table(
        "front",
        "Pareto front: no other trial is better in both",
        ("trial", cost, "validation accuracy (%)"),
        rows,
        "Validation accuracy, which selected the trials, not test accuracy.",
    )
    notes = (note,) if note else ()
    figure = _figure(points, front, cost, short)
    return Section("tradeoff", "Accuracy and its cost", notes, (table,), (figure,))


def _figure(
    points: Mapping[int, tuple[float, float]], front: Sequence[int], cost: str, short: str
) -> Figure:
    def paint(axes: Axes) -> None:
        others = [n for n in points if n not in front and n != 0]
        if others:
            xs, ys = zip(*(points[n] for n in others), strict=True)
            axes.scatter(xs, ys, s=16, color=BLUE, alpha=0.7, linewidths=0, label="trials")
        xs, ys = zip(*(points[n] for n in front), strict=True)
        axes.plot(xs, ys, color=ORANGE, marker=MARKERS[1], label="Pareto front", markersize=5)
        if 0 in points:
            axes.scatter(
                *points[0], color=VERMILION, marker=MARKERS[3], s=40, label="the paper's setting"
            )
        if min(x for x, _ in points.values()) > 0:
            logarithmic(axes, "x")
        axes.set(xlabel=cost, ylabel="validation accuracy (%)")

    caption = "Completed trials. The front connects the trials that no other trial beats in both."
    return draw("tradeoff", f"Accuracy against {short}", caption, paint)
