"""Tasks, and the parameters of trials, as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from trainables.trial import PER_EPISODE, TaskSpec


def shown_parameters(
    config: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, float | int | str | bool]:
    """A trial's parameters for display: `PER_EPISODE` in place of those that differ between its
    episodes. `config` is `TrialConfig.to_dict()`."""
    stages: list[Mapping[str, Any]] = []
    stage: Mapping[str, Any] | None = config
    while stage:
        stages = [stage, *stages] if not stage.get("fixed") else stages
        stage = stage.get("before")
    places = {str(stage["method"]): place for place, stage in enumerate(stages)}
    places |= {str(place + 1): place for place in range(len(stages))}  # a method is used twice
    shown = dict(parameters)
    for name, value in parameters.items():
        label, _, field = name.rpartition(".")
        own = stages[places.get(label, -1)]
        for each in own.get("per_episode", ()):
            values = each["method_config"] | each["optim"] | {"crop_scale": each["crop_scale"]}
            if values.get(field, value) != value:
                shown[name] = PER_EPISODE
    return shown


def described(task: TaskSpec) -> str:
    """A short description: data sets, shots, backbone, protocol."""
    names = [_short(name) for name in task.sources]
    what = ", ".join(names) if len(names) <= 3 else f"{len(names)} data sets"
    shots = ", ".join(map(str, task.shots))
    backbone = "" if task.backbone in task.datasets else f", backbone {task.backbone}"
    how = "" if task.protocol == "few-shot" else f", {task.protocol}"
    noun = "shot" if task.shots == (1,) else "shots"
    return f"{what}, {shots} {noun}{backbone}{how}"


def _short(spec: str) -> str:
    """A path by its last part."""
    kind, colon, path = spec.partition(":")
    return f"{kind}:{PurePath(path).name}" if colon else spec
