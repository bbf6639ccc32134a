"""Test accuracy per number of shots and data set, next to the numbers published in papers, and the
comparison of sweeps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import get_args

from search.core.shown import described
from search.evaluation.record import LABELS, Evaluation, Label, Score
from search.evaluation.statistics import summary
from search.reporting.document import Figure, Section, Table, mean_of, percent
from search.reporting.figures import axis, bars_above, count_axis, look, series, shots_axis
from search.reporting.published import Published, comparable_rows
from search.reporting.source import Source
from search.reporting.trials import ACCURACY, best_so_far
from trainables.core.protocols import Part

_TITLES: dict[Part, str] = {
    "test": "Test accuracy",
    "base": "Test accuracy on base classes",
    "new": "Test accuracy on new classes",
    "shift": "Test accuracy on shifted data sets",
    "target": "Test accuracy on other data sets",
}
_Place = tuple[str, str]
"""Data set that was trained on, and data set whose test images were classified."""


@dataclass(frozen=True)
class _Row:
    """One method's scores in one sweep."""

    name: str
    scores: tuple[Score, ...]


def place_name(dataset: str, target: str) -> str:
    """Return the name of the test data set, preceded by the training data set if it differs."""
    names = [PurePath(n.partition(":")[2]).name if ":" in n else n for n in (dataset, target)]
    return names[1] if dataset == target else f"{names[0]} → {names[1]}"


def comparison_section(sources: Sequence[Source]) -> Section:
    """Build one table and one history of several sweeps."""
    labels = [n for n in get_args(Label) if any(s.judged and s.judged.of(n) for s in sources)]
    baselines = [label for label in labels if label != "winner"]
    rows, data = [], []
    for place, source in enumerate(sources):
        found, best = source.judged, source.best
        gained = found.gains if found else ()
        gains = {gain.baseline: f"{100 * gain.mean:+z.2f}" for gain in gained}
        rows.append(
            (
                source.name,
                source.config.space,
                described(source.config.task),
                *(_figure_of(found, "winner") for _ in labels[-1:]),
                *(gains.get(label, "-") for label in baselines),
                *(_figure_of(found, label) for label in baselines),
                percent(best.accuracy if best else None),
                f"{len(source.of('COMPLETE'))} / {len(source.results)}",
                f"{sum(r.train_seconds for r in source.results.values()):.0f}",
            )
        )
        numbers, values = best_so_far(source)
        if numbers:
            line = {"shape": "hv"}
            last = max(source.results)
            xs, ys = [*numbers, last], [*values, values[-1]]
            data.append(series(source.name, xs, ys, look(place), "lines", line=line))
    headings = (
        *("sweep", "space", "task"),
        *("test: the winner" for _ in labels[-1:]),
        *(f"gain over {LABELS[label]}" for label in baselines),
        *(f"test: {LABELS[label]}" for label in baselines),
        *(ACCURACY, "completed / finished", "training (s)"),
    )
    note = (
        "Test figures are those of the sweep's protocol in per cent, with the sample standard "
        "deviation over draws; gains of the winner are in points. Validation and test accuracies "
        "are comparable only between sweeps of the same task."
    )
    table = Table("comparison", "The sweeps", headings, tuple(rows), note, labels=3)
    layout = {
        "xaxis": count_axis("trial (number)", max(max(s.results) for s in sources)),
        "yaxis": axis(" or ".join(dict.fromkeys(s.objective for s in sources))),
    }
    caption = "The best value of the completed trials so far, per sweep."
    history = Figure("comparison", "History of the sweeps", caption, data, layout, wide=640)
    figures = (history,) if data else ()
    return Section("comparison", "Comparison", (), (table,), figures)


def _figure_of(found: Evaluation | None, label: Label) -> str:
    """Return the protocol's figure of a model, with its deviation."""
    if found is None or not found.of(label):
        return "-"
    deviation = found.deviation(label)
    spread = "" if deviation is None else f" ± {percent(deviation)}"
    return percent(statistics.fmean(found.figure(label))) + spread


