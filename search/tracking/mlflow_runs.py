"""The runs of one sweep in MLflow.

Every run has the tags `search.sweep` (the sweep's name) and `search.id`, by which it is found:
several sweeps on a shared server may have the same name. The sweep's own run is the parent of its
trials, which have `search.trial` as well. `search.state` is how a run ended, in the ledger's words.

`MlflowRuns.put` makes a run hold a given content, and can be repeated: runs are looked up by their
tags before they are created, and only what a run lacks is sent. Steps after a metric's last one are
missing; for an earlier step the metric's history is read once, because a server that lost its
database in the middle of a trial has gaps. A run's status is set last, so a run that has ended is
complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from search.tracking.content import REPORT, End, Row, RunContent
from search.tracking.mlflow_client import (
    RefusedError,
    close_connections,
    is_permanent,
    open_client,
    set_environment,
)
from search.tracking.mlflow_page import ACCURACY, COLUMNS, page, saved_views
from search.tracking.mlflow_run import TAG_LENGTH, MlflowRun, milliseconds, texts
from search.tracking.uri import SERVERS, absolute_uri, is_database, scheme_of, server_answers
from trainables.core.credentials import in_one_line
from trainables.core.storage import Storage, StorageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ArtifactUploader = Callable[[str, str, str, str], bool]
"""Uploads from elsewhere: tracking URI, run, location of the storage, name of the file in it ->
whether it has arrived."""

logger = logging.getLogger(__name__)

SWEEP, IDENTITY, TRIAL = "search.sweep", "search.id", "search.trial"
ROLE, STATE = "search.role", "search.state"
MISSING = "search.missing_artifacts"
DIGEST = "search.artifacts_sha256"
"""Tag of the sweep's own run: digest of its artifacts, which change when it is resumed."""
_STATUS = {
    "COMPLETE": "FINISHED",
    "PRUNED": "KILLED",
    "FAIL": "FAILED",
    "INTERRUPTED": "KILLED",
}
_GOING_ON = ("RUNNING", "SCHEDULED")
_PAGE = 1000  # runs per call
_PROBE_SECONDS = 5.0


