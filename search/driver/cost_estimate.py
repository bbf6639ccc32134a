"""Time and memory of a trial, estimated from some real steps in a child process.

The child trains the paper's setting on the real data with the real backbone for a few seconds, like
a worker. What it computes of images goes to a temporary folder.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from search.core.child_process import ChildError, call_in_child
from search.core.environment import quiet_environment
from search.core.task import validated_images
from trainables.core.files import temporary_folder
from trainables.core.optim import OptimConfig
from trainables.data.registry import DataSource
from trainables.methods.base import Batch
from trainables.methods.registry import METHODS
from trainables.trial import Episode, TaskSpec, TrialConfig
from trainables.validation import MOST_FOLDS

IMAGES = 512
"""An episode with more training images than this is timed with fewer shots, if draws allow it."""
_SECONDS = 6.0  # of training, for each stage
_EPOCHS = 4
_REPEATS = 3  # of a step with few and with many images
_LIMIT = 600.0  # seconds in all


class Size(NamedTuple):
    """Images of an episode."""

    train: int
    """Training images."""
    val: int
    """Validation images."""
    models: int = 1
    """Number of trainings on so many training images, e.g. one per fold."""


class RehearsalError(Exception):
    """The steps could not be timed; the message is one line."""


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage of the timed episode, in seconds."""

    ready: float
    """Building the method, and what it does before its first step."""
    step: float
    """One step of the optimiser, besides its images; 0 for a training-free method."""
    image: float
    """One training image in a step."""
    validate: float
    """One pass over the validation images."""
    steps: int
    """Number of steps that were timed."""

    def epoch(self, optim: OptimConfig, images: int) -> float:
        """Seconds of an epoch on so many training images."""
        steps = optim.steps_per_epoch(images)
        return steps * (self.step + self.image * min(images, optim.batch_size))


@dataclass(frozen=True)
class Cost:
    """Measured time and memory of one episode."""

    images: int
    """Training images of the timed episode."""
    val_images: int
    """Validation images of the timed episode."""
    opened: float
    """Seconds until the backbone was loaded and the images were ready."""
    encode: float
    """Seconds for one image to go through the backbone; 0 if the method trains on images."""
    stages: tuple[StageCost, ...]
    """Cost of each stage, in the order of training."""
    memory: int
    """Peak resident memory of the process, in bytes."""
    gpu_memory: int
    """Peak memory that torch allocated on the GPU, in bytes; 0 on the CPU."""
    episode_memory: int = 0
    """Memory that the episode holds until the trial ends, in bytes."""
    episode_gpu_memory: int = 0
    """GPU memory that the episode holds until the trial ends, in bytes."""

    def seconds(
        self, config: TrialConfig, sizes: Sequence[Size], validations: int | None = None
    ) -> float:
        """Seconds for training and validating on episodes of these sizes; `validations` is the
        largest number of validations per stage, by default one per epoch.

        A step is assumed to cost what the paper's costs with as many images, whatever else varies.
        """
        total = 0.0
        for size in sizes:
            for stage, cost in zip(config.stages, self.stages, strict=True):
                epochs = 0 if stage.fixed else stage.epochs
                times = max(1, epochs if validations is None else min(epochs, validations))
                validation = cost.validate * size.val / self.val_images * times
                training = size.models * epochs * cost.epoch(stage.optim, size.train)
                total += cost.ready + training + validation
        return total

    def preparation(self, sizes: Sequence[Size]) -> float:
        """Seconds for encoding the images of these episodes once."""
        return self.encode * sum(size.train + size.val for size in sizes)

    def trial_memory(self, sizes: Sequence[Size]) -> tuple[int, int]:
        """Bytes of memory, and of GPU memory, of a trial, which holds all its episodes at once."""
        timed = self.images + self.val_images
        more = sum(max(1.0, (size.train + size.val) / timed) for size in sizes) - 1
        return (
            self.memory + int(more * self.episode_memory),
            self.gpu_memory + int(more * self.episode_gpu_memory),
        )

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Cost:
        """The inverse of `dataclasses.asdict`."""
        return cls(**(plain | {"stages": tuple(StageCost(**s) for s in plain["stages"])}))


