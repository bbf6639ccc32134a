"""The evaluation's tasks on Ray: train a model on a draw, classify a test split with models.

The only module that may read test data. A training process cannot, and an evaluation process cannot
train (see `trainables.data.sealed`). Results are stored in the sweep's folder as soon as they are
there, so that a crash loses only what is being computed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from search.core.task import EvaluationSet
from search.evaluation.examples import Example, decode_examples, encode_examples, take_examples
from search.evaluation.predictions import (
    PredictionTable,
    decode_predictions,
    encode_predictions,
    file_names,
    from_logits,
)
from search.evaluation.record import Label, is_recorded
from trainables.core.plugins import receive_plugins
from trainables.core.storage import Storage, open_storage
from trainables.core.tensor_file import read_checked, write_checked
from trainables.data.base import Dataset, SealedError, Shift, distinct
from trainables.data.class_subsets import Half, classes_of
from trainables.data.sealed import read_test_split, seal_process
from trainables.encoded_task import EncodedTask, Progress, View
from trainables.stages import first_stages, open_training
from trainables.training import Training
from trainables.trial import Episode, TaskSpec, TrialConfig
from trainables.trial_run import TrialRun

FOLDER = "evaluation"
"""Folder of unfinished evaluations in a sweep's folder; removed when one is finished."""


@dataclass(frozen=True)
class EncodedTaskSpec:
    """What a worker needs to set up its `EncodedTask`."""

    task: TaskSpec
    """The sweep's task."""
    data: str
    """Folder of the field's data sets."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """Threads of torch."""
    weights: str
    """Where the backbone's files were shared, or empty."""
    stages: str = ""
    """Where the sweep keeps the results of fixed stages, or empty."""
    plugins: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Names and sources of files of plugins, which the worker may not have."""

    def open(self, progress: Callable[[Progress], None] | None = None) -> EncodedTask:
        """Open it in this process, before anything that plugins define is used."""
        receive_plugins(dict(self.plugins))
        torch.set_num_threads(self.threads)
        source = self.task.source(self.data)
        backbone = self.task.backbone
        return EncodedTask(backbone, self.device, source, self.weights, progress, self.stages)


@dataclass(frozen=True)
class Candidate:
    """One configuration on one draw: a model to be evaluated."""

    label: Label
    """The model's role."""
    episode: Episode
    """The draw that it is trained on."""
    config: dict[str, Any]
    """`TrialConfig.to_dict()`."""
    training: str
    """Digest of its training, see `trainables.fixed.training_key`; equal for equal models."""
    stages: int = 0
    """How many stages of the trained pipeline it has; 0 for all."""

    @property
    def key(self) -> tuple[str, int]:
        """Equal for equal models."""
        return self.training, self.stages


@dataclass(frozen=True)
class SplitJob:
    """One read of a test split: the models that it evaluates."""

    split: EvaluationSet
    """The test split."""
    candidates: tuple[Candidate, ...]
    """Different models, in the order in which their predictions are stored."""
    examples: int
    """How many example images of each kind to keep per part."""
    pair: tuple[int, int] | None
    """Places among `candidates` of the zero-shot model and the winner, if examples are taken."""

    @property
    def file(self) -> str:
        """Name of the file with its result: a digest of what it depends on."""
        keys = [repr(c.key) for c in self.candidates]
        text = "\n".join([repr(self.split), str(self.examples), repr(self.pair), *keys])
        return f"predictions-{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def training_file(training: str) -> str:
    """Name of the file with a trained model."""
    return f"model-{training}.safetensors"


def facts_file(training: str) -> str:
    """Name of the file with the `TrainingFacts` of a trained model."""
    return f"facts-{training}.json"


@dataclass(frozen=True)
class TrainingFacts:
    """What a training was like."""

    seconds: float
    """Time in training, without loading."""
    epochs: int
    """Epochs of all stages."""
    parameters: int
    """Learned numbers of the last stage."""
    bytes: int
    """Size of the artifact's tensors."""
    metrics: dict[str, float]
    """The method's own metrics at the end, e.g. `mask/sparsity`."""


# --- on a worker ---------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _warm(spec: EncodedTaskSpec) -> EncodedTask:
    """A worker's process keeps its backbone and its features from one task to the next."""
    return spec.open()


def train(
    candidate: Candidate, spec: EncodedTaskSpec, sweep: str, checkpoint_seconds: float
) -> None:
    """Train a candidate, from its checkpoint if there is one, and store facts and artifact. Runs in
    a training process."""
    seal_process()
    encoded = _warm(spec)
    config = TrialConfig.from_dict(candidate.config)
    trainer = open_training(config, encoded, candidate.episode)
    folder = open_storage(sweep).child(FOLDER)
    checkpoint = f"checkpoint-{candidate.training}.safetensors"
    seconds = load_checkpoint(trainer, folder, checkpoint)
    begun = saved = time.monotonic()
    while trainer.epoch < trainer.epochs:
        trainer.run_epoch(validate=False)
        now = time.monotonic()
        if now - saved >= checkpoint_seconds and trainer.epoch < trainer.epochs:
            save_checkpoint(trainer, folder, checkpoint, seconds + now - begun)
            saved = now
    tensors, metadata = trainer.artifact()
    facts = TrainingFacts(
        round(seconds + time.monotonic() - begun, 3),
        trainer.epochs,
        trainer.parameter_count,
        sum(t.numel() * t.element_size() for t in tensors.values()),
        trainer.progress(),
    )
    folder.write(facts_file(candidate.training), json.dumps(asdict(facts)).encode())
    write_checked(folder, training_file(candidate.training), tensors, metadata)  # last: it ends it
    folder.delete(checkpoint)


