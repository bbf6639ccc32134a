"""The trained model that is exported: which artifact of a sweep it is, and the model itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from search.core.config import SweepConfig, differences
from search.core.objectives import best_of
from search.core.problems import UsageError
from search.core.results import Result, trial_folder
from search.core.sweep_folder import SweepFolder, SweepRecord
from search.core.task import task_fingerprints
from search.evaluation.record import Evaluation, read_evaluation
from search.exporting.network import NoGraphError, merged, program
from search.selection.record import Selection
from trainables.backbones.base import Backbone, BackboneError
from trainables.core.records import parse_json
from trainables.core.storage import Storage
from trainables.core.tensor_file import Content, read_tensors
from trainables.core.text import did_you_mean
from trainables.data.base import DataError, Images
from trainables.encoded_task import EncodedTask
from trainables.methods.base import Head, MethodError
from trainables.stages import open_training
from trainables.training import TrainedModel
from trainables.trial import Episode, TaskSpec, TrialConfig
from trainables.validation import accuracy

BEST = "best"
_CPU = "cpu"  # an export runs anywhere


@dataclass(frozen=True)
class Artifact:
    """One artifact of a sweep, and where it comes from."""

    files: Storage
    """The sweep's folder."""
    record: SweepRecord
    """The sweep's record."""
    config: SweepConfig
    """The sweep's configuration."""
    result: Result
    """The trial's result; of an ensemble, the best trial's."""
    trial: TrialConfig
    """The configuration that it was trained with."""
    task: TaskSpec
    """The sweep's task, with the seeds of this artifact and its siblings."""
    episode: Episode
    """The episode that it was trained on."""
    name: str
    """Its file in the sweep's folder."""
    evaluation: Evaluation | None
    """The evaluation of this artifact; None for one that the search trained."""

    @property
    def source(self) -> str:
        """What a registered version comes from: the file, and for an ensemble a digest of its
        members, which may change."""
        return self.name + (f"#{self.trial.fingerprint()[:12]}" if self.trial.members else "")

    @property
    def recorded_accuracy(self) -> float | None:
        """Validation accuracy of this one training, if the sweep has recorded it."""
        others = self.task.validation == "folds" or len(self.task.episodes) > 1
        return None if self.evaluation or others else self.result.accuracy


def find_artifact(sweep: SweepFolder, trial: str, episode: str) -> Artifact:
    """The artifact that `--trial` and `--episode` name; raises `UsageError`."""
    results = sweep.results()
    best = best_of(results.values())
    if best is None:
        raise UsageError(
            [
                f"Only a complete trial can be exported, and '{sweep.name}' has none. Resume it: "
                f"python -m search.run --resume {sweep.name}."
            ]
        )
    if trial == BEST:
        return _winner(sweep, results, episode, best.number)
    result, task = _complete(results, trial, sweep.name), sweep.config.task
    chosen = _episode(task, episode)
    suffix = f"-{task.label(chosen)}" if len(task.episodes) > 1 else ""
    name = f"{trial_folder(result.number)}/artifact{suffix}.safetensors"
    config = TrialConfig.from_dict(result.config)
    return Artifact(
        *(sweep.files, sweep.record, sweep.config, result, config, task, chosen, name, None)
    )


def _winner(sweep: SweepFolder, results: Mapping[int, Result], episode: str, best: int) -> Artifact:
    evaluation = read_evaluation(sweep.files)
    if evaluation is None:
        raise UsageError(
            [
                f"--trial {BEST} requires an evaluated sweep, and '{sweep.name}' has not been "
                f"evaluated. Resume it: python -m search.run --resume {sweep.name}. Or export the "
                f"best trial so far: --trial {best}."
            ]
        )
    result, selection = results.get(evaluation.winner), evaluation.selection
    try:
        written = TrialConfig.from_dict(parse_json(sweep.files.read("winner/config.json")))
    except (FileNotFoundError, ValueError):
        written = None
    if result is None or written is None or not _is_of(written, result, selection, results):
        raise UsageError(
            [
                f"The folder 'winner' must hold trial {evaluation.winner}, which was evaluated, "
                "and it does not. Remove evaluation.json, and repeat the evaluation: "
                f"python -m search.run --resume {sweep.name}."
            ]
        )
    task = replace(sweep.config.task, seeds=evaluation.seeds)
    chosen = _episode(task, episode)
    name = f"winner/artifact-{task.label(chosen)}.safetensors"
    return Artifact(
        *(sweep.files, sweep.record, sweep.config, result, written, task, chosen, name, evaluation)
    )


def _is_of(
    written: TrialConfig,
    result: Result,
    selection: Selection | None,
    results: Mapping[int, Result],
) -> bool:
    """Whether a configuration is that of the evaluated result."""
    if selection is None or selection.is_single:
        return written.to_dict() == result.config
    members = [member.config for member in written.members] or [written]
    numbers = [share.trial for share in selection.members]
    return len(members) == len(numbers) and all(
        number is None or (number in results and member.to_dict() == results[number].config)
        for number, member in zip(numbers, members, strict=True)
    )


def _complete(results: Mapping[int, Result], trial: str, name: str) -> Result:
    complete = [number for number, r in sorted(results.items()) if r.state == "COMPLETE"]
    known = f"Complete trials: {', '.join(map(str, complete))}."
    if not trial.isdecimal():
        raise UsageError([f"--trial must be {BEST} or a trial's number, got '{trial}'. {known}"])
    result = results.get(int(trial))
    if result is None:
        raise UsageError([f"There is no finished trial {trial} in '{name}'. {known}"])
    if result.state != "COMPLETE":
        raise UsageError(
            [f"An exported trial must be complete, and trial {trial} is {result.state}. {known}"]
        )
    return result


