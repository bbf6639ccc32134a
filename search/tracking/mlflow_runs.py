"""The runs of one sweep in MLflow, made so that every call may be repeated.

Every run carries the tags `search.sweep`, the sweep's name, and `search.id`, by which it is found:
on a server that many use, names meet. The sweep's own run is the parent of its trials, which carry
`search.trial` besides. `search.state` is how a run ended, in the words of the ledger.

Runs are looked up by their tags before they are created. What a run holds already is not told
again: of each metric only steps that it lacks, whatever time they carry. Steps that come after its
last one are new; for an earlier one the metric's history is asked, once, as a server that lost its
database in the middle of a trial has gaps there.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from search.reporting.build import REPORT
from search.tracking.mlflow_client import (
    RefusedError,
    close_connections,
    is_permanent,
    open_client,
    set_environment,
)
from search.tracking.mlflow_page import COLUMNS, page, saved_view
from search.tracking.outbox import Event
from search.tracking.tracker import ArtifactUploader
from search.tracking.uri import SERVERS, absolute_uri, scheme_of, server_answers
from trainables.storage import Storage, StorageError, open_storage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

EXPERIMENT = "few-shot-search"
SWEEP, IDENTITY, TRIAL = "search.sweep", "search.id", "search.trial"
ROLE, STATE = "search.role", "search.state"
MISSING, INFINITE = "search.missing_artifacts", "search.infinite_metrics"
TAG_LENGTH = 8000  # characters MLflow keeps

_RUN_STATUS = {
    "COMPLETE": "FINISHED",
    "PRUNED": "FINISHED",
    "FAIL": "FAILED",
    "INTERRUPTED": "KILLED",
}
_PAGE = 1000  # runs a call
_PROBE_SECONDS = 5.0

Rows = Sequence[tuple[int, int, Mapping[str, object]]]
"""Step, milliseconds, values by name; a value is a number or a text that `float` reads."""


@dataclass
class _Held:
    """What an unfinished run holds of its metrics."""

    last: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Last step and its value, by metric."""
    steps: dict[str, set[int]] = field(default_factory=dict)
    """All steps, of the metrics whose history was asked."""

    def add(self, name: str, step: int, value: float) -> None:
        if name not in self.last or self.last[name][0] < step:
            self.last[name] = step, value
        if name in self.steps:
            self.steps[name].add(step)


