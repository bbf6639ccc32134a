"""Ray's questions to the ledger: what shall run next, and what became of it.

Ray is the executor. The searcher hands out what the ledger issues; the scheduler passes on what
workers say and stops what the pruner gives up. Neither remembers anything of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.execution.observer import Observer
from search.ledger.ledger import Ledger, RunningTrial
from search.ledger.results import Result
from trainables.trainable import Assignment, Message

Assign = Callable[[RunningTrial], Assignment]
"""How an issued trial becomes a worker's job."""


class StudySearcher(Searcher):
    """Issues trials until the ledger holds enough."""

    def __init__(self, ledger: Ledger, assign: Assign, trials: int, observer: Observer) -> None:
        super().__init__()
        self._ledger, self._assign, self._observer = ledger, assign, observer
        self._trials = trials

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Ray pickles its searcher to be able to restore itself, which is never asked."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration, or the word that there is none; nothing while a running
        trial might still come back."""
        if not self._ledger.waiting and self._ledger.issued >= self._trials:
            return None if self._ledger.live else str(Searcher.FINISHED)
        live = self._ledger.ask()
        self._observer.started(live)
        return {"assignment": asdict(self._assign(live))}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the scheduler hears of every end, with more detail."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a restart opens the ledger."""


class StudyScheduler(FIFOScheduler):
    """Reports to the study, asks the pruner, commits every end."""

    def __init__(self, ledger: Ledger, observer: Observer, give_up: Callable[[str], None]) -> None:
        """`give_up` is told why the whole sweep cannot go on."""
        super().__init__()
        self._ledger, self._observer, self._give_up = ledger, observer, give_up
        self._dead: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Empty, as the searcher's."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial is new, or starts again after its worker has died."""
        super().on_trial_add(tune_controller, trial)
        self._allow_retries(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A worker has died or is out of memory, whether or not Tune starts the trial again.

        Tune tells the death of a worker that was starting, or was being handed from one trial to
        the next, more than once: each counts once.
        """
        number = trial.config["assignment"]["number"]
        worker = _dead_worker(trial)
        if number in self._ledger.live and worker not in self._dead:
            self._ledger.record_crash(number)
        if worker:
            self._dead.add(worker)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """A part has been trained and more are left."""
        message = self._hear(result)
        self._allow_retries(trial)
        pruned = None if message.report is None else self._ledger.prune(message.number)
        if pruned is None:
            return str(TrialScheduler.CONTINUE)
        self._end(pruned)
        return str(TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has stopped: by its own last word, by the pruner (committed already), or
        because the sweep stops (then it is left to be continued)."""
        if "message" not in result:
            return
        last = Message.decode(result["message"])
        if last.outcome == "stuck":
            self._give_up(f"a worker on {last.host} cannot use the sweep's folder: {last.reason}")
        if last.outcome in ("running", "stuck") or last.number not in self._ledger.live:
            return
        message = self._hear(result)
        if message.outcome == "failed" or message.report is None:
            self._end(
                self._ledger.finish(
                    message.number, "FAIL", reason=message.reason, details=message.details
                )
            )
        else:
            self._end(self._ledger.finish(message.number, "COMPLETE"))

    def _hear(self, result: dict[str, Any]) -> Message:
        message = Message.decode(result["message"])
        live = self._ledger.live[message.number]
        live.train_seconds += message.seconds
        live.host = message.host
        live.forecast |= message.forecast
        live.warnings = message.warnings or live.warnings
        if message.report is not None:
            for row in message.report.rows:
                live.rows.setdefault(int(row["epoch"]), row)
            self._ledger.report(message.number, message.report.values, message.report.metrics)
        self._observer.heard(message)
        return message

    def _allow_retries(self, trial: Trial) -> None:
        """The ledger counts deaths, also those of earlier runs of the driver; Tune obeys."""
        live = self._ledger.live.get(trial.config["assignment"]["number"])
        if live is not None:
            trial.max_failures = trial.run_metadata.num_failures + max(0, live.retries)

    def _end(self, result: Result) -> None:
        self._observer.ended(result, self._ledger)


def _dead_worker(trial: Trial) -> str:
    """Ray's name of the worker whose death Tune has written down last; empty for another error."""
    if not trial.error_file or not Path(trial.error_file).exists():
        return ""
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    latest = text.rpartition("\nFailure #")[2]
    found = re.search(r"actor_id: ([0-9a-f]+)", latest)
    return found[1] if found else ""


class CrashCallback(tune.Callback):
    """Commits trials whose worker has died more often than Ray starts them again."""

    def __init__(self, ledger: Ledger, observer: Observer) -> None:
        self._ledger, self._observer = ledger, observer

    def __getstate__(self) -> dict[str, Any]:
        """Empty, as the searcher's."""
        return {}

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """The last word on a trial; the scheduler is also told of errors that are retried."""
        number = trial.config["assignment"]["number"]
        live = self._ledger.live.get(number)
        if live is None:
            return
        if live.retries >= 0:
            # Tune gives a trial up at once when a worker dies that was being reused for it.
            self._ledger.requeue(number)
            return
        details = ""
        if trial.error_file:
            details = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in details.splitlines() if line.strip()]
        reason = f"the worker died: {lines[1] if len(lines) > 1 else 'no message'}"
        result = self._ledger.finish(number, "FAIL", reason=reason, details=details)
        self._observer.ended(result, self._ledger)
