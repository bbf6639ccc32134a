"""What models say of the images of a test split.

Notation: n images, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from search.evaluation.record import Label, Part
from trainables.data.base import FeatureRows, Images, PixelRows
from trainables.trial import Episode


@dataclass(frozen=True)
class ModelPredictions:
    """What one model said of the images of a sheet."""

    label: Label
    """What it stands for."""
    dataset: str
    """What it was trained on."""
    shots: int
    """With how many images a class."""
    seed: int
    """Of the fresh draw."""
    prediction: NDArray[np.uint16]
    """[n], positions in the sheet's class names."""
    confidence: NDArray[np.float32]
    """[n], the softmax probability of the prediction."""

    @property
    def model(self) -> tuple[Label, str, int]:
        """What it is among other models, whatever the draw."""
        return self.label, self.dataset, self.shots


@dataclass(frozen=True)
class PredictionTable:
    """The images of one part of a test split, and what was said of them."""

    target: str
    """Whose test split it is."""
    part: Part
    """Which of its images."""
    classes: tuple[str, ...]
    """Names of the classes that were told apart."""
    images: NDArray[np.int32]
    """[n], positions in the test split as it was read."""
    files: tuple[str, ...]
    """The images' names; empty where they have none."""
    truth: NDArray[np.uint16]
    """[n], positions in `classes`."""
    answers: tuple[ModelPredictions, ...]
    """One a model and draw."""

    def right(self, answers: ModelPredictions) -> NDArray[np.bool_]:
        """[n], whether the prediction is the truth."""
        return np.equal(answers.prediction, self.truth)

    def accuracy(self, answers: ModelPredictions) -> float:
        """A fraction."""
        return float(self.right(answers).mean())


def from_logits(label: Label, episode: Episode, logits: Tensor) -> ModelPredictions:
    """Logits [n, c] of a model trained on `cell`, as predictions."""
    said = logits.argmax(-1)
    confidence = logits.float().softmax(-1).gather(-1, said[:, None])[:, 0]
    return ModelPredictions(
        label,
        episode.dataset,
        episode.shots,
        episode.seed,
        said.cpu().numpy().astype(np.uint16),
        confidence.cpu().numpy(),
    )


def file_names(images: Images) -> tuple[str, ...]:
    """The images' names, where these say more than their positions; else empty."""
    if isinstance(images, FeatureRows | PixelRows):
        return ()
    return tuple(images.name(row) for row in range(len(images)))
