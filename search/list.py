"""`python -m search.list`: lists all sweeps in a storage location, one per line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.table import Table

from search.core.shown import described
from search.terminal.console import end_with_the_reader, open_console
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser
from search.terminal.progress import percent
from search.terminal.sweep_status import SweepStatus, ago, read_standings
from trainables.core.credentials import without_password
from trainables.core.storage import open_storage

STYLES = {
    "running": "green",
    "finished": "bold",
    "interrupted": "yellow",
    "never begun": "dim",
    "unreadable": "red",
}
"""How a state is shown."""
_SPARE = ("data", "owner", "space", "begun", "best")  # what a narrow terminal lacks, in this order

_INTRODUCTION = """\
List the sweeps in a storage location with their data, state, owner and best value.

Nothing is changed. `python -m search.status NAME` shows more. A narrow terminal shows fewer
columns."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.list", _INTRODUCTION)
    parser.add_storage()
    parser.add_argument("--json", action="store_true", help="one JSON document, for programs")
    return parser


def _row(found: SweepStatus) -> dict[str, str]:
    """A sweep's cells, by heading."""
    config, best = found.config, found.best
    known = found.results is not None
    return {
        "name": found.name,
        "space": config.space if config else "",
        "data": described(config.task) if config else "",
        "state": found.state,
        "owner": found.owner or "",
        "trials": f"{found.done} of {found.asked}" if known else "",
        "best": percent(best.accuracy if best else None).strip() if known else "",
        "begun": f"{ago(found.since)} ago" if found.since else "",
    }


def sweeps_table(standings: Sequence[SweepStatus], width: int) -> Table:
    """A row a sweep, with the columns that fit without breaking a word."""
    rows = [_row(found) for found in standings]
    needed = {
        heading: max(cell_len(part) for row in rows for part in (heading, *_parts(row, heading)))
        for heading in rows[0]
    }
    for spare in _SPARE:
        if sum(needed.values()) + 2 * (len(needed) - 1) > width:
            del needed[spare]
    table = Table(box=None, pad_edge=False)
    for heading in needed:
        numbers = heading in ("trials", "best", "begun")
        # A name that is wider than all that is left folds.
        wraps = heading == "data" or (heading == "name" and "best" not in needed)
        justify: Literal["left", "right"] = "right" if numbers else "left"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=not wraps)
    for found, row in zip(standings, rows, strict=True):
        table.add_row(*(row[heading] for heading in needed), style=STYLES[found.state])
    return table


def _parts(row: Mapping[str, str], heading: str) -> Sequence[str]:
    """What of a cell stays on one line: of data each word."""
    return row[heading].split() if heading == "data" else [row[heading]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the storage could be read, 2 for a mistake."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    console = open_console()
    options = build_parser().parse_args(arguments)
    standings = read_standings(options.storage)
    place = without_password(open_storage(options.storage).location)
    if options.json:
        print(json.dumps({"storage": place, "sweeps": [s.to_dict() for s in standings]}, indent=1))
        return 0
    if not standings:
        console.print(f"There is no sweep in '{place}' yet.")
        return 0
    console.print(sweeps_table(standings, console.width))
    for found in standings:
        if found.trouble:
            console.print(f"{found.name}: {found.trouble}", style="red")
    return 0


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main())
