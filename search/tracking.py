"""MLflow as a mirror for people: the sweep appends to an outbox on disk, one thread delivers it.

The sweep never waits for MLflow and never sees its errors. What a crash or an outage leaves in the
outbox is delivered by the next tracker on the same file. Delivery is at least once; it is made
idempotent by finding runs by their tags before creating them, and by time stamps that are fixed
when an event is appended.

Every run carries the tag `search.sweep`. The sweep's own run is the parent of its trials, which
carry `search.trial` besides. `search.state` is how a run ended, in the words of the ledger.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from search.outbox import Event, Outbox
from search.tracking_uri import SERVERS, absolute_uri, scheme_of, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

SWEEP, TRIAL, ROLE, STATE = "search.sweep", "search.trial", "search.role", "search.state"
MISSING, INFINITE = "search.missing_artifacts", "search.infinite_metrics"

_RUN_STATUS = {
    "COMPLETE": "FINISHED",
    "PRUNED": "FINISHED",
    "FAIL": "FAILED",
    "INTERRUPTED": "KILLED",
}
_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000  # characters MLflow keeps
_GROUP = 512  # events delivered under one mark, at most
_LONGEST_WAIT = 5.0  # seconds between two tries while MLflow is away

_ENVIRONMENT = {
    # A retry inside the client blocks for minutes, and repeats `create_run`, which makes a second
    # run. The uploader's own retry looks for the run first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; the default is 120
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Row:
    """What was measured at one step."""

    step: int
    """Counted by the trial, from its start."""
    time: float
    """Unix seconds. Part of the row's identity: a repeated row must repeat it."""
    metrics: Mapping[str, float]
    """By name. NaN is stored as NaN; an infinity goes to the tag `search.infinite_metrics`."""