def save_checkpoint(trainer: Training, folder: Storage, name: str, seconds: float) -> None:
    """Store everything that the rest of a training depends on, and the time that it has taken."""
    tensors, plain = trainer.state()
    state = {"format": "training checkpoint", "state": json.dumps(plain), "seconds": str(seconds)}
    write_checked(folder, name, tensors, state)


def load_checkpoint(trainer: Training, folder: Storage, name: str) -> float:
    """Continue from `save_checkpoint`; return the seconds trained before, 0 without a whole
    checkpoint."""
    found = read_checked(folder, name)
    if found is None:
        return 0.0
    tensors, metadata = found
    trainer.load_state(tensors, json.loads(metadata["state"]))
    return float(metadata["seconds"])


def predict_validation(
    config: dict[str, Any], task: dict[str, Any], spec: EncodedTaskSpec, folder: str
) -> None:
    """Store the validation predictions of a configuration with nothing to train, on the episodes
    of `task`, the search's. Runs in a training process."""
    seal_process()
    encoded = _warm(spec)
    run = TrialRun(TrialConfig.from_dict(config), TaskSpec.from_dict(task), encoded)
    run.advance()
    run.save_predictions(open_storage(folder))


def classify(job: SplitJob, spec: EncodedTaskSpec, sweep: str, moment: float) -> None:
    """Read a test split once, and store the predictions of every candidate and some examples.

    Runs in an evaluation process. The driver has recorded the read (`record_read`) at `moment`.
    """
    encoded = _warm(spec)
    storage = open_storage(sweep).child(FOLDER)
    dataset = encoded.source.dataset(job.split.target)

    def confirm() -> None:
        if not is_recorded(open_storage(sweep), job.split.target, moment):
            raise SealedError(f"The read of '{job.split.target}' must be recorded first.")

    test = encoded.source.readable(read_test_split(dataset, confirm))
    tables, examples = [], []
    begun = time.monotonic()
    names = distinct(dataset.class_names)
    for half in job.split.halves:
        kept = classes_of(half, len(names))
        split = test if half == "all" else test.of_classes(kept)
        view = encoded.view(split, dataset.flip)
        answers = [
            from_logits(
                c.label, c.episode, _logits(job.split, half, dataset, view, c, encoded, storage)
            )
            for c in job.candidates
        ]
        rows = torch.isin(test.labels, torch.tensor(kept)).nonzero().flatten()
        table = PredictionTable(
            job.split.target,
            job.split.part(half),
            tuple(names[label] for label in kept),
            rows.int().numpy(),
            file_names(split.images),
            split.labels.numpy().astype(np.uint16),
            tuple(answers),
        )
        tables.append(table)
        if job.pair is not None:
            before, after = (answers[place] for place in job.pair)
            examples += take_examples(table, split.images, job.examples, before, after)
    _store(storage, job, tables, examples, time.monotonic() - begun)


def _logits(
    evaluated: EvaluationSet,
    half: Half,
    dataset: Dataset,
    view: View,
    candidate: Candidate,
    encoded: EncodedTask,
    storage: Storage,
) -> Tensor:
    """[n, c]: the candidate's logits for the classes of this part of the split."""
    episode = candidate.episode
    artifact = read_checked(storage, training_file(candidate.training))
    if artifact is None:
        raise FileNotFoundError(f"The trained model {candidate.training[:12]} is missing.")
    if candidate.stages:
        artifact = first_stages(artifact, candidate.stages)
    trainer = open_training(TrialConfig.from_dict(candidate.config), encoded, episode)
    trainer.load_artifact(*artifact)
    if not evaluated.shift and (evaluated.target, half) != (episode.dataset, episode.half):
        trainer.set_classes(evaluated.target, half)
    logits = trainer.logits(view)
    if evaluated.shift and evaluated.target != episode.dataset:
        logits = logits[:, list(cast(Shift, dataset).source_classes)]
    return logits


# --- the stored result of a read -----------------------------------------------------------------


def _store(
    storage: Storage,
    job: SplitJob,
    tables: Sequence[PredictionTable],
    examples: Sequence[Example],
    seconds: float,
) -> None:
    """One file with a checksum, whole or absent."""
    files = {"predictions": encode_predictions(tables), "examples": encode_examples(examples)}
    tensors = {
        name: torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for name, data in files.items()
    }
    write_checked(storage, job.file, tensors, _RESULT | {"seconds": str(seconds)})


_RESULT = {"format": "split predictions"}


def read_seconds(storage: Storage, job: SplitJob) -> float:
    """How long a worker took to read a test split and to classify it; 0 if that is unknown."""
    found = read_checked(storage, job.file)
    return float(found[1].get("seconds", 0)) if found else 0.0


def load_result(
    storage: Storage, job: SplitJob
) -> tuple[list[PredictionTable], list[Example]] | None:
    """The stored result of a job; None if there is none that is undamaged."""
    found = read_checked(storage, job.file)
    if found is None:
        return None
    predictions, examples = (
        found[0][name].numpy().tobytes() for name in ("predictions", "examples")
    )
    return decode_predictions(predictions), decode_examples(examples)
