"""Validation inside the few shots: each labelled image by a model that was trained without it.

Notation: n training images of a draw, k folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.core.tensor_file import numbered, split_numbered
from trainables.encoded_task import EncodedTask
from trainables.trainer import Trainer
from trainables.training import Training
from trainables.trial import Episode, TrialConfig
from trainables.validation import fold_rows, validation_metrics
from trainables.view import View, ViewRows


class FoldedTraining(Training):
    """One training per fold, which leaves out the fold's images, and one on all images, whose model
    is kept. All advance together."""

    def __init__(self, config: TrialConfig, encoded_task: EncodedTask, episode: Episode) -> None:
        """Raises `MethodError`, `DataError`, `BackboneError`."""
        self.config, self.episode = config, episode
        train = encoded_task.views(episode)[0]
        folds = fold_rows(train.labels, episode.shots)
        self.val: View = ViewRows([train], torch.cat(folds))
        self._folds = [Trainer(config, encoded_task, episode, left_out=rows) for rows in folds]
        self._whole = Trainer(config, encoded_task, episode)

    @property
    def epoch(self) -> int:
        return self._whole.epoch

    @property
    def epochs(self) -> int:
        return self._whole.epochs

    def advancing(self) -> Sequence[Trainer]:
        return self._parts

    def run_epoch(self, validate: bool = True) -> dict[str, float]:
        """Train every model for an epoch; `train/*` is of the one on all images."""
        for fold in self._folds:
            fold.run_epoch(validate=False)
        metrics = self._whole.run_epoch(validate=False)
        return metrics | (self.validate() if validate else {})

    def validate(self) -> dict[str, float]:
        """Return `val/*` over all images, each classified by the model of its fold."""
        return validation_metrics(self.validation_logits(), self.val.labels)

    def validation_logits(self) -> Tensor:
        """Return logits [n, c], fold by fold."""
        return torch.cat([fold.validation_logits() for fold in self._folds])

    @property
    def is_idle(self) -> bool:
        return self._whole.is_idle

    def forecast(self) -> dict[str, float]:
        return self._whole.forecast()

    def warnings(self) -> list[str]:
        return self._whole.warnings()

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        return self._whole.artifact()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, records = numbered(part.state() for part in self._parts)
        return tensors, {"parts": records}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        stored = split_numbered(tensors, plain["parts"])
        for part, state in zip(self._parts, stored, strict=True):
            part.load_state(*state)

    @property
    def _parts(self) -> Sequence[Trainer]:
        return [*self._folds, self._whole]
