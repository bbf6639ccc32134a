"""`python -m search.run`: a hyper-parameter search from the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from rich.console import Console

from search.core.environment import quiet_environment

quiet_environment()  # Ray reads its settings when it is imported

from search.core.config import SweepConfig  # noqa: E402
from search.core.problems import EvaluationError, StoppedError, UsageError  # noqa: E402
from search.driver.preflight import preflight_each  # noqa: E402
from search.options import build_parser, configure, is_dry_run, per_task  # noqa: E402
from search.terminal.console import open_console  # noqa: E402
from trainables.storage import StorageError  # noqa: E402

if TYPE_CHECKING:
    from search.driver.sweep import Outcome

__all__ = ["build_parser", "configure", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the sweep is complete, 2 for a mistake in what was asked for, 1 when no trial
    succeeded, 130 when it was interrupted."""
    console = open_console()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = configure(arguments)
        if is_dry_run(arguments):
            _tell(config, console)
            return 0
        outcomes = _run(config, console)
    except UsageError as error:
        for problem in error.problems:
            _complain(problem)
        return 2
    except (StoppedError, StorageError) as error:
        _complain(
            f"The sweep stopped: {error}. Finished trials are safe: when that is mended, run the "
            "same command again."
        )
        return 1
    except EvaluationError as error:
        _complain(
            f"The evaluation failed, the trials are safe: {error}. Run the same command again to "
            "repeat it."
        )
        return 1
    except KeyboardInterrupt:
        open_console(stderr=True).print(
            "Stopped. Finished trials are kept; run the same command again."
        )
        return 130
    if any(outcome.interrupted for outcome in outcomes):
        return 130
    return 0 if all(outcome.states["COMPLETE"] for outcome in outcomes) else 1


def _run(config: SweepConfig, console: Console) -> list[Outcome]:
    """One sweep, or with --per-task one after the other; all are checked before the first."""
    plans = preflight_each(config, per_task(config), meanwhile=_load_the_rest)
    outcomes: list[Outcome] = []
    for plan in plans:
        outcome = _load_the_rest().run_sweep(plan, console)
        outcomes.append(outcome)
        from search.exporting.register import register_winner
        from search.terminal.summary import print_summary, print_tasks

        print_summary(outcome, console)
        if plan.config.register is not None and outcome.evaluation is not None:
            register_winner(outcome.config, outcome.tracking_uri, console)
        if outcome.interrupted:
            break
    if len(plans) > 1:
        print_tasks(outcomes, console)
    return outcomes


def _tell(config: SweepConfig, console: Console) -> None:
    """Everything about the sweep, or about each of several, without running it."""
    from search.terminal.dry_run import dry_run

    for plan in preflight_each(config, per_task(config), _load_the_rest, trial_write=False):
        dry_run(plan, console)


def _complain(problem: str) -> None:
    open_console(stderr=True).print(f"error: {problem}", soft_wrap=True)


def _load_the_rest() -> ModuleType:
    """Ray and all that uses it: seconds, in which the backbone is looked at."""
    return importlib.import_module("search.driver.sweep")


if __name__ == "__main__":
    sys.exit(main())
