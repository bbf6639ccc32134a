"""Reads the artifacts of trials: masks, residuals and their sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from search.core.results import Result, trial_folder
from search.reporting.source import Source
from trainables.core.tensor_file import read_tensors
from trainables.methods.base import MethodError
from trainables.methods.masking.masks import FORMAT as MASKS
from trainables.methods.masking.masks import unpack_masks
from trainables.trial import Episode, TaskSpec

_PIPELINE = "pipeline"


@dataclass(frozen=True)
class Learned:
    """Artifact of one stage, trained on one episode."""

    episode: Episode
    """Episode that it was trained on."""
    tensors: Mapping[str, Tensor]
    """Tensors by name."""
    metadata: Mapping[str, str]
    """Metadata of the file, including its `format`."""
    fresh: bool
    """Whether the episode is a fresh draw of the evaluation rather than a draw of the search."""

    def masks(self) -> dict[str, Tensor] | None:
        """Return bool tensors by the names of the masked weights, True for weights that are kept.

        None if the artifact has no masks or is damaged.
        """
        if self.metadata.get("format") != MASKS:
            return None
        try:
            return unpack_masks(self.tensors, self.metadata, self.metadata.get("backbone", ""))
        except MethodError:
            return None

    def score_change(self) -> dict[str, float] | None:
        """Return the mean absolute change of each mask's scores since their initial value.

        None if the artifact does not record it.
        """
        try:
            found = json.loads(self.metadata.get("score_change", ""))
            return {str(name): float(mean) for name, mean in found.items()}
        except (AttributeError, TypeError, ValueError):
            return None

    def residual(self) -> tuple[Tensor, float] | None:
        """Return a text residual [c, d] without its weight, and alpha; None if there is none."""
        if self.metadata.get("format") != "taskres" or "residual" not in self.tensors:
            return None
        return self.tensors["residual"], float(self.tensors["alpha"])


def winners(source: Source) -> list[Learned]:
    """Return the winner's artifacts, stage by stage, without those that no longer exist.

    They are from the fresh draws of the evaluation, or from the search if there is no evaluation.
    """
    best, judged = source.best, source.judged
    if best is None:
        return []
    if judged is not None:
        task = replace(source.config.task, seeds=judged.seeds)
        return list(_read(source, task, "winner", True, True))
    task = source.config.task
    return list(_read(source, task, trial_folder(best.number), len(task.episodes) > 1, False))


def numbers_learned(source: Source, trials: list[Result]) -> dict[int, int]:
    """Count the numbers in each trial's artifact of the first episode.

    A bit of a mask counts as one number. Trials without this file are omitted.
    """
    task = source.config.task
    found = {}
    for trial in trials:
        label = f"-{task.label(task.episodes[0])}" if len(task.episodes) > 1 else ""
        content = read_tensors(
            source.sweep, f"{trial_folder(trial.number)}/artifact{label}.safetensors"
        )
        if content is not None:
            found[trial.number] = sum(map(_size, _stages(*content)))
    return found


def _read(
    source: Source, task: TaskSpec, folder: str, labelled: bool, fresh: bool
) -> Iterator[Learned]:
    for episode in task.episodes:
        label = f"-{task.label(episode)}" if labelled else ""
        content = read_tensors(source.sweep, f"{folder}/artifact{label}.safetensors")
        if content is not None:
            for tensors, metadata in _stages(*content):
                yield Learned(episode, tensors, metadata, fresh)


def _stages(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> list[tuple[Mapping[str, Tensor], Mapping[str, str]]]:
    """Split a pipeline into its stages; any other artifact is a single stage."""
    if metadata.get("format") != _PIPELINE:
        return [(tensors, metadata)]
    records = json.loads(metadata["stages"])
    return [
        (
            {k.removeprefix(f"{i}/"): t for k, t in tensors.items() if k.startswith(f"{i}/")},
            record,
        )
        for i, record in enumerate(records)
    ]


def _size(stage: tuple[Mapping[str, Tensor], Mapping[str, str]]) -> int:
    tensors, metadata = stage
    if metadata.get("format") == MASKS:
        return sum(prod(shape) for shape in json.loads(metadata["shapes"]).values())
    return sum(tensor.numel() for tensor in tensors.values())
