"""MLflow as a mirror for people: the sweep appends to an outbox on disk, one thread delivers it.

The sweep never waits for MLflow and never sees its errors. What a crash or an outage leaves in the
outbox is delivered by the next tracker on the same file. Delivery is at least once; it is made
idempotent by `mlflow_runs`, and by time stamps that are fixed when an event is appended.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from search.tracking.mlflow_client import RefusedError, is_outage
from search.tracking.mlflow_runs import TAG_LENGTH, MlflowRuns
from search.tracking.outbox import Event, Outbox, put_away
from search.tracking.tracker import ArtifactUploader, NullTracker, Row, Tracker
from search.tracking.uri import absolute_uri, scheme_of, sqlite_path, without_user
from trainables.credentials import shown
from trainables.storage import LocalStorage, Storage, StorageError
from trainables.store import cache_folder

logger = logging.getLogger(__name__)

_PARAM_LENGTH = 6000  # characters MLflow keeps
_GROUP = 512  # events delivered under one mark, at most
_LONGEST_WAIT = 5.0  # seconds between two tries while MLflow is away
_PATIENCE = 300.0  # seconds for which one event may fail while MLflow answers everything else


def open_tracker(uri: str, sweep: str, storage: Storage) -> Tracker:
    """The tracker of a sweep, which goes on where an earlier one on the same outbox stopped.

    `uri` is a tracking URI or `none`. Where an outbox cannot be kept there is no tracking, and one
    line about it.
    """
    if uri == "none":
        return NullTracker()
    try:
        return MlflowTracker(uri, sweep, Outbox(outbox_path(uri, storage)), storage)
    except OSError as error:
        logger.warning(
            "The sweep runs without tracking, its outbox cannot be kept: %s. Afterwards: "
            "python -m search.sync %s",
            error,
            sweep,
        )
        return NullTracker()


def open_runs(uri: str, sweep: str, storage: Storage) -> MlflowRuns:
    """A sweep's runs in MLflow, which is not asked yet."""
    identity, root = _identity(storage, sweep), _artifact_root(uri, storage)
    return MlflowRuns(uri, sweep, identity, storage, root)


def outbox_path(uri: str, storage: Storage) -> Path:
    """Where the outbox of a sweep for a tracking URI lies: in the sweep's folder, or in this
    machine's cache where that is not on a disk. It shows no password."""
    name = f"{_digest(without_user(absolute_uri(uri)).rstrip('/'))[:8]}.jsonl"
    return _outboxes(storage) / name


def put_away_outboxes(storage: Storage) -> None:
    """Let the next tracker of a sweep begin with an empty outbox, whatever its URI: see
    `put_away`. Raises `StorageError`."""
    try:
        for path in _outboxes(storage).glob("*.jsonl"):
            put_away(path)
    except OSError as error:
        raise StorageError(f"'{error.filename}': {error.strerror}") from error