def rehearse(config: TrialConfig, task: TaskSpec, data: str, device: str, threads: int) -> Cost:
    """Time a configuration in a child process; raises `RehearsalError`."""
    with temporary_folder() as cache:
        try:
            cost = call_in_child(
                __name__,
                "measure",
                *(config.to_dict(), task.to_dict(), data, device, threads),
                timeout=_LIMIT,
                env=_environment(str(cache)),
            )
        except ChildError as error:
            raise RehearsalError(str(error)) from None
    return Cost.from_dict(cost)


def _environment(cache: str) -> dict[str, str]:
    """Return an environment that caches data in `cache` and shares downloaded weights."""
    usual = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    weights = os.environ.get("HF_HOME") or f"{usual}/huggingface"
    return os.environ | {"XDG_CACHE_HOME": cache, "HF_HOME": weights}


class _EnoughError(Exception):
    """Enough steps have been timed."""


def _measure(config: TrialConfig, task: TaskSpec, data: str, device: str, threads: int) -> Cost:
    import trainables.trainable  # noqa: F401 - which loads Ray, as a worker does
    from trainables.data.sealed import seal_process
    from trainables.encoded_task import EncodedTask

    seal_process()
    torch.set_num_threads(threads)
    start = time.monotonic()
    bench = EncodedTask(task.backbone, device, task.source(data))
    episode = _timed_episode(bench, task)
    train, val = bench.views(episode)
    _ = bench.backbone
    loaded, before = time.monotonic(), _memory_now(device)
    reads = METHODS[config.stages[0].method].input_kind
    train.materialize(reads)
    val.materialize(reads)
    ready = time.monotonic()
    encoded = reads == "features" and train.has_pixels
    trainers: list[Any] = []  # as a trial holds them
    costs = tuple(_time_stage(stage, bench, episode, trainers) for stage in config.stages)
    after = _memory_now(device)
    return Cost(
        len(train),
        len(val),
        ready - start,
        (ready - loaded) / (len(train) + len(val)) if encoded else 0.0,
        costs,
        peak_memory(),
        torch.cuda.max_memory_allocated() if device == "cuda" else 0,
        max(0, after[0] - before[0]),
        max(0, after[1] - before[1]),
    )


def draw_size(source: DataSource, episode: Episode) -> Size:
    """Training and validation images of an episode."""
    drawn = source.draw(episode.dataset, episode.shots, episode.seed, episode.half)
    return Size(len(drawn.train.labels), len(drawn.val.labels))


def search_sizes(task: TaskSpec, source: DataSource) -> list[Size]:
    """Images that a trial trains on and validates on, in each episode: with k folds, k trainings
    of all but a k-th of the images, and one of all."""
    found = []
    for episode, keys in zip(task.episodes, validated_images(task, source), strict=True):
        train = draw_size(source, episode)[0]
        folds = min(episode.shots, MOST_FOLDS) if task.validation == "folds" else 1
        found.append(Size(train, len(keys), folds))
    return found


