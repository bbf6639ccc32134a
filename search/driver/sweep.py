"""A sweep from its first question to its summary."""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass

from ray import tune
from rich.console import Console

from search.core.config import SweepConfig
from search.core.objectives import front_of, parse_objective
from search.core.problems import StoppedError, UsageError
from search.core.pruners import IN_SEQUENCE
from search.core.task import described, val_images
from search.driver.preflight import Plan, adopt
from search.driver.prepare import prepare
from search.evaluation.record import Evaluation
from search.evaluation.run import evaluate, shared_weights, stored_evaluation
from search.evaluation.statistics import separation_note
from search.evaluation.winner import share_start
from search.execution.clock import Clock
from search.execution.observer import Observers
from search.execution.ray_session import carried, cluster, ray_session
from search.execution.resources import Placement, place
from search.execution.searcher import CrashCallback, StudyScheduler, StudySearcher
from search.execution.stop import StopSwitch
from search.ledger.ledger import Ledger, RunningTrial
from search.ledger.lock import SweepLock
from search.ledger.results import Result, trial_folder
from search.ledger.store import open_store
from search.reporting.build import has_report, report_at_end
from search.terminal.bars import Bars
from search.terminal.progress import Progress
from search.tracking.mlflow_reporter import MlflowReporter, sweep_artifacts
from search.tracking.tracker import Tracker
from search.tracking.uploader import open_tracker
from trainables.credentials import shown
from trainables.storage import Storage, StorageError, open_storage
from trainables.trainable import Assignment, FewShotTrainable

_DELIVERY_SECONDS = 60.0  # for the last events, while they get through
_PATIENCE_SECONDS = 10.0  # while they do not


@dataclass(frozen=True)
class Outcome:
    """How a run of the driver ended."""

    config: SweepConfig
    """The sweep's configuration, with its name."""
    sweep: Storage
    """The sweep's folder."""
    best: Result | None
    """The winner, where a trial is complete."""
    evaluation: Evaluation | None
    """None where no trial is complete or the run was interrupted."""
    states: dict[str, int]
    """Trials by state."""
    unfinished: int
    """Trials that were begun and wait to be continued."""
    interrupted: bool
    """Whether somebody stopped the run."""
    tracking_uri: str
    """Where the runs are; `none` without tracking."""
    undelivered: int
    """Tracking events that could not be delivered yet."""
    overhead: float | None
    """Median seconds that a trial cost outside training, with warm workers."""
    doubt: str | None
    """Says where validation cannot tell the winner from other trials."""
    front: tuple[int, ...]
    """Trials that none beats in both of two objectives; empty where there is one."""
    page: str
    """Where MLflow shows the sweep, behind the server's address; empty where that is not known."""


def run_sweep(plan: Plan, console: Console) -> Outcome:
    """Start or continue a sweep.

    Raises `UsageError` before any work where another driver has it or its files are damaged;
    `StoppedError`, `EvaluationError` or `StorageError` when it cannot go on. What was finished is
    safe in any case.
    """

    def say(notice: str) -> None:
        console.print(notice, style="yellow", highlight=False)

    for notice in plan.notices:
        say(notice)
    sweep = open_storage(plan.config.location)
    with SweepLock(sweep, say) as lock, ExitStack() as stack:
        sweep.tidy()
        plan = adopt(plan, sweep)
        config = plan.config
        study_name = f"{config.name}-{plan.id[:8]}"
        store = stack.enter_context(
            closing(open_store(config.ledger, sweep, study_name, lock.check, say))
        )
        ledger = Ledger(
            sweep,
            store,
            plan.space,
            config.sampler,
            config.pruner,
            config.seed,
            lock.check,
            config.second_objective,
        )
        ledger.tidy()
        for notice in filter(None, (store.notice, ledger.notice)):
            say(notice)
        tracker = open_tracker(plan.tracking_uri, config.name, sweep)
        mirror = MlflowReporter(tracker, config, plan.fingerprints)
        mirror.open_sweep(ledger.results, sweep)
        try:
            return _run(plan, ledger, tracker, mirror, console)
        finally:
            tracker.close(0.0)


