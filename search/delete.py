"""`python -m search.delete`: deletes a sweep and its runs in MLflow, after a confirmation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from search.core.lock import SweepLock
from search.core.problems import UsageError
from search.core.relocation import begin_removal, finish_removal
from search.core.sweep_folder import SweepFolder, find_sweep
from search.terminal.console import open_console
from search.terminal.exit_code import exit_code
from search.terminal.parser import Parser
from search.tracking.mlflow_upkeep import MlflowUpkeep
from search.tracking.uri import TrackingError, last_uri
from trainables.core.credentials import shown, without_password
from trainables.core.text import amount

_INTRODUCTION = """\
Delete a sweep: its folder, and its runs in MLflow.

The command shows what it would delete and asks first. A sweep that a driver runs is refused. MLflow
moves deleted runs to its trash, from which `mlflow gc` removes them. After an interruption, run the
same command again."""


def build_parser() -> Parser:
    """All options."""
    parser = Parser("search.delete", _INTRODUCTION)
    parser.add_argument("name", metavar="NAME", help="name of the sweep")
    parser.add_storage()
    parser.add_tracking_uri()
    parser.add_argument(
        "--keep-runs", action="store_true", help="delete the folder only, and keep MLflow's runs"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask, for scripts")
    return parser


def readable_size(size: int) -> str:
    """Bytes in a unit for people: `512 B`, `1.5 MB`."""
    amount, units = float(size), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    for larger in units:
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def _confirmed() -> bool:
    try:
        return input("Delete? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise UsageError(
            ["A deletion must be confirmed, and there was no answer. Use --yes in scripts."]
        ) from None


def _open_runs(sweep: SweepFolder, given: str) -> MlflowUpkeep:
    """The runs to delete; raises `UsageError`. A copy of another sweep has none."""
    try:
        if (left := sweep.unfinished()) is None:
            sweep.claim_id()
        record = sweep.record if left is None else left.sweep
        if record is None:
            raise UsageError([f"The description of '{sweep.name}' must be readable, and is not."])
        config = sweep.located(record.config)
        return MlflowUpkeep(last_uri(given, config), config, record.id, sweep.files)
    except (UsageError, TrackingError) as error:
        problems = error.problems if isinstance(error, UsageError) else [str(error)]
        hint = "To delete the folder only and keep MLflow's runs, use --keep-runs."
        raise UsageError([f"{problem} {hint}" for problem in problems]) from error


def delete(
    name: str,
    storage: str,
    tracking_uri: str = "",
    keep_runs: bool = False,
    confirm: Callable[[str], bool] = lambda _: True,
    say: Callable[[str], None] = lambda _: None,
) -> int | None:
    """Delete a sweep if `confirm`, which gets a description of what will be deleted, returns True;
    return how many runs MLflow has moved to its trash, None if nothing was deleted.

    `say` gets one line if another process owns the sweep. Raises `UsageError`, `TrackingError`,
    `StorageError`, `StoppedError`.
    """
    sweep = find_sweep(name, storage)
    with SweepLock(sweep.files, say):
        runs = None if keep_runs else _open_runs(sweep, tracking_uri)
        trials, size = sweep.files.child("trials").folders(), readable_size(sweep.files.size())
        place = without_password(sweep.files.location)
        found = f"Sweep {sweep.name}: {amount(len(trials), 'trial')}, {size} in '{place}'"
        if runs is not None and runs.count:
            found += f"\nMLflow: {amount(runs.count, 'run')} at {shown(runs.uri)}"
        if not confirm(found):
            return None
        begin_removal(sweep, f"delete {sweep.name}")
        if runs is not None:
            runs.delete()
        finish_removal(sweep)
    return 0 if runs is None else runs.count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 if the sweep is deleted, 1 if it is not, 2 for a mistake."""
    again = "Interrupted. If the deletion had begun, run the same command again."
    return exit_code(lambda: _run(arguments), again)


def _run(arguments: Sequence[str] | None) -> int:
    console, complain = open_console(), open_console(stderr=True)
    options = build_parser().parse_args(arguments)

    def confirm(found: str) -> bool:
        console.print(found)
        return options.yes or _confirmed()

    where = options.name, options.storage, options.tracking_uri
    runs = delete(*where, options.keep_runs, confirm, complain.print)
    if runs is None:
        console.print("Nothing was deleted.")
        return 1
    console.print(f"Deleted sweep {options.name}.")
    if runs:
        console.print(f"MLflow keeps {amount(runs, 'run')} in the trash until `mlflow gc`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
