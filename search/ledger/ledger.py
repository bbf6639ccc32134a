"""The ledger: which trials exist and how they ended.

The sweep's folder is the truth. A trial is issued when its `issued.json` is there, and finished
when its `result.json` is there; the study is rebuilt from both at every start. A trial that was
running when its driver died is issued again under its own number and continues from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.core.objectives import best_of, parse_objective
from search.core.results import (
    ISSUED,
    RESULT,
    IssuedTrial,
    Result,
    Row,
    State,
    commit,
    counting,
    exact,
    read_trials,
    trial_folder,
    write_issued,
)
from search.ledger.study import SweepStudy
from spaces.base import Space
from trainables.core.protocols import Objective
from trainables.core.storage import Storage
from trainables.report import CHECKPOINT, METRICS
from trainables.trial import TrialConfig

RETRIES = 2
"""Number of times in a row that a trial is restarted after its worker has crashed, without making
progress."""

_RUNG = "completed_rung_"  # prefix of the attributes that a trial gets from ASHA and Hyperband


@dataclass
class RunningTrial:
    """A trial that has been issued and has not ended."""

    issued: IssuedTrial
    """Its record after the latest decision."""
    config: TrialConfig
    """What it trains."""
    values: tuple[float, ...] = ()
    """The objective after each step."""
    failures: int = 0
    """Number of crashes of its workers."""
    crashes_since_progress: int = 0
    """Those since its latest report."""
    steps_at_last_crash: int = -1
    """Number of reports before the latest crash."""
    train_seconds: float = 0.0
    """Training time in this run of the driver."""
    host: str = ""
    """Host of the latest report."""
    forecast: dict[str, float] = field(default_factory=dict)
    """The method's estimates before training."""
    warnings: tuple[str, ...] = ()
    """The method's warnings before training."""
    trained: bool = True
    """Whether it trains, see `Result.trained`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest metrics."""
    rows: dict[int, Row] = field(default_factory=dict)
    """Metrics by epoch."""

    @classmethod
    def of(cls, issued: IssuedTrial) -> RunningTrial:
        """The trial of a record, at its latest step."""
        stuck = len(issued.values) <= issued.steps_at_last_crash
        return cls(
            issued,
            TrialConfig.from_dict(issued.config),
            issued.values,
            issued.failures,
            issued.crashes_since_progress if stuck else 0,
            issued.steps_at_last_crash,
        )

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self.issued.number

    @property
    def begun(self) -> float:
        """Unix time at which it was first issued."""
        return self.issued.begun

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The space's parameters, as sampled."""
        return self.issued.parameters

    @property
    def retries(self) -> int:
        """How many more crashes it survives without making progress."""
        return RETRIES - self.crashes_since_progress


