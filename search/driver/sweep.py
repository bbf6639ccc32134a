"""Runs a sweep: opens its folder, runs its trials, evaluates the winner, reports."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial

import ray
from rich.console import Console

from search.core.config import SweepConfig
from search.core.lock import SweepLock
from search.core.objectives import (
    MethodTrials,
    Objective,
    directions,
    front_of,
    method_trials,
    parse_objective,
    winner_of,
)
from search.core.placement import Placement, place
from search.core.problems import StoppedError, UsageError
from search.core.pruners import IN_SEQUENCE, decision_steps
from search.core.results import Result, counted, trial_folder, untrained_note
from search.core.shown import described
from search.core.sweep_folder import SWEEP_FILE, SweepFolder
from search.core.task import val_images
from search.driver.preflight import Plan, adopt
from search.driver.prepare import prepare
from search.evaluation.plan import SweepFacts, general_zero_shot
from search.evaluation.record import Evaluation
from search.evaluation.run import evaluate, shared_weights, stored_evaluation, train_paper
from search.evaluation.statistics import separation_note
from search.evaluation.winner import share_start
from search.execution.artifacts import BestArtifacts, keeps_stopped
from search.execution.early_ray import EarlyRay
from search.execution.listeners import OverheadClock, SweepListener, SweepListeners
from search.execution.ray_session import connected_machine, ray_session
from search.execution.searcher import Assign
from search.execution.tune_run import StopSwitch, run_trials
from search.ledger.ledger import Ledger, RunningTrial
from search.ledger.study_mirror import StudyMirror
from search.reporting.files import report_is_current
from search.terminal.bars import Bars
from search.terminal.progress import Progress
from search.tracking.content import sweep_artifacts
from search.tracking.mlflow_reporter import MlflowReporter
from search.tracking.worker_uploader import WorkerUploader
from trainables.assignment import Assignment
from trainables.core.credentials import shown
from trainables.core.plugins import plugin_sources
from trainables.core.storage import Storage, open_storage, split
from trainables.core.text import amount
from trainables.report import REPORTS_PER_TRIAL

_DELIVERY_SECONDS = 60.0  # for the last tracking events
_PATIENCE_SECONDS = 10.0  # without any delivery
_REPORT_SECONDS = 0.5  # of short steps without a decision, per report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run of the driver ended."""

    config: SweepConfig
    """The sweep's configuration, with its name."""
    sweep: Storage
    """The sweep's folder."""
    best: Result | None
    """The winner; None if no trial is complete."""
    evaluation: Evaluation | None
    """None if no trial is complete or the run was interrupted."""
    states: dict[str, int]
    """Trials by state."""
    unfinished: int
    """Trials that have started and will be continued."""
    interrupted: bool
    """Whether the user stopped the run."""
    tracking_uri: str
    """MLflow tracking URI, or `none`."""
    undelivered: int
    """Runs that MLflow does not hold completely yet."""
    overhead: float | None
    """Median time per trial outside training, in seconds; None before a warm worker was used."""
    doubt: str | None
    """A notice if validation cannot separate the winner from other trials."""
    front: tuple[int, ...]
    """Trials of the Pareto front; empty if there is one objective."""
    page: str
    """Path of the sweep's page on the MLflow server; empty if unknown."""
    untrained: str = ""
    """A notice about trials that were not trained; empty if there are none."""
    methods: tuple[MethodTrials, ...] = ()
    """The trials by method, the best method first."""


def run_sweep(
    plan: Plan, console: Console, retry_failed: bool = False, early: EarlyRay | None = None
) -> Outcome:
    """Start or resume a sweep; with `retry_failed`, its failed trials run again. `early` may be
    starting its Ray already.

    Raises:
        UsageError: another driver owns the sweep, or its files are damaged; nothing was started.
        StoppedError, EvaluationError, StorageError: it cannot continue. Committed results are kept.
    """

    def say(notice: str) -> None:
        console.print(notice, style="yellow", highlight=False)

    for notice in plan.notices:
        say(notice)
    sweep = open_storage(plan.config.location)
    with SweepLock(sweep, say) as lock:
        sweep.clean_temporary_files()
        plan = adopt(plan, SweepFolder(sweep))
        config = plan.config

        def guard() -> None:
            lock.check()
            _check_folder(sweep)

        study = _study_mirror(plan, say)
        ledger = Ledger(
            sweep,
            plan.space,
            config.sampler,
            config.pruner,
            config.seed,
            guard,
            config.second_objective,
            study.update if study else lambda _: None,
            retry_failed,
            config.task.objective,
        )
        ledger.remove_stale_files()
        reporter = MlflowReporter(plan.tracking_uri, config, plan.id, plan.fingerprints, sweep)
        reporter.open_sweep(ledger.results)
        try:
            if study:
                study.start()
            return _run(plan, ledger, reporter, console, say, early or EarlyRay())
        finally:
            reporter.close(0.0)
            if study and (left := study.close(_PATIENCE_SECONDS)):
                say(
                    f"The study storage lacks the latest state of {amount(left, 'trial')}. Run the "
                    "same command again to add it."
                )


