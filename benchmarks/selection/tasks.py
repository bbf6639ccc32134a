"""Few-shot tasks on real CLIP features, with the positions of the images of every draw.

All images of a bundle are numbered through: its training pool, its validation pool, its test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from trainables.data.base import FeatureRows, Split
from trainables.data.bundle import Bundle, open_bundle
from trainables.data.few_shot import VAL_SHOTS, sample_shots
from trainables.data.registry import DataSource
from trainables.data.sealed import TestPermit
from trainables.encoded_task import EncodedTask
from trainables.methods.base import TaskFacts
from trainables.trial import Episode
from trainables.view import View

SEARCH_DRAWS = (1, 2, 3)
"""Draws that a trial of the sweep is trained on."""
FRESH_DRAWS = (4, 5)
"""Draws that the result is trained on for its test accuracy."""


@dataclass(frozen=True)
class BenchTask:
    """A bundle and a number of shots."""

    path: Path
    """The bundle."""
    data_set: str
    """Images of one origin: constants are fitted on other data sets than the one they are judged
    on."""
    shots: int
    """Training images per class."""

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.path.stem.rpartition('_')[0]}-{self.shots}"

    @cached_property
    def bundle(self) -> Bundle:
        """The opened bundle."""
        return open_bundle(self.path)

    @property
    def draws(self) -> tuple[int, ...]:
        """The draws that differ: one if the shots are the whole pool."""
        return SEARCH_DRAWS[:1] if self.shots == self.bundle.shots else SEARCH_DRAWS + FRESH_DRAWS

    def train_rows(self, draw: int) -> Tensor:
        """Positions of the training images of a draw, int64 [n]."""
        return _drawn(self.bundle.split("train"), self.shots, draw)

    def val_rows(self, draw: int) -> Tensor:
        """Positions of the validation images of a draw, int64 [n]."""
        found = _drawn(self.bundle.split("val"), min(self.shots, VAL_SHOTS), draw)
        return found + len(self.bundle.split("train").labels)

    @cached_property
    def _splits(self) -> tuple[Split, ...]:
        test = self.bundle.sealed_split(TestPermit(self.bundle.name))
        return self.bundle.split("train"), self.bundle.split("val"), test

    @property
    def labels(self) -> Tensor:
        """Labels of all images, int64 [n]."""
        return torch.cat([split.labels for split in self._splits])

    @property
    def features(self) -> Tensor:
        """Features of all images, float32 [n, d]."""
        return torch.cat([_features(split) for split in self._splits])

    @property
    def test_rows(self) -> Tensor:
        """Positions of the test images."""
        known = sum(len(split.labels) for split in self._splits[:2])
        return torch.arange(known, len(self.labels))

    def zero_shot(self) -> Tensor:
        """Log-probabilities of the zero-shot model for all images, float32 [n, c]."""
        texts = functional.normalize(self.bundle.class_features, dim=-1)
        images = functional.normalize(self.features, dim=-1)
        return (self.bundle.logit_scale * images @ texts.T).log_softmax(dim=-1)


class BenchData(EncodedTask):
    """A task's data for the trainer: an episode's seed is a key of the positions to train on."""

    def __init__(self, task: BenchTask) -> None:
        super().__init__(task.bundle.name, "cpu", DataSource())
        self.task = task
        self.rows: dict[int, Tensor] = {}
        """Seed of an episode -> positions of its training images."""
        self._all = Split(FeatureRows(task.features, task.bundle.name), task.labels, "all")

    def views(self, episode: Episode) -> tuple[View, View]:
        """Those images for training, and for validation, which is not used."""
        rows = self.rows.get(episode.seed)
        rows = self.task.train_rows(episode.seed) if rows is None else rows
        view = self.view(self._all.take(rows), False)
        return view, view

    @cached_property
    def everything(self) -> View:
        """All images."""
        return self.view(self._all, False)

    def facts(self, images: int) -> TaskFacts:
        """What a preset knows of the task."""
        task = self.task
        return TaskFacts(task.bundle.name, task.shots, images, self.backbone.tower, pixels=False)


def find_tasks(root: Path) -> list[BenchTask]:
    """The tasks of the bundles in `SHARED_DATA`, the first ones of every kind."""
    folder = root / "clip-features"
    groups = sorted(folder.glob("imagenet_group*_2shot.safetensors"))
    large = [(root / "clip-vitb32/oxford_pets25_16shot.safetensors", "pets")]
    large += [(folder / f"whurs19_clip_{b}_16shot.safetensors", "whu") for b in ("vitb32", "rn50")]
    found = [BenchTask(path, data_set, 4) for path, data_set in large]
    found += [BenchTask(path, "imagenet", 1) for path in groups[:2]]
    found += [BenchTask(path, data_set, shots) for shots in (16, 1) for path, data_set in large]
    found += [BenchTask(path, "imagenet", 2) for path in groups[:5]]
    found += [BenchTask(path, data_set, 2) for path, data_set in large]
    found += [BenchTask(path, "imagenet", 2) for path in groups[5:]]
    found += [BenchTask(path, "imagenet", 1) for path in groups[2:]]
    return [task for task in found if task.path.exists()]


def _drawn(pool: Split, shots: int, draw: int) -> Tensor:
    drawn = sample_shots(pool.labels, shots, draw, pool.fingerprint)
    return torch.tensor([row for rows in drawn.values() for row in rows])


def _features(split: Split) -> Tensor:
    assert isinstance(split.images, FeatureRows)
    return split.images.features
