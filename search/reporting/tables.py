"""Tables that can be written as HTML, Markdown, LaTeX and CSV."""

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


_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"-|[-+]?[\d.,]+(e[-+]?\d+)?( ± [\d.]+)?( \[[-+\d., ]+\])?")


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
        lines = (map(_in_csv, line) for line in (self.headings, *self.rows))
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()


def percent(fraction: float | None, digits: int = 2) -> str:
    """Format a fraction in per cent, without the sign; a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}"


def mean_of(values: Sequence[float]) -> str:
    """Format mean and sample standard deviation of fractions in per cent: `84.13 ± 0.52`."""
    from search.evaluation.statistics import summary

    found = summary(values)
    spread = "" if found.deviation is None else f" ± {percent(found.deviation)}"
    return percent(found.mean) + spread


def _in_csv(text: str) -> str:
    formula = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


def _in_markdown(text: str) -> str:
    for character in "\\`*_[]<>|$~&":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split()) if set(text) - set("-:") else text


def _latex_row(cells: Sequence[str]) -> str:
    # Without `{}`, LaTeX parses a leading star or bracket as an argument of the previous row's end.
    return "{}" + " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"
