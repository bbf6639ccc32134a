"""A sweep from its first question to its summary."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import stat
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.stopper import Stopper
from rich.console import Console

from search.carrier import WorkerCarrier
from search.config import SweepConfig
from search.evaluate import evaluate, shared_weights, stored_evaluation
from search.evaluation import Evaluation
from search.ledger import Ledger, Live
from search.lock import SweepLock
from search.mirror import Mirror, sweep_artifacts
from search.observer import Observers
from search.preflight import Plan, adopt
from search.prepare import prepare
from search.problems import StoppedError, UsageError
from search.progress import Progress
from search.pruners import IN_SEQUENCE
from search.reporting.at_end import has_report, report_at_end
from search.resources import Machine, Placement, place
from search.results import Result, trial_folder
from search.searcher import CrashCallback, StudyScheduler, StudySearcher
from search.statistics import separation_note
from search.study import JOURNAL_LEDGER, open_store
from search.task import described, val_images
from search.tracking import Tracker, open_tracker
from search.winner import share_start
from trainables.storage import Storage, StorageError, open_storage
from trainables.trainable import Assignment, FewShotTrainable, Message

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
            closing(open_store(config.ledger, sweep, study_name, lock.check))
        )
        ledger = Ledger(
            sweep, store, plan.space, config.sampler, config.pruner, config.seed, lock.check
        )
        if store.notice:
            say(store.notice)
        if config.ledger != JOURNAL_LEDGER:
            _refuse_copy(ledger, sweep)
        tracker = open_tracker(plan.tracking_uri, config.name, sweep)
        mirror = Mirror(tracker, config, plan.fingerprints)
        mirror.open_sweep(ledger.results, sweep)
        try:
            return _run(plan, ledger, tracker, mirror, console)
        finally:
            tracker.close(0.0)


def _refuse_copy(ledger: Ledger, sweep: Storage) -> None:
    """Two copies of a folder must not share one study in a database."""
    home = ledger.study.user_attrs.get("location", sweep.location)
    if home != sweep.location and open_storage(home).exists("sweep.json"):
        raise UsageError(
            [
                f"A ledger in a database belongs to one folder, and this one belongs to '{home}': "
                f"'{sweep.location}' is a copy. Go on there, or start another sweep with --name."
            ]
        )
    ledger.study.set_user_attr("location", sweep.location)


def _run(plan: Plan, ledger: Ledger, tracker: Tracker, mirror: Mirror, console: Console) -> Outcome:
    config = plan.config
    stop = StopSwitch(config.time_budget)
    clock = _Clock()
    evaluation = stored_evaluation(ledger, config)
    todo = ledger.waiting + max(0, config.trials - ledger.issued)
    if todo or evaluation is None:
        with stop.listening(), _ray(config, console), _carried(config, tracker):
            placement = plan.placement or _place_on_cluster(config)
            prepare(plan, placement, ledger.sweep, console)
            if todo:
                console.print(_opening(plan, ledger, placement, todo), highlight=False)
                try:
                    with Progress(console, ledger, config.trials) as progress:
                        _fit(plan, ledger, placement, Observers([progress, mirror, clock]), stop)
                finally:
                    for number in ledger.live:
                        mirror.interrupted(number)
                if stop.reason:
                    raise StoppedError(stop.reason)
            if ledger.best() is not None and not stop.interrupted:
                evaluation = stored_evaluation(ledger, config)
                if evaluation is None:
                    stop.at_once = True
                    with console.status("Re-training the winner and reading the test split"):
                        evaluation = evaluate(ledger, plan, placement)
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

    def assign(live: Live) -> Assignment:
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


class StopSwitch(Stopper):
    """Ends a sweep gracefully: after its time budget, or when somebody asks it to stop."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self.interrupted = False
        self.at_once = False
        """Whether the next signal shall raise `KeyboardInterrupt`, not wait for a part to end."""
        self.reason = ""
        """Why the sweep cannot go on."""

    def give_up(self, reason: str) -> None:
        """Let no further part begin, for a reason that is no trial's fault."""
        self.reason = self.reason or reason

    def start_clock(self) -> None:
        """The time budget begins here: with the first trial, not with the start of Ray."""
        if self._seconds is not None:
            self._deadline = time.monotonic() + self._seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether no further part of any trial shall begin."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        return self.interrupted or late or bool(self.reason)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While open, Ctrl-C and SIGTERM throw the switch; a second one stops at once."""

        def throw(signum: int, frame: FrameType | None) -> None:
            if self.interrupted or self.at_once:
                raise KeyboardInterrupt
            self.interrupted = True

        previous = {number: signal.signal(number, throw) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Clock:
    """Measures what a trial costs outside training: the time from the end of one trial to the
    end of the next in the same slot, less the time the worker spent training."""

    def __init__(self) -> None:
        self._begun: dict[int, float] = {}
        self._freed: list[float] = []
        self._costs: list[float] = []

    def started(self, live: Live) -> None:
        """See `Observer`. A trial takes the slot that has been free the longest."""
        if self._freed:
            self._begun[live.number] = self._freed.pop(0)

    def heard(self, message: Message) -> None:
        """See `Observer`."""

    def ended(self, result: Result, ledger: Ledger) -> None:
        """See `Observer`."""
        now = time.monotonic()
        begun = self._begun.pop(result.number, None)
        if begun is not None:
            self._costs.append(now - begun - result.train_seconds)
        self._freed.append(now)

    def overhead(self) -> float | None:
        """Median cost in seconds; none before a warm worker has finished a trial."""
        return statistics.median(self._costs) if self._costs else None


@contextlib.contextmanager
def _ray(config: SweepConfig, console: Console) -> Iterator[None]:
    """A connection to Ray: the cluster at `address`, or a private one that ends with the sweep.

    Raises `UsageError` when the cluster does not answer.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    # It prints the traceback of every worker that died; the ledger says how the trial went on.
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"ray\..*")
    over = threading.Event()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with console.status("Starting Ray"):
        if config.address:
            try:
                ray.init(address=config.address, **common)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(
                    [
                        f"--address must name a running Ray cluster, and '{config.address}' does "
                        f"not let us in ({str(error).splitlines()[0]}). If it asks for a token, "
                        "it must be in ~/.ray/auth_token, with RAY_AUTH_MODE=token."
                    ]
                ) from error
        else:
            try:
                ray.init(
                    "local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **common
                )
            except Exception as error:  # Ray raises bare ones
                raise StoppedError(f"Ray did not start ({str(error).splitlines()[0]})") from error
            _protect_token()
            threading.Thread(target=_mind_ray, args=(over,), name="ray-minder", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        ray.shutdown()


def _mind_ray(over: threading.Event) -> None:
    """End the process when a part of its private Ray has died before it is over.

    Nobody starts that part again. Without a raylet Tune waits for ever, without a GCS for a minute
    before Ray aborts the process; all that counts is on disk.
    """
    node = ray._private.worker._global_node
    while not over.wait(1):
        dead = [kind for kind, _ in node.dead_processes() if kind in ("gcs_server", "raylet")]
        if dead and not over.is_set():
            sys.stderr.write(
                f"error: Ray's {dead[0]} has died. Finished trials are kept; run the same command "
                "again.\n"
            )
            sys.stderr.flush()
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            _kill_starting_workers(node.session_name)
            os._exit(1)


def _kill_starting_workers(session: str) -> None:
    """Workers that have begun to start, which takes seconds, do not notice that Ray has died before
    they are ready. Until then the session's name stands in their command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if any(session.encode() in word for word in words) and int(folder.name) != os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)


_OBJECT_STORE = 256 * 2**20  # bytes: artifacts travel through it, images do not


def _protect_token() -> None:
    """Ray writes its authentication token readable by everybody."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists() and stat.S_IMODE(token.stat().st_mode) != 0o600:
        token.chmod(0o600)


def _cluster() -> Machine:
    """The nodes of the connected cluster."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Machine(
        int(sum(node.get("CPU", 0) for node in nodes)),
        int(sum(node.get("GPU", 0) for node in nodes)),
        max((node.get("CPU", 0) for node in nodes), default=0),
        elastic=True,
    )


@contextlib.contextmanager
def _carried(config: SweepConfig, tracker: Tracker) -> Iterator[None]:
    """On a cluster, workers upload artifacts while it is there."""
    if not config.address:
        yield
        return
    carrier = WorkerCarrier()
    tracker.carry_by(carrier)
    try:
        yield
    finally:
        tracker.carry_by(None)
        carrier.close()


def _place_on_cluster(config: SweepConfig) -> Placement:
    placement, problems = place(config, _cluster())
    if placement is None:
        raise UsageError(problems)
    return placement


def _opening(plan: Plan, ledger: Ledger, placement: Placement, todo: int) -> str:
    done, start = len(ledger.results), plan.config.start
    where = "GPU" if placement.device == "cuda" else "CPU"
    parts = [
        f"Sweep {plan.config.name}: {plan.config.space} on {described(plan.config.task)}"
        + (f", after trial {start.trial} of {start.location}." if start else "."),
        f"{todo} trials to run, {placement.slots} at a time on the {where}.",
    ]
    if done:
        parts.insert(1, f"{done} trials are finished already.")
    if ledger.waiting:
        parts.insert(2, f"{ledger.waiting} interrupted trials are continued.")
    return " ".join(parts)
