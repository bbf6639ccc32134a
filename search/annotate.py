"""`python -m search.annotate`: attaches a note and tags to a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from search.core.annotations import Annotations, read_annotations, write_annotations
from search.core.lock import SweepLock
from search.core.problems import UsageError
from search.core.sweep_folder import find_sweep
from search.terminal.console import open_console, print_errors
from search.terminal.parser import Parser, quoted
from search.terminal.sweep_status import SweepStatus, read_standing
from search.tracking.mlflow_page import DESCRIPTION, annotated, description
from search.tracking.mlflow_upkeep import MlflowUpkeep
from search.tracking.uri import TrackingError, last_uri
from trainables.core.storage import StorageError

_INTRODUCTION = """\
Attach a note and tags to a sweep, or print them.

The sweep may be running. Note and tags are stored in its folder, shown by `python -m search.status`
and in the report's provenance, and sent to its run in MLflow."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.annotate", _INTRODUCTION)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_storage()
    parser.add_tracking_uri()
    parser.add_argument(
        "--note", metavar="TEXT", help="replaces the note; an empty text removes it"
    )
    parser.add_argument(
        "--tag",
        type=_tag,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="adds or replaces a tag; may be repeated",
    )
    parser.add_argument(
        "--remove-tag",
        action="append",
        default=[],
        metavar="KEY",
        help="removes a tag; may be repeated",
    )
    return parser


def sweep_tags(found: SweepStatus) -> dict[str, str]:
    """What MLflow shows of a sweep besides its settings: description, note and tags."""
    assert found.config is not None
    over = (found.best, found.judged) if found.owner is None else (None, None)
    tags = {DESCRIPTION: description(found.config, *over)}
    return annotated(tags, read_annotations(found.sweep))


def _tag(value: str) -> tuple[str, str]:
    key, equals, text = value.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(
            f"must be KEY=VALUE, e.g. team=vision, got {quoted(value)}"
        )
    return key, text


def _changed(old: Annotations, options: argparse.Namespace) -> Annotations:
    """The annotations with the changes that the options ask for; raises `UsageError`."""
    kept = {key: value for key, value in old.tags.items() if key not in options.remove_tag}
    note = old.note if options.note is None else options.note.strip()
    new = Annotations(note, kept | dict(options.tag))
    removed = Annotations(tags=dict.fromkeys(options.remove_tag, ""))
    if problems := [*new.problems(), *removed.problems()]:
        raise UsageError(problems)
    return new


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when MLflow has the annotations, too, 1 if only the folder has, 2 for a mistake."""
    console, complain = open_console(), open_console(stderr=True)
    try:
        options = build_parser().parse_args(arguments)
        sweep = find_sweep(options.name, options.storage)
        old = read_annotations(sweep.files)
        if sweep.owner() is None:  # a driver has done it
            with SweepLock(sweep.files, complain.print):
                sweep.claim_id()
        new = _changed(old, options)
        if new != old:
            write_annotations(sweep.files, new)
        console.print(f"note: {new.note or 'none'}\ntags: {new.shown_tags or 'none'}")
        if options.note is None and not options.tag and not options.remove_tag:
            return 0
        tags = sweep_tags(read_standing(options.name, options.storage))
    except (UsageError, StorageError) as error:
        print_errors(error.problems if isinstance(error, UsageError) else [str(error)])
        return 2
    try:
        uri = last_uri(options.tracking_uri, sweep.config)
        runs = MlflowUpkeep(uri, sweep.config, sweep.id, sweep.files)
        sent = runs.annotate(tags, options.remove_tag)
    except TrackingError as error:
        complain.print(f"{error} The folder has them; run the same command again to send them.")
        return 1
    if not sent and uri != "none":
        console.print("MLflow has no run of the sweep yet; it receives them with the run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
