"""The trials: history, early stopping, learning curves, timeline, and one table of all."""

from __future__ import annotations

import io
import json
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from search.core.results import IssuedTrial, Result, State, read_rows, untrained_note
from search.reporting.document import Figure, Section, Table, percent
from search.reporting.figures import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    MANY,
    ORANGE,
    VERMILION,
    axis,
    count_axis,
    log_axis,
    look,
    plain,
    series,
    shown_number,
)
from search.reporting.source import Source, parameters_of
from trainables.report import ZERO_SHOT
from trainables.trial import TrialConfig

STATES: dict[State, tuple[str, str, str]] = {
    "COMPLETE": ("completed", BLUE, "circle"),
    "PRUNED": ("pruned", ORANGE, "square"),
    "FAIL": ("failed", VERMILION, "x"),
}
"""Word, colour and symbol of each final state."""
ACCURACY = "validation accuracy (%)"
_MOST_CURVES = len(COLOURS)  # trials whose losses are drawn, the best
_FACTS: dict[str, pa.DataType] = {
    "number": pa.int64(),
    "state": pa.string(),
    "value": pa.float64(),
    "train_seconds": pa.float64(),
    "begun": pa.float64(),
    "ended": pa.float64(),
    "host": pa.string(),
    "failures": pa.int64(),
    "reason": pa.string(),
}
"""Fields of a result that are copied unchanged; accuracies are fractions, times are seconds."""


def search_section(source: Source) -> Section:
    """Build the figures of the search, without the history, with which the page begins."""
    figures = []
    if max(len(r.values) for r in source.results.values()) > 1:
        figures += [_survival(source), _curves(source)]
    figures += [*_losses(source), _timeline(source)]
    untrained = untrained_note(source.results.values())
    notes = (_cost(source), *[untrained] * bool(untrained))
    return Section("search", "The search", notes, figures=tuple(figures))


def varied(trials: Sequence[Result | IssuedTrial]) -> list[str]:
    """Return the names of the parameters that have more than one value among these trials, in the
    order in which the space proposes them."""
    seen: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.parameters.items():
            seen.setdefault(name, set()).add(repr(value))
    return [name for name, values in seen.items() if len(values) > 1]


def trials_table(source: Source) -> Table:
    """Build the table of all trials; the best value first, then the unfinished and the failed."""
    names = varied(source.trials)
    rows = []
    for trial in sorted(source.trials, key=_rank):
        when = trial.ended if isinstance(trial, Result) else trial.begun
        value = trial.value if isinstance(trial, Result) else (trial.values or (None,))[-1]
        accuracy = trial.accuracy if isinstance(trial, Result) else None
        done = source.done(trial)
        found = parameters_of(trial)
        rows.append(
            (
                str(trial.number),
                STATES[trial.state][0] if isinstance(trial, Result) else "unfinished",
                percent(value),
                *[percent(accuracy)] * (source.objective != ACCURACY),
                f"{100 * done[-1]:.0f}" if done else "0",
                *(shown_number(found.get(name, "-")) for name in names),
                f"{trial.train_seconds:.1f}" if isinstance(trial, Result) else "-",
                time.strftime("%m-%d %H:%M:%S", time.gmtime(when)),
                (trial.host or "-") if isinstance(trial, Result) else "-",
                trial.reason if isinstance(trial, Result) else "",
            )
        )
    judged = dict.fromkeys([source.objective, ACCURACY])
    headings = ("trial", "state", *judged, "trained (%)", *names)
    note = (
        "Parameters that do not vary are omitted; trials.parquet has every setting. Times are in "
        "UTC: the end of a finished trial, the start of an unfinished one."
    )
    more = ("training (s)", "time", "host", "reason")
    title = f"{len(source.results)} finished trials, {len(source.issued)} unfinished"
    return Table("trials", title, (*headings, *more), tuple(rows), note, labels=2, interactive=True)


