"""The ledger: which trials exist and how they ended.

The Optuna study says what was tried; a trial is finished when its `result.json` is there, whole,
and never before. The commit comes first and the study is told after it, so a crash between the two
is mended on the next start by reading the commit. What was running when a driver died is issued
again under its own number and continues from its checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from search.core.objectives import directions, parse_objective, study_values
from search.core.problems import UsageError
from search.core.pruners import PRUNERS
from search.core.samplers import make_sampler
from search.ledger.notes import Notes
from search.ledger.results import (
    RESULT,
    Result,
    Row,
    State,
    commit,
    read_results,
    trial_folder,
    unreadable,
)
from search.ledger.store import StudyStore
from spaces.base import Space
from trainables.storage import Storage
from trainables.trial import TrialConfig
from trainables.trial_run import CHECKPOINT

RETRIES = 2
"""How often in a row a trial is started again after its worker has died, without getting on."""
ISSUED, FAILURES = "begun", "failures"
"""What the study knows of a trial beside Optuna: when it was first issued, and its deaths."""


@dataclass
class RunningTrial:
    """A trial that has been issued and has not ended."""

    number: int
    """Its number in the study."""
    config: TrialConfig
    """What it trains."""
    trial: Trial
    """Optuna's handle."""
    begun: float
    """Unix time at which it was first issued."""
    values: tuple[float, ...] = ()
    """The objective after each part that the study knows of."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What sampler and pruner have noted of it."""
    failures: int = 0
    """Deaths of its workers."""
    strikes: int = 0
    """Those of them since it last got on."""
    struck: int = -1
    """Parts that it had reported at the last of them."""
    train_seconds: float = 0.0
    """Training time heard of in this run of the driver."""
    host: str = ""
    """Where it was last heard of."""
    forecast: dict[str, float] = field(default_factory=dict)
    """What the method said before training."""
    warnings: tuple[str, ...] = ()
    """What else it said before training."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest metrics heard of."""
    rows: dict[int, Row] = field(default_factory=dict)
    """Metrics by epoch."""

    @property
    def retries(self) -> int:
        """How many more deaths it survives without getting on."""
        return RETRIES - self.strikes


