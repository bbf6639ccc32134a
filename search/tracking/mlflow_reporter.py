"""What of a sweep the tracker is told: the one place that decides names of runs' contents.

A trial is told while it runs. What is committed and was not told to its end (another outbox, a
driver killed at the wrong moment, a full disk) is told from the sweep's folder, with the same
content and the same times.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from search.core.config import SweepConfig
from search.core.results import Result, read_rows, trial_folder
from search.evaluation.record import EVALUATION, Evaluation
from search.reporting.build import REPORT
from search.tracking.mlflow_page import COLUMNS, DESCRIPTION, columns, description
from search.tracking.tracker import Row, Tracker
from trainables.storage import Storage
from trainables.trial import TrialConfig

if TYPE_CHECKING:
    from search.ledger.ledger import Ledger, RunningTrial
    from trainables.trainable import Message

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
_READERS, _CHUNK = 8, 64  # trials read at a time, and held in memory
_CATCH_UP_SECONDS = 60.0


class MlflowReporter:
    """Passes a sweep on to a tracker."""

    def __init__(
        self, tracker: Tracker, config: SweepConfig, fingerprints: Mapping[str, str]
    ) -> None:
        self._tracker, self._config = tracker, config
        self._fingerprints = {f"fingerprint.{key}": value for key, value in fingerprints.items()}
        self._storage: Storage | None = None
        self._is_open = False
        self._last_end: float | None = None
        self._begun: dict[int, float] = {}
        self._values: dict[str, set[str]] = {}  # of every parameter, as trials have had it
        self._reader: threading.Thread | None = None

    def open_sweep(self, results: Mapping[int, Result], storage: Storage) -> None:
        """Before any trial runs: tell, beside the sweep, what is committed and has not been told.

        `results` is all that is committed, `storage` the sweep's folder.
        """
        self._storage = storage
        self._tracker.settle(time.time())
        if results:
            self._open(min(result.begun for result in results.values()))
            self._last_end = max(result.ended for result in results.values())
        for result in results.values():
            self._compare(TrialConfig.from_dict(result.config))
        if unreported_trials := self._tracker.unreported_trials(results):
            todo = [results[number] for number in sorted(unreported_trials)]
            self._reader = threading.Thread(
                target=self._tell_from_folder, args=(todo,), name="mirror", daemon=True
            )
            self._reader.start()

    def catch_up(self, timeout: float | None = None) -> None:
        """Wait until what `open_sweep` tells from the folder is told."""
        if self._reader is not None:
            self._reader.join(timeout)

    def started(self, live: RunningTrial) -> None:
        """Resolved parameters, with the preset they are, if any, and what they were run on."""
        self._open(live.begun)
        self._begun[live.number] = live.begun
        self._start(live.number, live.begun, live.config)

    def heard(self, message: Message) -> None:
        """Every epoch's metrics, in one call a report; a forecast stands at epoch 0."""
        if message.forecast:
            begun = self._begun[message.number]
            self._tracker.log(message.number, [Row(0, begun, message.forecast)])
        if message.report is not None:
            self._tracker.log(message.number, [_row(row) for row in message.report.rows])

    def ended(self, result: Result, ledger: Ledger) -> None:
        """State, final figures, artifact and configuration."""
        self._begun.pop(result.number, None)
        self._last_end = max(self._last_end or 0.0, result.ended)
        try:
            self._end(result)
        except OSError as error:  # its end is told when the sweep's folder is opened again
            logger.warning("Trial %d could not be told to MLflow: %s", result.number, error)

    def interrupted(self, number: int) -> None:
        """A trial stops here, to be continued."""
        self._begun.pop(number, None)
        self._tracker.finish(number, time.time(), "INTERRUPTED", {}, {}, [])

    def close_sweep(
        self,
        state: str,
        best: Result | None,
        evaluation: Evaluation | None,
        artifacts: Sequence[str],
    ) -> None:
        """The end of a run of the driver. `state` is COMPLETE or INTERRUPTED."""
        self.catch_up(_CATCH_UP_SECONDS)
        now = time.time()
        self._open(now)
        tags = {} if best is None else {"search.best_trial": str(best.number)}
        tags[DESCRIPTION] = description(self._config, best, evaluation)
        tags[COLUMNS] = columns(self._values)
        self._tracker.finish(
            None,
            self._last_end or now,
            state,
            tags,
            {} if evaluation is None else evaluation.summary(),
            artifacts,
        )

    def _open(self, begun: float) -> None:
        """The sweep's own run begins with the first trial: so that its time can be told again."""
        if self._is_open:
            return
        self._is_open = True
        identity = self._config.identity()
        tags = self._fingerprints | {DESCRIPTION: description(self._config)}
        self._tracker.start(None, begun, identity.pop("task") | identity, tags)

    def _start(self, number: int, begun: float, config: TrialConfig) -> None:
        self._compare(config)
        tags = {"preset": config.preset, "method": config.methods}
        self._tracker.start(number, begun, config.flat(), tags | self._fingerprints)

    def _compare(self, config: TrialConfig) -> None:
        for name, value in config.flat().items():
            self._values.setdefault(name, set()).add(str(value))

    def _end(self, result: Result) -> None:
        """Raises `StorageError`."""
        tags = {"search.reason": result.reason} if result.reason else {}
        if result.warnings:
            tags["search.warning"] = " ".join(result.warnings)
        metrics = {"train/seconds": result.train_seconds}
        if result.value is not None:
            metrics["objective"] = result.value
        self._tracker.finish(
            result.number, result.ended, result.state, tags, metrics, self._artifacts(result)
        )

    def _artifacts(self, result: Result) -> list[str]:
        """Its configuration, which is written where it is not there, and what it learned."""
        assert self._storage is not None, "open_sweep() comes first"
        folder = self._storage.child(trial_folder(result.number))
        files = folder.files()
        if _CONFIG not in files:
            folder.write(_CONFIG, (json.dumps(result.config, indent=1) + "\n").encode())
        learned = [
            name for name in files if name.startswith("artifact") and name.endswith(".safetensors")
        ]
        names = [_CONFIG, *(learned if result.state == "COMPLETE" else [])]
        return [f"{trial_folder(result.number)}/{name}" for name in names]

    def _tell_from_folder(self, results: Sequence[Result]) -> None:
        assert self._storage is not None
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                for first in range(0, len(results), _CHUNK):
                    chunk = results[first : first + _CHUNK]
                    numbers = [result.number for result in chunk]
                    rows = pool.map(partial(read_rows, self._storage), numbers)
                    for result, rows_of_trial in zip(chunk, rows, strict=True):
                        self._tell_again(result, rows_of_trial)
        except Exception as error:
            logger.warning(
                "Finished trials could not be told to MLflow: %s. Afterwards: "
                "python -m search.sync %s",
                error,
                self._config.name,
            )

    def _tell_again(self, result: Result, rows: Sequence[Mapping[str, float]]) -> None:
        self._start(result.number, result.begun, TrialConfig.from_dict(result.config))
        last = rows[-1] if rows else {}
        forecast = {name: v for name, v in result.metrics.items() if name not in last}
        if forecast:
            self._tracker.log(result.number, [Row(0, result.begun, forecast)])
        if rows:
            self._tracker.log(result.number, [_row(row) for row in rows])
        self._end(result)


def sweep_artifacts(sweep: Storage) -> list[str]:
    """Names of the files that belong to the sweep's own run, once it has been evaluated."""
    names = (f"{folder}/{n}" for folder in ("winner", REPORT) for n in sweep.child(folder).files())
    return [EVALUATION, *names]


def _row(row: Mapping[str, float]) -> Row:
    metrics = {name: value for name, value in row.items() if name not in ("epoch", "time")}
    return Row(int(row["epoch"]), row["time"], metrics)
