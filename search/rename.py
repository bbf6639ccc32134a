"""`python -m search.rename`: gives a sweep another name, also in MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from search.annotate import sweep_tags
from search.core.annotations import read_annotations
from search.core.lock import SweepLock
from search.core.model_name import sweep_name_problem
from search.core.problems import UsageError
from search.core.relocation import move_folder, rename_has_begun
from search.core.sweep_folder import SweepFolder, find_sweep
from search.terminal.console import open_console
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser
from search.terminal.sweep_status import read_standing
from search.tracking.mlflow_upkeep import MlflowUpkeep
from search.tracking.uri import TrackingError, last_uri
from trainables.core.credentials import without_password
from trainables.core.storage import join, open_storage
from trainables.core.text import amount

_INTRODUCTION = """\
Rename a sweep: its folder, and its name in MLflow.

The sweep keeps its id and its runs, and is resumed under the new name. Its report has the old name
until it is written again. After an interruption, run the same command again."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.rename", _INTRODUCTION)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_argument("new", metavar="NEW", help="its new name")
    parser.add_storage()
    parser.add_tracking_uri()
    return parser


def _open_both(
    name: str, new: str, storage: str, command: str
) -> tuple[SweepFolder | None, SweepFolder]:
    """The sweep to be moved, None if it has been moved already, and its new folder; raises
    `UsageError`."""
    if why := sweep_name_problem(new):
        raise UsageError([f"The new name {why}"])
    target = SweepFolder(open_storage(join(storage, new)), storage)
    try:
        sweep = find_sweep(name, storage)
    except UsageError:
        if target.exists and target.record.config.name == name:
            return None, target
        raise
    if not rename_has_begun(sweep, target, command) and target.files.files():
        raise UsageError(
            [
                f"The new name must be free, and there is a folder '{new}' in "
                f"'{without_password(storage)}'. Use another name, or remove the folder."
            ]
        )
    return sweep, target


def _rename_in_mlflow(given: str, sweep: SweepFolder) -> int:
    """Rename the runs of a sweep that has its new folder; return how many there are. Raises
    `TrackingError`."""
    config = sweep.config
    runs = MlflowUpkeep(last_uri(given, config), config, sweep.id, sweep.files)
    runs.rename(sweep.name)
    removed = read_annotations(sweep.files).removed
    runs.annotate(sweep_tags(read_standing(sweep.name, sweep.storage)), removed)
    return runs.count


def rename(
    name: str,
    new: str,
    storage: str,
    tracking_uri: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Rename a sweep, or complete an interrupted renaming; return how many runs in MLflow were
    renamed. `say` gets one line if another process owns the sweep.

    Raises `UsageError`, `StorageError`, `StoppedError`, and `TrackingError` if the folder has its
    new name and MLflow does not.
    """
    command = f"rename {name} {new}"
    sweep, target = _open_both(name, new, storage, command)
    if sweep is not None:
        with SweepLock(sweep.files, say):
            if not rename_has_begun(sweep, target, command):
                sweep.claim_id()
            move_folder(sweep, target, command)
    with SweepLock(target.files, say):
        try:
            runs = _rename_in_mlflow(tracking_uri, target)
        except TrackingError as error:
            raise TrackingError(
                f"{error} The folder has its new name; run the same command again."
            ) from error
        record, here = target.record, without_password(target.files.location)
        config = replace(record.config, name=target.name)
        target.write_record(replace(record, config=config, location=here))
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when folder and MLflow have the new name, 1 if only the folder has it, 2 for a
    mistake."""
    return exit_code(lambda: _run(arguments), "Interrupted. Run the same command again.")


def _run(arguments: Sequence[str] | None) -> int:
    console, complain = open_console(), open_console(stderr=True)
    options = build_parser().parse_args(arguments)
    name, new = options.name, options.new
    try:
        runs = rename(name, new, options.storage, options.tracking_uri, complain.print)
    except TrackingError as error:
        complain.print(str(error))
        return 1
    also = f", and {amount(runs, 'run')} in MLflow" if runs else ""
    console.print(f"Renamed sweep {name} to {new}{also}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