class Ledger:
    """The study of one sweep. One process at a time (see `lock.py`), one thread."""

    def __init__(
        self,
        sweep: Storage,
        store: StudyStore,
        space: Space,
        sampler: str,
        pruner: str,
        seed: int,
        guard: Callable[[], None] = lambda: None,
        also: str = "",
    ) -> None:
        """Opens or creates the study, adopts committed results, queues what was interrupted.

        `guard` is called before every commit, and raises where another driver has the sweep.
        `also` is a second objective, see `objectives.py`.
        Raises `UsageError` when the folder's files are damaged or of another version, and
        `LedgerError` when a database does not answer.
        """
        self.sweep, self.space = sweep, space
        self._store, self._sampler, self._seed, self._guard = store, sampler, seed, guard
        self._also = parse_objective(also) if also else None
        self.live: dict[int, RunningTrial] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Without this, a restarted TPE explains itself on the terminal at every question.
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.results = read_results(sweep)
        self.notice = ""
        """What a person should know of how it was opened, else empty."""
        with store.together():
            self._interrupted = store.with_retries(lambda: self._recover(pruner))

    def tidy(self) -> None:
        """Remove checkpoints of trials that have ended: a worker that outlived its driver may have
        left one."""
        trials = self.sweep.child("trials")
        for name in trials.files():
            folder, _, file = name.partition("/")
            if file == CHECKPOINT and folder.isdecimal() and int(folder) in self.results:
                trials.delete(name)

    @property
    def issued(self) -> int:
        """Trials that have ended, run, or wait to be issued again."""
        return len(self.results) + len(self.live) + len(self._interrupted)

    @property
    def waiting(self) -> int:
        """Interrupted trials that wait to be issued again."""
        return len(self._interrupted)

    def frozen(self) -> list[FrozenTrial]:
        """The study's trials, as Optuna sees them."""
        return self.study.get_trials(deepcopy=False)

    def ask(self) -> RunningTrial:
        """The next trial: an interrupted one if there is any, else a new one."""
        with self._store.together():
            live = self._store.with_retries(self._issue)
        self._interrupted = [number for number in self._interrupted if number != live.number]
        self.live[live.number] = live
        return live

    def report(self, number: int, values: Sequence[float], metrics: dict[str, float]) -> None:
        """Tell the study every value it does not know yet; a step is a part, from 1."""
        live = self.live[number]

        def tell() -> None:
            # A database that dies may have kept what it did not confirm.
            # Not by `Trial.report`, which there is for one objective only.
            storage, trial_id = self.study._storage, live.trial._trial_id
            known = storage.get_trial(trial_id).intermediate_values
            for step in range(len(live.values) + 1, len(values) + 1):
                if step not in known:
                    storage.set_trial_intermediate_value(trial_id, step, values[step - 1])

        live.metrics = metrics
        with self._store.together():
            self._store.with_retries(tell)
        if len(values) > len(live.values):
            live.values, live.strikes = tuple(values), 0

    def prune(self, number: int) -> Result | None:
        """Commit a running trial as PRUNED if the pruner gives it up. The paper's setting, trial 0,
        is the yardstick of its sweep and is always trained to its end.

        What the pruner notes on the way (ASHA: the trial's value on this rung) belongs to the
        commit. Stored before it, it would make the pruner forget its verdict in a crash.
        """
        if number == 0:
            return None
        live, notes = self.live[number], Notes(self.study)
        with self._store.together():
            gives_up = self._store.with_retries(lambda: self._verdict(live, notes))
            live.notes = live.notes | notes.taken
            if gives_up:
                return self.finish(number, "PRUNED")
            self._store.with_retries(lambda: self._note(live.trial._trial_id, live.notes))
        return None

    def record_crash(self, number: int) -> None:
        """A trial's worker has died or has run out of memory."""
        live = self.live[number]
        live.failures += 1
        live.strikes = live.strikes + 1 if len(live.values) <= live.struck else 1
        live.struck = len(live.values)
        count = [live.failures, live.strikes, live.struck]
        with self._store.together():
            self._store.with_retries(lambda: live.trial.set_user_attr(FAILURES, count))

    def requeue(self, number: int) -> None:
        """A trial that Tune has given up, and the ledger has not: it is issued again."""
        del self.live[number]
        self._interrupted = sorted([*self._interrupted, number])

    def finish(self, number: int, state: State, reason: str = "", details: str = "") -> Result:
        """Commit the end of a trial, then tell the study. After it returns, nothing loses it."""
        live = self.live[number]
        value = None
        also = self._also
        if state == "COMPLETE" and also and also.value(live.metrics) is None:
            state, reason = (
                "FAIL",
                f"it has no finite {also.metric}, which --second-objective asks for",
            )
        if state == "PRUNED":
            value = live.values[-1]
        elif state == "COMPLETE":
            # Side by side this is the last report; in sequence it is the mean over the seeds.
            value = live.metrics["val/accuracy"]
        if value is not None and not math.isfinite(value):
            raise ValueError(f"trial {number} ended with the value {value}")
        distributions = live.trial.distributions
        result = Result(
            number,
            state,
            value,
            live.values,
            live.forecast | live.metrics,
            dict(live.trial.params),
            {name: distribution_to_json(d) for name, d in distributions.items()},
            live.notes,
            live.config.to_dict(),
            live.train_seconds,
            live.begun,
            time.time(),
            live.host,
            live.warnings,
            live.failures,
            reason,
            details,
        )
        self._guard()
        commit(self.sweep, result, [live.rows[epoch] for epoch in sorted(live.rows)])
        self.results[number] = result
        del self.live[number]
        with self._store.together():
            self._store.with_retries(lambda: self._tell(live.trial._trial_id, result))
        folder = self.sweep.child(trial_folder(number))
        folder.delete(CHECKPOINT)  # scores and moments are large
        folder.tidy()  # what a worker that was killed had begun to write
        return result

    def best(self) -> Result | None:
        """The complete trial with the highest value; of equals, the one with the lower
        validation loss, then the earlier."""
        return best_of(self.results.values())

    def config_of(self, result: Result) -> TrialConfig:
        """The configuration that a result was obtained with."""
        return TrialConfig.from_dict(result.config)

    def _open(self, pruner: str) -> optuna.Study:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return optuna.create_study(
                storage=self._store.storage,
                study_name=self._store.name,
                directions=directions(self._also),
                load_if_exists=True,
                sampler=RandomSampler(),  # nothing is asked before `_issue` sets the real one
                pruner=PRUNERS[pruner](),
            )

    def _issue(self) -> RunningTrial:
        """Issue an interrupted trial, or one that a failed attempt has left behind, or a new one:
        however often it is repeated, it leaves no trial behind."""
        begun = (f for f in self._running() if f.number not in self.live)
        frozen = next(begun, None)
        if frozen is not None and ISSUED not in frozen.user_attrs:
            self._complete(frozen)
        number = len(self.frozen()) if frozen is None else frozen.number
        self.study.sampler = make_sampler(self._sampler, self._seed, number)
        trial = self.study.ask() if frozen is None else Trial(self.study, frozen._trial_id)
        # Parameters that are stored already come back as they are.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            config = self.space.suggest(trial).seeded(self._seed)
        if ISSUED not in trial.user_attrs:
            trial.set_user_attr(ISSUED, time.time())
        failures, strikes, struck = trial.user_attrs.get(FAILURES, (0, 0, -1))
        known = self.frozen()[trial.number]
        values = tuple(v for _, v in sorted(known.intermediate_values.items()))
        return RunningTrial(
            trial.number,
            config,
            trial,
            trial.user_attrs[ISSUED],
            values,
            dict(known.system_attrs),
            failures,
            0 if len(values) > struck else strikes,
            struck,
        )

    def _complete(self, frozen: FrozenTrial) -> None:
        """Give a trial whose asking was cut short the parameters that it would have got.

        All are drawn again, in a rehearsal: a sampler that had to draw only those that are missing
        would draw other numbers.
        """
        if frozen.system_attrs.get("fixed_params"):
            return
        rehearsal = optuna.create_study(
            study_name=self._store.name,
            directions=directions(self._also),
            sampler=make_sampler(self._sampler, self._seed, frozen.number),
            pruner=self.study.pruner,
        )
        rehearsal.add_trials([f for f in self.frozen() if f.number < frozen.number])
        trial = rehearsal.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.space.suggest(trial)
        for name, distribution in trial.distributions.items():
            if name not in frozen.params:
                internal = distribution.to_internal_repr(trial.params[name])
                self.study._storage.set_trial_param(frozen._trial_id, name, internal, distribution)

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _verdict(self, live: RunningTrial, notes: Notes) -> bool:
        trial = self.study._storage.get_trial(live.trial._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return self.study.pruner.prune(cast(optuna.Study, notes), trial)

    def _note(self, trial_id: int, notes: Mapping[str, Any]) -> None:
        storage = self.study._storage
        known = storage.get_trial(trial_id).system_attrs
        for key, value in notes.items():
            if known.get(key) != value:
                storage.set_trial_system_attr(trial_id, key, value)

    def _tell(self, trial_id: int, result: Result) -> None:
        """Make the study's trial what the result says; it may be so already, or in part."""
        storage = self.study._storage
        known = storage.get_trial(trial_id)
        if known.state.is_finished():
            return
        for name, text in result.distributions.items():
            if name not in known.params:
                distribution = json_to_distribution(text)
                internal = distribution.to_internal_repr(result.parameters[name])
                storage.set_trial_param(trial_id, name, internal, distribution)
        self._note(trial_id, result.notes)
        for step, value in enumerate(result.values, start=1):
            if known.intermediate_values.get(step) != value:
                storage.set_trial_intermediate_value(trial_id, step, value)
        # A pruned trial has its last report as its value, as with `Study.tell`.
        found = study_values(result, self._also)
        storage.set_trial_state_values(trial_id, TrialState[result.state], found)

    def _recover(self, pruner: str) -> list[int]:
        """Open the study and tell it what was committed behind its back; return what was
        interrupted. Results are the truth: a study that contradicts one is made anew of them."""
        self.study = self._open(pruner)
        ended = [frozen for frozen in self.frozen() if frozen.state.is_finished()]
        if missing := [f.number for f in ended if f.number not in self.results]:
            raise UsageError(
                [
                    f"A trial that the ledger calls finished must have its result, and "
                    f"'{trial_folder(missing[0])}/result.json' is not there "
                    f"({len(missing)} in all). Go on in the folder that has it, restore this one "
                    "from a copy, or start another sweep with --name."
                ]
            )
        if doubt := self._doubt():
            self.notice = (
                f"The ledger {doubt}: it is made anew from the results of finished trials."
            )
            optuna.delete_study(study_name=self._store.name, storage=self._store.storage)
            self.study = self._open(pruner)
        self._restore()
        for frozen in self.frozen():
            if not frozen.state.is_finished() and frozen.number in self.results:
                self._tell(frozen._trial_id, self.results[frozen.number])
        return [frozen.number for frozen in self._running()]

    def _doubt(self) -> str:
        """Why the study cannot be what these results came from; empty where it can."""
        if [d.name.lower() for d in self.study.directions] != directions(self._also):
            return "has other objectives than the sweep"
        for frozen in self.frozen():
            result = self.results.get(frozen.number)
            if result is not None and not _agree(frozen, self._as_trial(result)):
                return f"contradicts the result of trial {frozen.number}"
        return ""

    def _restore(self) -> None:
        """Give the study every trial up to the last that was committed: one whose end of the
        journal was lost knows fewer. The paper's setting is the first of all."""
        known = len(self.frozen())
        if not known and 0 not in self.results:
            self.study.enqueue_trial(dict(self.space.paper_parameters))
            known = 1
        for number in range(known, max(self.results, default=-1) + 1):
            result = self.results.get(number)
            if result is None:  # it was issued, and had not ended
                self.study._storage.create_new_trial(self.study._study_id)
            else:
                self.study.add_trial(self._as_trial(result))

    def _as_trial(self, result: Result) -> FrozenTrial:
        try:
            drawn = {n: json_to_distribution(text) for n, text in result.distributions.items()}
            return create_trial(
                state=TrialState[result.state],
                values=study_values(result, self._also),
                params=result.parameters,
                distributions=drawn,
                intermediate_values=dict(enumerate(result.values, start=1)),
                user_attrs={ISSUED: result.begun},
                system_attrs=result.notes,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            name = f"{result.number:06d}/{RESULT}"
            raise unreadable(name, f"Optuna refuses it ({error})") from error


def best_of(results: Iterable[Result]) -> Result | None:
    """See `Ledger.best`."""
    complete = [r for r in results if r.state == "COMPLETE"]
    return min(complete, key=_rank, default=None)


def _rank(result: Result) -> tuple[float, float, int]:
    assert result.value is not None
    return (-result.value, result.metrics.get("val/loss", math.inf), result.number)


def _agree(known: FrozenTrial, result: FrozenTrial) -> bool:
    """Whether no sampler and no pruner could tell them apart; a trial that the study does not know
    to have ended may lack something."""
    if known.state.is_finished():
        names = ("state", "values", "params", "distributions", "intermediate_values")
        same = all(getattr(known, name) == getattr(result, name) for name in names)
        return same and known.system_attrs | result.system_attrs == known.system_attrs
    return (
        known.params.items() <= result.params.items()
        and known.distributions.items() <= result.distributions.items()
    )
