"""`python -m search.list`: every sweep of a storage, a line each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.table import Table

from search.config import SweepConfig
from search.options import Parser
from search.problems import UsageError
from search.task import described
from search.terminal.console import end_with_the_reader, open_console
from search.terminal.progress import percent
from search.terminal.standing import Standing, ago, read_standings
from trainables.credentials import without_password
from trainables.storage import open_storage

STYLES = {
    "running": "green",
    "finished": "bold",
    "interrupted": "yellow",
    "never begun": "dim",
    "unreadable": "red",
}
"""How a state is shown."""

_INTRODUCTION = """\
List the sweeps of a storage: what each searches, how it stands, who runs it, its best value.

It only looks, whether a sweep is running or not. `python -m search.status NAME` says more."""


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = Parser(prog="python -m search.list", description=_INTRODUCTION, allow_abbrev=False)
    parser.add_argument(
        "--storage",
        default=SweepConfig().storage,
        metavar="PLACE",
        help="where sweeps are kept: a folder or a bucket's URI (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document, for programs")
    return parser


def _table(standings: Sequence[Standing]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "space", "data", "state", "owner"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "state")
    for heading in ("trials", "best", "begun"):
        table.add_column(heading, justify="right", no_wrap=True)
    for found in standings:
        config, best = found.config, found.best
        known = found.results is not None
        table.add_row(
            found.name,
            config.space if config else "",
            described(config.task) if config else "",
            found.state,
            found.owner or "",
            f"{found.done} of {found.asked}" if known else "",
            percent(best.value if best else None).strip() if known else "",
            f"{ago(found.since)} ago" if found.since else "",
            style=STYLES[found.state],
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the storage could be read, 2 for a mistake."""
    console = open_console()
    try:
        options = build_parser().parse_args(arguments)
        standings = read_standings(options.storage)
    except UsageError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    place = without_password(open_storage(options.storage).location)
    if options.json:
        print(json.dumps({"storage": place, "sweeps": [s.to_dict() for s in standings]}, indent=1))
        return 0
    if not standings:
        console.print(f"There is no sweep in '{place}' yet.")
        return 0
    console.print(_table(standings))
    for found in standings:
        if found.trouble:
            console.print(f"{found.name}: {found.trouble}", style="red")
    return 0


if __name__ == "__main__":
    end_with_the_reader()
    sys.exit(main())