def _timed_episode(bench: Any, task: TaskSpec) -> Episode:
    """The task's largest episode, with fewer shots if it cannot be timed in seconds."""
    episode = max(task.episodes, key=lambda e: draw_size(bench.source, e)[0])
    while (
        task.draws == "seeded"
        and episode.shots > 1
        and draw_size(bench.source, episode)[0] > IMAGES
    ):
        episode = replace(episode, shots=episode.shots // 2)
    return episode


def _time_stage(stage: TrialConfig, bench: Any, episode: Episode, trainers: list[Any]) -> StageCost:
    """Time a stage on the unchanged backbone, which costs as much as on a changed one."""
    from trainables.trainer import Trainer

    if METHODS[stage.method].input_kind == "features":
        stage = replace(stage, crop_scale=1.0)  # augmented views are counted apart
    start = time.monotonic()
    stage = replace(stage, before=None, fixed=False)
    trainer = Trainer(stage, bench, episode)
    if trainer.is_idle:  # AdamW takes as long, and its training is never left out
        stage = replace(stage, optim=replace(stage.optim, optimiser="adamw"))
        trainer = Trainer(stage, bench, episode)
    trainers.append(trainer)
    trainer.validate()
    before = time.monotonic()
    trainer.validate()
    validate = time.monotonic() - before
    ready = max(0.0, before - start - validate)
    if not trainer.epochs:
        return StageCost(ready, 0.0, 0.0, validate, 0)
    epoch, steps, batch = _time_epoch(trainer)
    per_step = epoch / trainer.config.optim.steps_per_epoch(len(trainer.train))
    return StageCost(ready, *_parts_of_step(trainer, batch, per_step), validate, steps)


def _parts_of_step(trainer: Any, batch: Batch, seconds: float) -> tuple[float, float]:
    """Divide the seconds of a step into those of the step itself and those per image of `batch`:
    small batches cost more per image. Only the images' share shrinks with the batch."""
    count, few = len(batch.labels), max(1, len(batch.labels) // 8)
    if few == count:
        return seconds, 0.0
    small = replace(
        batch,
        inputs=batch.inputs[:few],
        labels=batch.labels[:few],
        zero_shot_logits=None if (z := batch.zero_shot_logits) is None else z[:few],
    )
    rng, times = torch.Generator().manual_seed(0), []
    for part in (batch, small):
        taken = []
        for _ in range(_REPEATS):
            start = time.monotonic()
            trainer.method.backward(part, rng)
            taken.append(time.monotonic() - start)
        times.append(min(taken))
    whole, part_of_it = times
    image = max(0.0, whole - part_of_it) / (count - few)
    share = min(1.0, image * count / max(whole, 1e-9))
    return seconds * (1 - share), seconds * share / count


def _time_epoch(trainer: Any) -> tuple[float, int, Batch]:
    """Seconds of an epoch without validation, the steps that were timed, and a batch.

    The first epoch warms up. Of one that takes longer than there is time, the steps are timed that
    there is time for.
    """
    begun: list[float] = []
    batches: list[Batch] = []
    inner, deadline = trainer.method.backward, time.monotonic() + _SECONDS

    def counted(batch: Batch, rng: torch.Generator) -> dict[str, float]:
        if len(begun) >= 3 and time.monotonic() > deadline:
            raise _EnoughError
        begun.append(time.monotonic())
        batches[:] = [batch]
        scalars: dict[str, float] = inner(batch, rng)
        return scalars

    trainer.method.backward = counted
    epochs: list[float] = []
    try:
        while len(epochs) < min(_EPOCHS, trainer.epochs):
            start = time.monotonic()
            trainer.run_epoch(validate=False)
            epochs.append(time.monotonic() - start)
    except _EnoughError:
        pass
    trainer.method.backward = inner
    if epochs:
        return statistics.median(epochs[1:] or epochs), len(begun), batches[0]
    steps = trainer.config.optim.steps_per_epoch(len(trainer.train))
    step = statistics.median(b - a for a, b in itertools.pairwise(begun))
    return step * steps, len(begun), batches[0]


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    return _status("VmHWM")


def _memory_now(device: str) -> tuple[int, int]:
    """Resident memory of this process, and what torch has allocated on the GPU, in bytes."""
    return _status("VmRSS"), torch.cuda.memory_allocated() if device == "cuda" else 0


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(
    config: dict[str, Any], task: dict[str, Any], data: str, device: str, threads: int
) -> dict[str, Any]:
    """`rehearse` in this process, with its arguments and its result as JSON."""
    quiet_environment()
    cost = _measure(TrialConfig.from_dict(config), TaskSpec.from_dict(task), data, device, threads)
    return asdict(cost)