def _study_mirror(plan: Plan, warn: Callable[[str], None]) -> StudyMirror | None:
    config = plan.config
    if not config.study_storage:
        return None
    name = f"{config.name}-{plan.id[:8]}"
    return StudyMirror(config.study_storage, name, directions(_second(config)), warn)


def _second(config: SweepConfig) -> Objective | None:
    return parse_objective(config.second_objective) if config.second_objective else None


def _run(
    plan: Plan,
    ledger: Ledger,
    reporter: MlflowReporter,
    console: Console,
    say: Callable[[str], None],
    early: EarlyRay,
) -> Outcome:
    config = plan.config
    stop = StopSwitch(config.time_budget)
    clock = OverheadClock()
    facts = _facts(plan)
    evaluation = stored_evaluation(ledger, facts)
    todo = ledger.waiting + max(0, config.trials - ledger.issued(config.trials))
    if todo or evaluation is None:
        is_private = early.started or not (config.address or ray.is_initialized())
        session = early.session(console) if early.started else ray_session(config.address, console)
        with (
            stop.listening(),
            session as folder,
            stop.listening(),  # again: Ray has replaced the handler of SIGTERM
            _workers_upload(config, reporter),
            ExitStack() as at_end,
        ):
            stop.interrupt_at_once()
            placement = plan.placement if is_private else None
            placement = placement or _connected_placement(config)
            prepare(plan, placement, ledger.sweep, console)
            begin = partial(train_paper, ledger, facts, placement, at_end)
            paper_trainings = cache(begin)  # once
            if todo:
                stop.interrupt_between_steps()
                console.print(_opening(plan, ledger, placement, todo), highlight=False)
                assign = assign_by(plan, placement, ledger.sweep)
                rounds = len(config.task.episodes) if config.pruner in IN_SEQUENCE else 1
                try:
                    with Progress(
                        console, ledger, config.trials, rounds, lambda: stop.interrupted
                    ) as progress:
                        listeners: list[SweepListener] = [progress, reporter, clock]
                        if config.keep_artifacts == "best":
                            listeners.append(BestArtifacts(ledger.sweep, _second(config)))
                        listener = SweepListeners(listeners)
                        run_trials(
                            *(ledger, assign, config.trials, placement, listener, stop, folder),
                            say,
                            idle=paper_trainings,
                        )
                finally:
                    for number in ledger.live:
                        reporter.interrupted(number)
                if stop.reason:
                    raise StoppedError(stop.reason)
                for number in ledger.live:  # their workers have saved checkpoints
                    ledger.record(number)
            _check_folder(ledger.sweep)
            evaluation = stored_evaluation(ledger, facts)  # the winner may have changed
            if evaluation is None and ledger.best() is not None and not stop.interrupted:
                stop.interrupt_at_once()
                with Bars(console) as bars:
                    evaluation = evaluate(ledger, facts, placement, bars.tell, paper_trainings())
    _check_folder(ledger.sweep)
    best = winner_of(ledger.results, config.select)
    # Also if a driver was killed before it had written one.
    current = report_is_current(ledger.sweep, ledger.results, evaluation)
    if config.report and evaluation is not None and not current:
        with console.status("Writing the report"):
            report_at_end(ledger.sweep)
    reporter.close_sweep(
        "INTERRUPTED" if stop.interrupted else "COMPLETE",
        best,
        evaluation,
        sweep_artifacts(ledger.sweep) if evaluation is not None else [],
    )
    undelivered = reporter.close(_DELIVERY_SECONDS, _PATIENCE_SECONDS)
    states = [result.state for result in ledger.results.values()]
    front: tuple[int, ...] = ()
    if objective := _second(config):
        front = tuple(front_of(ledger.results.values(), objective))
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
        _doubt(plan, ledger, evaluation),
        front,
        reporter.page(),
        untrained_note(ledger.results.values()),
        method_trials(ledger.results.values()),
    )