def history_figure(source: Source) -> Figure:
    """Plot every trial's value, with the best so far, the paper's setting and the zero-shot
    model."""
    data = []
    for state, (word, colour, symbol) in STATES.items():
        own = [r for r in source.of(state) if r.value is not None]
        if own:
            xs, ys = [r.number for r in own], [100 * (r.value or 0.0) for r in own]
            data.append(series(word, xs, ys, (colour, symbol)))
            data[-1]["hovertemplate"] = "trial %{x}: %{y:.2f} %<extra></extra>"
    numbers, values = best_so_far(source)
    last = max(source.results)
    if numbers:
        steps = {"shape": "hv", "color": GREEN}
        data.append(series("best so far", [*numbers, last], [*values, values[-1]], mode="lines"))
        data[-1]["line"] |= steps
    first = source.results.get(0)
    if first is not None and first.value is not None:
        levels = {first_name(source): (first.value, "dash")}
        if (level := first.metrics.get(ZERO_SHOT[source.config.task.objective])) is not None:
            levels["zero-shot"] = level, "dot"
        for name, (level, dash) in levels.items():
            line, values = {"dash": dash, "width": 1.5}, [100 * level] * 2
            data.append(series(name, [0, last], values, (GREY, ""), "lines", line=line))
    caption = (
        "A trial's value is averaged over data sets, shots and draws; that of a pruned trial is "
        "the last one that it reported."
    )
    layout = {"xaxis": count_axis("trial (number)", last), "yaxis": axis(source.objective)}
    return Figure("history", "Optimisation history", caption, data, layout)


def first_name(source: Source) -> str:
    """Return what trial 0 is: the paper's setting, unless the user has changed it."""
    first = source.results.get(0)
    return (
        "the paper's setting (trial 0)"
        if first and first.config["preset"] == "paper"
        else "trial 0"
    )


def best_so_far(source: Source) -> tuple[list[int], list[float]]:
    """Return the numbers of the trials that improved on all earlier ones, and their values in per
    cent."""
    numbers: list[int] = []
    values: list[float] = []
    for result in source.of("COMPLETE"):
        if result.value is not None and (not values or 100 * result.value > values[-1]):
            numbers.append(result.number)
            values.append(100 * result.value)
    return numbers, values


def survivors(source: Source) -> list[tuple[float, int]]:
    """Return (share of the training in per cent, number of finished trials that reached it), at
    every share at which a trial has reported."""
    ends = [max(source.done(trial), default=0.0) for trial in source.results.values()]
    shares = sorted({share for trial in source.results.values() for share in source.done(trial)})
    # Sums of epochs differ in the last bit only.
    return [(100 * share, sum(end >= share - 1e-9 for end in ends)) for share in shares]


def trials_parquet(source: Source) -> bytes:
    """Build a table with one row per finished trial.

    Columns: the fields in `_FACTS`, `values` (list, the objective after each step), `param.NAME`
    (sampled), `config.NAME` (resolved) and `metric.NAME`. Name and id of the sweep are in the
    metadata.
    """
    results = [r for _, r in sorted(source.results.items())]
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(r, name) for r in results], kind) for name, kind in _FACTS.items()
    }
    columns["values"] = pa.array([list(r.values) for r in results], pa.list_(pa.float64()))
    columns |= _spread("param", [r.parameters for r in results])
    columns |= _spread("config", [TrialConfig.from_dict(r.config).flat() for r in results])
    columns |= _spread("metric", [r.metrics for r in results])
    about = {"sweep": source.name, "id": source.record.id}
    stream = io.BytesIO()
    table = pa.table(columns).replace_schema_metadata(about)
    parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _rank(trial: Result | IssuedTrial) -> tuple[int, float, int]:
    """Completed and pruned trials by value, then unfinished, then failed ones."""
    if not isinstance(trial, Result):
        return 2, 0.0, trial.number
    return ("COMPLETE", "PRUNED", "", "FAIL").index(trial.state), -(trial.value or 0), trial.number


def _survival(source: Source) -> Figure:
    counts = survivors(source)
    xs, ys = zip(*counts, strict=True)
    every = len(source.results)
    line = series(
        *("trials", [0, *xs], [every, *ys], (BLUE, "circle"), "lines+markers"),
        line={"shape": "vh"},
        fill="tozeroy",
        hovertemplate="%{y} trials reached %{x:.0f} % of their training<extra></extra>",
    )
    caption = (
        f"{every} finished trials. After each report step, the pruner ({source.config.pruner}) may "
        "stop a trial; failed trials end there, too. Trials report at different shares if their "
        "numbers of epochs differ."
    )
    layout = {
        "xaxis": axis("share of the training (%)", range=[0, 102], dtick=25),
        "yaxis": count_axis("trials that reached it (count)", every, rangemode="tozero"),
    }
    return Figure("survival", "Rung survival", caption, [line], layout)


