"""How figures are drawn: one style, colours that everybody can tell apart, PNG and SVG."""

from __future__ import annotations

import io
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from trainables.core.text import printable

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), without the yellow that print loses."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Beside the colours: a figure must be readable without any."""
SEQUENCE = "cividis"
"""Colour map for amounts: even in lightness, the same for the colour-blind."""
DPI = 150
_MOST_COLUMNS = 3  # of a legend
_WIDE = 7.0  # inches, above which a figure does not share its row

STYLE: dict[str, object] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.bbox": "tight",  # what does not fit makes the picture larger; nothing is cut off
    "savefig.dpi": DPI,
    "svg.hashsalt": "report",  # the same figure gives the same file
}


@dataclass(frozen=True)
class Figure:
    """A drawing in two formats."""

    name: str
    """Of its files."""
    title: str
    """What it shows."""
    caption: str
    """How it is read: what was left out, and what words mean."""
    png: bytes
    """For the page."""
    svg: bytes
    """For print."""
    wide: bool = False
    """Whether it needs the page's whole width."""

    @property
    def base64(self) -> str:
        """The PNG, for a data URI."""
        return b64encode(self.png).decode()


def draw(
    name: str,
    title: str,
    caption: str,
    paint: Callable[[Axes], None],
    width: float = 5.6,
    height: float = 3.5,
) -> Figure:
    """One pair of axes, `width` by `height` inches, painted by `paint`, and the legend of what it
    has labelled."""
    with painting():
        canvas = Canvas(figsize=(width, height), layout="constrained")
        paint(canvas.subplots())
        legend(canvas)
        return finish(name, title, caption, canvas)


@contextmanager
def painting(**style: object) -> Iterator[None]:
    """Our style, and silence: Matplotlib warns about glyphs that a font lacks and axes without
    room or positive values, which a reader of the page sees and a reader of the terminal cannot
    change."""
    with mpl.rc_context(STYLE | style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def finish(name: str, title: str, caption: str, canvas: Canvas) -> Figure:
    """A figure of what was drawn elsewhere; inside `painting`."""
    wide = bool(canvas.get_figwidth() > _WIDE)
    return Figure(name, title, caption, _saved(canvas, "png"), _saved(canvas, "svg"), wide)


def _saved(canvas: Canvas, kind: str) -> bytes:
    stream = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    canvas.savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()


def look(place: int) -> tuple[str, str]:
    """Colour and marker of a figure's series number `place`: no pair comes twice in 49."""
    count = len(COLOURS)
    return COLOURS[place % count], MARKERS[(place + place // count) % count]


def plain(name: str) -> str:
    """A name from outside as a label: text between two dollars is no formula."""
    return printable(name).replace("$", r"\$")


def shortened(text: str, most: int = 26) -> str:
    """A name that fits beside a tick; an ellipsis stands for what is cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with few, plain numbers on it; linear if the data has no positive
    number."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if axis.get_data_interval()[1] <= 0:
        return
    axes.set(**{f"{which}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    ratio = high / low
    subs = (1, 2, 5) if ratio < 50 else (1,)
    few = MaxNLocator(4) if ratio < 3 else LogLocator(subs=subs, numticks=6)
    axis.set_major_locator(few)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend(canvas: Canvas) -> None:
    """Above all axes, where it hides nothing, in as many columns as fit; the canvas grows by it."""
    found = [
        entry
        for axes in canvas.axes
        for entry in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    if len(found) < 2:
        return
    handles, labels = zip(*found, strict=True)
    for columns in range(min(len(found), _MOST_COLUMNS), 0, -1):
        shown = canvas.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9)
        size = shown.get_window_extent()
        if columns == 1 or size.width <= canvas.bbox.width:
            break
        shown.remove()
    canvas.set_figheight(canvas.get_figheight() + size.height / canvas.dpi)
