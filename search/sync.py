"""`python -m search.sync`: brings MLflow up to date with a sweep's folder."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from search.core.lock import SweepLock
from search.core.problems import UsageError
from search.core.sweep_folder import SweepFolder, find_sweep
from search.evaluation.record import read_evaluation
from search.terminal.console import open_console
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser, duration
from search.terminal.sweep_status import SweepStatus
from search.tracking.content import sweep_artifacts
from search.tracking.marks import open_marks
from search.tracking.mlflow_reporter import MlflowReporter
from search.tracking.uri import check_tracking_uri, ui_command, uri_afterwards
from trainables.core.text import amount

_INTRODUCTION = """\
Bring MLflow up to date with a sweep's folder.

A running sweep does this itself. This sends what is missing after an outage, or to another MLflow.
Repeating it changes nothing."""


@dataclass(frozen=True)
class Delivery:
    """What a synchronisation has done."""

    delivered: int
    """Runs that were brought up to date."""
    left: int
    """Runs that are not up to date."""
    reason: str
    """Why not, in one line."""
    trials: int | None
    """Trials that MLflow holds now; None if it is unreachable."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.sync", _INTRODUCTION)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_storage()
    parser.add_tracking_uri()
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="compare every run with the sweep's folder, also those that MLflow has acknowledged; "
        "nothing is stored twice",
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        default=30.0,
        metavar="TIME",
        help="give up when MLflow has been unreachable for this long, e.g. 90 or 10m (default: "
        "%(default)g seconds)",
    )
    return parser


def synchronise(sweep: SweepFolder, uri: str, rebuild: bool, timeout: float) -> Delivery:
    """Bring MLflow up to date with the folder of a sweep that no driver runs; the caller owns it.

    Raises `UsageError` and `StorageError`.
    """
    config, files, identity = sweep.config, sweep.files, sweep.claim_id()
    if rebuild:
        try:
            open_marks(uri, config, identity, files).clear()
        except OSError as error:
            raise UsageError([f"The marks of a sweep must be writable, got: {error}."]) from error
    results, evaluation = sweep.results(), read_evaluation(files)
    status = SweepStatus(config.name, files, config=config, results=results, evaluation=evaluation)
    reporter = MlflowReporter(uri, config, identity, sweep.record.fingerprints, files)
    reporter.open_sweep(results)
    try:
        reporter.close_sweep(
            "COMPLETE" if status.is_over else "INTERRUPTED",
            status.best,
            status.judged,
            sweep_artifacts(files) if status.judged else [],
        )
        left = reporter.flush(math.inf, patience=timeout)
        trials = None if left else reporter.trials()
        return Delivery(reporter.delivered, left, reporter.last_error, trials)
    finally:
        reporter.close(0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 if MLflow is up to date, 1 if something is left, 2 for a mistake."""
    return exit_code(lambda: _run(arguments), "Interrupted. Run the same command again.")


def _run(arguments: Sequence[str] | None) -> int:
    complain = open_console(stderr=True)
    options = build_parser().parse_args(arguments)
    sweep = find_sweep(options.name, options.storage)
    uri = uri_afterwards(options.tracking_uri, sweep.config)
    check_tracking_uri(uri)  # an unreachable one may come back in time
    with SweepLock(sweep.files, complain.print):
        found = synchronise(sweep, uri, options.rebuild, options.timeout)
    runs = f"{amount(found.delivered, 'run')} brought up to date"
    if found.left:
        complain.print(
            f"{runs}, {found.left} are left: {found.reason or 'no answer in time'}. Run the same "
            "command again."
        )
        return 1
    line = runs if found.delivered else "Already up to date"
    if found.trials is not None:
        line += f", MLflow holds {amount(found.trials, 'trial')} of sweep {options.name}"
    open_console().print(f"{line}: {ui_command(uri)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
