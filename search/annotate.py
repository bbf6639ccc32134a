"""`python -m search.annotate`: attaches a note and tags to a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from search.core.annotations import Annotations, read_annotations, write_annotations
from search.core.lock import SweepLock
from search.core.sweep_folder import find_sweep
from search.terminal.console import open_console
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser, quoted
from search.terminal.sweep_status import SweepStatus, read_standing
from search.tracking.mlflow_page import DESCRIPTION, annotated, description
from search.tracking.mlflow_upkeep import MlflowUpkeep
from search.tracking.uri import TrackingError, last_uri

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


def annotate(
    name: str,
    storage: str,
    note: str | None = None,
    tags: Mapping[str, str] | None = None,
    remove: Collection[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Annotations:
    """Change a sweep's note (None: keep it) and tags in its folder, and return all of them. `say`
    gets one line if another process owns the sweep. Raises `UsageError`, `StorageError`."""
    sweep = find_sweep(name, storage)
    old = read_annotations(sweep.files)
    new = old.changed(note, tags or {}, remove)
    if sweep.owner() is None:  # a driver has done it
        with SweepLock(sweep.files, say):
            sweep.claim_id()
    if new != old:
        write_annotations(sweep.files, new)
    return new


def send_annotations(name: str, storage: str, tracking_uri: str = "") -> bool:
    """Bring the sweep's run in MLflow up to date with the annotations in its folder; return whether
    MLflow has the run, or is not used. Raises `TrackingError`."""
    sweep = find_sweep(name, storage)
    tags = sweep_tags(read_standing(name, storage))
    removed = read_annotations(sweep.files).removed
    uri = last_uri(tracking_uri, sweep.config)
    runs = MlflowUpkeep(uri, sweep.config, sweep.id, sweep.files)
    return runs.annotate(tags, removed) or uri == "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when MLflow has the annotations, too, 1 if only the folder has, 2 for a mistake."""
    return exit_code(lambda: _run(arguments), "Interrupted. Run the same command again.")


def _run(arguments: Sequence[str] | None) -> int:
    console, complain = open_console(), open_console(stderr=True)
    options = build_parser().parse_args(arguments)
    changes = options.note, dict(options.tag), options.remove_tag
    new = annotate(options.name, options.storage, *changes, complain.print)
    console.print(f"note: {new.note or 'none'}\ntags: {new.shown_tags or 'none'}")
    if changes == (None, {}, []):
        return 0
    try:
        sent = send_annotations(options.name, options.storage, options.tracking_uri)
    except TrackingError as error:
        complain.print(f"{error} The folder has them; run the same command again to send them.")
        return 1
    if not sent:
        console.print("MLflow has no run of the sweep yet; it receives them with the run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
