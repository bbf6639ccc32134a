"""`python -m search.report`: writes the report of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from search.reporting.files import PAGE, report_folder
from search.reporting.source import comparable, read_source
from search.terminal.console import open_console
from search.terminal.exit_code import Failures, exit_code
from search.terminal.parser import Parser
from trainables.core.credentials import without_password
from trainables.core.storage import StorageError, join

_INTRODUCTION = """\
Write the report of a sweep: report.html (one file, no network), trials.parquet, tables and figures.

It reads only the sweep's folder, during or after the sweep, and changes nothing else in it."""


def build_parser() -> Parser:
    """Build the parser of the options."""
    parser = Parser("search.report", _INTRODUCTION)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="OTHER",
        help="sweeps to compare it with, in a separate report; they must have the same backbone, "
        "protocol and rule of draws",
    )
    parser.add_storage()
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 if the report was written, 2 for invalid input, 1 if writing failed."""
    failures: Failures = {StorageError: (1, "The report cannot be written: {}.")}
    return exit_code(lambda: _run(arguments), failures=failures)


def _run(arguments: Sequence[str] | None) -> int:
    console = open_console()
    options = build_parser().parse_args(arguments)
    source = read_source(options.name, options.storage)
    others = [read_source(name, options.storage) for name in options.compare]
    comparable(source, others)
    from search.reporting.page import notices, write_report

    write_report(source, others)
    for notice in notices((source, *others)):
        console.print(notice, style="yellow")
    place = join(
        without_password(source.sweep.location), report_folder([other.name for other in others])
    )
    console.print(f"Report: {join(place, PAGE)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
