"""A trained model, opened again from its artifact, and what it says of its validation images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from search.core.config import differences
from search.core.problems import UsageError
from search.core.task import task_fingerprints
from search.exporting.chosen import Chosen
from search.exporting.network import merged, program
from trainables.backbones.base import Backbone, BackboneError
from trainables.core.tensor_file import Content, read_tensors
from trainables.data.base import DataError, Images
from trainables.encoded_task import EncodedTask
from trainables.methods.base import Head, MethodError
from trainables.stages import Training, open_training
from trainables.trainer import accuracy
from trainables.trial import Episode, TaskSpec, TrialConfig

_CPU = "cpu"  # what is written runs anywhere


@dataclass(frozen=True)
class Opening:
    """All that a process needs to open the training that an artifact belongs to."""

    config: TrialConfig
    """What was trained."""
    task: TaskSpec
    """Backbone and data."""
    episode: Episode
    """The draw."""
    data: str
    """Folder of the field's data sets."""
    weights: str
    """Where the backbone's files were shared, or empty."""

    def bench(self) -> EncodedTask:
        """Backbone and data, on the CPU."""
        return EncodedTask(self.task.backbone, _CPU, self.task.source(self.data), self.weights)

    def open(self, bench: EncodedTask) -> Training:
        """Untrained; raises `MethodError`, `DataError`, `BackboneError`."""
        return open_training(self.config, bench, self.episode)

    def to_json(self) -> str:
        """The inverse of `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Opening:
        """The inverse of `to_json`."""
        plain: dict[str, Any] = json.loads(text)
        config = TrialConfig.from_dict(plain["config"])
        task, episode = TaskSpec.from_dict(plain["task"]), Episode(**plain["episode"])
        return cls(config, task, episode, plain["data"], plain["weights"])


@dataclass(frozen=True)
class Model:
    """What is exported."""

    chosen: Chosen
    """Where it comes from."""
    opening: Opening
    """How it is opened."""
    artifact: Content
    """What was learned."""
    bench: EncodedTask
    """The sweep's backbone and data."""
    training: Training
    """With the artifact loaded."""

    @cached_property
    def logits(self) -> Tensor:
        """float32 [n, c] of the validation images: what every export must say too."""
        return self.training.logits(self.training.val).float()

    @cached_property
    def merged(self) -> tuple[Backbone, Head] | None:
        """See `network.merged`."""
        return merged(self.training)

    @cached_property
    def graph(self) -> ExportedProgram:
        """See `network.program`; raises `NoGraphError`."""
        return program(self.training)

    @property
    def val_images(self) -> Images:
        """The validation images as they come."""
        episode = self.chosen.episode
        draw = self.bench.source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
        return draw.val.images

    @property
    def accuracy(self) -> float:
        """On the validation images: a fraction."""
        return accuracy(self.logits, self.training.val.labels)


def open_model(chosen: Chosen, data: str) -> Model:
    """The training of an artifact, with it loaded, checked against what the sweep has written down:
    backbone, data, and the validation accuracy where it is known. Raises `UsageError`."""
    opening = Opening(chosen.trial, chosen.task, chosen.episode, data, _shared(chosen))
    artifact = _read(chosen)
    try:
        bench = opening.bench()
        found = task_fingerprints(chosen.config.task, bench.source)
        found["backbone"] = bench.backbone.fingerprint
        if lines := differences(_known(chosen, found), found):
            raise UsageError(
                [
                    f"An export is checked on the data and the backbone of its sweep, and these "
                    f"are others. {line}. Name the right folder with --data."
                    for line in lines
                ]
            )
        training = opening.open(bench)
        training.load_artifact(*artifact)
    except MethodError as error:
        raise UsageError([_damaged(chosen, str(error))]) from error
    except (BackboneError, DataError) as error:
        raise UsageError([str(error)]) from error
    model = Model(chosen, opening, artifact, bench, training)
    _compare(model)
    return model


def _shared(chosen: Chosen) -> str:
    """Where a sweep on a cluster keeps the files of its backbone: there is at most one."""
    weights = chosen.sweep.child("weights")
    names = weights.folders()
    return weights.child(names[0]).location if names else ""


def _known(chosen: Chosen, found: Mapping[str, str]) -> dict[str, Any]:
    return {key: chosen.record.fingerprints.get(key) for key in found}


def _read(chosen: Chosen) -> Content:
    if not chosen.sweep.exists(chosen.file):
        raise UsageError([_damaged(chosen, "it is not there")])
    content = read_tensors(chosen.sweep, chosen.file)
    if content is None:
        raise UsageError([_damaged(chosen, "it is no safetensors file")])
    return content


def _compare(model: Model) -> None:
    """A bit that has flipped in a residual is seen by nobody else."""
    recorded, found = model.chosen.recorded, model.accuracy
    if not bool(torch.isfinite(model.logits).all()):
        raise UsageError([_damaged(model.chosen, "its model gives logits that are not finite")])
    # Another device rounds in its own way: an image may change sides.
    slack = max(1 / len(model.training.val), 0.005) + 1e-9
    if recorded is not None and abs(recorded - found) > slack:
        raise UsageError(
            [
                _damaged(
                    model.chosen,
                    f"its model has a validation accuracy of {found:.1%} and had {recorded:.1%}",
                )
            ]
        )


def _damaged(chosen: Chosen, why: str) -> str:
    return (
        f"An artifact must be as it was written, and '{chosen.file}' is not: {why}. Restore it "
        "from a copy, or export another trial."
    )