def accuracy_section(sources: Sequence[Source]) -> Section | None:
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
    papers = [row for row in first if all(row in own for own in others)]
    parts = list(dict.fromkeys(score.part for score in scores))
    counts = sorted({score.shots for score in scores})
    tables = []
    for part in parts:
        own = [score for score in scores if score.part == part]
        if len({(s.dataset, s.target) for s in own}) == 1 < len(counts):
            tables.append(_over_shots(rows, papers, part, counts))
        else:
            used = sorted({score.shots for score in own})
            tables += [_over_sets(rows, papers, part, shots) for shots in used]
    figures = [figure for part in parts for figure in _figures(rows, papers, part)]
    notes = [
        *missing,
        *(
            f"{s.name if several else 'Evaluated on'}: {found.images} test images, {found.draws}."
            for s, found in judged
        ),
        *dict.fromkeys(found.draws_note for _, found in judged if found.draws_note),
    ]
    if any(len(found.seeds) > 1 for _, found in judged):
        notes.append(
            "Mean and sample standard deviation over draws with different training images."
        )
    if papers:
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


def _rows(judged: Sequence[tuple[str, Evaluation]], several: bool) -> list[_Row]:
    """Return one row per model and sweep, with equal zero-shot models listed only once."""
    rows: list[_Row] = []
    seen: set[tuple[object, ...]] = set()
    for label in get_args(Label):
        for name, found in judged:
            scores = tuple(found.of(label))
            key = (label, tuple((s.dataset, s.shots, s.target, s.part, s.values) for s in scores))
            if not scores or (label == "zero-shot" and key in seen):
                continue
            seen.add(key)
            rows.append(_Row(f"{LABELS[label]} ({name})" if several else LABELS[label], scores))
    return rows


def _over_shots(
    rows: Sequence[_Row], papers: Sequence[Published], part: Part, counts: Sequence[int]
) -> Table:
    """Build the table of one data set, with one column per number of shots."""
    first = next(s for row in rows for s in row.scores if s.part == part)
    body = []
    for row in rows:
        found = {s.shots: mean_of(s.distinct_values) for s in row.scores if s.part == part}
        if found:
            body.append((row.name, "measured", *(found.get(n, "-") for n in counts)))
    for method, source in dict.fromkeys((line.method, line.source) for line in papers):
        known = {
            line.shots: f"{line.values[first.target]:.2f}"
            for line in papers
            if (line.method, line.source, line.part) == (method, source, part)
            and first.target in line.values
        }
        cells = [known.get(n, known.get(0, "-")) for n in counts]
        if set(cells) != {"-"}:
            body.append((method, f"published: {source}", *cells))
    headings = ("method", "numbers", *(f"{n} shot{'s' * (n > 1)}" for n in counts))
    title = f"{_TITLES[part]} on {place_name(first.dataset, first.target)} (%)"
    return Table(f"accuracy-{part}", title, headings, tuple(body), labels=2)


def _over_sets(rows: Sequence[_Row], papers: Sequence[Published], part: Part, shots: int) -> Table:
    """Build the table of one number of shots, with one column per data set."""
    own = {
        row.name: {
            (s.dataset, s.target): s for s in row.scores if (s.part, s.shots) == (part, shots)
        }
        for row in rows
    }
    columns = list(dict.fromkeys(place for found in own.values() for place in found))
    several = len(columns) > 1
    body = []
    for name, found in own.items():
        if found:
            cells = [mean_of(found[c].distinct_values) if c in found else "-" for c in columns]
            body.append((name, "measured", *cells, *[_average(found, columns)] * several))
    for line in papers:
        if line.part == part and line.shots in (0, shots):
            mean = line.mean([target for _, target in columns])
            values = [*(line.values.get(target) for _, target in columns), *[mean] * several]
            if any(v is not None for v in values):
                cells = ["-" if v is None else f"{v:.2f}" for v in values]
                body.append((line.method, f"published: {line.source}", *cells))
    headings = ("method", "numbers", *(place_name(*c) for c in columns), *["average"] * several)
    title = f"{_TITLES[part]} with {shots} shot{'s' * (shots > 1)} (%)"
    return Table(f"accuracy-{part}-{shots}shot", title, headings, tuple(body), labels=2)


