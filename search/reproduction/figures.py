"""Figures of a reproduced table: lines over shots, points of two measures, overlaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from search.papers.schema import AVERAGE
from search.reporting.document import Figure
from search.reporting.figures import (
    Axis,
    Trace,
    axis,
    bars_above,
    heatmap,
    look,
    series,
    shots_axis,
)
from search.reproduction.comparison import Number
from search.reproduction.layout import Block, Reproduced, unit

_TWO = 2


def figures_of(reproduced: Reproduced) -> Iterator[Figure]:
    """Yield the figures for a table."""
    table = reproduced.plan.table
    name = reproduced.plan.request.name.replace("/", "-")
    if "mask-iou" in table.measures:
        yield from _overlaps(reproduced, name)
    elif table.columns == "shots" and len(table.shots) > 1:
        block = reproduced.blocks[0]
        data, layout = _over_shots(block)
        title = f"Over shots{f': {block.title}' if block.title else ''}"
        caption = "Bars: sample standard deviation over draws. Dashed: published."
        yield Figure(f"{name}-shots", title, caption, data, layout)
    elif table.columns == "measures" and len(table.measures) >= _TWO and len(table.datasets) > 1:
        data, layout = _points(reproduced)
        caption = "One point per data set: means over draws."
        yield Figure(f"{name}-points", table.caption, caption, data, layout)


def _over_shots(block: Block) -> tuple[list[Trace], dict[str, Axis]]:
    data = []
    for place, (row, numbers) in enumerate(block.rows.items()):
        found = [(at.shots, n) for at, n in numbers if n.mean is not None]
        if found:
            bars = bars_above([n.deviation for _, n in found])
            ys = [n.mean for _, n in found]
            xs = [shots for shots, _ in found]
            data.append(series(row, xs, ys, look(place), "lines+markers", error_y=bars))
        printed = [(at.shots, n.published) for at, n in numbers if n.published is not None]
        if printed:
            name, line = f"{row} (published)", {"dash": "dash"}
            known, values = zip(*printed, strict=True)
            data.append(series(name, known, values, look(place), "lines+markers", line=line))
    first = next(iter(block.rows.values()))
    shots = [at.shots for at, _ in first]
    return data, {"xaxis": shots_axis(shots), "yaxis": axis(unit(first[0][0]))}


def _points(reproduced: Reproduced) -> tuple[list[Trace], dict[str, Axis]]:
    """Plot the second measure over the first, with one point per data set."""
    x, y = reproduced.plan.table.measures[:_TWO]
    points: dict[str, list[tuple[float, float, str]]] = {}
    axes: dict[str, Axis] = {}
    for block in reproduced.blocks:
        for row, numbers in block.rows.items():
            means = {at.measure: (at, n.mean) for at, n in numbers}
            (at, first), (_, second) = means[x], means[y]
            axes = {"xaxis": axis(unit(at)), "yaxis": axis(unit(means[y][0]))}
            if first is not None and second is not None and at.dataset != AVERAGE:
                points.setdefault(row, []).append((first, second, at.dataset))
    data = [
        series(
            row,
            [one[0] for one in found],
            [one[1] for one in found],
            look(place),
            "markers+text",
            text=[one[2] for one in found],
            textposition="top center",
        )
        for place, (row, found) in enumerate(points.items())
    ]
    return data, axes


def _overlaps(reproduced: Reproduced, name: str) -> Iterator[Figure]:
    """Plot the mean overlap of every two data sets, and on the diagonal of two draws of one."""
    datasets = reproduced.plan.table.datasets
    found: dict[tuple[str, str], dict[str, Number]] = {}
    for at, number in reproduced.numbers:
        found.setdefault((at.row, at.backbone), {})[at.dataset] = number
    for place, ((row, _), own) in enumerate(found.items()):
        matrix = [[_overlap(own, one, other) for other in datasets] for one in datasets]
        data, layout = heatmap(matrix, (datasets, datasets), ("", ""), 1, "%{z:.2f}")
        caption = "Intersection over union of the dropped weights; diagonal: two draws of one."
        yield Figure(f"{name}-overlap-{place}", f"Overlap: {row}", caption, [data], layout)


def _overlap(own: dict[str, Number], one: str, other: str) -> float | None:
    names: Sequence[str] = (one,) if one == other else (f"{one} and {other}", f"{other} and {one}")
    return next((own[n].mean for n in names if n in own), None)
