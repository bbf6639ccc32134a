"""The hooks through which Ray Tune runs what the ledger issues.

Tune is the executor. The searcher hands out the trials that the ledger issues; the scheduler passes
worker messages to the ledger and stops the trials that the pruner rejects. Neither has state that
must survive: the ledger is on disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.core.results import Result
from search.execution.listeners import SweepListener
from search.execution.memory import MemoryGate, describe, find_shortage
from search.ledger.ledger import Ledger, RunningTrial
from trainables.assignment import Assignment, Message

Assign = Callable[[RunningTrial], Assignment]
"""Makes a worker's assignment from an issued trial."""


class StudySearcher(Searcher):
    """Issues trials until the ledger holds enough, or until `stopped` returns True."""

    def __init__(
        self,
        ledger: Ledger,
        assign: Assign,
        trials: int,
        listener: SweepListener,
        memory: MemoryGate,
        stopped: Callable[[], bool],
        idle: Callable[[], object],
    ) -> None:
        """`idle` is called whenever a slot is free while the last trials run."""
        super().__init__()
        self._ledger, self._assign, self._trials = ledger, assign, trials
        self._listener, self._memory, self._stopped = listener, memory, stopped
        self._idle = idle

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Ray pickles its searcher to be able to restore it, which we never use."""
        return {}

    @property
    def has_more(self) -> bool:
        """Whether a trial is to be issued now."""
        return self._ledger.waiting > 0 or self._ledger.issued(self._trials) < self._trials

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's configuration; `FINISHED` if there is none; None to be asked
        again later."""
        if self._stopped():
            return str(Searcher.FINISHED)
        running = len(self._ledger.live)
        if not self.has_more:
            if running:
                self._idle()
            # While the last trial runs, Tune need not keep an idle worker, which occupies a slot.
            return None if running > 1 else str(Searcher.FINISHED)
        if not self._memory.may_start(running):
            return None
        live = self._ledger.ask()
        self._memory.started(live.number)
        self._listener.started(live)
        return {"assignment": asdict(self._assign(live))}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the scheduler handles every end."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a restart opens the ledger."""


class StudyScheduler(FIFOScheduler):
    """Reports to the ledger, applies the pruner, and commits every end."""

    def __init__(
        self,
        ledger: Ledger,
        listener: SweepListener,
        memory: MemoryGate,
        stop: Callable[[str], None],
    ) -> None:
        """`stop` ends the sweep; its argument is the reason."""
        super().__init__()
        self._ledger, self._listener, self._memory, self._stop = ledger, listener, memory, stop
        self._dead_workers: set[str] = set()
        self._over: list[Trial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Empty: see `StudySearcher.__getstate__`."""
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave it to Tune, which starts waiting trials in order.

        A trial whose worker is starting would be chosen again for the next worker that gets free,
        and its own be ended. If trials end more often than a worker takes to start, none would ever
        start: neither in place of one that died nor on a machine that was added.
        """
        return

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Free what Tune keeps of earlier trials to the end of the sweep, and the driver never
        reads: their assignments, and statistics of every metric."""
        for over in [earlier for earlier in self._over if earlier.is_finished()]:
            self._over.remove(over)
            over.run_metadata.metric_analysis.clear()
            over.run_metadata.metric_n_steps.clear()
            over.run_metadata.last_result = {"trial_id": over.trial_id, "done": True}
            over._default_result_or_future = None  # a first result, which has the assignment, too
            over.evaluated_params.clear()
            over.config.clear()
        self._over.append(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Handle a message of a trial that continues."""
        message = self._receive(result)
        pruned = None if message.report is None else self._ledger.prune(message.number)
        if pruned is None:
            if message.saved:
                self._ledger.record(message.number)
            return str(TrialScheduler.CONTINUE)
        self._end(pruned)
        return str(TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Handle the last message of a trial. If the pruner stopped it, it is committed already;
        if the whole sweep stops, it is left to be continued."""
        if "message" not in result:
            return
        last = Message.decode(result["message"])
        if last.outcome == "stuck":
            self._stop(f"a worker on {last.host} cannot use the sweep's folder: {last.reason}")
        if last.outcome in ("running", "stuck") or last.number not in self._ledger.live:
            return
        message = self._receive(result)
        if message.outcome == "failed" or message.report is None:
            self._fail(message.number, message.reason, message.details)
        else:
            self._end(self._ledger.finish(message.number, "COMPLETE"))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Handle a worker that died or ran out of memory.

        Tune gives the trial up; if the ledger does not, it is issued again and continues from its
        checkpoint. Tune may report one death for several trials, if the worker was being handed
        from one to the next: it is a crash of the first one only.
        """
        if not trial.config:  # it ended long ago, and its worker went on to another one
            return
        number = trial.config["assignment"]["number"]
        live = self._ledger.live.get(number)
        if live is None:
            return
        details = _latest_error(trial)
        worker = _worker_id(details)
        is_known = worker in self._dead_workers
        if worker:
            self._dead_workers.add(worker)
        shortage = find_shortage(details)
        if shortage is not None:
            decision = self._memory.ran_out(number, shortage, len(self._ledger.live))
            if decision == "fail":
                reason = f"it does not fit into memory, even alone: {describe(shortage)}"
                self._fail(number, reason, details)
                return
            if decision == "stop":
                self._stop(
                    f"trials found no memory for minutes, not even one at a time "
                    f"({describe(shortage)}): end other programs, or use a machine with more memory"
                )
        elif not is_known:
            self._ledger.record_crash(number)
            if live.retries < 0:
                lines = [line.strip() for line in details.splitlines() if line.strip()]
                cause = lines[1] if len(lines) > 1 else "no message"
                self._fail(number, f"the worker died: {cause}", details)
                return
        self._ledger.requeue(number)

    def _receive(self, result: dict[str, Any]) -> Message:
        message = Message.decode(result["message"])
        live = self._ledger.live[message.number]
        live.train_seconds += message.seconds
        live.host = message.host
        live.forecast |= message.forecast
        live.warnings = message.warnings or live.warnings
        if message.report is not None:
            live.trained = message.report.trained
            for row in message.report.rows:
                live.rows.setdefault(int(row["epoch"]), row)
            self._ledger.report(message.number, message.report.values, message.report.metrics)
            self._memory.progressed(message.number)
        self._listener.heard(message)
        return message

    def _fail(self, number: int, reason: str, details: str) -> None:
        self._end(self._ledger.finish(number, "FAIL", reason=reason, details=details))

    def _end(self, result: Result) -> None:
        self._listener.ended(result, self._ledger)


def _latest_error(trial: Trial) -> str:
    """Return the latest entry of Tune's error file for a trial; empty if there is none."""
    if not trial.error_file or not Path(trial.error_file).exists():
        return ""
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    return text[max(0, text.rfind("Failure # ")) :]


def _worker_id(error: str) -> str:
    """Return Ray's id of the worker whose death an error reports; empty for another error."""
    found = re.search(r"actor_id: ([0-9a-f]+)", error)
    return found[1] if found else ""
