"""A table that can be read on a page, in a paper and by a program."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainables.core.text import printable

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


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"-|[-+]?[\d.,]+(e[-+]?\d+)?( ± [\d.]+)?( \[[-+\d., ]+\])?")


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first columns name the row, the others are numbers."""

    name: str
    """Of its files."""
    title: str
    """What it shows, with the unit of its numbers."""
    headings: tuple[str, ...]
    """One a column."""
    rows: tuple[tuple[str, ...], ...]
    """As many cells each."""
    note: str = ""
    """What a reader must know besides."""
    labels: int = 1
    """How many columns are words."""

    def __post_init__(self) -> None:
        """Names of classes and files may contain anything."""
        for name in ("title", "note"):
            object.__setattr__(self, name, printable(getattr(self, name)))
        object.__setattr__(self, "headings", tuple(map(printable, self.headings)))
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))

    def markdown(self) -> str:
        """As GitHub reads it; what would be markup is escaped."""
        marks = ["---" if i < self.labels else "---:" for i in range(len(self.headings))]
        lines = [self.headings, marks, *self.rows]
        body = "\n".join("| " + " | ".join(map(_in_markdown, line)) + " |" for line in lines)
        note = f"\n\n{_in_markdown(self.note)}" if self.note else ""
        return f"**{_in_markdown(self.title)}**\n\n{body}{note}\n"

    def latex(self) -> str:
        """A `tabular` with booktabs' rules."""
        columns = "l" * self.labels + "r" * (len(self.headings) - self.labels)
        body = [r"\begin{tabular}{" + columns + "}", r"\toprule", _latex_row(self.headings)]
        body += [r"\midrule", *map(_latex_row, self.rows), r"\bottomrule", r"\end{tabular}"]
        words = [self.title, *([self.note] if self.note else [])]
        return "\n".join([*(f"% {' '.join(word.split())}" for word in words), *body]) + "\n"

    def csv(self) -> str:
        """Headings and rows. Spreadsheets run text that looks like a formula: it gets a quote."""
        text = io.StringIO()
        lines = (map(_in_csv, line) for line in (self.headings, *self.rows))
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction in per cent, without the sign; a dash for what is not there."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}"


def mean_of(values: Sequence[float]) -> str:
    """Mean and sample standard deviation of fractions, in per cent: `84.13 ± 0.52`."""
    from search.evaluation.statistics import summary

    found = summary(values)
    spread = "" if found.deviation is None else f" ± {percent(found.deviation)}"
    return percent(found.mean) + spread


def _in_csv(text: str) -> str:
    formula = text.lstrip(" \xa0\u2003\n").startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


def _in_markdown(text: str) -> str:
    for character in "\\`*_[]<>|$~&":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split()) if set(text) - set("-:") else text


def _latex_row(cells: Sequence[str]) -> str:
    # LaTeX reads a star or a bracket that follows the end of a row as the end's own argument.
    return "{}" + " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"
