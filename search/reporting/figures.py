"""Drawing of figures: common style, colour-blind-safe palette, PNG and SVG output."""

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
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), without yellow, which prints too faintly."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers, so that figures are readable without colours."""
SEQUENCE = "cividis"
"""Colour map for quantities: perceptually uniform and colour-blind-safe."""
DPI = 150
_MOST_COLUMNS = 3  # of the legend
_WIDE = 7.0  # inches; wider figures get a row of the page for themselves

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
    "savefig.bbox": "tight",  # enlarge the image instead of clipping content
    "savefig.dpi": DPI,
    "svg.hashsalt": "report",  # deterministic output
}


@dataclass(frozen=True)
class Figure:
    """A figure in two formats."""

    name: str
    """Name of its files, without extension."""
    title: str
    """Title."""
    caption: str
    """Caption: explains terms and omissions."""
    png: bytes
    """Content of the PNG file, embedded in the page."""
    svg: bytes
    """Content of the SVG file, for print."""
    wide: bool = False
    """Whether it takes the full width of the page."""

    @property
    def base64(self) -> str:
        """The PNG file in base64, for a data URI."""
        return b64encode(self.png).decode()


def draw(
    name: str,
    title: str,
    caption: str,
    paint: Callable[[Axes], None],
    width: float = 5.6,
    height: float = 3.5,
) -> Figure:
    """Draw one pair of axes of `width` by `height` inches with `paint`, and add a legend."""
    with painting():
        canvas = Canvas(figsize=(width, height), layout="constrained")
        paint(canvas.subplots())
        legend(canvas)
        return finish(name, title, caption, canvas)


@contextmanager
def painting(**style: object) -> Iterator[None]:
    """Apply the common style and suppress Matplotlib's warnings.

    The warnings (missing glyphs, axes without room or positive values) concern the user's data and
    are not actionable on the terminal.
    """
    with mpl.rc_context(STYLE | style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def finish(name: str, title: str, caption: str, canvas: Canvas) -> Figure:
    """Save a canvas as a figure; must be called within `painting`."""
    wide = bool(canvas.get_figwidth() > _WIDE)
    return Figure(name, title, caption, _saved(canvas, "png"), _saved(canvas, "svg"), wide)


def _saved(canvas: Canvas, kind: str) -> bytes:
    stream = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    canvas.savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()


def look(place: int) -> tuple[str, str]:
    """Return colour and marker of series number `place`; the first 49 pairs are distinct."""
    count = len(COLOURS)
    return COLOURS[place % count], MARKERS[(place + place // count) % count]


def plain(name: str) -> str:
    """Escape a user-supplied name for use as a label, so that `$` does not start a formula."""
    return printable(name).replace("$", r"\$")


def shortened(text: str, most: int = 26) -> str:
    """Truncate a tick label to `most` characters, with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with a few plain tick labels; keep it linear if the data has no
    positive value."""
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
    """Add a legend above all axes, in as many columns as fit, and extend the canvas to hold it."""
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
