"""Test accuracy over shots and data sets, in the papers' layout, with their numbers beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from matplotlib.axes import Axes

from search.judging.evaluation import Evaluation, Label, Part, Score
from search.judging.statistics import summary
from search.reporting.figures import BLACK, COLOURS, MARKERS, Figure, draw, legend
from search.reporting.judged import place_name
from search.reporting.published import Published, comparable_rows
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table, mean_of

LABELS: dict[Label, str] = {
    "zero-shot": "zero-shot",
    "paper": "the paper's setting",
    "winner": "winner",
}
"""What was judged, in words."""


@dataclass(frozen=True)
class _Row:
    """One method's scores in one sweep."""

    name: str
    scores: tuple[Score, ...]


def shots_section(sources: Sequence[Source]) -> Section | None:
    """Tables and figures of all sweeps that were judged; None where none was."""
    judged = [(s, s.judged) for s in sources if s.judged is not None]
    if not judged:
        return None
    rows = _rows([(source.name, found) for source, found in judged], len(sources) > 1)
    scores = [score for row in rows for score in row.scores]
    rows_of_papers = comparable_rows(judged[0][0].config.task, scores)
    parts = list(dict.fromkeys(score.part for score in scores))
    counts = sorted({score.shots for score in scores})
    tables = []
    for part in parts:
        own = [score for score in scores if score.part == part]
        if len({(s.dataset, s.target) for s in own}) == 1 < len(counts):
            tables.append(_over_shots(rows, rows_of_papers, part, counts))
        else:
            tables += [
                _over_sets(rows, rows_of_papers, part, shots)
                for shots in counts
                if any(score.shots == shots for score in own)
            ]
    figures = [_figure(rows, rows_of_papers, part) for part in parts] if len(counts) > 1 else []
    notes = [
        "Test accuracy on fresh draws that the search has not seen; mean and sample standard "
        "deviation over draws."
    ]
    if rows_of_papers:
        notes.append(
            "Rows called published are a paper's numbers; all others were measured here. Papers "
            "give means over three seeds, and their few-shot draws are CoOp's."
        )
    else:
        notes.append(
            "No published numbers stand beside these: a paper's are shown where data set, shots, "
            "backbone with OpenAI's weights, protocol and rule of draws (coop) are the same."
        )
    return Section("accuracy", "Accuracy", tuple(notes), tuple(tables), tuple(figures))


def _rows(judged: Sequence[tuple[str, Evaluation]], several: bool) -> list[_Row]:
    """Zero-shot models are the same for sweeps with the same draws, and stand once for each."""
    rows: list[_Row] = []
    seen: set[tuple[object, ...]] = set()
    for label in get_args(Label):
        for name, found in judged:
            scores = tuple(found.of(label))
            key = (label, tuple((s.dataset, s.shots, s.target, s.part, s.values) for s in scores))
            if label == "zero-shot" and key in seen:
                continue
            seen.add(key)
            rows.append(_Row(f"{LABELS[label]} ({name})" if several else LABELS[label], scores))
    return rows


def _over_shots(
    rows: Sequence[_Row], published: Sequence[Published], part: Part, counts: Sequence[int]
) -> Table:
    """Of one data set: a column for each number of shots."""
    first = next(s for row in rows for s in row.scores if s.part == part)
    body = []
    for row in rows:
        found = {s.shots: mean_of(s.values) for s in row.scores if s.part == part}
        if found:
            body.append((row.name, "measured", *(found.get(n, "-") for n in counts)))
    for method, source in dict.fromkeys((line.method, line.source) for line in published):
        known = {
            line.shots: f"{line.values[first.target]:.2f}"
            for line in published
            if (line.method, line.source) == (method, source) and first.target in line.values
        }
        cells = [known.get(n, known.get(0, "-")) for n in counts]
        if part == "test" and set(cells) != {"-"}:
            body.append((method, f"published: {source}", *cells))
    headings = ("method", "numbers", *(f"{n} shot{'s' * (n > 1)}" for n in counts))
    title = f"{_TITLES[part]} on {place_name(first.dataset, first.target)} (%)"
    return Table(f"accuracy-{part}", title, headings, tuple(body), labels=2)