def _episode(task: TaskSpec, label: str) -> Episode:
    episodes = {task.label(episode): episode for episode in task.episodes}
    if label and label not in episodes:
        raise UsageError([did_you_mean("episode", label, episodes)])
    return episodes[label] if label else task.episodes[0]


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that a process needs to open the training of an artifact."""

    config: TrialConfig
    """The trial's configuration."""
    task: TaskSpec
    """Backbone and data."""
    episode: Episode
    """The episode that was trained on."""
    data: str
    """Folder of the field's data sets."""
    weights: str
    """Location of the backbone's shared files, or empty."""

    def encoded_task(self, device: str = _CPU) -> EncodedTask:
        """Backbone and data."""
        return EncodedTask(self.task.backbone, device, self.task.source(self.data), self.weights)

    def open(self, task: EncodedTask) -> TrainedModel:
        """The untrained model; raises `MethodError`, `DataError`, `BackboneError`."""
        return open_training(self.config, task, self.episode)

    def to_json(self) -> str:
        """The inverse of `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainingSpec:
        """The inverse of `to_json`."""
        plain: dict[str, Any] = json.loads(text)
        config = TrialConfig.from_dict(plain["config"])
        task, episode = TaskSpec.from_dict(plain["task"]), Episode(**plain["episode"])
        return cls(config, task, episode, plain["data"], plain["weights"])


@dataclass(frozen=True)
class Model:
    """A trained model, opened from its artifact."""

    artifact: Artifact
    """Where it comes from."""
    spec: TrainingSpec
    """How it is opened."""
    content: Content
    """The artifact's tensors and metadata."""
    task: EncodedTask
    """The sweep's backbone and data."""
    trained: TrainedModel
    """The model, with the artifact loaded."""

    @cached_property
    def logits(self) -> Tensor:
        """float32 [n, c] of the validation images, which every export must reproduce."""
        return self.trained.logits(self.trained.val).float()

    @cached_property
    def merged(self) -> tuple[Backbone, Head] | None:
        """The backbone with everything learned folded in, and its classifier, if possible."""
        return merged(self.trained)

    @property
    def graph(self) -> ExportedProgram:
        """The model as one graph; raises `NoGraphError`."""
        if isinstance(self._graph, NoGraphError):
            raise self._graph
        return self._graph

    @cached_property
    def _graph(self) -> ExportedProgram | NoGraphError:
        """Trying takes seconds, also if it fails."""
        try:
            return program(self.trained)
        except NoGraphError as error:
            return error

    @property
    def val_images(self) -> Images:
        """The validation images in their original sizes."""
        episode = self.artifact.episode
        draw = self.task.source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
        return draw.val.images

    @property
    def accuracy(self) -> float:
        """Validation accuracy, a fraction."""
        return accuracy(self.logits, self.trained.val.labels)


def open_model(artifact: Artifact, data: str, device: str = _CPU) -> Model:
    """Open the training of an artifact and load it. Backbone, data and (if it is known) validation
    accuracy are compared with the sweep's record; raises `UsageError`."""
    spec = TrainingSpec(
        artifact.trial, artifact.task, artifact.episode, data, _shared_weights(artifact)
    )
    content = _read(artifact)
    try:
        task = spec.encoded_task(device)
        found = task_fingerprints(artifact.config.task, task.source)
        found["backbone"] = task.backbone.fingerprint
        known = {key: artifact.record.fingerprints.get(key) for key in found}
        if lines := differences(known, found):
            raise UsageError(
                [
                    f"An export needs the data and the backbone of its sweep. {line}. Name the "
                    "right folder with --data."
                    for line in lines
                ]
            )
        trained = spec.open(task)
        trained.load_artifact(*content)
    except MethodError as error:
        raise UsageError([_damaged(artifact, str(error))]) from error
    except (BackboneError, DataError) as error:
        raise UsageError([str(error)]) from error
    model = Model(artifact, spec, content, task, trained)
    _check_accuracy(model)
    return model


def _shared_weights(artifact: Artifact) -> str:
    """Location of the backbone's files in a sweep on a cluster; there is at most one."""
    weights = artifact.files.child("weights")
    names = weights.folders()
    return weights.child(names[0]).location if names else ""


def _read(artifact: Artifact) -> Content:
    if not artifact.files.exists(artifact.name):
        raise UsageError([_damaged(artifact, "it does not exist")])
    content = read_tensors(artifact.files, artifact.name)
    if content is None:
        raise UsageError([_damaged(artifact, "it is not a safetensors file")])
    return content


def _check_accuracy(model: Model) -> None:
    """Detect silent corruption that no checksum covers, e.g. a flipped bit in a residual."""
    recorded, found = model.artifact.recorded_accuracy, model.accuracy
    if not bool(torch.isfinite(model.logits).all()):
        raise UsageError([_damaged(model.artifact, "its logits are not finite")])
    # Devices round differently: one image may be classified differently.
    slack = max(1 / len(model.trained.val), 0.005) + 1e-9
    if recorded is not None and abs(recorded - found) > slack:
        raise UsageError(
            [
                _damaged(
                    model.artifact,
                    f"its validation accuracy is {found:.1%}, and the sweep recorded "
                    f"{recorded:.1%}",
                )
            ]
        )


def _damaged(artifact: Artifact, why: str) -> str:
    return (
        f"An artifact must be intact, and '{artifact.name}' is not: {why}. Restore it from a copy, "
        "or export another trial."
    )
