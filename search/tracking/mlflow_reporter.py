"""Keeps MLflow up to date with a sweep: one thread compares runs with what they should hold.

The sweep's folder is the truth. A trial that has ended is read from it; for a running trial, the
reporter keeps what its worker has sent. The driver only says which runs have changed, and never
waits for MLflow or sees its errors. While MLflow is unreachable, runs stay on the list of changed
ones. After a crash the next reporter starts with the trials that have ended without a mark (see
`marks`). Since `MlflowRuns.put` can be repeated, nothing is stored twice.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from search.core.annotations import read_annotations
from search.core.config import SweepConfig
from search.core.pruners import IN_SEQUENCE
from search.core.results import Result
from search.evaluation.record import Evaluation
from search.tracking.content import (
    End,
    Row,
    RunContent,
    data_inputs,
    metric_row,
    result_content,
    trial_content,
)
from search.tracking.marks import SWEEP_RUN, Mark, open_marks
from search.tracking.mlflow_client import RefusedError, is_outage
from search.tracking.mlflow_page import COLUMNS, DESCRIPTION, annotated, columns, description
from search.tracking.mlflow_runs import ArtifactUploader, MlflowRuns
from search.tracking.uri import absolute_uri, scheme_of, sqlite_path
from trainables.core.credentials import in_one_line, shown
from trainables.core.storage import LocalStorage, Storage
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from search.ledger.ledger import Ledger, RunningTrial
    from trainables.assignment import Message
from trainables.report import METRICS

logger = logging.getLogger(__name__)

_PERIOD = 2.0  # seconds between two updates of a running trial: a short one is sent once
_LONGEST_WAIT = 5.0  # seconds between two tries while MLflow is unreachable
_REASON_LENGTH = 500  # characters of a refusal that are noted
_PATIENCE = 300.0  # seconds for which one run may fail while MLflow accepts others


@dataclass
class _Live:
    """A trial that is running, or was interrupted."""

    begun: float
    config: TrialConfig
    rows: dict[int, Row] = field(default_factory=dict)
    """Rows by step."""
    end: End | None = None


def open_runs(uri: str, config: SweepConfig, identity: str, storage: Storage) -> MlflowRuns:
    """A sweep's runs in MLflow, which is not contacted yet. `identity` is the sweep's id."""
    root = None  # beside the sweeps, or beside the database
    if isinstance(storage, LocalStorage):
        root = storage.root.parent / "mlartifacts"
    elif scheme_of(uri) == "sqlite" and (path := sqlite_path(absolute_uri(uri))):
        root = path.parent / "mlartifacts"
    ranked_by = METRICS[config.task.objective]
    return MlflowRuns(uri, config.experiment, config.name, identity, storage, root, ranked_by)


class MlflowReporter:
    """Reports a sweep to MLflow; implements the sweep's listener.

    Methods return at once and never raise; they may be called from any thread. With the tracking
    URI `none` they do nothing.
    """

    def __init__(
        self,
        uri: str,
        config: SweepConfig,
        identity: str,
        fingerprints: Mapping[str, str],
        storage: Storage,
        patience: float = _PATIENCE,
    ) -> None:
        """`identity` is the sweep's id, `storage` its folder, of which the caller is the owner."""
        self.last_error = ""
        """Why nothing is delivered at present, in one line; empty if all is well."""
        self.delivered = 0
        """Runs that this reporter has brought up to date."""
        self._uri = shown(uri)
        self._config, self._storage, self._patience = config, storage, patience
        self._tags = {f"fingerprint.{key}": value for key, value in fingerprints.items()}
        self._inputs = data_inputs(config, fingerprints)
        self._in_sequence = config.task.episodes if config.pruner in IN_SEQUENCE else ()
        self._live: dict[int, _Live] = {}
        self._results: dict[int, Result] = {}  # not delivered yet
        self._sweep: RunContent | None = None
        self._last_end = -math.inf
        self._values: dict[str, set[str]] = {}  # of every parameter, in all trials
        self._changed: dict[int | None, int] = {}  # runs to bring up to date: number of changes
        self._due: dict[int | None, float] = {}  # running trials: when the next update may be sent
        self._waiting = 0  # callers of `flush`, for whom everything is due
        self._suspects: dict[int | None, float] = {}  # runs that failed alone, and since when
        self._refused: set[int | None] = set()
        self._all_results: dict[int, Result] = {}
        self._warned: set[str] = set()
        self._condition = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if uri == "none":
            return
        self._runs = open_runs(uri, config, identity, storage)
        self._marks = open_marks(uri, config, identity, storage)
        self._thread = threading.Thread(target=self._reconcile, name="mlflow", daemon=True)

    def open_sweep(self, results: Mapping[int, Result]) -> None:
        """Called before any trial runs, with all results in the folder."""
        for result in results.values():
            self._compare(TrialConfig.from_dict(result.config))
            self._last_end = max(self._last_end, result.ended)
        if self._thread is None:
            return
        self._all_results = dict(results)
        for number in self._marks.undelivered(results):
            if number in results:
                self._results[number] = results[number]
        if results:
            self._open(min(result.begun for result in results.values()))
        self._note(*self._results)
        self._thread.start()

    def started(self, live: RunningTrial) -> None:
        """A trial was issued, or issued again."""
        self._compare(live.config)
        with self._condition:
            self._results.pop(live.number, None)
            self._live[live.number] = _Live(live.begun, live.config)
            self._due[live.number] = time.monotonic() + _PERIOD
        self._open(live.begun)
        self._note(live.number)

    def heard(self, message: Message) -> None:
        """A worker has sent a report; the forecast is stored at step 0."""
        with self._condition:
            live = self._live.get(message.number)
            if live is None:
                return
            if message.forecast:
                live.rows.setdefault(0, Row(0, live.begun, message.forecast))
            for row in message.report.rows if message.report is not None else ():
                live.rows.setdefault(int(row["epoch"]), metric_row(row))
        self._note(message.number)

    def ended(self, result: Result, ledger: Ledger) -> None:
        """A trial's result is in the folder."""
        with self._condition:
            self._live.pop(result.number, None)
            self._due.pop(result.number, None)
            self._results[result.number] = self._all_results[result.number] = result
            self._last_end = max(self._last_end, result.ended)
        self._note(result.number)

    def interrupted(self, number: int) -> None:
        """A trial stops here, and will be resumed."""
        with self._condition:
            if live := self._live.get(number):
                live.end = End("INTERRUPTED", time.time())
            self._due.pop(number, None)
        self._note(number)

    def close_sweep(
        self,
        state: str,
        best: Result | None,
        evaluation: Evaluation | None,
        artifacts: Sequence[str],
    ) -> None:
        """The driver's work is over. `state` is COMPLETE or INTERRUPTED."""
        now = time.time()
        self._open(now)
        assert self._sweep is not None
        tags = dict(self._sweep.tags)
        tags |= {} if best is None else {"search.best_trial": str(best.number)}
        tags[DESCRIPTION] = description(self._config, best, evaluation)
        tags[COLUMNS] = columns(self._values)
        metrics = {} if evaluation is None else evaluation.summary()
        end = End(state, self._last_end if self._last_end > 0 else now, metrics, artifacts)
        self._sweep = RunContent(
            self._sweep.begun, self._sweep.params, tags, inputs=self._inputs, end=end
        )
        self._note(None)

    def flush(self, timeout: float, patience: float = math.inf) -> int:
        """Wait up to `timeout` seconds until MLflow is up to date, but at most `patience` seconds
        while it is unreachable; return how many runs are not."""
        seen, since = self.delivered, time.monotonic()
        deadline = since + timeout
        with self._condition:
            self._waiting += 1
            self._condition.notify_all()
            while self._changed and (now := time.monotonic()) < deadline:
                if self.delivered > seen or not self.last_error:
                    seen, since = self.delivered, now
                elif now - since > patience:
                    break
                self._condition.wait(min(0.1, deadline - now))
            self._waiting -= 1
            return len(self._changed)

    def close(self, timeout: float, patience: float = math.inf) -> int:
        """Flush, then stop; return how many runs are not up to date."""
        deadline = time.monotonic() + timeout
        left = self.flush(timeout, patience)
        self._stop.set()
        with self._condition:
            self._condition.notify_all()
        # A call that hangs is left behind: the thread is a daemon, and its run has no mark.
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(max(0.1, min(1.0, deadline - time.monotonic())))
        return left

    def set_uploader(self, uploader: ArtifactUploader | None) -> None:
        """Let artifacts be uploaded by `uploader` from now on; None: from here."""
        if self._thread is not None:
            self._runs.uploader = uploader

    def page(self) -> str:
        """The path of the sweep's view on MLflow's server; empty if it is not known."""
        return "" if self._thread is None else self._runs.page

    def trials(self) -> int | None:
        """How many trials have a run in MLflow. To be called when nothing is left to deliver; None
        if MLflow is unreachable."""
        try:
            return self._runs.trials()
        except Exception as error:
            self._report_outage(error)
            return None

    def _compare(self, config: TrialConfig) -> None:
        for name, value in config.flat().items():
            self._values.setdefault(name, set()).add(str(value))

    def _open(self, begun: float) -> None:
        """The sweep's own run begins with the first trial, so a rebuilt run has the same start."""
        if self._sweep is not None:
            return
        identity = self._config.identity()
        params = identity.pop("task") | identity
        tags = self._tags | {DESCRIPTION: description(self._config)}
        self._sweep = RunContent(begun, params, tags, inputs=self._inputs)
        self._note(None)

    def _note(self, *numbers: int | None) -> None:
        """Add runs to the list of changed ones."""
        if self._thread is None:
            return
        with self._condition:
            for number in numbers:
                self._changed[number] = self._changed.get(number, 0) + 1
            self._condition.notify_all()

    def _reconcile(self) -> None:
        """The thread: bring one changed run after the other up to date."""
        wait, suspects = 0.0, self._suspects
        while (found := self._next()) is not None:
            number, changes = found
            connected = False
            try:
                is_fresh = self._runs.connect()
                connected = True
                if is_fresh:
                    self._repair()
                changed = self._put(number)
            except Exception as error:
                self._runs.forget()
                is_refusal, now = isinstance(error, RefusedError), time.monotonic()
                if not connected or is_outage(error):
                    suspects.clear()
                elif number not in suspects:
                    # Once more, with runs looked up again: the database may be an older one.
                    suspects[number] = now
                    if is_refusal:
                        continue
                elif is_refusal or now - suspects[number] > self._patience:
                    del suspects[number]
                    self._give_up(number, in_one_line(error))
                    continue
                self._report_outage(error)
                self._postpone(number)
                wait = min(max(0.1, 2 * wait), _LONGEST_WAIT)
                self._stop.wait(wait)
                continue
            if wait:
                logger.info("MLflow at %s is reachable again", self._uri)
                self._warned.discard("outage")
            self.last_error, wait = "", 0.0
            suspects.pop(number, None)
            self._done(number, changes, changed)

    def _next(self) -> tuple[int | None, int] | None:
        """The next changed run and its number of changes; None when the reporter is closed."""
        with self._condition:
            while not self._stop.is_set():
                if None in self._changed and None not in self._suspects:
                    return None, self._changed[None]
                now = math.inf if self._waiting else time.monotonic()
                for number, changes in self._changed.items():
                    if self._due.get(number, 0.0) <= now:
                        return number, changes
                ends = [self._due[number] - now for number in self._changed]
                self._condition.wait(min(ends, default=None))
            return None

    def _repair(self) -> None:
        """End the runs that a killed driver has left running, and add the trials that MLflow has
        lost since they got their marks."""
        with self._condition:
            known = self._live.keys() | self._results.keys() | self._refused | {None}
            lost = {
                number: result
                for number, result in self._all_results.items()
                if number not in known and not self._runs.has_ended(number)
            }
            self._results |= lost
        self._note(*lost)
        for number in self._runs.running() - known - lost.keys():
            self._runs.interrupt(number, time.time())

    def _put(self, number: int | None) -> bool:
        assert self._sweep is not None, "the sweep's run begins with the first trial"
        if number is not None and self._runs.run_of(None) is None:
            self._runs.put(None, self._sweep)
        content = self._content(number)
        return content is not None and self._runs.put(number, content)

    def _content(self, number: int | None) -> RunContent | None:
        """What a run should hold; raises `StorageError`."""
        if number is None:
            return self._annotated()
        with self._condition:
            if live := self._live.get(number):
                rows, end = tuple(live.rows.values()), live.end
                return trial_content(
                    *(live.config, live.begun, rows, end, self._inputs, self._tags),
                    self._in_sequence,
                )
            result = self._results.get(number)
        if result is None:
            return None
        return result_content(self._storage, result, self._inputs, self._tags, self._in_sequence)

    def _annotated(self) -> RunContent | None:
        """The sweep's own run with the note and the tags that it has now."""
        if self._sweep is None:
            return None
        found = read_annotations(self._storage)
        tags = annotated(self._sweep.tags, found)
        return replace(self._sweep, tags=tags, removed_tags=found.removed)

    def _done(self, number: int | None, changes: int, changed: bool) -> None:
        """A run is up to date, unless it has changed since."""
        with self._condition:
            self.delivered += changed
            if number in self._due:
                self._due[number] = time.monotonic() + _PERIOD
            if self._changed.get(number) != changes:
                self._postpone(number)
                return
            ended = self._remove(number)
        self._mark(number, ended, "")

    def _give_up(self, number: int | None, reason: str) -> None:
        run = "the sweep's run" if number is None else f"trial {number}"
        self._warn_once("refused", "MLflow refused %s: %s", run, reason)
        self._refused.add(number)
        with self._condition:
            ended = self._remove(number)
        self._mark(number, ended, reason)

    def _remove(self, number: int | None) -> float | None:
        """Take a run off the list; return when it ended, if it has."""
        self._changed.pop(number, None)
        self._condition.notify_all()
        if number is None:
            return self._last_end if self._sweep and self._sweep.end else None
        result = self._results.pop(number, None)
        return None if result is None else result.ended

    def _mark(self, number: int | None, ended: float | None, refused: str) -> None:
        if ended is None or not math.isfinite(ended):
            return
        try:
            self._marks.add(
                SWEEP_RUN if number is None else number, Mark(ended, refused[:_REASON_LENGTH])
            )
        except OSError as error:  # the next reporter compares this run again
            self._warn_once("mark", "What MLflow holds could not be noted: %s", error)

    def _postpone(self, number: int | None) -> None:
        """Move a run to the end of the list, so that others are not held up."""
        with self._condition:
            if number in self._changed:
                self._changed[number] = self._changed.pop(number)

    def _report_outage(self, error: Exception) -> None:
        self.last_error = f"MLflow at {self._uri} is unreachable: {in_one_line(error)}"
        self._warn_once(
            "outage",
            "%s. The sweep continues; MLflow is brought up to date later, or by: "
            "python -m search.sync %s",
            self.last_error,
            self._config.name,
        )

    def _warn_once(self, topic: str, message: str, *values: object) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(message, *values)
