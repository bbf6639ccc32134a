"""Test accuracy per number of shots and data set, next to the numbers published in papers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from search.core.task import Part
from search.evaluation.record import LABELS, Evaluation, Label, Score
from search.evaluation.statistics import summary
from search.reporting.evaluated import place_name
from search.reporting.figures import Figure, finish, legend, look, painting, plain
from search.reporting.published import Published, comparable_rows
from search.reporting.section import Section
from search.reporting.source import Source
from search.reporting.tables import Table, mean_of


@dataclass(frozen=True)
class _Row:
    """One method's scores in one sweep."""

    name: str
    scores: tuple[Score, ...]


def shots_section(sources: Sequence[Source]) -> Section | None:
    """Build tables and figures of all evaluated sweeps, and list the sweeps without evaluation.

    None for a single sweep without evaluation: the winner's section reports that.
    """
    judged = [(s, s.judged) for s in sources if s.judged is not None]
    several = len(sources) > 1
    missing = [f"'{s.name}' is not shown here. {s.unjudged}" for s in sources if s.unjudged]
    if not judged:
        return Section("accuracy", "Accuracy", tuple(missing)) if several else None
    rows = _rows([(source.name, found) for source, found in judged], several)
    scores = [score for row in rows for score in row.scores]
    first, *others = (comparable_rows(source.config.task, scores) for source, _ in judged)
    rows_of_papers = [row for row in first if all(row in own for own in others)]
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
    drawn = (_figure(rows, rows_of_papers, part) for part in parts)
    figures = [figure for figure in drawn if figure is not None]
    notes = [
        *missing,
        *(
            f"{_title(s, several)}: {found.images} test images, {found.draws}."
            for s, found in judged
        ),
        *(found.draws_note for _, found in judged if found.draws_note),
        "Mean and sample standard deviation over draws with different training images.",
    ]
    if rows_of_papers:
        notes.append(
            "Rows called published are a paper's numbers; all others were measured here. Papers "
            "give means over three seeds, and their few-shot draws are CoOp's."
        )
    else:
        notes.append(
            "No published numbers are shown. They are only comparable with the same data set, "
            "shots, protocol and rule of draws (coop), a backbone with OpenAI's weights, and "
            "the published splits with every image."
        )
    return Section("accuracy", "Accuracy", tuple(notes), tuple(tables), tuple(figures))


def _title(source: Source, several: bool) -> str:
    return source.name if several else "Evaluated on"


def _rows(judged: Sequence[tuple[str, Evaluation]], several: bool) -> list[_Row]:
    """Return one row per model and sweep, with equal zero-shot models listed only once."""
    rows: list[_Row] = []
    seen: set[tuple[object, ...]] = set()
    for label in get_args(Label):
        for name, found in judged:
            scores = tuple(found.of(label))
            if not scores:
                continue
            key = (label, tuple((s.dataset, s.shots, s.target, s.part, s.values) for s in scores))
            if label == "zero-shot" and key in seen:
                continue
            seen.add(key)
            rows.append(_Row(f"{LABELS[label]} ({name})" if several else LABELS[label], scores))
    return rows


def _over_shots(
    rows: Sequence[_Row], published: Sequence[Published], part: Part, counts: Sequence[int]
) -> Table:
    """Build the table of one data set, with one column per number of shots."""
    first = next(s for row in rows for s in row.scores if s.part == part)
    body = []
    for row in rows:
        found = {s.shots: mean_of(s.distinct_values) for s in row.scores if s.part == part}
        if found:
            body.append((row.name, "measured", *(found.get(n, "-") for n in counts)))
    for method, source in dict.fromkeys((line.method, line.source) for line in published):
        known = {
            line.shots: f"{line.values[first.target]:.2f}"
            for line in published
            if (line.method, line.source, line.part) == (method, source, part)
            and first.target in line.values
        }
        cells = [known.get(n, known.get(0, "-")) for n in counts]
        if set(cells) != {"-"}:
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
            cells = [mean_of(found[c].distinct_values) if c in found else "-" for c in columns]
            body.append((row.name, "measured", *cells, *[_average(found, columns)] * several))
    for line in published:
        if line.part == part and line.shots in (0, shots):
            mean = line.mean([target for _, target in columns])
            values = [*(line.values.get(target) for _, target in columns), *[mean] * several]
            if any(v is not None for v in values):
                cells = ["-" if v is None else f"{v:.2f}" for v in values]
                body.append((line.method, f"published: {line.source}", *cells))
    headings = ("method", "numbers", *(place_name(*c) for c in columns), *["average"] * several)
    title = f"{_TITLES[part]} with {shots} shot{'s' * (shots > 1)} (%)"
    return Table(f"accuracy-{part}-{shots}shot", title, headings, tuple(body), labels=2)


def _average(found: dict[tuple[str, str], Score], columns: Sequence[tuple[str, str]]) -> str:
    """Average the columns per draw; a dash if one is missing or has other draws."""
    values = [found[c].values for c in columns if c in found]
    if len(values) < len(columns) or len({len(v) for v in values}) > 1:
        return "-"
    return mean_of([statistics.fmean(draw) for draw in zip(*values, strict=True)])