class Tracker(Protocol):
    """What a sweep tells the people who watch it.

    Calls return at once, keep their order and never raise: a watcher's trouble is not the sweep's.
    They may come from any thread. `status` is COMPLETE, PRUNED, FAIL or INTERRUPTED. A trial may be
    started again after it was finished: it is the same run, re-opened.
    """

    def open_sweep(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Start or re-open the sweep's own run."""
        ...

    def start_trial(
        self, number: int, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        """Start or re-open the run of trial `number`. A param, once there, cannot change."""
        ...

    def log(self, number: int | None, rows: Sequence[Row]) -> None:
        """Add rows to a trial, or to the sweep's own run where `number` is None."""
        ...

    def finish_trial(
        self,
        number: int,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
    ) -> None:
        """End a trial. Artifacts (files or folders) are read later: they must stay in place."""
        ...

    def close_sweep(
        self,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
    ) -> None:
        """End the sweep's own run, as `finish_trial` ends a trial's."""
        ...

    def flush(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for the delivery; return how many events are undelivered."""
        ...

    def close(self, timeout: float) -> int:
        """Flush, then stop; return how many events are left on disk for the next tracker."""
        ...


class NullTracker(Tracker):
    """Nobody watches."""

    def open_sweep(self, *_: object, **__: object) -> None:
        pass

    def start_trial(self, *_: object, **__: object) -> None:
        pass

    def log(self, *_: object, **__: object) -> None:
        pass

    def finish_trial(self, *_: object, **__: object) -> None:
        pass

    def close_sweep(self, *_: object, **__: object) -> None:
        pass

    def flush(self, timeout: float) -> int:
        return 0

    def close(self, timeout: float) -> int:
        return 0


class MlflowTracker(Tracker):
    """Appends every call to the outbox; a daemon thread carries the outbox to MLflow, in order.

    While MLflow is away the thread tries again, at last every 5 seconds, and the events wait on
    disk. An event that MLflow refuses for good goes to `outbox.refused.jsonl`; the next follows.

    Sets the environment variables in `_ENVIRONMENT` where they are not set: MLflow's client has no
    other way to be told not to block.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        outbox: Outbox,
        artifact_root: Path | None,
        experiment: str = "few-shot-search",
    ) -> None:
        """Take `outbox` over, and start delivering what it holds.

        `artifact_root` is where a new experiment in a database keeps its files; a server decides
        itself.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._uri = uri
        self._outbox = outbox
        self._mirror = _Mirror(uri, sweep, outbox.path.parent, artifact_root, experiment)
        self._warned: set[str] = set()
        self._moved = threading.Condition()  # the outbox grew, or its mark went on
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._upload, name="mlflow-uploader", daemon=True)
        self._thread.start()

    def open_sweep(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        self._start(None, params, tags)

    def start_trial(
        self, number: int, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        self._start(number, params, tags)

    def log(self, number: int | None, rows: Sequence[Row]) -> None:
        self._append(
            lambda: {
                "kind": "log",
                "trial": number,
                "rows": [[row.step, _milliseconds(row.time), _floats(row.metrics)] for row in rows],
            }
        )

    def finish_trial(
        self,
        number: int,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
    ) -> None:
        self._finish(number, status, tags, metrics, artifacts)

    def close_sweep(
        self,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
    ) -> None:
        self._finish(None, status, tags, metrics, artifacts)

    def flush(self, timeout: float) -> int:
        with self._moved:
            self._moved.wait_for(lambda: not self._outbox.behind, timeout)
        return self._undelivered()

    def close(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        self.flush(timeout)
        self._stop.set()
        with self._moved:
            self._moved.notify_all()
        # A call that hangs is left behind: the thread is a daemon, its event still in the outbox.
        self._thread.join(max(0.1, deadline - time.monotonic()))
        self._outbox.close()
        return self._undelivered()

    def _start(
        self, number: int | None, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        self._append(
            lambda: {
                "kind": "start",
                "trial": number,
                "time": _milliseconds(time.time()),
                "params": _texts(params, _PARAM_LENGTH),
                "tags": _texts(tags, _TAG_LENGTH),
            }
        )

    def _finish(
        self,
        number: int | None,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
    ) -> None:
        self._append(
            lambda: {
                "kind": "finish",
                "trial": number,
                "time": _milliseconds(time.time()),
                "status": status,
                "tags": _texts(tags, _TAG_LENGTH),
                "metrics": _floats(metrics),
                "artifacts": [_portable(path, self._outbox.path.parent) for path in artifacts],
            }
        )

    def _append(self, event: Callable[[], Event]) -> None:
        try:
            self._outbox.append(event())
        except Exception as error:
            self._warn_once(
                "append", "An event for MLflow was lost, it could not be kept: %s", error
            )
            return
        with self._moved:
            self._moved.notify_all()

    def _upload(self) -> None:
        """The thread: deliver, mark, go on; wait and repeat where MLflow is away."""
        wait, limit, suspect = 0.0, _GROUP, -1
        while self._wait_for_events():
            try:
                group = _next_group(self._outbox.pending(), limit)
                offset, event = group[-1]
                self._mirror.connect()
                self._mirror.deliver([event for _, event in group])
            except _RefusedError as error:
                self._mirror.forget()
                if len(group) > 1 or suspect != offset:
                    # One by one, to find the event that is meant; and each a second time with run
                    # identifiers looked up afresh, in case someone has restored an older database.
                    limit, suspect = 1, group[0][0]
                    continue
                self._put_aside(event, str(error))
            except Exception as error:
                self._mirror.forget()  # a call that failed may have been carried out
                self._warn_once("away", "MLflow at %s is away, events wait: %s", self._uri, error)
                wait = min(max(0.1, 2 * wait), _LONGEST_WAIT)
                self._stop.wait(wait)
                continue
            if wait:
                logger.info("MLflow at %s is back", self._uri)
                self._warned.discard("away")
            wait, limit = 0.0, min(2 * limit, _GROUP)
            with suppress(OSError):  # an old mark only means that more is repeated
                self._outbox.mark_delivered(offset)
            with self._moved:
                self._moved.notify_all()

    def _undelivered(self) -> int:
        try:
            return self._outbox.undelivered()
        except OSError as error:  # someone has removed the sweep's folder
            self._warn_once("append", "The events for MLflow were lost: %s", error)
            return 1  # at least

    def _wait_for_events(self) -> bool:
        with self._moved:
            self._moved.wait_for(lambda: self._outbox.behind or self._stop.is_set())
        return not self._stop.is_set()

    def _put_aside(self, event: Event, reason: str) -> None:
        self._warn_once("refused", "MLflow refused an event, see *.refused.jsonl: %s", reason)
        with suppress(OSError):
            self._outbox.refuse(event, reason)

    def _warn_once(self, topic: str, message: str, *values: object) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(message, *values)


class _RefusedError(Exception):
    """MLflow has answered, and the answer is no."""


class _Mirror:
    """The sweep as MLflow shows it. Belongs to the uploader thread; every call may be repeated."""

    def __init__(
        self, uri: str, sweep: str, folder: Path, artifact_root: Path | None, experiment: str
    ) -> None:
        self._uri = absolute_uri(uri)
        self._sweep = sweep
        self._folder = folder
        self._artifact_root = artifact_root
        self._experiment = experiment
        self._experiment_id = ""
        self._is_server = scheme_of(uri) in SERVERS
        self._client: MlflowClient | None = None
        self._runs: dict[int | None, str] | None = None  # None: not looked up; key None: the parent

    def connect(self) -> None:
        """Find the experiment and the sweep's runs. Any error means: not now."""
        if self._runs is None:
            client = self._open()
            self._experiment_id = self._find_experiment(client)
            self._runs = self._find_runs(client)

    def forget(self) -> None:
        """Look the runs up again before the next delivery."""
        self._runs = None

    def deliver(self, events: Sequence[Event]) -> None:
        """Show one event, or several of the kind "log".

        Raises:
            _RefusedError: MLflow will never take it.
            Exception: anything else; try again.
        """
        try:
            match events[0].get("kind"):
                case "start":
                    self._start(events[0])
                case "log":
                    self._log(events)
                case "finish":
                    self._finish(events[0])
                case kind:
                    raise ValueError(f"an event is a start, a log or a finish, not {kind!r}")
        except Exception as error:
            if _is_definite(error):
                raise _RefusedError(f"{type(error).__name__}: {error}") from error
            raise

    def _open(self) -> MlflowClient:
        if self._client is None:
            from mlflow import MlflowClient  # two seconds, which the sweep need not wait for

            if "MLFLOW_LOGGING_LEVEL" not in os.environ:
                for name in ("mlflow", "alembic"):  # what matters is said by this module
                    logging.getLogger(name).setLevel(logging.CRITICAL)
            if scheme_of(self._uri) == "sqlite":
                self._create_database(MlflowClient)
            self._client = MlflowClient(tracking_uri=self._uri)
        return self._client

    def _create_database(self, client: type[MlflowClient]) -> None:
        """Make a new database under another name and rename it: MLflow's own first start takes
        seconds, and one that is killed leaves a file that no later start can use."""
        path = sqlite_path(self._uri)
        if path is None or (path.exists() and path.stat().st_size):
            return
        with open(path.with_name(f".{path.name}.lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_size:
                return
            new = path.with_name(f".{path.name}.{os.getpid()}.new")
            new.unlink(missing_ok=True)
            client(tracking_uri=f"sqlite:///{new.absolute()}").search_experiments(max_results=1)
            os.replace(new, path)

    def _find_experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is not None:
            if found.lifecycle_stage != "active":  # it would refuse every event
                raise RuntimeError(
                    f"the experiment {self._experiment!r} was deleted; restore it: "
                    f"mlflow experiments restore --experiment-id {found.experiment_id}"
                )
            return str(found.experiment_id)
        root = None
        if self._artifact_root is not None and not self._is_server:
            root = self._artifact_root.resolve().as_uri()
        # Where another sweep is faster, this fails and the next try finds its experiment.
        return str(
            client.create_experiment(
                self._experiment,
                artifact_location=root,
                # Without it the page opens in its view for language models.
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        )

    def _find_runs(self, client: MlflowClient) -> dict[int | None, str]:
        runs: dict[int | None, str] = {}
        quote = '"' if "'" in self._sweep else "'"
        token = None
        while True:
            page = client.search_runs(
                [self._experiment_id],
                f"tags.`{SWEEP}` = {quote}{self._sweep}{quote}",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                number = run.data.tags.get(TRIAL, "")
                if number.isdecimal():
                    runs.setdefault(int(number), run.info.run_id)
                elif run.data.tags.get(ROLE) == "sweep":
                    runs.setdefault(None, run.info.run_id)
            token = page.token
            if not token:
                return runs

    def _run(self, number: int | None, start: int, tags: Mapping[str, str]) -> tuple[str, bool]:
        """The run of a trial or of the sweep (None), and whether it had to be created."""
        assert self._runs is not None, "connect() comes first"
        if number in self._runs:
            return self._runs[number], False
        if number is None:
            identity = {"mlflow.runName": self._sweep, ROLE: "sweep"}
        else:
            identity = {
                "mlflow.runName": f"trial {number:06d}",
                ROLE: "trial",
                TRIAL: str(number),
                "mlflow.parentRunId": self._run(None, start, {})[0],
            }
        run = self._open().create_run(
            self._experiment_id,
            start_time=start,
            tags={STATE: "RUNNING", **identity, **tags, SWEEP: self._sweep},
        )
        self._runs[number] = run.info.run_id
        return self._runs[number], True

    def _start(self, event: Event) -> None:
        client = self._open()
        params, tags = event["params"], event["tags"]
        run_id, is_new = self._run(event["trial"], event["time"], tags)
        if not is_new:
            run = client.get_run(run_id)
            if run.info.status != "RUNNING":
                client.update_run(run_id, status="RUNNING")
            params = {k: v for k, v in params.items() if run.data.params.get(k) != v}
            self._send(run_id, tags={**tags, STATE: "RUNNING"})
        self._send(run_id, params=params)

    def _log(self, events: Sequence[Event]) -> None:
        """One batch per run: trials take turns in the outbox, and MLflow counts calls."""
        rows: dict[int | None, list[tuple[int, int, Mapping[str, object]]]] = {}
        for event in events:
            rows.setdefault(event["trial"], []).extend(event["rows"])
        for number, rows_of_run in rows.items():
            if rows_of_run:
                run_id, _ = self._run(number, rows_of_run[0][1], {})
                self._send(run_id, rows=rows_of_run)

    def _finish(self, event: Event) -> None:
        # The status first: whatever is refused after it, the run does not look alive for ever.
        client = self._open()
        run_id, _ = self._run(event["trial"], event["time"], {})
        self._send(run_id, tags={**event["tags"], STATE: event["status"]})
        client.set_terminated(
            run_id, _RUN_STATUS.get(event["status"], "FAILED"), end_time=event["time"]
        )
        self._send(run_id, rows=[(0, event["time"], event["metrics"])])
        missing = [name for name in event["artifacts"] if not self._send_file(run_id, name)]
        if missing:
            self._send(run_id, tags={MISSING: ", ".join(missing)[:_TAG_LENGTH]})

    def _send(
        self,
        run_id: str,
        rows: Iterable[tuple[int, int, Mapping[str, object]]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """One `log_batch`; MLflow's client cuts it where a call may not be longer."""
        from mlflow.entities import Metric, Param, RunTag

        # The stores keep NaN, but turn an infinity into 1.8e308, which flattens every chart.
        metrics, infinite = [], []
        for step, timestamp, values in rows:
            for name, text in values.items():
                value = float(text)  # type: ignore[arg-type]
                if math.isinf(value):
                    infinite.append(f"{name}={value} at step {step}")
                else:
                    metrics.append(Metric(name, value, timestamp, step))
        tags = dict(tags or {})
        if infinite:
            tags[INFINITE] = ", ".join(infinite)[:_TAG_LENGTH]
        self._open().log_batch(
            run_id,
            metrics=metrics,
            params=[Param(*param) for param in (params or {}).items()],
            tags=[RunTag(*tag) for tag in tags.items()],
            synchronous=True,
        )

    def _send_file(self, run_id: str, name: str) -> bool:
        """Whether the file is there. Only a server that is away is an error."""
        path = self._folder / name
        try:
            if not path.exists():
                raise FileNotFoundError(f"{path} is not there")
            self._open().log_artifact(run_id, str(path))
        except Exception as error:
            if self._is_server and path.exists() and not _is_definite(error):
                raise
            logger.warning("An artifact is missing in MLflow: %s", error)
            return False
        return True


def _is_definite(error: Exception) -> bool:
    """Whether repeating the call cannot help. In doubt it can: the events are safe on disk."""
    code = getattr(error, "error_code", None)
    if code is not None:  # MlflowException, whose class is not worth importing MLflow for
        return code in {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}
    response = getattr(error, "response", None)
    if response is not None:  # requests.HTTPError; credentials, rate limits and time-outs can mend
        return 400 <= response.status_code < 500 and response.status_code not in {
            401,
            403,
            408,
            429,
        }
    return not isinstance(error, OSError)


def _next_group(pending: Iterable[tuple[int, Event]], limit: int) -> list[tuple[int, Event]]:
    """The first event; or, where it is a log, the logs that follow one another, up to `limit`."""
    pending = iter(pending)
    first = next(pending)
    if first[1].get("kind") != "log":
        return [first]
    logs = itertools.takewhile(lambda item: item[1].get("kind") == "log", pending)
    return [first, *itertools.islice(logs, limit - 1)]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _texts(values: Mapping[str, object], length: int) -> dict[str, str]:
    return {str(name): str(value)[:length] for name, value in values.items()}


def _floats(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no NaN and no infinity: they become text that `float` reads."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: v if math.isfinite(v) else str(v) for name, v in values.items()}


def _portable(path: Path, folder: Path) -> str:
    """Relative to the outbox where it lies beneath it, so that the sweep's folder may be moved."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
