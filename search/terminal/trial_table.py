"""The live table of trials: a column per parameter that varies, as many as the terminal fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from trainables.core.text import printable

_FIXED = (("trial", 5, True), ("state", 13, False), ("validation", 10, True), ("time", 6, True))
"""Heading, width in characters, and whether the column is aligned to the right."""
_GAP = 2  # characters between columns


@dataclass(frozen=True)
class TrialRow:
    """One trial of the table."""

    number: int | None
    """Its number; None for the zero-shot model."""
    state: str
    """Its state, or its role: the best one, the paper's setting, or the zero-shot model."""
    validation: str
    """Validation accuracy, formatted."""
    time: str
    """Training time, formatted; empty while it runs."""
    parameters: Mapping[str, object]
    """Values by name."""
    style: str = ""
    """Rich style."""


class VaryingParameters:
    """The parameters in which the trials seen so far differ."""

    def __init__(self) -> None:
        """Start without trials."""
        self._first: dict[str, object] = {}
        self._varying: set[str] = set()

    def add(self, parameters: Mapping[str, object]) -> None:
        """Add a trial's parameters."""
        for name, value in parameters.items():
            if self._first.setdefault(name, value) != value:
                self._varying.add(name)

    @property
    def names(self) -> list[str]:
        """Their names: real numbers first, then whole numbers, then the others."""
        found = [name for name in self._first if name in self._varying]
        return sorted(found, key=lambda name: _rank(self._first[name]))


def trial_table(rows: Sequence[TrialRow], names: Sequence[str], width: int) -> Table:
    """Build the table. `names` are parameters by importance: each gets a column if it fits into
    `width` characters after those before it."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for heading, least, right in _FIXED:
        justify = "right" if right else "left"
        table.add_column(heading, justify=justify, no_wrap=True, min_width=least)  # type: ignore[arg-type]
    room, columns = width - sum(least + _GAP for _, least, _ in _FIXED), []
    for name in names:
        cells = [_cell(row.parameters.get(name)) for row in rows]
        needed = max(map(len, (name, *cells)))
        if needed <= room:
            room -= needed + _GAP
            columns.append(cells)
            table.add_column(name, justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        number = "" if row.number is None else str(row.number)
        fixed = (number, row.state, row.validation, row.time)
        table.add_row(*fixed, *(Text(column[place]) for column in columns), style=row.style)
    return table


def _rank(value: object) -> int:
    """0 for a real number, 1 for a whole number, 2 for anything else."""
    if isinstance(value, bool):
        return 2
    return 0 if isinstance(value, float) else 1 if isinstance(value, int) else 2


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else printable(str(value))
