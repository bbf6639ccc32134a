"""Some real steps of a trial, timed in a process of its own like a worker's.

It trains the paper's setting on the real data with the real backbone, for seconds only, and leaves
nothing behind: what it computes of images goes to a temporary folder.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from search.core.child_process import ChildError, call_in_child
from search.core.environment import quiet_environment
from trainables.methods.registry import METHODS
from trainables.trial import Episode, TaskSpec, TrialConfig

IMAGES = 512
"""A cell with more training images than this is timed with fewer shots, where draws allow it."""
_SECONDS = 6.0  # of training, for each stage
_EPOCHS = 4
_LIMIT = 600.0  # seconds for all of it


class RehearsalError(Exception):
    """The steps could not be timed: why, in one line."""


@dataclass(frozen=True)
class StageCost:
    """What one stage costs on the timed cell, in seconds."""

    ready: float
    """To build the method, and what it does before its first step."""
    train: float
    """One epoch; 0 for a method in closed form."""
    validate: float
    """To judge the validation images once."""
    steps: int
    """Steps that were timed."""


@dataclass(frozen=True)
class Cost:
    """What was measured."""

    images: int
    """Training images of the timed cell."""
    val_images: int
    """Validation images of the timed cell."""
    opened: float
    """Seconds until the backbone was loaded and the images were ready."""
    encode: float
    """Seconds for one image to go through the backbone; 0 where nothing had to."""
    stages: tuple[StageCost, ...]
    """In the order of training."""
    memory: int
    """Peak resident memory of the process, in bytes."""
    gpu_memory: int
    """Peak of what torch had allocated on the GPU, in bytes; 0 on the CPU."""

    def seconds(self, config: TrialConfig, sizes: Sequence[tuple[int, int]]) -> float:
        """A trial of these stages: `sizes` are training and validation images of each cell.

        An epoch is taken to cost what the paper's costs, image by image, whatever else varies.
        """
        total = 0.0
        for train, val in sizes:
            for stage, cost in zip(config.stages, self.stages, strict=True):
                epochs = 0 if stage.fixed else stage.epochs
                judged = cost.validate * val / self.val_images * max(1, epochs)
                total += cost.ready + epochs * cost.train * train / self.images + judged
        return total

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Cost:
        """The inverse of `dataclasses.asdict`."""
        return cls(**(plain | {"stages": tuple(StageCost(**s) for s in plain["stages"])}))


def rehearse(config: TrialConfig, task: TaskSpec, data: str, device: str, threads: int) -> Cost:
    """Time it in a process of its own; raises `RehearsalError`."""
    with tempfile.TemporaryDirectory(prefix="few-shot-rehearsal-") as cache:
        try:
            cost = call_in_child(
                __name__,
                "measure",
                *(config.to_dict(), task.to_dict(), data, device, threads),
                timeout=_LIMIT,
                env=_environment(cache),
            )
        except ChildError as error:
            raise RehearsalError(str(error)) from None
    return Cost.from_dict(cost)


def _environment(cache: str) -> dict[str, str]:
    """Features and images go to `cache`; weights that were downloaded are found where they are."""
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
    episode = _cell(bench, task)
    train, val = bench.views(episode)
    _ = bench.backbone
    loaded = time.monotonic()
    reads = METHODS[config.stages[0].method].input_kind
    train.materialize(reads)
    val.materialize(reads)
    ready = time.monotonic()
    encoded = reads == "features" and train.has_pixels
    costs = tuple(_time_stage(stage, bench, episode) for stage in config.stages)
    return Cost(
        len(train),
        len(val),
        ready - start,
        (ready - loaded) / (len(train) + len(val)) if encoded else 0.0,
        costs,
        peak_memory(),
        torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    )


def _cell(bench: Any, task: TaskSpec) -> Episode:
    """The task's largest, with fewer shots where that is more than can be timed in seconds."""
    episode = max(task.episodes, key=lambda c: len(bench.source.draw(*astuple(c)).train.labels))
    shots = episode.shots
    while task.draws == "seeded" and shots > 1:
        images = len(
            bench.source.draw(episode.dataset, shots, episode.seed, episode.half).train.labels
        )
        if images <= IMAGES:
            break
        shots //= 2
    return replace(episode, shots=shots)


def astuple(episode: Episode) -> tuple[Any, ...]:
    """What `DataSource.draw` is asked with."""
    return episode.dataset, episode.shots, episode.seed, episode.half


def _time_stage(stage: TrialConfig, bench: Any, episode: Episode) -> StageCost:
    """On the backbone as it is: what the stages before it change costs the same."""
    from trainables.trainer import Trainer

    if METHODS[stage.method].input_kind == "features":
        stage = replace(stage, crop_scale=1.0)  # the other views' features are counted apart
    start = time.monotonic()
    trainer = Trainer(replace(stage, before=None, fixed=False), bench, episode)
    trainer.validate()
    before = time.monotonic()
    trainer.validate()
    validate = time.monotonic() - before
    ready = max(0.0, before - start - validate)
    if not trainer.epochs:
        return StageCost(ready, 0.0, validate, 0)
    train, steps = _time_epoch(trainer)
    return StageCost(ready, max(0.0, train - validate), validate, steps)


def _time_epoch(trainer: Any) -> tuple[float, int]:
    """Seconds of an epoch with its validation, and the steps that were timed.

    The first epoch warms up. Of one that takes longer than there is time, the steps are timed that
    there is time for.
    """
    begun: list[float] = []
    inner, deadline = trainer.method.backward, time.monotonic() + _SECONDS

    def counted(batch: Any, rng: torch.Generator) -> dict[str, float]:
        if len(begun) >= 3 and time.monotonic() > deadline:
            raise _EnoughError
        begun.append(time.monotonic())
        scalars: dict[str, float] = inner(batch, rng)
        return scalars

    trainer.method.backward = counted
    epochs: list[float] = []
    try:
        while len(epochs) < min(_EPOCHS, trainer.epochs):
            start = time.monotonic()
            trainer.run_epoch()
            epochs.append(time.monotonic() - start)
    except _EnoughError:
        pass
    if epochs:
        return statistics.median(epochs[1:] or epochs), len(begun)
    steps = trainer.config.optim.steps_per_epoch(len(trainer.train))
    step = statistics.median(b - a for a, b in itertools.pairwise(begun))
    return step * steps, len(begun)


def peak_memory() -> int:
    """The most that this process has had in memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(
    config: dict[str, Any], task: dict[str, Any], data: str, device: str, threads: int
) -> dict[str, Any]:
    """`rehearse` in this process, with its arguments and its result as JSON."""
    quiet_environment()
    cost = _measure(TrialConfig.from_dict(config), TaskSpec.from_dict(task), data, device, threads)
    return asdict(cost)
