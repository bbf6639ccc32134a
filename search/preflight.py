"""Everything that can be wrong before a sweep starts, found and told at once."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from search.config import SweepConfig, differences
from search.files import read_json
from search.problems import UsageError
from search.resources import Placement, place, this_machine
from search.tracking_uri import TrackingError, check_tracking_uri
from spaces.base import Setting, Space
from spaces.registry import SPACES
from trainables.backbones.base import Backbone, BackboneError
from trainables.backbones.registry import load_backbone
from trainables.data.few_shot import draw_few_shot
from trainables.data.registry import open_dataset
from trainables.methods.base import MethodError, Schedule
from trainables.methods.registry import METHODS
from trainables.trial import TrialConfig

SWEEP_FILE = "sweep.json"
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """A sweep that can start."""

    config: SweepConfig
    """As asked for, with `name` filled in."""
    setting: Setting
    """The facts about the task."""
    space: Space
    """The space, for this task."""
    placement: Placement | None
    """Where trials run; decided later, on a cluster."""
    fingerprints: dict[str, str]
    """Of the backbone and of the few-shot pools."""
    tracking_uri: str
    """Resolved; `none` for no tracking."""

    def record(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        packages = ("torch", "open_clip_torch", "ray", "optuna", "mlflow")
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "fingerprints": self.fingerprints,
            "versions": {package: version(package) for package in packages},
        }


def preflight(config: SweepConfig) -> Plan:
    """Check everything; raises `UsageError` with every problem found."""
    problems = config.problems()
    placement = None
    if not config.address:
        placement, found = place(config, this_machine())
        problems += found
    problems += _storage_problems(config) + _address_problems(config)
    uri = tracking_uri(config)
    if config.tracking_uri not in ("", "none") or Path(config.storage).expanduser().is_dir():
        try:
            if uri != "none":
                check_tracking_uri(uri)
        except TrackingError as error:
            problems.append(str(error))
    backbone = None
    try:
        backbone = load_backbone(config.task.backbone)
    except BackboneError as error:
        problems.append(str(error))
    if problems or backbone is None:
        raise UsageError(problems)
    plan = _plan(config, backbone, placement, uri)
    _compare(plan)
    _make_folder(plan.config.folder)
    return plan


def tracking_uri(config: SweepConfig) -> str:
    """The URI to track to: a sqlite file beside the sweeps unless one is given."""
    if config.tracking_uri:
        return config.tracking_uri
    return f"sqlite:///{Path(config.storage).expanduser().resolve() / 'mlflow.db'}"


def _plan(config: SweepConfig, backbone: Backbone, placement: Placement | None, uri: str) -> Plan:
    dataset = open_dataset(config.task.dataset)
    images = len(draw_few_shot(dataset, config.task.shots, config.task.seeds[0]).train.labels)
    setting = Setting(config.task.dataset, config.task.shots, images, backbone.tower)
    space = SPACES[config.space].build(setting)
    _fit_together(space.paper, backbone, len(dataset.class_names), images)
    fingerprints = {
        "backbone": backbone.fingerprint,
        "train": dataset.split("train").fingerprint,
        "val": dataset.split("val").fingerprint,
    }
    named = SweepConfig.from_dict(config.to_dict() | {"name": config.sweep_name})
    return Plan(named, setting, space, placement, fingerprints, uri)


def _fit_together(paper: TrialConfig, backbone: Backbone, classes: int, images: int) -> None:
    """Build the method once, so that one that does not suit the backbone is refused now."""
    features = torch.ones(classes, backbone.feature_dim)
    schedule = Schedule(paper.optim.learning_rates(images))
    try:
        METHODS[paper.method].build(paper.method_config, backbone, features, schedule)
    except MethodError as error:
        raise UsageError([str(error)]) from error


def _storage_problems(config: SweepConfig) -> list[str]:
    if "://" in config.storage:
        return [
            f"--storage must be a folder (a mounted bucket or share is one), got "
            f"'{config.storage}'."
        ]
    there = config.folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return [_unwritable(config.folder, f"'{there}' is not a folder")]
    if not os.access(there, os.W_OK | os.X_OK):
        return [_unwritable(config.folder, f"no permission in '{there}'")]
    return []


def _address_problems(config: SweepConfig) -> list[str]:
    """Ray itself tries for minutes before it says that nobody is there."""
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


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError([_unwritable(folder, error.strerror or str(error))]) from error


def _unwritable(folder: Path, why: str) -> str:
    return f"The sweep's folder must be writable, and '{folder}' is not ({why}): use --storage."


def _compare(plan: Plan) -> None:
    """Refuse to continue a sweep under other settings or with another model or data."""
    path = plan.config.folder / SWEEP_FILE
    if not path.exists():
        return
    stored = load_record(plan.config.folder)
    found = differences(
        SweepConfig.from_dict(stored["config"]).identity(), plan.config.identity()
    ) + differences(stored["fingerprints"], plan.fingerprints)
    if found:
        raise UsageError(
            [
                f"A sweep is resumed with the settings it was started with, and "
                f"'{plan.config.name}' differs. {line}. Use those settings, or start another "
                "sweep with --name."
                for line in found
            ]
        )


def load_record(folder: Path) -> Mapping[str, Any]:
    """The `sweep.json` of a folder; raises `UsageError` where there is no usable one."""
    path = folder / SWEEP_FILE
    try:
        record: Mapping[str, Any] = read_json(path)
        if record.get("format") != FORMAT:
            raise ValueError(f"'{path}' has format {record.get('format')}, not {FORMAT}")
        SweepConfig.from_dict(record["config"])
    except FileNotFoundError:
        known = sorted(p.parent.name for p in folder.parent.glob(f"*/{SWEEP_FILE}"))
        there = f"There are: {', '.join(known)}." if known else "There is none yet."
        raise UsageError(
            [f"There is no sweep '{folder.name}' in '{folder.parent}'. {there}"]
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            [
                f"A sweep's description must be readable: {error}. Restore the file from a copy, "
                "or start another sweep with --name."
            ]
        ) from error
    return record