def _facts(plan: Plan) -> SweepFacts:
    return SweepFacts(plan.config, plan.source, plan.setting.tower, plan.fingerprints)


def _check_folder(sweep: Storage) -> None:
    """Raise `StoppedError` if the sweep's folder was moved or deleted: what is written afterwards
    would create a second, incomplete folder in its place."""
    if not sweep.exists(SWEEP_FILE):
        raise StoppedError(
            f"its folder '{shown(sweep.location)}' was moved or deleted while it ran"
        )


@contextmanager
def _workers_upload(config: SweepConfig, reporter: MlflowReporter) -> Iterator[None]:
    """On a cluster, let workers upload artifacts while it is connected."""
    if not config.address:
        yield
        return
    uploader = WorkerUploader()
    reporter.set_uploader(uploader)
    try:
        yield
    finally:
        reporter.set_uploader(None)
        uploader.close()


def _doubt(plan: Plan, ledger: Ledger, evaluation: Evaluation | None) -> str | None:
    """The notice about a single winner; an ensemble is the answer to it."""
    if evaluation and evaluation.selection and not evaluation.selection.is_single:
        return None
    results = ledger.results.values()
    values = {
        r.number: r.accuracy for r in results if r.state == "COMPLETE" and r.accuracy is not None
    }
    return separation_note(values, val_images(plan.config.task, plan.source))


def assign_by(plan: Plan, placement: Placement, sweep: Storage) -> Assign:
    """Return the function that makes a worker's assignment from an issued trial."""
    config = plan.config
    weights = shared_weights(config, sweep)
    stages = share_start(config, plan.source, plan.fingerprints["backbone"], sweep)
    plugins = plugin_sources()
    zero_shot = general_zero_shot(_facts(plan)).to_dict()
    steps = max(REPORTS_PER_TRIAL, len(config.task.episodes))
    decisions = decision_steps(config.pruner, steps)

    def assign(live: RunningTrial) -> Assignment:
        return Assignment(
            number=live.number,
            trial=live.config.to_dict(),
            task=config.task.to_dict(),
            data=config.data,
            weights=weights,
            stages=stages,
            folder=sweep.child(trial_folder(live.number)).location,
            device=placement.device,
            threads=max(1, math.floor(placement.cpus)),
            in_sequence=config.pruner in IN_SEQUENCE,
            checkpoint_seconds=config.checkpoint_seconds,
            report_seconds=_REPORT_SECONDS,
            decision_steps=decisions,
            keep_stopped=keeps_stopped(config, sweep),
            zero_shot=zero_shot if live.number == 0 else {},
            plugins=plugins,
        )

    return assign


def _connected_placement(config: SweepConfig) -> Placement:
    """Return the placement on the connected Ray, whose resources are not those of this machine if
    it is a cluster or was started by a notebook or a service."""
    placement, problems = place(config, connected_machine(config.address))
    if placement is None:
        raise UsageError(problems)
    return placement


def _opening(plan: Plan, ledger: Ledger, placement: Placement, todo: int) -> str:
    done, start = counted(ledger.results.values(), plan.config.trials), plan.config.init_from
    where = "GPU" if placement.device == "cuda" else "CPU"
    parts = [
        f"Sweep {plan.config.name}: {plan.config.space} on {described(plan.config.task)}"
        + (f", after trial {start.trial} of {shown(start.location)}." if start else "."),
        f"{amount(todo, 'trial')} to run, {placement.slots} at a time on the {where}.",
    ]
    if done:
        parts.insert(1, f"{amount(done, 'trial')} finished already.")
    if ledger.waiting:
        parts.insert(2, f"{amount(ledger.waiting, 'interrupted trial')} continued.")
    return " ".join(parts)


def report_at_end(sweep: Storage) -> None:
    """Write the report of a finished sweep. Its results are safe: whatever fails here is a
    warning."""
    try:
        # Plotly and the rest take seconds, which a sweep need not wait for when it starts.
        from search.reporting.page import write_report
        from search.reporting.source import source_of

        write_report(source_of(sweep))
    except Exception as error:
        name = split(sweep.location)[1]
        logger.warning(
            "The report could not be written: %s. Afterwards: python -m search.report %s",
            error,
            name,
        )
