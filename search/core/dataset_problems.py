"""Rules of bundles of features, and of folders that are cross-validated (`--test-folds`)."""

from __future__ import annotations

from collections.abc import Sequence

from trainables.trial import TaskSpec

NOT_WITH_FOLDS = ("per_task", "init_from", "register")
"""Fields of a sweep's configuration that cannot be combined with folds."""


def fold_problems(folds: int, task: TaskSpec, others: Sequence[str]) -> list[str]:
    """Every broken rule that shows without the data; none if there are no folds. `others` are the
    options of `NOT_WITH_FOLDS` that are given."""
    if not folds:
        return []
    from trainables.data.folder import MOST_FOLDS  # which loads torch

    found = []
    if not 2 <= folds <= MOST_FOLDS:
        found.append(
            f"--test-folds must be between 2 and {MOST_FOLDS}, got {folds}. Use e.g. "
            "--test-folds 5."
        )
    if len(task.datasets) != 1 or not task.datasets[0].startswith("folder:"):
        found.append(
            "--test-folds needs one data set of your own (--dataset folder:PATH), got "
            f"{','.join(task.datasets)}. Omit the option: other data sets have test images."
        )
    if task.protocol != "few-shot" or len(task.shots) > 1:
        found.append(
            "--test-folds needs --protocol few-shot and one number of shots, got --protocol "
            f"{task.protocol} --shots {','.join(map(str, task.shots))}. Search one at a time."
        )
    return found + [
        f"{option} cannot be used with --test-folds, which makes a search and a model per fold. "
        "Omit one of them."
        for option in others
    ]


def is_bundle(spec: str) -> bool:
    """Whether a data set or a backbone is a bundle of features."""
    return spec.startswith("bundle:")


def bundle_problems(task: TaskSpec) -> list[str]:
    """Every broken rule about bundles of features that shows without the data."""
    found = []
    bundles = [spec for spec in task.datasets if is_bundle(spec)]
    if bundles and (len(task.datasets) > 1 or task.protocol != "few-shot"):
        found.append(
            "A bundle must be the only data set, with --protocol few-shot, got --dataset "
            f"{','.join(task.datasets)} --protocol {task.protocol}."
        )
    elif bundles and task.backbone != bundles[0]:
        found.append(
            "--backbone must be omitted with a bundle, which includes its backbone's features, "
            f"got '{task.backbone}'."
        )
    elif not bundles and is_bundle(task.backbone):
        found.append(
            f"--backbone must be an image model, got the bundle '{task.backbone}'. Use it as "
            "--dataset, without another one."
        )
    return found
