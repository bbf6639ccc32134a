"""Plotly figures as plain dictionaries: colours, symbols, axes with readable ticks."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainables.core.text import printable

Trace = dict[str, Any]
Axis = dict[str, Any]

ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#1F8ACF"
VERMILION, PURPLE, GREY = "#D55E00", "#CC79A7", "#8A8A8A"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY)
"""Okabe and Ito's colour-blind-safe palette (jfly.uni-koeln.de/color), without yellow and black,
which are invisible on a light or a dark page, and with a lighter blue."""
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
"""Symbols, so that figures are readable without colours."""
COLOURED = {"coloraxis": "coloraxis"}
"""Marks that are coloured by a value; the page's theme has the scale."""
MANY = 200
"""Points or bars that hide each other unless they are drawn small."""
_TICKS = 6


def look(place: int) -> tuple[str, str]:
    """Return colour and symbol of series number `place`; the first 49 pairs are distinct."""
    count = len(COLOURS)
    return COLOURS[place % count], SYMBOLS[(place + place // count) % count]


def plain(name: str) -> str:
    """Escape a user's name for use in a figure, whose text may contain markup."""
    return html.escape(printable(name), quote=False)


def series(
    name: str,
    xs: Iterable[Any],
    ys: Iterable[Any],
    style: tuple[str, str] = (BLUE, "circle"),
    mode: str = "markers",
    **more: Any,
) -> Trace:
    """Return a scatter trace; `style` is a colour and a symbol, `more` are Plotly's attributes."""
    colour, symbol = style
    trace: Trace = {
        "type": "scatter",
        "name": plain(name),
        "x": [_rounded(x) for x in xs],
        "y": [_rounded(y) for y in ys],
        "mode": mode,
    }
    if "markers" in mode:
        size = 7 if len(trace["x"]) <= MANY else 4
        trace["marker"] = {"color": colour, "symbol": symbol, "size": size, "opacity": 0.8}
        if "coloraxis" in more.get("marker", {}):  # its lowest colour is close to the page's
            trace["marker"]["line"] = {"color": GREY, "width": 0.6}
    if "lines" in mode:
        trace["line"] = {"color": colour, "width": 2}
    for key, value in more.items():
        nested = isinstance(value, dict) and isinstance(trace.get(key), dict)
        trace[key] = trace[key] | value if nested else value
    return trace


def axis(title: str, **more: Any) -> Axis:
    """Return an axis with a title."""
    return {"title": {"text": plain(title)}, **more}


def count_axis(title: str, most: float, **more: Any) -> Axis:
    """Return an axis of whole numbers from 0 to `most`."""
    return axis(title, tickformat="d", tick0=0, dtick=max(1, _nice(most / _TICKS)), **more)


def log_axis(title: str, values: Iterable[float], **more: Any) -> Axis:
    """Return a logarithmic axis for these values, linear if one of them is not positive."""
    found = list(values)
    if not found or min(found) <= 0:
        return axis(title, rangemode="tozero", **more)
    shown = log_ticks(min(found), max(found))
    return axis(title, type="log", tickvals=shown, ticktext=[f"{t:g}" for t in shown], **more)


def shots_axis(counts: Iterable[int]) -> Axis:
    """Return an axis of numbers of shots, with a tick at each."""
    shown = sorted(set(counts))
    text = list(map(str, shown))
    return axis("shots (images per class)", type="log", tickvals=shown, ticktext=text)


def log_ticks(low: float, high: float) -> list[float]:
    """Return two to seven round values within a range of positive numbers; at least its ends."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    inside: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5)):
        every = [float(f"{d}e{power}") for power in range(first, last + 1) for d in digits]
        inside = [t for t in every if low * 0.999 <= t <= high * 1.001]
        if len(inside) >= 3:
            step = math.ceil(len(inside) / 7)
            return inside[::step]
    return linear_ticks(low, high)


def linear_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return up to seven round values within a range; at least its ends."""
    step = _nice((high - low) / _TICKS) if high > low else 0.0
    step = max(1.0, step) if whole and step else step
    if not step:
        return [low]
    every = (float(f"{k * step:.6g}") for k in range(math.ceil(low / step - 1e-6), 10**6))
    inside: list[float] = []
    for tick in every:
        if tick > high + 1e-6 * step:
            break
        inside.append(tick)
    return inside if len(inside) > 1 else [low, high]


def shown_number(value: object) -> str:
    """Format a value with six digits; `trials.parquet` has full precision."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def heatmap(
    rows: Sequence[Sequence[float | None]],
    names: tuple[Sequence[str], Sequence[str]],
    titles: tuple[str, str],
    most: float,
    texts: str,
) -> tuple[Trace, dict[str, Any]]:
    """Return trace and layout of a matrix, with the first row on top.

    `names` and `titles` are those of the columns and the rows, `texts` is the template of a cell.
    Names are shown in full and need not be distinct.
    """
    columns, lines = (list(map(plain, one)) for one in names)
    trace = {
        "type": "heatmap",
        "z": [[_rounded(v) for v in row] for row in rows],
        "coloraxis": "coloraxis",
        "texttemplate": texts,
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
    }
    ticks = {"showgrid": False, "zeroline": False, "tickmode": "array"}
    layout = {
        "height": 190 + 24 * len(lines),
        "xaxis": axis(
            titles[0], tickvals=[*range(len(columns))], ticktext=columns, tickangle=-45, **ticks
        ),
        "yaxis": axis(
            titles[1], tickvals=[*range(len(lines))], ticktext=lines, autorange="reversed", **ticks
        ),
        "coloraxis": {"cmin": 0, "cmax": most},
    }
    return trace, layout


def bars_above(deviations: Sequence[float | None]) -> Mapping[str, Any]:
    """Return error bars of these half lengths; None for none."""
    return {"type": "data", "array": [_rounded(d or 0.0) for d in deviations], "thickness": 1.2}


def _nice(step: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def _rounded(value: Any) -> Any:
    """Return a number with six digits; None for one that JSON cannot hold."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