def _run(
    plan: Plan, ledger: Ledger, tracker: Tracker, mirror: MlflowReporter, console: Console
) -> Outcome:
    config = plan.config
    stop = StopSwitch(config.time_budget)
    clock = Clock()
    evaluation = stored_evaluation(ledger, plan)
    todo = ledger.waiting + max(0, config.trials - ledger.issued)
    if todo or evaluation is None:
        with stop.listening(), ray_session(config, console), carried(config, tracker):
            placement = plan.placement or _place_on_cluster(config)
            prepare(plan, placement, ledger.sweep, console)
            if todo:
                console.print(_opening(plan, ledger, placement, todo), highlight=False)
                try:
                    rounds = len(config.task.episodes) if config.pruner in IN_SEQUENCE else 1
                    with Progress(console, ledger, config.trials, rounds) as progress:
                        _fit(plan, ledger, placement, Observers([progress, mirror, clock]), stop)
                finally:
                    for number in ledger.live:
                        mirror.interrupted(number)
                if stop.reason:
                    raise StoppedError(stop.reason)
            evaluation = stored_evaluation(ledger, plan)  # there may be another winner by now
            if evaluation is None and ledger.best() is not None and not stop.interrupted:
                stop.at_once = True
                with Bars(console) as bars:
                    evaluation = evaluate(ledger, plan, placement, bars.tell)
    best = ledger.best()
    # Also where a driver died before it had written one.
    if config.report and evaluation is not None and (todo or not has_report(ledger.sweep)):
        with console.status("Writing the report"):
            report_at_end(ledger.sweep)
    mirror.close_sweep(
        "INTERRUPTED" if stop.interrupted else "COMPLETE",
        best,
        evaluation,
        sweep_artifacts(ledger.sweep) if evaluation is not None else [],
    )
    undelivered = tracker.close(_DELIVERY_SECONDS, _PATIENCE_SECONDS)
    states = [result.state for result in ledger.results.values()]
    return Outcome(
        config,
        ledger.sweep,
        best,
        evaluation,
        {state: states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL")},
        ledger.waiting + len(ledger.live),
        stop.interrupted,
        plan.tracking_uri,
        undelivered,
        clock.overhead(),
        _doubt(plan, ledger),
        tuple(front_of(ledger.results.values(), parse_objective(config.second_objective)))
        if config.second_objective
        else (),
        tracker.page(),
    )


def _doubt(plan: Plan, ledger: Ledger) -> str | None:
    results = ledger.results.values()
    values = {r.number: r.value for r in results if r.state == "COMPLETE" and r.value is not None}
    return separation_note(values, val_images(plan.config.task, plan.source))


def _fit(
    plan: Plan, ledger: Ledger, placement: Placement, observer: Observers, stop: StopSwitch
) -> None:
    """Let Ray run what the ledger issues, until it issues no more or the switch is thrown."""
    config = plan.config

    weights, stages = shared_weights(config, ledger.sweep), share_start(plan, ledger.sweep)

    def assign(live: RunningTrial) -> Assignment:
        return Assignment(
            number=live.number,
            trial=live.config.to_dict(),
            task=config.task.to_dict(),
            data=config.data,
            weights=weights,
            stages=stages,
            folder=ledger.sweep.child(trial_folder(live.number)).location,
            device=placement.device,
            threads=max(1, math.floor(placement.cpus)),
            in_sequence=config.pruner in IN_SEQUENCE,
            checkpoint_seconds=config.checkpoint_seconds,
        )

    resources = {"cpu": placement.cpus, "gpu": placement.gpus}
    # Ray's own record of the experiment is scaffolding: the ledger is what counts.
    with tempfile.TemporaryDirectory(prefix="few-shot-sweep-") as scaffold:
        tuner = tune.Tuner(
            tune.with_resources(FewShotTrainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(ledger, assign, config.trials, observer),
                scheduler=StudyScheduler(ledger, observer, stop.give_up),
                num_samples=-1,
                # It also lets Ray start that many workers side by side from the first moment.
                # One by one, a short trial's worker would take over the next trial while that
                # one's own worker is still starting, and all trials would run in one.
                max_concurrent_trials=placement.slots,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scaffold,
                name="sweep",
                stop=stop,
                failure_config=tune.FailureConfig(max_failures=-1),  # the ledger counts
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
                callbacks=[CrashCallback(ledger, observer)],
            ),
        )
        stop.start_clock()
        try:
            tuner.fit()
        except Exception as error:
            raise _cause(error) from None


def _cause(error: BaseException) -> BaseException:
    """What a hook of ours has raised: Tune hides it behind an error of its own."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, StoppedError | StorageError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return error


def _place_on_cluster(config: SweepConfig) -> Placement:
    placement, problems = place(config, cluster())
    if placement is None:
        raise UsageError(problems)
    return placement


def _opening(plan: Plan, ledger: Ledger, placement: Placement, todo: int) -> str:
    done, start = len(ledger.results), plan.config.init_from
    where = "GPU" if placement.device == "cuda" else "CPU"
    parts = [
        f"Sweep {plan.config.name}: {plan.config.space} on {described(plan.config.task)}"
        + (f", after trial {start.trial} of {shown(start.location)}." if start else "."),
        f"{todo} trials to run, {placement.slots} at a time on the {where}.",
    ]
    if done:
        parts.insert(1, f"{done} trials are finished already.")
    if ledger.waiting:
        parts.insert(2, f"{ledger.waiting} interrupted trials are continued.")
    return " ".join(parts)