class MlflowRuns:
    """One sweep as MLflow shows it. For one thread."""

    def __init__(
        self, uri: str, sweep: str, identity: str, storage: Storage, artifact_root: Path | None
    ) -> None:
        """`sweep` is a name for people, `identity` tells the sweep from all others. `artifact_root`
        is where a new experiment in a database keeps its files; a server decides itself."""
        set_environment()
        self._uri = absolute_uri(uri)
        self._sweep, self._identity = sweep, identity
        self._storage = storage
        self._artifact_root = artifact_root
        self._experiment_id = ""
        self._is_server = scheme_of(uri) in SERVERS
        self._client: MlflowClient | None = None
        self._runs: dict[int | None, str] | None = None  # None: not looked up; key None: the parent
        self._held: dict[str, _Held] = {}
        self.carrier: ArtifactUploader | None = None
        """Asked before a file is uploaded from here."""

    def connect(self) -> None:
        """Find the experiment and the sweep's runs. Any error means: not now."""
        if self._runs is None:
            if self._is_server and self._client is None:
                server_answers(self._uri, _PROBE_SECONDS)
            client = self._open()
            self._experiment_id = self._find_experiment(client)
            self._runs = self._find_runs(client)

    def forget(self) -> None:
        """Look everything up again before the next delivery."""
        self._runs = None
        self._held.clear()
        if self._client is not None:
            close_connections(self._uri)

    @property
    def client(self) -> MlflowClient:
        """MLflow's own, at the sweep's address."""
        return self._open()

    @property
    def experiment_id(self) -> str:
        """MLflow's, once connected."""
        return self._experiment_id

    @property
    def page(self) -> str:
        """Where the sweep's view is, behind the server's address, once connected; else empty."""
        return page(self._experiment_id, self._identity) if self._experiment_id else ""

    def run_of(self, number: int | None) -> str | None:
        """MLflow's id of a trial's run, or of the sweep's own, once connected; None where there is
        none."""
        return (self._runs or {}).get(number)

    def trials(self) -> int:
        """How many trials have a run. Any error means: not now."""
        self.connect()
        return sum(number is not None for number in self._runs or ())

    def deliver(self, events: Sequence[Event]) -> None:
        """Show one event, or several of the kind "log".

        Raises:
            RefusedError: MLflow will never take it.
            Exception: anything else; try again.
        """
        try:
            match events[0].get("kind"):
                case "settle":
                    self._settle(events[0])
                case "start":
                    self._start(events[0])
                case "log":
                    self._log(events)
                case "finish":
                    self._finish(events[0])
                case kind:
                    raise ValueError(f"an event is a start, a log or a finish, not {kind!r}")
        except Exception as error:
            if is_permanent(error):
                raise RefusedError(f"{type(error).__name__}: {error}") from error
            raise

    def _open(self) -> MlflowClient:
        if self._client is None:
            self._client = open_client(self._uri)
        return self._client

    def _find_experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            if found.lifecycle_stage != "active":  # it would refuse every event
                raise RuntimeError(
                    f"the experiment {EXPERIMENT!r} was deleted; restore it: "
                    f"mlflow experiments restore --experiment-id {found.experiment_id}"
                )
            return str(found.experiment_id)
        root = None
        if self._artifact_root is not None and not self._is_server:
            root = self._artifact_root.resolve().as_uri()
        # Where another sweep is faster, this fails and the next try finds its experiment.
        return str(
            client.create_experiment(
                EXPERIMENT,
                artifact_location=root,
                # Without it the page opens in its view for language models.
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        )

    def _find_runs(self, client: MlflowClient) -> dict[int | None, str]:
        runs: dict[int | None, str] = {}
        for run in self._search(client):
            number = run.data.tags.get(TRIAL, "")
            if number.isdecimal():
                runs.setdefault(int(number), run.info.run_id)
            elif run.data.tags.get(ROLE) == "sweep":
                runs.setdefault(None, run.info.run_id)
        return runs

    def _search(self, client: MlflowClient, also: str = "") -> Iterable[Run]:
        """The sweep's runs, the oldest first."""
        quote = '"' if "'" in self._identity else "'"
        token = None
        while True:
            page = client.search_runs(
                [self._experiment_id],
                f"tags.`{IDENTITY}` = {quote}{self._identity}{quote}{also}",
                max_results=_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

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
            tags={
                STATE: "RUNNING",
                **identity,
                **tags,
                SWEEP: self._sweep,
                IDENTITY: self._identity,
            },
        )
        self._runs[number] = run.info.run_id
        self._held[run.info.run_id] = _Held()
        return self._runs[number], True

    def _settle(self, event: Event) -> None:
        """End whatever a driver that was killed has left running."""
        client = self._open()
        for run in list(self._search(client, " AND attributes.status = 'RUNNING'")):
            self._send(run.info.run_id, tags={STATE: "INTERRUPTED"})
            client.set_terminated(
                run.info.run_id, _RUN_STATUS["INTERRUPTED"], end_time=event["time"]
            )

    def _start(self, event: Event) -> None:
        client = self._open()
        params, tags = event["params"], event["tags"]
        run_id, is_new = self._run(event["trial"], event["time"], tags)
        if not is_new:
            run = client.get_run(run_id)
            self._held[run_id] = _Held(_latest(run))
            if run.info.status != "RUNNING":
                client.update_run(run_id, status="RUNNING")
            params = {k: v for k, v in params.items() if run.data.params.get(k) != v}
            self._send(run_id, tags={**tags, STATE: "RUNNING"})
        if params:
            self._send(run_id, params=params)
        if event["trial"] is None and is_new:
            self._save_view(tags, event["time"])

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
        held = self._holds(run_id).last
        final = {k: v for k, v in event["metrics"].items() if held.get(k) != (0, float(v))}
        if final:
            self._send(run_id, rows=[(0, event["time"], final)], final=True)
        missing = [name for name in event["artifacts"] if not self._send_file(run_id, name)]
        if missing:
            self._send(run_id, tags={MISSING: ", ".join(missing)[:TAG_LENGTH]})
        self._held.pop(run_id, None)
        if event["trial"] is None:
            self._save_view(event["tags"], event["time"])

    def _save_view(self, tags: Mapping[str, str], time: int) -> None:
        """The sweep's view of its trials, under "Views" on MLflow's page."""
        parameters = json.loads(tags.get(COLUMNS, "[]"))
        view = saved_view(self._identity, self._sweep, IDENTITY, parameters, time)
        self._open().set_experiment_tag(self._experiment_id, *view)

    def _holds(self, run_id: str) -> _Held:
        if run_id not in self._held:
            self._held[run_id] = _Held(_latest(self._open().get_run(run_id)))
        return self._held[run_id]

    def _lacks(self, run_id: str, name: str, step: int) -> bool:
        """Whether a run has no point of that metric at that step."""
        held = self._holds(run_id)
        if name not in held.last or held.last[name][0] < step:
            return True
        if name not in held.steps:
            history = self._open().get_metric_history(run_id, name)
            held.steps[name] = {point.step for point in history}
        return step not in held.steps[name]

    def _send(
        self,
        run_id: str,
        rows: Rows = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        final: bool = False,
    ) -> None:
        """One `log_batch`; MLflow's client cuts it where a call may not be longer.

        Steps that the run holds are left out, unless they are `final`.
        """
        from mlflow.entities import Metric, Param, RunTag

        # The stores keep NaN, but turn an infinity into 1.8e308, which flattens every chart.
        metrics: dict[tuple[str, int], Metric] = {}
        infinite = []
        for step, timestamp, values in rows:
            for name, text in values.items():
                value = float(text)  # type: ignore[arg-type]
                if math.isinf(value):
                    infinite.append(f"{name}={value} at step {step}")
                elif (name, step) not in metrics and (final or self._lacks(run_id, name, step)):
                    metrics[name, step] = Metric(name, value, timestamp, step)
        tags = dict(tags or {})
        if infinite:
            tags[INFINITE] = ", ".join(infinite)[:TAG_LENGTH]
        if not (metrics or params or tags):
            return
        self._open().log_batch(
            run_id,
            metrics=list(metrics.values()),
            params=[Param(*param) for param in (params or {}).items()],
            tags=[RunTag(*tag) for tag in tags.items()],
            synchronous=True,
        )
        for (name, step), metric in metrics.items() if not final else ():
            self._holds(run_id).add(name, step, metric.value)

    def _send_file(self, run_id: str, name: str) -> bool:
        """Whether the file is there. Only a server or a storage that is away is an error."""
        carrier = self.carrier if self._is_server else None
        if carrier is not None and carrier(self._uri, run_id, self._storage.location, name):
            return True
        try:
            with self._storage.as_local_file(name) as path:
                self._open().log_artifact(run_id, str(path), _place(name))
        except FileNotFoundError as error:
            logger.warning("An artifact is missing in MLflow: %s", error)
            return False
        except StorageError:
            raise
        except Exception as error:
            if self._is_server and not is_permanent(error):
                raise
            logger.warning("An artifact is missing in MLflow: %s", error)
            return False
        return True


def upload_artifact(uri: str, run_id: str, location: str, name: str) -> None:
    """Upload one file of a storage, from wherever this is called. Any error means: not now.

    Another machine may know the server by another address than `uri`: MLFLOW_TRACKING_URI there.
    """
    from mlflow import MlflowClient

    set_environment()
    with open_storage(location).as_local_file(name) as path:
        server = os.environ.get("MLFLOW_TRACKING_URI", uri)
        MlflowClient(tracking_uri=server).log_artifact(run_id, str(path), _place(name))


def _place(name: str) -> str | None:
    """The folder among a run's artifacts: a report keeps its own, all else lies at the top."""
    folder = name.rpartition("/")[0]
    return folder if folder.partition("/")[0] == REPORT else None


def _latest(run: Run) -> dict[str, tuple[int, float]]:
    """The store orders a metric's points by step, then by time."""
    return {m.key: (m.step, m.value) for m in run.data.to_proto().metrics}
