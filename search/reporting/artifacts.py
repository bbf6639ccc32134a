"""Artifacts of trials: what each stage has learned on each episode."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from search.core.results import Result, trial_folder
from search.reporting.accuracy import place_name
from search.reporting.source import Source
from trainables.core.tensor_file import read_tensors, split_numbered
from trainables.methods.base import MethodError
from trainables.methods.masking.masks import FORMAT as MASKS
from trainables.methods.masking.masks import unpack_masks
from trainables.trial import Episode, TaskSpec

_PIPELINE = "pipeline"


@dataclass(frozen=True)
class Learned:
    """Artifact of one stage, trained on one episode."""

    sweep: str
    """Name of the sweep."""
    episode: Episode
    """Episode that it was trained on."""
    tensors: Mapping[str, Tensor]
    """Tensors by name."""
    metadata: Mapping[str, str]
    """Metadata of the file, including its `format`."""

    @property
    def series(self) -> str:
        """Name of the draws that differ only in their seed."""
        name = place_name(self.episode.dataset, self.episode.dataset)
        return f"{name}, {self.episode.shots} shots ({self.sweep})"

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

    def score_change(self) -> dict[str, float]:
        """Return the mean absolute change of each mask's scores since their initial value; empty
        if the artifact does not record it."""
        try:
            found = json.loads(self.metadata.get("score_change", ""))
            return {str(name): float(mean) for name, mean in found.items()}
        except (AttributeError, TypeError, ValueError):
            return {}

    def residual(self) -> tuple[Tensor, float] | None:
        """Return a text residual [c, d] without its weight, and alpha; None if there is none."""
        if self.metadata.get("format") != "taskres" or "residual" not in self.tensors:
            return None
        return self.tensors["residual"], float(self.tensors["alpha"])


def winners(source: Source) -> list[Learned]:
    """Return the winner's artifacts, stage by stage, without those that no longer exist.

    They are from the fresh draws of the evaluation, or from the search if there is no evaluation.
    """
    best, judged, task = source.best, source.judged, source.config.task
    if best is None:
        return []
    if judged is not None:
        return list(_read(source, replace(task, seeds=judged.seeds), "winner", True))
    return list(_read(source, task, trial_folder(best.number), len(task.episodes) > 1))


def numbers_learned(source: Source, trials: list[Result]) -> dict[int, int]:
    """Count the numbers in each trial's artifact of the first episode.

    A bit of a mask counts as one number. Trials without this file are omitted.
    """
    task = source.config.task
    label = f"-{task.label(task.episodes[0])}" if len(task.episodes) > 1 else ""
    found = {}
    for trial in trials:
        file = f"{trial_folder(trial.number)}/artifact{label}.safetensors"
        if (content := read_tensors(source.sweep, file)) is not None:
            found[trial.number] = sum(map(numbers_in, stages_of(*content)))
    return found


def _read(source: Source, task: TaskSpec, folder: str, labelled: bool) -> Iterator[Learned]:
    for episode in task.episodes:
        label = f"-{task.label(episode)}" if labelled else ""
        content = read_tensors(source.sweep, f"{folder}/artifact{label}.safetensors")
        if content is not None:
            for tensors, metadata in stages_of(*content):
                yield Learned(source.name, episode, tensors, metadata)


Stage = tuple[Mapping[str, Tensor], Mapping[str, str]]
"""Tensors and metadata of one stage."""


def stages_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[Stage]:
    """Split a pipeline into its stages; any other artifact is a single stage."""
    if metadata.get("format") != _PIPELINE:
        return [(tensors, metadata)]
    return [*split_numbered(tensors, json.loads(metadata["stages"]))]


def numbers_in(stage: Stage) -> int:
    """Count the learned numbers of a stage; a bit of a mask counts as one."""
    tensors, metadata = stage
    if metadata.get("format") == MASKS:
        return sum(prod(shape) for shape in json.loads(metadata["shapes"]).values())
    return sum(tensor.numel() for tensor in tensors.values())