def _average(found: Mapping[_Place, Score], columns: Sequence[_Place]) -> str:
    """Average the columns per draw; a dash if one is missing or has other draws."""
    values = [found[c].values for c in columns if c in found]
    if len(values) < len(columns) or len({len(v) for v in values}) > 1:
        return "-"
    return mean_of([statistics.fmean(draw) for draw in zip(*values, strict=True)])


def _figures(rows: Sequence[_Row], papers: Sequence[Published], part: Part) -> list[Figure]:
    """Draw accuracy over shots: one figure per data set, preceded by the mean over the data sets
    that all rows have; none if every data set was evaluated with a single number of shots."""
    own = {row.name: [s for s in row.scores if s.part == part] for row in rows}
    own = {name: scores for name, scores in own.items() if scores}
    places = list(dict.fromkeys((s.dataset, s.target) for found in own.values() for s in found))
    shared = [
        p for p in places if all(p in {(s.dataset, s.target) for s in f} for f in own.values())
    ]
    groups = [(place_name(*place), [place]) for place in places]
    if len(shared) > 1:
        groups.insert(0, (f"mean over {len(shared)} data sets", shared))
    lines = [line for line in papers if line.part == part]
    looks = {name: look(place) for place, name in enumerate(own)}
    for line in lines:
        looks.setdefault(f"{line.method} (published)", look(len(looks)))
    measured = [{name: _by_shots(own[name], group) for name in own} for _, group in groups]
    if all(len(by_shots) < 2 for found in measured for by_shots in found.values()):
        return []
    return [
        _figure(
            f"shots-{part}" + f"-{number}" * (number > 0), part, title, group, found, lines, looks
        )
        for number, ((title, group), found) in enumerate(zip(groups, measured, strict=True))
        if any(found.values())
    ]


def _figure(
    name: str,
    part: Part,
    title: str,
    places: Sequence[_Place],
    measured: Mapping[str, Mapping[int, Sequence[float]]],
    papers: Sequence[Published],
    looks: Mapping[str, tuple[str, str]],
) -> Figure:
    data = []
    for row, by_shots in measured.items():
        found = [summary(values) for values in by_shots.values()]
        if found:
            means = [100 * one.mean for one in found]
            error = bars_above([100 * one.deviation if one.deviation else None for one in found])
            data.append(series(row, by_shots, means, looks[row], "lines+markers", error_y=error))
    counts = sorted({shots for by_shots in measured.values() for shots in by_shots})
    published: dict[str, dict[int, float]] = {}
    for line in papers:
        mean = line.mean([target for _, target in places])
        if mean is not None and line.shots in counts:
            published.setdefault(f"{line.method} (published)", {})[line.shots] = mean
    for row, points in published.items():
        data.append(series(row, points, points.values(), looks[row]))
        data[-1]["marker"] |= {"symbol": f"{looks[row][1]}-open", "size": 9}
    layout = {"xaxis": shots_axis(counts), "yaxis": axis("test accuracy (%)")}
    caption = f"{_TITLES[part]}. Bars: sample standard deviation over draws."
    return Figure(name, f"Accuracy over shots: {title}", caption, data, layout)


def _by_shots(scores: Sequence[Score], places: Sequence[_Place]) -> dict[int, list[float]]:
    """Average each draw over data sets, for the shots with which all of them were evaluated."""
    found: dict[int, list[float]] = {}
    own = [s for s in scores if (s.dataset, s.target) in places]
    for shots in sorted({s.shots for s in own}):
        values = [s.values for s in own if s.shots == shots]
        if len(places) == 1:  # a mean over several varies if one of them does
            values = [s.distinct_values for s in own if s.shots == shots]
        if len(values) == len(places) and len({len(v) for v in values}) == 1:
            found[shots] = [statistics.fmean(draw) for draw in zip(*values, strict=True)]
    return found
