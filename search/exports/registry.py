"""A verified MLflow model as a version in MLflow's model registry, made so that every step may be
repeated.

A version carries the tags `search.id` (the sweep), `search.trial` and `search.file` (the artifact):
by them it is found again, and what is there already is not made a second time.
"""

from __future__ import annotations

import posixpath
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.exports.card import described, short_name
from search.mlflow_runs import IDENTITY, SWEEP, TRIAL, MlflowRuns

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

ALIAS = "champion"
"""The alias of the version that was registered last."""
FILE = "search.file"
_NAME_LENGTH = 256  # characters the registry's tables keep


class RegistryError(Exception):
    """A model could not be registered: why, in one line."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    """The model's."""
    number: str
    """Counted by MLflow, from 1."""
    is_new: bool
    """Whether it was not there before."""

    @property
    def announced(self) -> str:
        """What a person is told."""
        verb = "Registered as" if self.is_new else "Registered already as"
        return f"{verb} version {self.number} of {self.name}: {self.uri}"

    @property
    def uri(self) -> str:
        """How `mlflow.pyfunc.load_model` finds it, as long as no other is registered."""
        return f"models:/{self.name}@{ALIAS}"


def name_problem(name: str) -> str:
    """Why the registry would not take this name; empty where it would."""
    if (
        name.strip()
        and not set(name) & {"/", ":"}
        and posixpath.normpath(name) == name
        and not name.startswith("..")
        and name != "."
        and len(name) <= _NAME_LENGTH
        and name.isprintable()
        and not {"'", '"'} <= set(name)  # no query could ask for it
    ):
        return ""
    return (
        f"The name of a registered model must be up to {_NAME_LENGTH} characters without '/' and "
        f"':', and not '.' or '..', got '{name}': e.g. --register digits-rmt."
    )


def register(name: str, folder: Path, card: Mapping[str, Any], runs: MlflowRuns) -> Version:
    """Make the MLflow model in `folder` a version of the registered model `name`, with the alias.

    It is linked to its trial's run, which MLflow must hold already.

    Raises `RegistryError`; what was done until then is found by the next try.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _register(name, folder, card, runs)
    except (MlflowException, OSError, RuntimeError) as error:  # those of requests are an OSError
        raise RegistryError(" ".join(str(error).split())[:500]) from error


def _register(name: str, folder: Path, card: Mapping[str, Any], runs: MlflowRuns) -> Version:
    runs.connect()
    client, run_id = runs.client, runs.run_of(card["trial"])
    if run_id is None:
        raise RegistryError(
            f"MLflow does not hold the run of trial {card['trial']} yet; python -m search.sync "
            f"{card['sweep']['name']} sends it"
        )
    identity = {
        SWEEP: card["sweep"]["name"],
        IDENTITY: card["sweep"]["id"],
        TRIAL: str(card["trial"]),
        FILE: card["sweep"]["file"],
    }
    found = _version(client, name, identity)
    number = found or _make(client, name, folder, card, runs.experiment_id, run_id, identity)
    client.set_registered_model_alias(name, ALIAS, number)
    return Version(name, number, is_new=found is None)


def _version(client: MlflowClient, name: str, identity: Mapping[str, str]) -> str | None:
    """The latest version of this very artifact."""
    quote = '"' if "'" in name else "'"
    versions = client.search_model_versions(f"name = {quote}{name}{quote}")
    same = [v for v in versions if identity.items() <= v.tags.items()]
    return max((str(v.version) for v in same), key=int, default=None)


def _make(
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
    """The model as MLflow keeps it among the run's outputs. One that a crash has left half sent is
    sent again."""
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
        with tempfile.TemporaryDirectory(prefix="few-shot-model-") as beside:
            # Its own file says where it lies; the folder stays as it was verified.
            written = Model.load(str(folder))
            written.model_id, written.run_id = model.model_id, run_id
            written.save(str(Path(beside) / MLMODEL_FILE_NAME))
            client.log_model_artifacts(model.model_id, beside)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model
