"""`python -m search.rename`: gives a sweep another name, also in MLflow."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from search.annotate import sweep_tags
from search.core.lock import SweepLock
from search.core.model_name import sweep_name_problem
from search.core.problems import StoppedError, UsageError
from search.core.relocation import move_folder, rename_has_begun
from search.core.sweep_folder import SweepFolder, find_sweep
from search.terminal.console import open_console, print_errors
from search.terminal.parser import Parser
from search.terminal.sweep_status import read_standing
from search.tracking.mlflow_upkeep import MlflowUpkeep
from search.tracking.uri import TrackingError, last_uri
from trainables.core.credentials import without_password
from trainables.core.storage import StorageError, join, open_storage

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
    runs.annotate(sweep_tags(read_standing(sweep.name, sweep.storage)), ())
    return runs.count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when folder and MLflow have the new name, 1 if only the folder has it, 2 for a
    mistake."""
    console, complain = open_console(), open_console(stderr=True)
    try:
        options = build_parser().parse_args(arguments)
        name, new = options.name, options.new
        command = f"rename {name} {new}"
        sweep, target = _open_both(name, new, options.storage, command)
        if sweep is not None:
            with SweepLock(sweep.files, complain.print):
                if not rename_has_begun(sweep, target, command):
                    sweep.claim_id()
                move_folder(sweep, target, command)
        with SweepLock(target.files, complain.print):
            runs = _rename_in_mlflow(options.tracking_uri, target)
            record, here = target.record, without_password(target.files.location)
            config = replace(record.config, name=target.name)
            target.write_record(replace(record, config=config, location=here))
    except TrackingError as error:
        complain.print(f"{error} The folder has its new name; run the same command again.")
        return 1
    except (UsageError, StorageError, StoppedError) as error:
        print_errors(error.problems if isinstance(error, UsageError) else [str(error)])
        return 2
    except KeyboardInterrupt:
        complain.print("Interrupted. Run the same command again to continue.")
        return 130
    also = f", and {runs} runs in MLflow" if runs else ""
    console.print(f"Renamed sweep {name} to {new}{also}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