@dataclass(frozen=True)
class _Panel:
    """Content of one pair of axes: one curve per row of the table."""

    title: str
    """Title, shown if there is more than one panel."""
    measured: Mapping[str, Mapping[int, Sequence[float]]]
    """Accuracy of each draw, as fractions, by row and number of shots."""
    published: Mapping[str, Mapping[int, float]]
    """Published accuracy in per cent, by row and number of shots."""


def _figure(rows: Sequence[_Row], published: Sequence[Published], part: Part) -> Figure | None:
    """Draw one panel per data set, preceded by the mean over the data sets that all rows have.

    None if every data set was evaluated with a single number of shots.
    """
    own = {row.name: [s for s in row.scores if s.part == part] for row in rows}
    own = {name: scores for name, scores in own.items() if scores}
    places = list(dict.fromkeys((s.dataset, s.target) for found in own.values() for s in found))
    shared = [p for p in places if all(p in _places(scores) for scores in own.values())]
    lines = [line for line in published if line.part == part]
    panels = [_panel(place_name(*place), [place], own, lines) for place in places]
    if all(len(by_shots) == 1 for panel in panels for by_shots in panel.measured.values()):
        return None
    if len(shared) > 1:
        mean = _panel(f"mean over {len(shared)} data sets", shared, own, lines)
        panels = [mean, *panels] if mean.measured else panels
    names = list(dict.fromkeys(name for panel in panels for name in panel.published))
    looks = {name: look(place) for place, name in enumerate([*own, *names])}
    columns = min(3, len(panels))
    height = math.ceil(len(panels) / columns)
    size = (5.6, 3.5) if len(panels) == 1 else (3.0 * columns + 0.4, 2.5 * height + 0.3)
    with painting():
        canvas = Canvas(figsize=size, layout="constrained")
        grid = list(canvas.subplots(height, columns, squeeze=False).flat)
        known: set[str] = set()  # names already in the legend
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, looks, known)
            if len(panels) > 1:
                axes.set_title(plain(panel.title), fontsize=10)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        canvas.supxlabel("shots (training images per class)", fontsize=10)
        canvas.supylabel("test accuracy (%)", fontsize=10)
        legend(canvas)
        over = panels[0].title if len(panels) == 1 else "one panel per data set"
        shares = "; the mean is over the data sets that all rows have" * (len(panels) > len(places))
        caption = f"{_TITLES[part]}, {over}{shares}. Bars: sample standard deviation over draws."
        return finish(f"shots-{part}", "Accuracy over shots", caption, canvas)


def _places(scores: Sequence[Score]) -> set[tuple[str, str]]:
    return {(s.dataset, s.target) for s in scores}


def _panel(
    title: str,
    places: Sequence[tuple[str, str]],
    own: Mapping[str, Sequence[Score]],
    published: Sequence[Published],
) -> _Panel:
    """Average over `places`, for each number of shots with which all of them were evaluated."""
    measured = {}
    for name, scores in own.items():
        by_shots = _by_shots([s for s in scores if (s.dataset, s.target) in places], len(places))
        if by_shots:
            measured[name] = by_shots
    counts = {shots for by_shots in measured.values() for shots in by_shots}
    papers: dict[str, dict[int, float]] = {}
    for line in published:
        mean = line.mean([target for _, target in places])
        if mean is not None and line.shots in counts:
            papers.setdefault(f"{line.method} (published)", {})[line.shots] = mean
    return _Panel(title, measured, papers)


def _by_shots(scores: Sequence[Score], places: int) -> dict[int, list[float]]:
    """Average each draw over data sets, for the shots with which all data sets were evaluated."""
    found: dict[int, list[float]] = {}
    for shots in sorted({s.shots for s in scores}):
        values = [s.values for s in scores if s.shots == shots]
        if places == 1:  # a mean over several varies if one of them does
            values = [s.distinct_values for s in scores if s.shots == shots]
        if len(values) == places and len({len(v) for v in values}) == 1:
            found[shots] = [statistics.fmean(draw) for draw in zip(*values, strict=True)]
    return found


def _draw_panel(
    axes: Axes, panel: _Panel, looks: Mapping[str, tuple[str, str]], known: set[str]
) -> None:
    """Draw the curves of a panel; adds their names to `known`, the names in the legend."""
    for name, by_shots in panel.measured.items():
        found = [summary(values) for values in by_shots.values()]
        colour, marker = looks[name]
        axes.errorbar(
            list(by_shots),
            [100 * one.mean for one in found],
            [100 * (one.deviation or 0.0) for one in found],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=3,
            label=None if name in known else plain(name),
        )
    for name, values in panel.published.items():
        colour, marker = looks[name]
        axes.errorbar(  # without bars, so that the legend lists published rows last
            list(values),
            list(values.values()),
            color=colour,
            marker=marker,
            markerfacecolor="white",
            linestyle="none",
            label=None if name in known else name,
        )
    known |= {*panel.measured, *panel.published}
    ticks = sorted({shots for by_shots in panel.measured.values() for shots in by_shots})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()


_TITLES: dict[Part, str] = {
    "test": "Test accuracy",
    "base": "Test accuracy on base classes",
    "new": "Test accuracy on new classes",
    "shift": "Test accuracy on shifted data sets",
    "target": "Test accuracy on other data sets",
}
