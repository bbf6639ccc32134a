"""Registers a verified MLflow model as a version in MLflow's model registry.

A version has the tags `search.id` (the sweep), `search.trial` and `search.file` (the artifact), by
which it is found: every step can be repeated, and nothing is registered twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.exporting.card import described, short_name
from search.tracking.mlflow_client import open_client
from search.tracking.mlflow_runs import IDENTITY, SWEEP, TRIAL, MlflowRuns
from trainables.core.credentials import in_one_line
from trainables.core.files import temporary_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

ALIAS = "champion"
"""Alias of the version that was registered last."""
FILE = "search.file"


class RegistryError(Exception):
    """A model could not be registered; the message is one line."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    """The model's."""
    number: str
    """MLflow's number, from 1."""
    is_new: bool
    """Whether it did not exist before."""

    @property
    def announced(self) -> str:
        """A line for the user."""
        verb = "Registered as" if self.is_new else "Registered already as"
        return f"{verb} version {self.number} of {self.name}: {self.uri}"

    @property
    def uri(self) -> str:
        """Address for `mlflow.pyfunc.load_model`, until another version is registered."""
        return f"models:/{self.name}@{ALIAS}"


class Registry:
    """One registered model, and the sweep whose artifacts become its versions. Every method raises
    `RegistryError`, and can then be repeated."""

    def __init__(self, name: str, runs: MlflowRuns) -> None:
        self._name, self._runs = name, runs

    def find(self, sweep: str, identity: str, trial: int, file: str) -> Version | None:
        """The version of this artifact, which gets the alias; None if there is none."""
        tags = _tags(sweep, identity, trial, file)
        with _in_one_line():
            self._run_of(sweep, trial)
            number = _version(self._runs.client, self._name, tags)
            return None if number is None else self._give_alias(number, is_new=False)

    def register(self, folder: Path, card: Mapping[str, Any]) -> Version:
        """Register the MLflow model in `folder` as a version, linked to its trial's run, which must
        exist, and give it the alias."""
        sweep = card["sweep"]
        source = (sweep["name"], sweep["id"], card["trial"], sweep["file"])
        if found := self.find(*source):
            return found
        with _in_one_line():
            run_id = self._run_of(sweep["name"], card["trial"])
            client, experiment_id, tags = (
                self._runs.client,
                self._runs.experiment_id,
                _tags(*source),
            )
            number = _create_version(client, self._name, folder, card, experiment_id, run_id, tags)
            return self._give_alias(number, is_new=True)

    def _run_of(self, sweep: str, trial: int) -> str:
        self._runs.connect()
        run_id = self._runs.run_of(trial)
        if run_id is None:
            raise RegistryError(
                f"MLflow does not have the run of trial {trial}; send it with "
                f"python -m search.sync {sweep}"
            )
        return run_id

    def _give_alias(self, number: str, is_new: bool) -> Version:
        self._runs.client.set_registered_model_alias(self._name, ALIAS, number)
        return Version(self._name, number, is_new)


def download(address: str, tracking_uri: str, to: Path) -> Path:
    """Download a registered model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`, and return its
    folder in `to`. Raises `RegistryError`."""
    from mlflow.artifacts import download_artifacts

    path = address.removeprefix("models:/")
    (name, at, alias), number = path.partition("@"), ""
    if not at:
        name, _, number = path.rpartition("/")
    if not (name and (alias or number)):
        raise RegistryError(
            f"a registered model must be models:/NAME@ALIAS or models:/NAME/VERSION, got "
            f"'{address}'"
        )
    with _in_one_line():
        client = open_client(tracking_uri)
        version = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, number)
        )
        found = download_artifacts(
            artifact_uri=version.source, dst_path=str(to), tracking_uri=tracking_uri
        )
        return Path(found)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Turn errors of MLflow and of the libraries below it into `RegistryError`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, RuntimeError) as error:  # those of requests are an OSError
        raise RegistryError(in_one_line(error).rstrip(".")[:500]) from error


def _tags(sweep: str, identity: str, trial: int, file: str) -> dict[str, str]:
    return {SWEEP: sweep, IDENTITY: identity, TRIAL: str(trial), FILE: file}


def _version(client: MlflowClient, name: str, identity: Mapping[str, str]) -> str | None:
    """The latest version of this artifact."""
    quote = '"' if "'" in name else "'"
    versions = client.search_model_versions(f"name = {quote}{name}{quote}")
    same = [v for v in versions if identity.items() <= v.tags.items()]
    return max((str(v.version) for v in same), key=int, default=None)


def _create_version(
    client: MlflowClient,
    name: str,
    folder: Path,
    card: Mapping[str, Any],
    experiment_id: str,
    run_id: str,
    identity: Mapping[str, str],
) -> str:
    from mlflow.exceptions import MlflowException

    model = _logged_model(client, folder, card, experiment_id, run_id, identity)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        source=model.artifact_location,  # `models:/ID` would be looked up at the global address
        run_id=run_id,
        tags=dict(identity),
        description=described(card),
        model_id=model.model_id,
    )
    return str(version.version)


def _logged_model(
    client: MlflowClient,
    folder: Path,
    card: Mapping[str, Any],
    experiment_id: str,
    run_id: str,
    identity: Mapping[str, str],
) -> LoggedModel:
    """The model among the run's outputs; one that a crash has left incomplete is sent again."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model
    from mlflow.models.model import MLMODEL_FILE_NAME

    parts = [f"tags.`{key}` = '{value}'" for key, value in identity.items() if key != SWEEP]
    there = client.search_logged_models([experiment_id], filter_string=" AND ".join(parts))
    model = there[0] if there else None
    if model is None:
        model = client.create_logged_model(
            experiment_id,
            name=re.sub(r"[/:.%\"']", "-", f"{card['method']} {short_name(card['dataset'])}")[:100],
            source_run_id=run_id,
            tags=dict(identity),
            model_type="pyfunc",
        )
    if model.status != LoggedModelStatus.READY:
        client.log_model_artifacts(model.model_id, str(folder))
        with temporary_folder() as temporary:
            beside = temporary / "model"
            beside.mkdir()
            # MLmodel holds its own address; the verified folder does not change.
            written = Model.load(str(folder))
            written.model_id, written.run_id = model.model_id, run_id
            written.save(str(beside / MLMODEL_FILE_NAME))
            client.log_model_artifacts(model.model_id, str(beside))
        outputs = client.get_run(run_id).outputs
        known = {output.model_id for output in (outputs.model_outputs if outputs else ())}
        if model.model_id not in known:  # MLflow refuses a repetition
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model
