"""Runs identical trainings of one trial only once.

Draws that use every available training image (e.g. a bundle with all its shots) have the same
training set. If it fits one batch and the training uses neither crops nor random numbers, the
trained models are equal up to rounding; only the validation images differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trainables.data.base import image_keys
from trainables.trainer import Trainer
from trainables.training import Training
from trainables.trial import Episode


def share_repeated(trainings: Sequence[Training]) -> list[Training]:
    """Replace trainings that repeat an earlier one, so that they share its model."""
    firsts: dict[tuple[str, int, tuple[str, ...]], Trainer] = {}
    found: list[Training] = []
    for training in trainings:
        if not (isinstance(training, Trainer) and _is_one_batch(training)):
            found.append(training)
            continue
        episode = training.episode
        drawn = training.encoded_task.source.draw(
            episode.dataset, episode.shots, episode.seed, episode.half
        )
        key = (episode.dataset, episode.shots, tuple(sorted(image_keys(drawn.train))))
        first = firsts.setdefault(key, training)
        repeats = first is not training and first.config == training.config
        found.append(RepeatedTraining(first, training) if repeats else training)
    return found


def _is_one_batch(trainer: Trainer) -> bool:
    """Whether an epoch is one step on all images, uncropped."""
    uncropped = trainer.config.crop_scale == 1 or not trainer.train.has_pixels
    return uncropped and len(trainer.train) <= trainer.config.optim.batch_size


class RepeatedTraining(Training):
    """A training that follows the model of an earlier one, as long as that draws no random numbers.

    If it does, this one trains by itself, from its beginning.
    """

    def __init__(self, first: Trainer, own: Trainer) -> None:
        self._first, self._own = first, own
        self.config, self.val = own.config, own.val
        self.episode: Episode = own.episode
        self._epoch = 0

    @property
    def _follows(self) -> bool:
        return self._own.epoch == 0 and not self._first.has_drawn

    @property
    def _current(self) -> Trainer:
        return self._first if self._follows else self._own

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def epochs(self) -> int:
        return self._own.epochs

    def advancing(self) -> Sequence[Trainer]:
        """Return nothing while it follows; the own training, unless it has to catch up first."""
        return [] if self._follows or self._own.epoch < self._epoch else [self._own]

    def run_epoch(self, validate: bool = True) -> dict[str, float]:
        """Take over what the first training has done since, or train the next epoch."""
        if self._follows:
            self._epoch = self._first.epoch
            return self._first.latest | (self.validate() if validate else {})
        self._epoch += 1
        metrics: dict[str, float] = {}
        while self._own.epoch < self._epoch:
            metrics = self._own.run_epoch(validate)
        return metrics

    def validate(self) -> dict[str, float]:
        return self._current.validate_on(self.val)

    @property
    def is_idle(self) -> bool:
        return self._own.is_idle

    def validation_logits(self) -> Tensor:
        return self._current.logits(self.val)

    def forecast(self) -> dict[str, float]:
        return self._own.forecast()

    def warnings(self) -> list[str]:
        return self._own.warnings()

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        return self._current.artifact()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The training's own state if it trains by itself, else only its epoch."""
        if self._follows:
            return {}, {"follows": self._epoch}
        return self._own.state()

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        if "follows" in plain:
            self._epoch = int(plain["follows"])
            return
        self._own.load_state(tensors, plain)
        self._epoch = self._own.epoch
