"""Interfaces of what is trained on one episode: the training, and the model that results.

Notation: n images, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.data.class_subsets import Half
from trainables.methods.base import Predictor
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig
from trainables.view import View


class Training(Protocol):
    """The training of a configuration on one episode, from its first epoch to its artifact."""

    config: TrialConfig
    episode: Episode
    val: View

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""

    @property
    def epochs(self) -> int:
        """Number of epochs of all stages."""

    @property
    def is_idle(self) -> bool:
        """Whether training provably leaves the model as it is, so that epochs only count."""

    def forecast(self) -> dict[str, float]:
        """Return what is known before training, by name."""

    def warnings(self) -> list[str]:
        """Return what the user should know before training."""

    def advancing(self) -> Sequence[Trainer]:
        """Return the trainers of which the next `run_epoch` trains an epoch."""

    def run_epoch(self, validate: bool = True) -> dict[str, float]:
        """Train on all images once; return the epoch's metrics, with `validate` also `val/*`."""

    def validate(self) -> dict[str, float]:
        """Return `val/*` on the validation images."""

    def validation_logits(self) -> Tensor:
        """Return logits [n, c] for the validation images."""

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the result of the training: tensors and metadata."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that the rest of the training depends on."""

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from `state`, bit for bit."""


class TrainedModel(Protocol):
    """A model that classifies images, trained or loaded from an artifact."""

    val: View

    @property
    def method(self) -> Predictor:
        """What computes the logits: the method of the last stage."""

    @property
    def backbone(self) -> Backbone:
        """The backbone that it is trained on."""

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Load the result of a training; raises `MethodError`."""

    def set_classes(self, dataset: str, half: Half) -> None:
        """Classify another data set, or another half of the classes."""

    def logits(self, view: View) -> Tensor:
        """Return logits [n, c] for the images of a view."""

    @property
    def parameter_count(self) -> int:
        """Learned numbers of the last stage."""

    def progress(self) -> dict[str, float]:
        """Return scalars about what was learned, see `Method.progress`."""