class Ledger:
    """The trials of one sweep. One process at a time (see `lock.py`), one thread."""

    def __init__(
        self,
        sweep: Storage,
        space: Space,
        sampler: str,
        pruner: str,
        seed: int,
        guard: Callable[[], None] = lambda: None,
        also: str = "",
        on_change: Callable[[FrozenTrial], None] = lambda _: None,
        retry_failed: bool = False,
        objective: Objective = "accuracy",
    ) -> None:
        """Rebuilds the study from the sweep's folder and queues interrupted trials.

        `guard` is called before every write, and raises if another driver owns the sweep. `also` is
        a second objective, see `objectives.py`. `on_change` gets every trial of the study, and
        later each one that has changed. `retry_failed` queues the trials that have failed, too.
        `objective` is the task's.
        Raises `UsageError` if the folder's files are damaged or of another version.
        """
        self.sweep, self.space = sweep, space
        self._guard, self._on_change = guard, on_change
        self.objective = objective
        self._second = parse_objective(also) if also else None
        self.live: dict[int, RunningTrial] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Without this, a restarted TPE logs a warning at every proposal.
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.results, issued = read_trials(sweep)
        if retry_failed:
            failed = [r for r in self.results.values() if r.state == "FAIL"]
            issued |= {result.number: self._reopen(result) for result in failed}
        self._study = SweepStudy(space, sampler, pruner, seed, self._second, self.results, issued)
        self._best = best_of(self.results.values())
        self._untrained = sum(not result.trained for result in self.results.values())
        self._interrupted: dict[int, IssuedTrial | None] = dict.fromkeys(self._study.missing)
        self._interrupted |= issued
        for trial in self._study.trials:
            on_change(trial)

    def remove_stale_files(self) -> None:
        """Remove what a killed driver, or a worker that outlived it, has left of ended trials."""
        trials = self.sweep.child("trials")
        for name in trials.files():
            folder, _, file = name.partition("/")
            if file in (CHECKPOINT, ISSUED) and folder.isdecimal() and int(folder) in self.results:
                trials.delete(name)

    def issued(self, trials: int) -> int:
        """Number of trials that count in a sweep of so many (see `counted`) and have ended, run, or
        wait to be issued again."""
        return self.ended(trials) + len(self.live) + len(self._interrupted)

    def ended(self, trials: int) -> int:
        """Number of trials that count in a sweep of so many and have ended."""
        return counting(len(self.results), self._untrained, trials)

    @property
    def waiting(self) -> int:
        """Number of interrupted trials that wait to be issued again."""
        return len(self._interrupted)

    def frozen(self) -> list[FrozenTrial]:
        """The study's trials, as Optuna sees them."""
        return self._study.trials

    def ask(self) -> RunningTrial:
        """Issue the next trial: an interrupted one if there is any, else a new one."""
        issued, is_new = self._next()
        if is_new:
            self._guard()
            write_issued(self.sweep, issued)
        self._on_change(self._study.frozen(issued.number))
        live = RunningTrial.of(issued)
        self.live[live.number] = live
        return live

    def preview(self, count: int) -> list[RunningTrial]:
        """The next trials, without writing anything. This ledger cannot be used afterwards."""
        return [RunningTrial.of(self._next()[0]) for _ in range(count)]

    def report(self, number: int, values: Sequence[float], metrics: dict[str, float]) -> None:
        """Record what a running trial has reported: the objective after each step, from 1."""
        live = self.live[number]
        live.metrics = metrics
        if len(values) > len(live.values):
            live.values = tuple(map(exact, values))
            live.crashes_since_progress = 0
            self._replay(live)
            self._study.report(number, live.values)
            self._on_change(self._study.frozen(number))

    def prune(self, number: int) -> Result | None:
        """Commit a running trial as PRUNED if the pruner stops it at its latest step.

        The paper's setting, trial 0, is the baseline of its sweep and is never pruned. A step is
        decided on once: a trial that continues from a checkpoint reports its last steps again.
        """
        live = self.live[number]
        if len(live.values) <= len(live.issued.values):
            return None
        if number > 0 and self._study.should_prune(number):
            return self.finish(number, "PRUNED")
        self._note(live)
        return None

    def record(self, number: int) -> None:
        """Write what is known of a running trial, once its worker has saved a checkpoint: a trial
        without one starts again, and its steps are decided on again."""
        self._guard()
        write_issued(self.sweep, self.live[number].issued)

    def record_crash(self, number: int) -> None:
        """A trial's worker has crashed or has run out of memory."""
        live = self.live[number]
        live.failures += 1
        stuck = len(live.values) <= live.steps_at_last_crash
        live.crashes_since_progress = live.crashes_since_progress + 1 if stuck else 1
        live.steps_at_last_crash = len(live.values)
        self._note(live)
        self.record(number)

    def requeue(self, number: int) -> None:
        """Issue a trial again that Tune has given up, and the ledger has not."""
        live = self.live.pop(number)
        self._interrupted[number] = live.issued

    def finish(self, number: int, state: State, reason: str = "", details: str = "") -> Result:
        """Commit the end of a trial. After it returns, no crash undoes it."""
        live = self.live[number]
        second, value = self._second, None
        if state == "COMPLETE" and second and second.value(live.metrics) is None:
            state = "FAIL"
            reason = f"it has no finite {second.metric}, which --second-objective asks for"
        if state == "PRUNED":
            value = live.values[-1]
        elif state == "COMPLETE":
            # Side by side this is the last report; in sequence it is the mean over the seeds.
            value = live.metrics[METRICS[self.objective]]
        if value is not None and not math.isfinite(value):
            raise ValueError(f"trial {number} ended with the value {value}")
        issued = live.issued
        result = Result(
            number,
            state,
            value,
            live.values,
            live.forecast | live.metrics,
            issued.parameters,
            issued.distributions,
            self._study.system_attrs(number),
            issued.config,
            live.train_seconds,
            live.begun,
            time.time(),
            live.host,
            live.warnings,
            live.failures,
            reason,
            details,
            issued.study_attrs,
            issued.earlier_failures,
            live.trained,
        )
        self._guard()
        commit(self.sweep, result, [live.rows[epoch] for epoch in sorted(live.rows)])
        self.results[number] = result
        self._untrained += not result.trained
        self._best = best_of([result, *([self._best] if self._best else [])])
        del self.live[number]
        self._study.finish(result)
        self._on_change(self._study.frozen(number))
        folder = self.sweep.child(trial_folder(number))
        for name in (ISSUED, CHECKPOINT):  # a checkpoint is large
            folder.delete(name)
        folder.clean_temporary_files()  # what a killed worker had begun to write
        return result

    def best(self) -> Result | None:
        """The winner so far, see `best_of`."""
        return self._best

    def _next(self) -> tuple[IssuedTrial, bool]:
        """The next trial, and whether it has no record yet."""
        if not self._interrupted:
            return self._study.ask(), True
        number = min(self._interrupted)
        issued = self._interrupted.pop(number)
        return (issued, False) if issued else (self._study.ask_again(number), True)

    def _replay(self, live: RunningTrial) -> None:
        """Let the pruner see the steps between the record and the latest one, which the trial has
        passed: their verdicts are known, but what the pruner stores with the trial is not."""
        if live.number == 0:  # no pruner sees it
            return
        for step in range(len(live.issued.values) + 1, len(live.values)):
            self._study.report(live.number, live.values[:step])
            self._study.should_prune(live.number)

    def _note(self, live: RunningTrial) -> None:
        """Make the trial's record what the driver knows of it."""
        live.issued = dataclasses.replace(
            live.issued,
            system_attrs=self._study.system_attrs(live.number),
            values=live.values,
            failures=live.failures,
            crashes_since_progress=live.crashes_since_progress,
            steps_at_last_crash=live.steps_at_last_crash,
        )

    def _reopen(self, result: Result) -> IssuedTrial:
        """Turn a failure into an issued trial that starts again from its beginning.

        The record comes before the result is deleted: whatever a crash leaves, the trial is there.
        """
        reason = result.reason or "it failed"
        issued = IssuedTrial(
            result.number,
            result.config,
            result.parameters,
            result.distributions,
            {k: v for k, v in result.notes.items() if not k.startswith(_RUNG)},
            result.study_attrs,
            result.begun,
            earlier_failures=(*result.earlier_failures, reason),
        )
        self._guard()
        write_issued(self.sweep, issued)
        self.sweep.child(trial_folder(result.number)).delete(RESULT)
        del self.results[result.number]
        return issued