def _curves(source: Source) -> Figure:
    """Plot the objective of every trial over its training; one trace per state, with gaps."""
    groups: dict[str, tuple[str, Sequence[Result | IssuedTrial]]] = {
        word: (colour, source.of(state)) for state, (word, colour, _) in STATES.items()
    }
    groups["unfinished"] = GREY, [t for _, t in sorted(source.issued.items()) if t.values]
    if source.best:
        groups[f"trial {source.best.number}, the winner"] = GREEN, [source.best]
    data = []
    for name, (colour, trials) in groups.items():
        points: list[tuple[float | None, float | None, int]] = []
        for trial in trials:
            pairs = zip(source.done(trial), trial.values, strict=False)
            points += [(100 * share, 100 * value, trial.number) for share, value in pairs]
            points.append((None, None, trial.number))
        if points:
            xs, ys, numbers = zip(*points, strict=True)
            data.append(series(name, xs, ys, (colour, "circle"), "lines+markers"))
            strong = trials == [source.best]
            data[-1] |= {"customdata": numbers, "opacity": 1 if strong else 0.5}
            data[-1]["hovertemplate"] = (
                "trial %{customdata}<br>%{x:.0f} %: %{y:.2f} %<extra></extra>"
            )
            data[-1]["line"]["width"], data[-1]["marker"]["size"] = (3, 6) if strong else (1, 4)
    layout = {
        "xaxis": axis("share of the training (%)", range=[0, 102], dtick=25),
        "yaxis": axis(source.objective),
    }
    caption = "What each trial reported, and the pruner decides with."
    return Figure("curves", "Learning curves", caption, data, layout)


def _losses(source: Source) -> list[Figure]:
    """Plot the training loss of the best trials per epoch; nothing if no trial has one."""
    ranked = sorted(source.of("COMPLETE"), key=lambda r: (-(r.value or 0.0), r.number))
    data = []
    for place, trial in enumerate(ranked[:_MOST_CURVES]):
        every = read_rows(source.sweep, trial.number)
        rows = [row for row in every if {"epoch", "train/loss"} <= row.keys()]
        if len(rows) > 1:
            xs, ys = ([row[key] for row in rows] for key in ("epoch", "train/loss"))
            data.append(series(f"trial {trial.number}", xs, ys, look(place), "lines"))
    if not data:
        return []
    positive = [y for trace in data for y in trace["y"] if y]
    layout = {
        "xaxis": count_axis("epoch (number)", max(trace["x"][-1] for trace in data)),
        "yaxis": log_axis("training loss", positive),
    }
    caption = f"The {len(data)} best trials: means over data sets, shots and draws."
    return [Figure("losses", "Training loss", caption, data, layout, wide=320)]


def _timeline(source: Source) -> Figure:
    """Plot the trials of each host over time, on as many lines as it ran trials at once."""
    ends: dict[tuple[str, int], float] = {}  # when a line becomes free
    bars: dict[str, list[tuple[Result, str]]] = {}
    for trial in sorted(source.results.values(), key=lambda r: r.begun):
        host, line = plain(trial.host or "unknown host"), 1
        while ends.get((host, line), -math.inf) > trial.begun:
            line += 1
        ends[host, line] = trial.ended
        bars.setdefault(trial.state, []).append((trial, f"{host} · {line}"))
    outline = 0.5 if len(source.results) <= MANY else 0
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": word,
            "base": [round(1000 * trial.begun) for trial, _ in bars[state]],
            "x": [max(1, round(1000 * (trial.ended - trial.begun))) for trial, _ in bars[state]],
            "y": [line for _, line in bars[state]],
            "text": [f"trial {trial.number}" for trial, _ in bars[state]],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": colour, "line": {"width": outline, "color": "white"}},
        }
        for state, (word, colour, _) in STATES.items()
        if state in bars
    ]
    lines = sorted({f"{host} · {line}" for host, line in ends})
    layout: dict[str, Any] = {
        "height": 160 + 26 * len(lines),
        "barmode": "overlay",
        "xaxis": axis("time (UTC)", type="date", nticks=6),
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": lines[::-1]},
    }
    caption = (
        "Each bar is a trial, from its first start to its end, including pauses; a host has as "
        "many lines as it ran trials at once."
    )
    return Figure("timeline", "Timeline of the workers", caption, data, layout, wide=640)


def _cost(source: Source) -> str:
    trials = list(source.results.values())
    states = ", ".join(f"{len(source.of(state))} {word}" for state, (word, _, _) in STATES.items())
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


def _spread(prefix: str, rows: Sequence[dict[str, Any]]) -> dict[str, pa.Array]:
    """Build one column per key, null for rows without it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {f"{prefix}.{name}": _column([row.get(name) for row in rows]) for name in names}


def _column(values: Sequence[Any]) -> pa.Array:
    """Build a column: numeric if all values are, else text, with nested values as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if len(kinds) <= 1 and kinds <= {bool, int, str}:
        return pa.array(values)
    return pa.array(
        [v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string()
    )
