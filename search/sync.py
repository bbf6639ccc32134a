"""`python -m search.sync`: bring MLflow up to what a sweep's folder holds."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from search.core.config import SweepConfig
from search.core.lock import SweepLock
from search.core.problems import StoppedError, UsageError
from search.core.results import read_results
from search.core.sweep_folder import SweepFolder, find_sweep
from search.driver.preflight import uri_afterwards
from search.evaluation.record import read_evaluation
from search.terminal.console import open_console, print_errors
from search.terminal.parser import Parser, duration
from search.terminal.sweep_status import SweepStatus
from search.tracking.mlflow_reporter import MlflowReporter, sweep_artifacts
from search.tracking.outbox import Outbox, put_away
from search.tracking.uploader import MlflowTracker, outbox_path, put_away_outboxes
from search.tracking.uri import TrackingError, check_tracking_uri, ui_command
from trainables.storage import Storage, StorageError

_INTRODUCTION = """\
Deliver what a sweep still has to tell MLflow.

While a sweep runs, what MLflow should know is kept in an outbox on disk and sent from there. After
an outage this sends the rest. Repeating it changes nothing."""


@dataclass(frozen=True)
class Delivery:
    """What a synchronisation has done."""

    delivered: int
    """Events that MLflow has taken."""
    left: int
    """Events that wait in the outbox."""
    trouble: str
    """Why they wait, in one line."""
    trials: int | None
    """Trials that MLflow holds now; None where it could not be asked."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.sync", _INTRODUCTION)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_storage()
    parser.add_argument(
        "--tracking-uri",
        default="",
        metavar="URI",
        help="MLflow: sqlite:///FILE or http://HOST:PORT (default: the sweep's own, else "
        "MLFLOW_TRACKING_URI, else a sqlite file in the storage folder)",
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="tell everything again from the sweep's folder, e.g. to an empty server; what MLflow "
        "holds already is not doubled",
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


def synchronise(
    sweep: Storage, config: SweepConfig, uri: str, rebuild: bool, timeout: float
) -> Delivery:
    """Deliver the outbox of a sweep that no driver runs.

    What its folder holds and its outbox does not is told first: the trials, and the sweep's end.
    Raises `UsageError` where that cannot be.
    """
    folder = SweepFolder(sweep)
    folder.claim_id(put_away_outboxes)
    path = outbox_path(uri, sweep)
    try:
        if rebuild:
            put_away(path)
        tracker = MlflowTracker(uri, config.name, Outbox(path), sweep)
    except OSError as error:
        raise UsageError([f"The outbox of a sweep must be usable, and it is not: {error}."]) from (
            error
        )
    try:
        results = read_results(sweep)
        if tracker.unreported_trials(results) or not tracker.is_closed():
            mirror = MlflowReporter(tracker, config, folder.record.fingerprints)
            mirror.open_sweep(results, sweep)
            mirror.catch_up()
            evaluation = read_evaluation(sweep)
            standing = SweepStatus(
                config.name, sweep, config=config, results=results, evaluation=evaluation
            )
            mirror.close_sweep(
                "COMPLETE" if standing.is_over else "INTERRUPTED",
                standing.best,
                standing.judged,
                sweep_artifacts(sweep) if standing.judged else [],
            )
        left = tracker.flush(math.inf, patience=timeout)
        unreported_trials = len(tracker.unreported_trials(results)) + (not tracker.is_closed())
        if unreported_trials:  # the reason has been logged
            trouble = "not everything could be read or kept"
            return Delivery(tracker.delivered, left + unreported_trials, trouble, None)
        return Delivery(
            tracker.delivered, left, tracker.trouble, None if left else tracker.trials()
        )
    finally:
        tracker.close(0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when everything is delivered, 1 when something is left, 2 for a mistake."""
    console, complain = open_console(), open_console(stderr=True)
    try:
        options = build_parser().parse_args(arguments)
        folder = find_sweep(options.name, options.storage)
        sweep, config = folder.files, folder.config
        uri = uri_afterwards(options.tracking_uri, config)
        check_tracking_uri(uri)  # one that is away may come back before the patience is at its end
        with SweepLock(sweep, complain.print):
            found = synchronise(sweep, config, uri, options.rebuild, options.timeout)
    except (UsageError, TrackingError, StorageError, StoppedError) as error:
        print_errors(error.problems if isinstance(error, UsageError) else [str(error)])
        return 2
    except KeyboardInterrupt:
        complain.print("Stopped. What is not delivered is kept; run the same command again.")
        return 130
    events = f"{found.delivered} events delivered"
    if found.left:
        complain.print(
            f"{events}, {found.left} are left: {found.trouble or 'no answer in time'}. They are "
            "kept; run the same command again.",
        )
        return 1
    line = events if found.delivered else "Nothing was left to deliver"
    if found.trials is not None:
        line += f", MLflow holds {found.trials} trials of sweep {options.name}"
    console.print(f"{line}: {ui_command(uri)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