class MlflowTracker(Tracker):
    """Appends every call to the outbox; a daemon thread carries the outbox to MLflow, in order.

    While MLflow is away the thread tries again, at last every 5 seconds, and the events wait on
    disk. An event that MLflow refuses for good goes to `*.refused.jsonl`, and so does one that
    fails for minutes while MLflow answers all else; the next follows.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        outbox: Outbox,
        storage: Storage,
        patience: float = _PATIENCE,
    ) -> None:
        """Take `outbox` over, and start delivering what it holds.

        Raises:
            OSError: the sweep's storage does not work.
        """
        self.trouble = ""
        self.delivered = 0
        self._uri = shown(uri)
        self._sweep = sweep
        self._outbox = outbox
        self._patience = patience
        self._runs = open_runs(uri, sweep, storage)
        self._lost: set[int | None] = set()
        self._warned: set[str] = set()
        self._moved = threading.Condition()  # the outbox grew, or its mark went on
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._upload, name="mlflow-uploader", daemon=True)
        self._thread.start()

    def unreported_trials(self, numbers: Iterable[int]) -> set[int]:
        return set(numbers) - self._told()

    def is_closed(self) -> bool:
        """Whether the end of the sweep's own run has been told, and nothing since."""
        return None in self._told()

    def _told(self) -> set[int | None]:
        told: set[int | None] = set()
        try:
            for event in self._outbox.of_kinds("start", "finish"):
                number = event.get("trial")
                is_end = event.get("kind") == "finish"
                if is_end and (number is None or event.get("status") != "INTERRUPTED"):
                    told.add(number)
                else:
                    told.discard(number)
        except OSError as error:
            self._warn_once("append", "The outbox for MLflow cannot be read: %s", error)
        return told

    def settle(self, time: float) -> None:
        self._append(None, lambda: {"kind": "settle", "time": _milliseconds(time)})

    def start(
        self, number: int | None, time: float, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        self._append(
            number,
            lambda: {
                "kind": "start",
                "trial": number,
                "time": _milliseconds(time),
                "params": _texts(params, _PARAM_LENGTH),
                "tags": _texts(tags, TAG_LENGTH),
            },
        )

    def log(self, number: int | None, rows: Sequence[Row]) -> None:
        self._append(
            number,
            lambda: {
                "kind": "log",
                "trial": number,
                "rows": [[row.step, _milliseconds(row.time), _floats(row.metrics)] for row in rows],
            },
        )

    def finish(
        self,
        number: int | None,
        time: float,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: Sequence[str],
    ) -> None:
        self._append(
            number,
            lambda: {
                "kind": "finish",
                "trial": number,
                "time": _milliseconds(time),
                "status": status,
                "tags": _texts(tags, TAG_LENGTH),
                "metrics": _floats(metrics),
                "artifacts": list(artifacts),
            },
        )

    def flush(self, timeout: float, patience: float = math.inf) -> int:
        seen, since = self.delivered, time.monotonic()
        deadline = since + timeout
        with self._moved:
            while self._outbox.behind and (now := time.monotonic()) < deadline:
                if self.delivered > seen or not self.trouble:
                    seen, since = self.delivered, now
                elif now - since > patience:
                    break
                self._moved.wait(min(0.1, deadline - now))
        return self._undelivered()

    def page(self) -> str:
        return self._runs.page

    def set_uploader(self, carrier: ArtifactUploader | None) -> None:
        self._runs.carrier = carrier

    def close(self, timeout: float, patience: float = math.inf) -> int:
        deadline = time.monotonic() + timeout
        self.flush(timeout, patience)
        self._stop.set()
        with self._moved:
            self._moved.notify_all()
        # A call that hangs is left behind: the thread is a daemon, its event still in the outbox.
        self._thread.join(max(0.1, min(1.0, deadline - time.monotonic())))
        self._outbox.close()
        return self._undelivered()

    def trials(self) -> int | None:
        """How many trials MLflow holds, once nothing is left to deliver; None where it is away."""
        try:
            return self._runs.trials()
        except Exception as error:
            self._say_away(error)
            return None

    def _append(self, number: int | None, event: Callable[[], Event]) -> None:
        """A trial that has lost an event gets no more: without its end in the outbox, all of it is
        told from the sweep's folder when that is opened again."""
        try:
            if number is not None and number in self._lost:
                return
            self._outbox.append(event())
        except Exception as error:
            self._lost.add(number)
            self._warn_once(
                "append",
                "An event for MLflow could not be kept: %s. Afterwards: python -m search.sync %s",
                error,
                self._sweep,
            )
            return
        with self._moved:
            self._moved.notify_all()

    def _upload(self) -> None:
        """The thread: deliver, mark, go on; wait and repeat where MLflow is away."""
        wait, limit = 0.0, _GROUP
        suspect, since = -1, 0.0  # offset of an event that failed while MLflow answered, and when
        while self._wait_for_events():
            connected = False
            try:
                group = _next_group(self._outbox.pending(), limit)
                offset, event = group[-1]
                self._runs.connect()
                connected = True
                self._runs.deliver([event for _, event in group])
            except Exception as error:
                self._runs.forget()  # a call that failed may have been carried out
                is_refusal = isinstance(error, RefusedError)
                now = time.monotonic()
                if not connected or is_outage(error):
                    suspect = -1
                elif suspect != group[0][0]:
                    # One by one, to find the event that is meant; and each a second time with runs
                    # looked up afresh, in case someone has restored an older database.
                    suspect, since, limit = group[0][0], now, 1
                    if is_refusal:
                        continue
                elif is_refusal or now - since > self._patience:
                    self._put_aside(event, str(error))
                    self._pass(offset)
                    continue
                self._say_away(error)
                wait = min(max(0.1, 2 * wait), _LONGEST_WAIT)
                self._stop.wait(wait)
                continue
            if wait:
                logger.info("MLflow at %s is back", self._uri)
                self._warned.discard("away")
            self.trouble = ""
            wait, limit = 0.0, min(2 * limit, _GROUP)
            self.delivered += len(group)
            self._pass(offset)

    def _pass(self, offset: int) -> None:
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

    def _say_away(self, error: Exception) -> None:
        self.trouble = f"MLflow at {self._uri} is away: {error}"
        self._warn_once("away", "%s; events wait", self.trouble)

    def _put_aside(self, event: Event, reason: str) -> None:
        self._warn_once("refused", "MLflow refused an event, see *.refused.jsonl: %s", reason)
        with suppress(OSError):
            self._outbox.refuse(event, reason)

    def _warn_once(self, topic: str, message: str, *values: object) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(message, *values)


def _identity(storage: Storage, sweep: str) -> str:
    """What tells a sweep from another of the same name: the id it was given when it was made."""
    try:
        return str(json.loads(storage.read("sweep.json"))["id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return sweep


def _outboxes(storage: Storage) -> Path:
    if isinstance(storage, LocalStorage):
        return storage.root / "outbox"
    return cache_folder() / "outbox" / _digest(storage.location)[:16]


def _artifact_root(uri: str, storage: Storage) -> Path | None:
    """Where a new experiment in a database keeps its files: beside the sweeps, or the database."""
    if isinstance(storage, LocalStorage):
        return storage.root.parent / "mlartifacts"
    path = sqlite_path(absolute_uri(uri)) if scheme_of(uri) == "sqlite" else None
    return None if path is None else path.parent / "mlartifacts"


def _next_group(pending: Iterable[tuple[int, Event]], limit: int) -> list[tuple[int, Event]]:
    """The first event; or, where it is a log, the logs that follow one another, up to `limit`."""
    pending = iter(pending)
    first = next(pending)
    if first[1].get("kind") != "log":
        return [first]
    logs = itertools.takewhile(lambda item: item[1].get("kind") == "log", pending)
    return [first, *itertools.islice(logs, limit - 1)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _texts(values: Mapping[str, object], length: int) -> dict[str, str]:
    return {str(name): str(value)[:length] for name, value in values.items()}


def _floats(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no NaN and no infinity: they become text that `float` reads."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: v if math.isfinite(v) else str(v) for name, v in values.items()}