class MlflowRuns:
    """One sweep in MLflow. For one thread."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        sweep: str,
        identity: str,
        storage: Storage,
        artifact_root: Path | None,
        ranked_by: str = ACCURACY,
    ) -> None:
        """`sweep` is the sweep's name, `identity` its unique id. `artifact_root` is where a new
        experiment in a database stores its artifacts; a server decides for itself. `ranked_by` is
        the metric by which the page sorts trials."""
        set_environment()
        self._uri = absolute_uri(uri)
        self._experiment = experiment
        self._sweep, self._identity = sweep, identity
        self._storage = storage
        self._artifact_root = artifact_root
        self._ranked_by = ranked_by
        self._experiment_id = ""
        self._is_database = is_database(uri)
        self._client: MlflowClient | None = None
        self._runs: dict[int | None, str] | None = (
            None  # None before the look-up; key None: the sweep's run
        )
        self._open_runs: set[int | None] = set()
        self._known: dict[str, MlflowRun] = {}
        self.uploader: ArtifactUploader | None = None
        """Called before a file is uploaded from here."""

    def connect(self) -> bool:
        """Find the experiment and the sweep's runs, unless they are known; return whether they were
        looked up. Any error means that MLflow is unreachable."""
        if self._runs is not None:
            return False
        if scheme_of(self._uri) in SERVERS and self._client is None:
            server_answers(self._uri, _PROBE_SECONDS)
        self._experiment_id = self._find_experiment()
        self._runs, self._open_runs = self._find_runs()
        return True

    def forget(self) -> None:
        """Look everything up again before the next call: a call that failed may have succeeded, and
        the database may have been replaced."""
        self._runs = None
        self._known.clear()
        if self._client is not None:
            close_connections(self._uri)

    @property
    def client(self) -> MlflowClient:
        """MLflow's own client, for the sweep's tracking URI."""
        if self._client is None:
            self._client = open_client(self._uri)
        return self._client

    @property
    def experiment_id(self) -> str:
        """MLflow's id, once connected."""
        return self._experiment_id

    @property
    def page(self) -> str:
        """The path of the sweep's view on the server, once connected; empty before."""
        return page(self._experiment_id, self._identity) if self._experiment_id else ""

    def run_of(self, number: int | None) -> str | None:
        """MLflow's id of a trial's run, or of the sweep's own, once connected; None without one."""
        return (self._runs or {}).get(number)

    def trials(self) -> int:
        """How many trials have a run."""
        self.connect()
        return sum(number is not None for number in self._runs or ())

    def running(self) -> set[int | None]:
        """The trials (None: the sweep) whose runs were going on when they were looked up."""
        return set(self._open_runs)

    def has_ended(self, number: int) -> bool:
        """Whether a trial has a run that has ended, which is therefore complete."""
        return number in (self._runs or ()) and number not in self._open_runs

    def numbers(self) -> set[int | None]:
        """The trials that have a run, once connected; None for the sweep's own run."""
        return set(self._runs or ())

    def rename(self, name: str) -> None:
        """Replace the sweep's name in its runs and in its views, once connected."""
        for number, run_id in (self._runs or {}).items():
            self.client.set_tag(run_id, SWEEP, name)
            if number is None:
                self.client.update_run(run_id, name=name)
        self._sweep = name
        if (parent := self.run_of(None)) is not None:
            run = self.client.get_run(parent)
            self._store_views(run.data.tags.get(COLUMNS, "[]"), run.info.start_time)

    def delete(self) -> None:
        """Move the runs to MLflow's trash, the sweep's own last, and remove its views; once
        connected."""
        runs = self._runs or {}
        for number in sorted(runs, key=lambda number: (number is None, number)):
            self.client.delete_run(runs[number])
        for view in self._views("[]", 0):
            with suppress(Exception):  # a view that is not there
                self.client.delete_experiment_tag(self._experiment_id, view)
        self._runs = None

    def put(self, number: int | None, content: RunContent) -> bool:
        """Make the run of a trial (None: of the sweep) hold `content`; return whether anything was
        missing. What it holds besides stays.

        Raises:
            RefusedError: MLflow will never accept it.
            Exception: any other error; try again.
        """
        with _refusals():
            return self._put(number, content)

    def interrupt(self, number: int | None, time: float) -> None:
        """End the run of a trial that a killed driver has left running. Raises as `put`."""
        run_id = self.run_of(number)
        if run_id is not None:
            with _refusals():
                run = MlflowRun.read(self.client, run_id)
                run.send({STATE: "INTERRUPTED"})
                self._terminate(number, run, End("INTERRUPTED", time))

    def _put(self, number: int | None, content: RunContent) -> bool:
        run, end = self._run(number, content), content.end
        changed = run.is_new
        changed |= run.send(
            {**content.tags, STATE: end.state if end else "RUNNING"},
            content.params,
            content.rows,
            Row(0, end.time, end.metrics) if end else None,
        )
        changed |= run.send_inputs(content.inputs)
        changed |= run.remove_tags([n for n in content.removed_tags if n not in content.tags])
        run.is_new = False
        if end is None:
            if run.status != "RUNNING":
                self.client.update_run(run.id, status="RUNNING")
                run.status, changed = "RUNNING", True
            self._open_runs.add(number)
        else:
            changed |= self._send_artifacts(number, run, end.artifacts)
            if changed or run.status != _STATUS[end.state]:
                self._terminate(number, run, end)
                changed = True
        if number is None and changed:
            self._save_views(content)
        return changed

    def _terminate(self, number: int | None, run: MlflowRun, end: End) -> None:
        self.client.set_terminated(run.id, _STATUS[end.state], end_time=milliseconds(end.time))
        self._known.pop(run.id, None)
        self._open_runs.discard(number)

    def _find_experiment(self) -> str:
        found = self.client.get_experiment_by_name(self._experiment)
        if found is not None:
            if found.lifecycle_stage != "active":  # it would refuse everything
                raise RuntimeError(
                    f"the experiment {self._experiment!r} was deleted; restore it: "
                    f"mlflow experiments restore --experiment-id {found.experiment_id}"
                )
            return str(found.experiment_id)
        root = None
        if self._artifact_root is not None and self._is_database:
            root = self._artifact_root.resolve().as_uri()
        # If another sweep is faster, this fails, and the next try finds its experiment.
        return str(
            self.client.create_experiment(
                self._experiment,
                artifact_location=root,
                # Without it the page opens in its view for language models.
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        )

    def _find_runs(self) -> tuple[dict[int | None, str], set[int | None]]:
        """All runs by trial, and which of them are going on."""
        runs: dict[int | None, str] = {}
        unfinished: set[int | None] = set()
        for run in self._search():
            trial = run.data.tags.get(TRIAL, "")
            number = int(trial) if trial.isdecimal() else None
            if number is None and run.data.tags.get(ROLE) != "sweep":
                continue
            if number not in runs:  # of two, the older one
                runs[number] = run.info.run_id
                if run.info.status in _GOING_ON:
                    unfinished.add(number)
        return runs, unfinished

    def _search(self) -> Iterator[Run]:
        token: str | None = None
        quote = '"' if "'" in self._identity else "'"
        query = f"tags.`{IDENTITY}` = {quote}{self._identity}{quote}"
        while True:
            found = self.client.search_runs(
                [self._experiment_id],
                query,
                max_results=_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from found
            token = found.token
            if not token:
                return

    def _run(self, number: int | None, content: RunContent) -> MlflowRun:
        """The run, which is created if there is none."""
        assert self._runs is not None, "connect() comes first"
        run_id = self._runs.get(number)
        if run_id is None:
            return self._create(number, content)
        if run_id not in self._known:
            self._known[run_id] = MlflowRun.read(self.client, run_id)
        return self._known[run_id]

    def _create(self, number: int | None, content: RunContent) -> MlflowRun:
        assert self._runs is not None
        if number is None:
            own = {"mlflow.runName": self._sweep, ROLE: "sweep"}
        else:
            own = {
                "mlflow.runName": f"trial {number}",
                ROLE: "trial",
                TRIAL: str(number),
                "mlflow.parentRunId": self._runs[None],
            }
        tags = texts(content.tags, TAG_LENGTH) | {STATE: "RUNNING"} | own
        tags |= {SWEEP: self._sweep, IDENTITY: self._identity}
        created = self.client.create_run(
            self._experiment_id,
            start_time=milliseconds(content.begun),
            tags=self._context | tags,
        )
        run = MlflowRun(self.client, created.info.run_id, "RUNNING", is_new=True, tags=dict(tags))
        self._runs[number] = run.id
        self._open_runs.add(number)
        self._known[run.id] = run
        return run

    @cached_property
    def _context(self) -> dict[str, str]:
        """MLflow's own tags: user, source and git commit, for which git is started once. The source
        is `search.run`, also if a run is created later by `search.sync`."""
        from mlflow.tracking.context.registry import resolve_tags
        from mlflow.utils.git_utils import get_git_commit
        from mlflow.utils.mlflow_tags import (
            MLFLOW_GIT_COMMIT,
            MLFLOW_SOURCE_NAME,
            MLFLOW_SOURCE_TYPE,
        )

        tags: dict[str, str] = resolve_tags()
        if tags.get(MLFLOW_SOURCE_TYPE, "LOCAL") == "LOCAL":
            source = Path(__file__).parents[1] / "run.py"
            tags[MLFLOW_SOURCE_NAME] = str(source)
            if commit := get_git_commit(str(source)):
                tags[MLFLOW_GIT_COMMIT] = commit
        return tags

    def _send_artifacts(self, number: int | None, run: MlflowRun, names: Sequence[str]) -> bool:
        """A trial's artifacts never change; the sweep's own do when it is resumed."""
        tags = {}
        if number is None and names:
            tags = {DIGEST: self._digest(names)}
            if run.tags.get(DIGEST) == tags[DIGEST]:
                return False
        elif run.status not in _GOING_ON and self._has_artifacts(run, names):
            return False
        missing = [name for name in names if not self._send_file(run.id, name)]
        if missing or run.tags.get(MISSING):
            tags[MISSING] = ", ".join(missing)[:TAG_LENGTH]
        if any(map(self._storage.exists, missing)):
            tags.pop(DIGEST, None)  # the next comparison sends them again
        run.send(tags)
        return bool(names)

    def _has_artifacts(self, run: MlflowRun, names: Sequence[str]) -> bool:
        stored = {file.path for file in self.client.list_artifacts(run.id)} if names else set()
        missing = run.tags.get(MISSING, "").split(", ")
        return all(
            name.rpartition("/")[2] in stored
            or (name in missing and not self._storage.exists(name))
            for name in names
        )

    def _digest(self, names: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for name in sorted(names):
            try:
                content = self._storage.read(name)
            except FileNotFoundError:
                content = b""
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def _send_file(self, run_id: str, name: str) -> bool:
        """Upload a file; return whether it exists. Only an unreachable server or storage is an
        error."""
        uploader = None if self._is_database else self.uploader
        if uploader is not None and uploader(self._uri, run_id, self._storage.location, name):
            return True
        try:
            with self._storage.as_local_file(name) as path:
                self.client.log_artifact(run_id, str(path), artifact_folder(name))
        except FileNotFoundError as error:
            logger.warning("An artifact is missing in MLflow: %s", in_one_line(error))
            return False
        except StorageError:
            raise
        except Exception as error:
            if not self._is_database and not is_permanent(error):
                raise
            logger.warning("An artifact is missing in MLflow: %s", in_one_line(error))
            return False
        return True

    def _save_views(self, content: RunContent) -> None:
        """Store the views of the sweep's trials, under "Views" on MLflow's page."""
        time = milliseconds(content.end.time if content.end else content.begun)
        self._store_views(content.tags.get(COLUMNS, "[]"), time)

    def _store_views(self, parameters: str, time: int) -> None:
        for name, value in self._views(parameters, time).items():
            self.client.set_experiment_tag(self._experiment_id, name, value)

    def _views(self, parameters: str, time: int) -> dict[str, str]:
        names, ranked_by = json.loads(parameters), self._ranked_by
        return saved_views(self._identity, self._sweep, IDENTITY, STATE, names, time, ranked_by)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors that repeating cannot help into `RefusedError`."""
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        if is_permanent(error):
            raise RefusedError(f"{type(error).__name__}: {error}") from error
        raise


def artifact_folder(name: str) -> str | None:
    """The folder among a run's artifacts: a report keeps its own, all else is at the top."""
    folder = name.rpartition("/")[0]
    return folder if folder.partition("/")[0] == REPORT else None