def _over_sets(
    rows: Sequence[_Row], published: Sequence[Published], part: Part, shots: int
) -> Table:
    def own(row: _Row) -> list[Score]:
        return [s for s in row.scores if (s.part, s.shots) == (part, shots)]

    columns = list(dict.fromkeys((s.dataset, s.target) for row in rows for s in own(row)))
    several = len(columns) > 1
    body = []
    for row in rows:
        found = {(s.dataset, s.target): s for s in own(row)}
        if found:
            cells = [mean_of(found[c].values) if c in found else "-" for c in columns]
            body.append((row.name, "measured", *cells, *[_average(found, columns)] * several))
    for line in published:
        if part == "test" and line.shots in (0, shots):
            values = [line.values.get(target) for _, target in columns]
            if any(v is not None for v in values):
                cells = ["-" if v is None else f"{v:.2f}" for v in values]
                known = [v for v in values if v is not None]
                mean = f"{statistics.fmean(known):.2f}" if len(known) == len(columns) else "-"
                body.append((line.method, f"published: {line.source}", *cells, *[mean] * several))
    headings = ("method", "numbers", *(place_name(*c) for c in columns), *["average"] * several)
    title = f"{_TITLES[part]} with {shots} shot{'s' * (shots > 1)} (%)"
    return Table(f"accuracy-{part}-{shots}shot", title, headings, tuple(body), labels=2)


def _average(found: dict[tuple[str, str], Score], columns: Sequence[tuple[str, str]]) -> str:
    """Over the columns, draw by draw; a dash where one is missing or has other draws."""
    values = [found[c].values for c in columns if c in found]
    if len(values) < len(columns) or len({len(v) for v in values}) > 1:
        return "-"
    return mean_of([statistics.fmean(draw) for draw in zip(*values, strict=True)])


def _figure(rows: Sequence[_Row], published: Sequence[Published], part: Part) -> Figure:
    sets = {(s.dataset, s.target) for row in rows for s in row.scores if s.part == part}

    def paint(axes: Axes) -> None:
        ticks: set[int] = set()
        drawn = 0
        for i, row in enumerate(rows):
            averages = _by_shots(row, part, len(sets))
            if averages:
                found = [summary(values) for values in averages.values()]
                axes.errorbar(
                    list(averages),
                    [100 * one.mean for one in found],
                    [100 * (one.deviation or 0.0) for one in found],
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    capsize=3,
                    label=row.name,
                )
                ticks |= set(averages)
                drawn += 1
        for line in published:
            values = [line.values.get(target) for _, target in sets]
            known = [v for v in values if v is not None]
            if part == "test" and line.shots in ticks and len(known) == len(sets):
                axes.plot(
                    [line.shots],
                    [statistics.fmean(known)],
                    color=BLACK,
                    marker="*",
                    linestyle="none",
                    label=f"{line.method} (published)",
                )
                drawn += 1
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(ticks), [str(n) for n in sorted(ticks)])
        axes.minorticks_off()
        axes.set(xlabel="shots (training images a class)", ylabel="test accuracy (%)")
        legend(axes, min(drawn, 3) if drawn else 0)

    caption = (
        f"{_TITLES[part]}, the mean over {len(sets)} data set{'s' if len(sets) > 1 else ''}. Bars: "
        "sample standard deviation over fresh draws."
    )
    return draw(f"shots-{part}", "Accuracy over shots", caption, paint)


def _by_shots(row: _Row, part: Part, sets: int) -> dict[int, list[float]]:
    """The mean over data sets of each draw, where all data sets were judged."""
    found: dict[int, list[float]] = {}
    for shots in sorted({s.shots for s in row.scores if s.part == part}):
        values = [s.values for s in row.scores if (s.part, s.shots) == (part, shots)]
        if len(values) == sets and len({len(v) for v in values}) == 1:
            found[shots] = [statistics.fmean(draw) for draw in zip(*values, strict=True)]
    return found


_TITLES: dict[Part, str] = {
    "test": "Test accuracy",
    "base": "Test accuracy on base classes",
    "new": "Test accuracy on new classes",
    "shift": "Test accuracy on shifted data sets",
    "target": "Test accuracy on other data sets",
}
