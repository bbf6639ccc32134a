"""Everything that can be wrong before a sweep starts, found and told at once."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from search.core.config import SweepConfig, differences
from search.core.objectives import parse_objective
from search.core.problems import UsageError
from search.core.sweep_identity import SWEEP_FILE, own_id, write_record
from search.core.task import (
    all_class_names,
    data_problems,
    setting,
    task_fingerprints,
    task_notices,
    val_images,
)
from search.driver.backbone_probe import BackboneProbeProcess, Examiner, Facts
from search.execution.resources import Placement, place, this_machine
from search.ledger.store import ledger_problems
from search.tracking.uri import TrackingError, check_tracking_uri, sqlite_uri
from spaces.base import Space, TaskFacts
from trainables.backbones.base import BackboneError
from trainables.credentials import shown, without_password
from trainables.data.source import DataSource
from trainables.methods.registry import METHODS
from trainables.storage import (
    LocalStorage,
    Storage,
    StorageError,
    join,
    local_folder,
    open_storage,
    split,
)

FORMAT = 3
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """A sweep that can start."""

    config: SweepConfig
    """As asked for, with `name` filled in."""
    setting: TaskFacts
    """The facts about the task."""
    source: DataSource
    """The task's data, opened."""
    space: Space
    """The space, for this task."""
    placement: Placement | None
    """Where trials run; decided later, on a cluster."""
    fingerprints: dict[str, str]
    """Of the backbone and of the few-shot pools."""
    tracking_uri: str
    """Resolved; `none` for no tracking."""
    id: str
    """Given to the sweep when it was first started; no other sweep has it."""
    notices: tuple[str, ...] = ()
    """What the user should know, although the sweep can start."""

    def record(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        packages = ("torch", "open_clip_torch", "ray", "optuna", "mlflow")
        return {
            "format": FORMAT,
            "id": self.id,
            "location": without_password(self.config.location),
            "config": self.config.public().to_dict(),
            "fingerprints": self.fingerprints,
            "val_images": val_images(self.config.task, self.source),
            "versions": {package: version(package) for package in packages},
        }


def preflight(
    config: SweepConfig, meanwhile: Callable[[], object] = lambda: None, trial_write: bool = True
) -> Plan:
    """Check everything; raises `UsageError` with every problem found.

    `meanwhile` is called while another process looks at the backbone. Without `trial_write`, it is
    not tried whether the folder can be written, and nothing is.
    """
    (plan,) = preflight_each(config, [config], meanwhile, trial_write)
    return plan


def preflight_each(
    config: SweepConfig,
    parts: Sequence[SweepConfig],
    meanwhile: Callable[[], object] = lambda: None,
    trial_write: bool = True,
) -> list[Plan]:
    """See `preflight`: `config` as a whole, then each of the sweeps that it stands for."""
    with BackboneProbeProcess(config.task.backbone) as examiner:
        meanwhile()
        whole = _check(config, examiner, trial_write)
        plans = [whole if part == config else _check(part, examiner, False) for part in parts]
    for plan in plans if trial_write else ():
        with _storage_in_words():
            open_storage(plan.config.location).probe()
    return plans


def _check(config: SweepConfig, examiner: Examiner, trial_write: bool) -> Plan:
    problems = config.problems()
    source = config.task.source(config.data)
    placement = None
    if not config.address:
        placement, found = place(config, this_machine())
        problems += found
    problems += _storage_problems(config, trial_write) + ledger_problems(config.ledger)
    problems += address_problems(config)
    problems += data_problems(config, source)
    uri = tracking_uri(config)
    notices: tuple[str, ...] = ()
    if (
        config.tracking_uri not in ("", "none")
        or (local_folder(config.storage) or Path.cwd()).is_dir()
    ):
        try:
            if uri != "none" and (notice := check_tracking_uri(uri)):
                notices = (notice,)
        except TrackingError as error:
            problems.append(str(error))
    facts = None
    try:
        facts = examiner.facts()
    except BackboneError as error:
        problems.append(str(error))
    if problems or facts is None:
        raise UsageError(problems)
    plan = _plan(config, source, facts, placement, uri)
    problems = [f"--space {config.space}: {problem}." for problem in plan.space.paper.problems()]
    if config.init_from:
        problems += config.init_from.differences(plan.fingerprints)
    if problems:
        raise UsageError(problems)
    if not plan.setting.pixels and any(
        METHODS[stage.method].input_kind == "images" for stage in plan.space.paper.stages
    ):
        raise UsageError(
            [
                f"--space {config.space} trains on images, and '{config.task.datasets[0]}' holds "
                "features only: use a space that reads features (--space taskres), or a data set "
                "with images."
            ]
        )
    names = [
        all_class_names(config.task, source, stage.method_config.prompts)
        for stage in plan.space.paper.stages
    ]
    metric = parse_objective(config.second_objective).metric if config.second_objective else ""
    if problem := examiner.check_methods(plan.space.paper, names, plan.setting.images, metric):
        raise UsageError([problem])
    notices += tuple(task_notices(config.task, source))
    with _storage_in_words():
        _compare(plan, open_storage(plan.config.location))
    return replace(plan, notices=notices)


def adopt(plan: Plan, sweep: Storage) -> Plan:
    """The plan for the sweep in this folder, which begins with it if there is none yet. For the
    owner of the folder; raises `UsageError`, as `preflight`, and `StorageError`."""
    known, config = _compare(plan, sweep), plan.config.public().to_dict()
    if known is None:
        write_record(sweep, plan.record())
        return plan
    if known["config"] != config:  # what is not its identity may change, e.g. how many trials
        known = {**known, "config": config}
        write_record(sweep, known)
    return replace(plan, id=own_id(sweep, known))


def tracking_uri(config: SweepConfig) -> str:
    """The URI to track to: a sqlite file beside the sweeps unless one is given, or in the current
    folder where the sweeps are in a bucket."""
    if config.tracking_uri:
        return config.tracking_uri
    folder = (local_folder(config.storage) or Path.cwd()).resolve()
    return sqlite_uri(folder / "mlflow.db")


def uri_afterwards(given: str, config: SweepConfig) -> str:
    """Where a sweep that has run is tracked to: the URI given, else the sweep's own, else the
    environment's, else the default.

    Raises `UsageError` where the sweep is run without tracking.
    """
    chosen = given or config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if chosen == "none":
        raise UsageError(
            [
                f"Something can be delivered only to an MLflow, and '{config.name}' is run without "
                "tracking: name one with --tracking-uri."
            ]
        )
    return tracking_uri(replace(config, tracking_uri=chosen))


def _plan(
    config: SweepConfig, source: DataSource, facts: Facts, placement: Placement | None, uri: str
) -> Plan:
    facts_of_task = setting(config.task, source, facts.tower)
    space = config.open_space(facts_of_task)
    fingerprints = {"backbone": facts.fingerprint} | task_fingerprints(config.task, source)
    named = SweepConfig.from_dict(config.to_dict() | {"name": config.sweep_name})
    return Plan(named, facts_of_task, source, space, placement, fingerprints, uri, uuid.uuid4().hex)


def _storage_problems(config: SweepConfig, trial_write: bool) -> list[str]:
    try:
        storage = open_storage(config.storage, _PROBE_SECONDS)
        if not isinstance(storage, LocalStorage):
            if trial_write:
                storage.probe()
            else:
                storage.folders()
            return []
    except StorageError as error:
        return [_unwritable(str(error))]
    there = storage.root / config.sweep_name
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return [_unwritable(f"'{there}' is not a folder")]
    if not os.access(there, os.W_OK | os.X_OK):
        return [_unwritable(f"nothing may be written in '{there}'")]
    return []


def address_problems(config: SweepConfig) -> list[str]:
    """Whether `address` can be reached: Ray itself tries for minutes before it says that nobody is
    there."""
    host, colon, port = config.address.rpartition(":")
    if not config.address or config.address == "auto":
        return []
    try:
        if not (colon and host and port.isdecimal()):
            raise ValueError("not HOST:PORT")
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        return [
            f"--address must be HOST:PORT of a running Ray cluster, or auto, and "
            f"'{config.address}' is not ({error}). Start one (`ray up cluster.yaml`), or leave "
            "the option away to use this machine."
        ]
    return []


@contextmanager
def _storage_in_words() -> Iterator[None]:
    """A storage that does not work, as a `UsageError`."""
    try:
        yield
    except StorageError as error:
        raise UsageError([_unwritable(str(error))]) from error


def _unwritable(why: str) -> str:
    return f"The sweep's folder must be writable, and is not: {why}. Use --storage."


def _compare(plan: Plan, sweep: Storage) -> Mapping[str, Any] | None:
    """Refuse to continue a sweep under other settings, with another model, data or ledger; return
    its record, or None for a new one."""
    if not sweep.exists(SWEEP_FILE):
        return None
    stored = load_record(sweep)
    config = SweepConfig.from_dict(stored["config"])
    asked = plan.config.public()
    found = differences(config.identity(), asked.identity())
    found += differences({"ledger": config.ledger}, {"ledger": asked.ledger})
    found = found or differences(stored["fingerprints"], plan.fingerprints)
    if found:
        raise UsageError(
            [
                f"A sweep is resumed with the settings it was started with, and "
                f"'{plan.config.name}' differs. {line}. Use those settings, or start another "
                "sweep with --name."
                for line in found
            ]
        )
    return stored


def load_record(sweep: Storage) -> Mapping[str, Any]:
    """The `sweep.json` of a sweep's folder; raises `UsageError` where there is no usable one."""
    folder, name = split(sweep.location)
    try:
        record: Mapping[str, Any] = json.loads(sweep.read(SWEEP_FILE))
        if record.get("format") != FORMAT:
            raise ValueError(f"it has format {record.get('format')}, this version reads {FORMAT}")
        SweepConfig.from_dict(record["config"])
        if not isinstance(record["id"], str) or not isinstance(record["fingerprints"], dict):
            raise ValueError("id or fingerprints are missing")
    except FileNotFoundError:
        beside = open_storage(folder, _PROBE_SECONDS)
        known = [n for n in beside.folders() if beside.exists(f"{n}/{SWEEP_FILE}")]
        there = f"There are: {', '.join(known)}." if known else "There is none yet."
        raise UsageError([f"There is no sweep '{name}' in '{shown(folder)}'. {there}"]) from None
    except StorageError as error:
        raise UsageError([f"A sweep's folder must be readable, and it is not: {error}."]) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            [
                "A sweep's description must be readable, and "
                f"'{shown(join(sweep.location, SWEEP_FILE))}' is not: {error}. Restore the file "
                "from a copy, or start another sweep with --name."
            ]
        ) from error
    return record
