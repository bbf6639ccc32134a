"""The options of a task: paths, draws, bundles; and one sweep per task."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.core.config import SweepConfig
from search.core.dataset_problems import is_bundle
from trainables.all_shots import ALL
from trainables.backbones.cached import cached_backbone
from trainables.data.base import DataError
from trainables.data.bundle import open_bundle
from trainables.data.folder import folds_of
from trainables.data.registry import PREFIXES


def absolute_dataset(spec: str) -> str:
    """Return a data set's specification with an absolute path, if it has a path."""
    for prefix in PREFIXES:
        if spec.startswith(prefix) and spec != prefix:
            return f"{prefix}{os.path.realpath(os.path.expanduser(spec.removeprefix(prefix)))}"
    return spec


def settle_draws(given: dict[str, Any], problems: list[str]) -> None:
    """Derive `draws` from --shots-file, and replace its old value `own`."""
    pattern = given.pop("shots_file", None)
    if given.get("draws") == "own":
        given["draws"] = "seeded"
    if pattern is None:
        return
    if "draws" in given:
        problems.append(
            f"--draws and --shots-file must not both be given, got --draws {given['draws']}. Omit "
            "one of them."
        )
    if given.get("shots") == ALL:
        problems.append("--shots all draws nothing, so --shots-file must be omitted.")
    given["draws"] = f"file:{os.path.abspath(os.path.expanduser(pattern))}"


def settle_backbone(given: dict[str, Any]) -> None:
    """Use weights that are cached on this machine for images of the user's own, if there are any
    and no others are named."""
    own = all(spec.startswith("folder:") for spec in given.get("datasets", ("digits",)))
    if own and not {"backbone", "init_from"} & given.keys() and (found := cached_backbone()):
        given["backbone"] = found


def settle_bundle(given: dict[str, Any]) -> None:
    """Take backbone and shots from a bundle. Errors in it are reported by the data checks."""
    specs = given["datasets"]
    if len(specs) != 1 or not is_bundle(specs[0]):
        return
    given.setdefault("backbone", specs[0])
    if "shots" not in given:
        with suppress(DataError):
            given["shots"] = [open_bundle(Path(specs[0].partition(":")[2])).shots]


def per_fold(config: SweepConfig) -> list[SweepConfig]:
    """Return one configuration per fold of `test_folds`; each is an ordinary sweep."""
    (spec,) = config.task.datasets
    return [
        replace(
            config,
            task=replace(config.task, datasets=(fold,)),
            name=config.name and f"{config.name}-fold{number}",
            test_folds=0,
        )
        for number, fold in enumerate(folds_of(spec, config.test_folds), start=1)
    ]


def per_task(config: SweepConfig) -> list[SweepConfig]:
    """Return one configuration, or with `per_task` one per data set and number of shots."""
    if not config.per_task:
        return [config]
    task, found = config.task, []
    for dataset, short in zip(task.sources, task.names, strict=True):
        is_one_of_many = len(task.sources) > 1
        datasets = (dataset,) if is_one_of_many else task.datasets
        for shots in task.shots:
            part = replace(task, datasets=datasets, shots=(shots,))
            stem = f"{config.name}-{short if is_one_of_many else part.short}-{shots}shot"
            name = stem if config.name else ""
            found.append(replace(config, task=part, name=name, per_task=False))
    return found
