"""Content of a report: sections of text, tables, interactive figures and pictures."""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainables.core.text import in_spreadsheet, printable

_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "−": "$-$",
    }
)


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first columns label the row, the others hold numbers."""

    name: str
    """Name of its files, without extension."""
    title: str
    """Title, with the unit of the numbers."""
    headings: tuple[str, ...]
    """One heading per column."""
    rows: tuple[tuple[str, ...], ...]
    """Rows, with one cell per column."""
    note: str = ""
    """Note below the table."""
    labels: int = 1
    """Number of label columns."""
    folded: bool = False
    """Whether the page shows it only on request."""
    interactive: bool = False
    """Whether the page can sort and filter it, in a box that scrolls."""

    def __post_init__(self) -> None:
        """Escape control characters, which names of classes and files may contain."""
        for name in ("title", "note"):
            object.__setattr__(self, name, printable(getattr(self, name)))
        object.__setattr__(self, "headings", tuple(map(printable, self.headings)))
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))

    def markdown(self) -> str:
        """Format as GitHub-flavoured Markdown, with markup in cells escaped."""
        marks = ["---" if i < self.labels else "---:" for i in range(len(self.headings))]
        lines = [self.headings, marks, *self.rows]
        body = "\n".join("| " + " | ".join(map(_in_markdown, line)) + " |" for line in lines)
        note = f"\n\n{_in_markdown(self.note)}" if self.note else ""
        return f"**{_in_markdown(self.title)}**\n\n{body}{note}\n"

    def latex(self) -> str:
        """Format as a LaTeX `tabular` with booktabs rules."""
        columns = "l" * self.labels + "r" * (len(self.headings) - self.labels)
        body = [r"\begin{tabular}{" + columns + "}", r"\toprule", _latex_row(self.headings)]
        body += [r"\midrule", *map(_latex_row, self.rows), r"\bottomrule", r"\end{tabular}"]
        words = [self.title, *([self.note] if self.note else [])]
        return "\n".join([*(f"% {' '.join(word.split())}" for word in words), *body]) + "\n"

    def csv(self) -> str:
        """Format as CSV, with a quote before text that a spreadsheet would run as a formula."""
        text = io.StringIO()
        lines = (map(in_spreadsheet, line) for line in (self.headings, *self.rows))
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()


@dataclass(frozen=True)
class Figure:
    """A Plotly figure; text from users must be escaped with `figures.plain`."""

    name: str
    """Name of its file, without extension."""
    title: str
    """Title."""
    caption: str
    """Caption: explains terms and omissions."""
    data: Sequence[Mapping[str, Any]]
    """Plotly's traces."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """Plotly's layout, without colours of text, axes and background, which the page sets."""
    wide: int = 0
    """Minimum width in pixels of a figure that fills a row; 0 for one that shares a row."""

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.layout.get("height", 340))

    def to_dict(self) -> dict[str, Any]:
        """Return Plotly's JSON, which `plotly.io.from_json` reads."""
        return {"data": list(self.data), "layout": {"height": self.height, **self.layout}}


@dataclass(frozen=True)
class Picture:
    """A small image from the data set."""

    png: bytes
    """Content of the PNG file."""
    caption: str
    """Text below the image."""
    name: str
    """Alternative text."""

    @property
    def base64(self) -> str:
        """The PNG file in base64, for a data URI."""
        return b64encode(self.png).decode()


@dataclass(frozen=True)
class Gallery:
    """A group of related pictures."""

    title: str
    """Title of the group."""
    pictures: tuple[Picture, ...]
    """Pictures in display order."""


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page."""

    label: str
    """What it is."""
    value: str
    """The number, with its unit."""
    detail: str = ""
    """Its interval or context."""


@dataclass(frozen=True)
class Section:
    """Text, tables and figures under one heading."""

    name: str
    """Anchor on the page."""
    title: str
    """Heading."""
    notes: tuple[str, ...] = ()
    """Paragraphs, as plain text."""
    tables: tuple[Table, ...] = ()
    """Tables, shown before the figures."""
    figures: tuple[Figure, ...] = ()
    """Figures in display order."""
    galleries: tuple[Gallery, ...] = ()
    """Galleries, shown after the tables."""
    files: tuple[Table, ...] = ()
    """Tables that are too long for the page and are only written as files."""
    command: str = ""
    """A shell command that the page offers to copy."""


def percent(fraction: float | None, digits: int = 2) -> str:
    """Format a fraction in per cent, without the sign; a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}"


def mean_of(values: Sequence[float]) -> str:
    """Format mean and sample standard deviation of fractions in per cent: `84.13 ± 0.52`."""
    from search.evaluation.statistics import summary

    found = summary(values)
    spread = "" if found.deviation is None else f" ± {percent(found.deviation)}"
    return percent(found.mean) + spread


def _in_markdown(text: str) -> str:
    for character in "\\`*_[]<>|$~&":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split()) if set(text) - set("-:") else text


def _latex_row(cells: Sequence[str]) -> str:
    # Without `{}`, LaTeX parses a leading star or bracket as an argument of the previous row's end.
    return "{}" + " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"
