"""`python -m search.report`: what a sweep has found, on one page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.options import Parser
from search.reporting.build import REPORT
from search.reporting.source import comparable, read_source
from trainables.credentials import take_secrets, without_password
from trainables.storage import StorageError, join

_INTRODUCTION = """\
Write the report of a sweep: report.html (one file, no network), trials.parquet, tables and figures.

It reads the sweep's folder alone, while the sweep runs or afterwards, and changes nothing else."""


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = Parser(prog="python -m search.report", description=_INTRODUCTION, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="OTHER",
        help="sweeps to show beside it: same backbone, protocol and rule of draws",
    )
    parser.add_argument(
        "--storage",
        type=take_secrets,
        default=SweepConfig().storage,
        metavar="FOLDER",
        help="where sweeps are kept: a folder or a bucket's URI (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the report is written, 2 for a mistake, 1 where it cannot be written."""
    console, complain = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    try:
        options = build_parser().parse_args(arguments)
        source = read_source(options.name, options.storage)
        others = [read_source(name, options.storage) for name in options.compare]
        comparable(source, others)
        from search.reporting.page import notices
        from search.reporting.write import PAGE, write_report

        write_report(source, others)
    except UsageError as error:
        for problem in error.problems:
            complain.print(f"error: {problem}", markup=False, highlight=False)
        return 2
    except StorageError as error:
        complain.print(f"error: The report cannot be written: {error}.", markup=False)
        return 1
    for notice in notices((source, *others)):
        console.print(notice, style="yellow", markup=False, highlight=False)
    place = join(without_password(source.sweep.location), REPORT)
    console.print(f"Report: {join(place, PAGE)}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
