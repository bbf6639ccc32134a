"""`python -m search.run`: runs a hyper-parameter search from the command line."""

from __future__ import annotations

import importlib
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from search import stop_before_start
from search.core.environment import quiet_environment

quiet_environment()  # Ray reads its settings when it is imported

from search.core.problems import EvaluationError, StoppedError, UsageError  # noqa: E402
from search.core.task_options import per_fold, per_task  # noqa: E402
from search.execution.early_ray import EarlyRay  # noqa: E402
from search.options import Request, build_parser, configure, read_request  # noqa: E402
from search.terminal.console import open_console, print_errors  # noqa: E402
from search.terminal.exit_code import interrupted_code  # noqa: E402
from search.terminal.notify import notify  # noqa: E402
from trainables.core.storage import StorageError, local_folder  # noqa: E402
from trainables.core.text import amount  # noqa: E402

if TYPE_CHECKING:
    from search.driver.preflight import Plan
    from search.driver.sweep import Outcome

__all__ = ["build_parser", "check_request", "configure", "main", "run_plans"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when the sweep is complete, 2 for a mistake in the command line, 1 when no trial
    succeeded or the sweep could not go on, 130 when it was interrupted."""
    with EarlyRay() as early:
        return _main(arguments, early)


def _main(arguments: Sequence[str] | None, early: EarlyRay) -> int:
    console, url = open_console(), ""
    try:
        request = read_request(arguments)
        url = request.notify
        plans = check_request(request, early)
        if request.dry_run:
            from search.driver.dry_run import dry_run

            for plan in plans:
                dry_run(plan, console)
            return 0
        folds = request.config.test_folds
        outcomes = run_plans(plans, console, request.retry_failed, folds, early)
    except UsageError as error:
        print_errors(error.problems)
        return 2
    except (StoppedError, StorageError, PermissionError) as error:
        message = (
            f"The sweep stopped: {error}. Finished trials are safe: fix the cause and run the same "
            "command again."
        )
        print_errors([message])
        _notify(url, message)
        return 1
    except EvaluationError as error:
        message = (
            f"The evaluation failed, the trials are safe: {error}. Run the same command again to "
            "repeat it."
        )
        print_errors([message])
        _notify(url, message)
        return 1
    except KeyboardInterrupt:
        return interrupted_code("Stopped. Finished trials are kept; run the same command again.")
    for outcome in outcomes:
        _notify(url, *_ended(outcome))
    if any(outcome.interrupted for outcome in outcomes):
        return 130
    return 0 if all(outcome.states["COMPLETE"] for outcome in outcomes) else 1


def _ended(outcome: Outcome) -> tuple[str, dict[str, Any]]:
    """How a sweep ended, in words and for programs."""
    state = "interrupted" if outcome.interrupted else "finished"
    facts: dict[str, Any] = {"sweep": outcome.config.name, "state": state}
    facts["trials"] = outcome.states
    complete = amount(outcome.states["COMPLETE"], "trial")
    words = f"Sweep {outcome.config.name} {state}, {complete} complete"
    if outcome.evaluation is not None:
        figures = {
            label: statistics.fmean(outcome.evaluation.figure(label))
            for label in outcome.evaluation.labels
        }
        facts["test_accuracy"] = figures
        words += f". Test accuracy of the winner: {100 * figures['winner']:.1f} %"
        words += f", zero-shot {100 * figures['zero-shot']:.1f} %"
    return f"{words}.", facts


def _notify(url: str, message: str, facts: Mapping[str, Any] | None = None) -> None:
    """Send a message if there is a webhook; a failure is a warning."""
    if url and (problem := notify(url, message, dict(facts or {}))):
        open_console(stderr=True).print(problem, style="yellow")


def check_request(request: Request, early: EarlyRay | None = None) -> list[Plan]:
    """Check the sweep, or with --per-task and --test-folds all of them, while `early` starts Ray if
    it will be needed; raises `UsageError`."""
    from search.driver.preflight import preflight_each

    def meanwhile() -> None:
        _load_the_rest()
        if early is not None and _needs_private_ray(request):
            early.start()

    whole, parts = request.config, per_task(request.config)
    if whole.test_folds and not request.problems and not whole.problems():
        # A fold has more training images than the generated split of the whole folder.
        parts = per_fold(whole)
        whole = replace(parts[0], name=whole.name)
    return preflight_each(
        whole,
        parts,
        meanwhile,
        trial_write=not request.dry_run,
        problems=request.problems,
        check_data=request.task_is_known,
        retry_failed=request.retry_failed,
    )


def run_plans(
    plans: Sequence[Plan],
    console: Console,
    retry_failed: bool,
    test_folds: int = 0,
    early: EarlyRay | None = None,
) -> list[Outcome]:
    """Run one sweep after another, and print how each ended; of folds, also their pooled figures.
    Raises what `run_sweep` raises."""
    outcomes: list[Outcome] = []
    for plan in plans:
        outcome = _load_the_rest().run_sweep(plan, console, retry_failed, early)
        outcomes.append(outcome)
        from search.driver.summary import print_folds, print_summary, print_tasks
        from search.export import register_winner

        print_summary(outcome, console)
        if plan.config.register is not None and outcome.evaluation is not None:
            register_winner(outcome.config, outcome.tracking_uri, console)
        if outcome.interrupted:
            break
    if test_folds:
        print_folds(outcomes, test_folds, console)
    elif len(plans) > 1:
        print_tasks(outcomes, console)
    return outcomes


def _needs_private_ray(request: Request) -> bool:
    """Whether the sweep will start a Ray whose environment is known already: an object store's
    secrets enter it with the checks. A finished sweep that is asked for its summary needs none."""
    from search.evaluation.record import EVALUATION

    config = request.config
    folder = local_folder(config.storage)
    if __name__ != "__main__" or request.dry_run or config.address or folder is None:
        return False
    return not (folder / config.sweep_name / EVALUATION).exists()


def _load_the_rest() -> ModuleType:
    """Import Ray and everything that uses it, which takes seconds.

    Ctrl-C ends the process at once: an exception inside an import may come out as another one.
    """
    if __name__ != "__main__":  # a notebook or a service calls `main`
        return importlib.import_module("search.driver.sweep")
    before = signal.signal(signal.SIGINT, stop_before_start)
    try:
        return importlib.import_module("search.driver.sweep")
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
