"""Stages: several methods in sequence, each trained on the backbone that the previous one changed.

A pipeline has the interface of a single training: epochs, a state, an artifact.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.core.tensor_file import numbered, split_numbered, under
from trainables.data.class_subsets import Half
from trainables.encoded_task import EncodedTask, Learned
from trainables.ensemble import Ensemble
from trainables.fixed import learned
from trainables.methods.base import Method, MethodError
from trainables.trainer import Trainer
from trainables.training import TrainedModel, Training
from trainables.trial import Episode, TrialConfig
from trainables.validation import pool_of
from trainables.view import View

_FORMAT = {"format": "pipeline", "format_version": "1"}


def open_training(
    config: TrialConfig, encoded_task: EncodedTask, episode: Episode, pool: Sequence[Episode] = ()
) -> Trainer | Pipeline | Ensemble:
    """Open the training of a trial on one episode, with the episode's own settings if it has any;
    `pool` as in `Trainer`.

    Raises `MethodError`, `DataError`, `BackboneError`.
    """
    config = config.for_episode(episode)
    if config.members:
        return Ensemble(config, encoded_task, episode, pool)
    if config.before:
        return Pipeline(config, encoded_task, episode, pool)
    return Trainer(config, encoded_task, episode, pool)


def first_stages(artifact: Learned, count: int) -> Learned:
    """The first `count` stages of a pipeline's artifact, as an artifact of these stages."""
    tensors, metadata = artifact
    stages = split_numbered(tensors, json.loads(metadata["stages"])[:count])
    if count == 1:
        return stages[0]
    kept, records = numbered(stages)
    return kept, _FORMAT | {"stages": json.dumps(records)}


class Pipeline(Training, TrainedModel):
    """Several stages in sequence, of which one is in memory; finished stages are kept as their
    artifacts and the backbone that they have changed."""

    def __init__(
        self,
        config: TrialConfig,
        encoded_task: EncodedTask,
        episode: Episode,
        pool: Sequence[Episode] = (),
    ) -> None:
        """Raises `MethodError`, `DataError`, `BackboneError`."""
        self.config, self.episode, self._pool = config, episode, pool
        own = encoded_task.views(episode)[1]
        self.val = pool_of(encoded_task, episode, pool).view if pool else own
        self._origin = self._task = encoded_task
        self._over: list[Learned] = []
        self._now: Trainer | None = None
        self._early: tuple[dict[str, float], list[str]] | None = None
        if not config.stages[0].fixed:  # a fixed stage is trained or loaded when it is needed
            self._open()

    @property
    def method(self) -> Method:
        return self._present().method

    @property
    def backbone(self) -> Backbone:
        return self._present().backbone

    @property
    def epoch(self) -> int:
        over = self.config.stages[: len(self._over)]
        return _epochs(over) + (self._now.epoch if self._now else 0)

    @property
    def epochs(self) -> int:
        return self.config.total_epochs

    def advancing(self) -> Sequence[Trainer]:
        return [self._present()]

    def run_epoch(self, validate: bool = True) -> dict[str, float]:
        """Train one epoch of the current stage; after a stage's last epoch the next one begins."""
        metrics = self._present().run_epoch(validate)
        last = self._present()
        if validate and last.epochs == 0:  # nothing to train: this is all it reports
            metrics |= last.validate()
        return metrics

    def validate(self) -> dict[str, float]:
        return self._present().validate()

    def logits(self, view: View) -> Tensor:
        return self._present().logits(self._task.reencode(view))

    @property
    def is_idle(self) -> bool:
        """Return False: a stage that changes nothing leaves the others to be trained."""
        return False

    def validation_logits(self) -> Tensor:
        return self._present().validation_logits()

    def forecast(self) -> dict[str, float]:
        """Return the forecast of the first stage that is trained."""
        self._present()
        return dict(self._early[0]) if self._early else {}

    def warnings(self) -> list[str]:
        """Return the warnings of the first stage that is trained."""
        self._present()
        return list(self._early[1]) if self._early else []

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the artifacts of all stages, tensors prefixed by the stage's number."""
        last = self._present().artifact()
        tensors, records = numbered([*self._over, last])
        return tensors, _FORMAT | {"stages": json.dumps(records)}

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        if {key: metadata.get(key) for key in _FORMAT} != _FORMAT:
            raise MethodError(
                f"a pipeline's artifact has the metadata {_FORMAT}, got {dict(metadata)}: "
                "load it with the configuration that it was trained with"
            )
        try:
            records = json.loads(metadata["stages"])
        except (KeyError, ValueError) as error:
            raise MethodError(
                f"the artifact's list of stages is unreadable ({error!r}): copy it again"
            ) from None
        if len(records) != len(self.config.stages):
            raise MethodError(
                f"the pipeline has {len(self.config.stages)} stages and the artifact "
                f"{len(records)}: load it with the configuration that it was trained with"
            )
        self._restore(tensors, records[:-1])
        last = self._open()
        last.load_artifact(under(tensors, f"{len(records) - 1}/"), records[-1])
        last.epoch = last.epochs

    def set_classes(self, dataset: str, half: Half) -> None:
        self._present().set_classes(dataset, half)

    @property
    def parameter_count(self) -> int:
        return self._present().parameter_count

    def progress(self) -> dict[str, float]:
        return self._present().progress()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the artifacts of finished stages, and the current stage's state."""
        tensors, records = numbered(self._over)
        if self._now is None:
            return tensors, {"before": records, "now": None}
        now, plain = self._now.state()
        tensors |= {f"now/{name}": tensor for name, tensor in now.items()}
        return tensors, {"before": records, "now": plain}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        self._restore(tensors, plain["before"])
        if plain["now"] is not None:
            self._open().load_state(under(tensors, "now/"), plain["now"])

    def _restore(self, tensors: Mapping[str, Tensor], records: list[dict[str, str]]) -> None:
        """Restore the point at which the stages of these artifacts are finished."""
        self._over, self._task, self._now = [], self._origin, None
        for artifact in split_numbered(tensors, records):
            stage = self._open()
            stage.load_artifact(*artifact)
            self._finish(stage)

    def _present(self) -> Trainer:
        """Return the first stage with something left to train, or the last one."""
        while True:
            config = self.config.stages[len(self._over)]
            if config.fixed and self._now is None:
                found, self._task = learned(config, self._task, self.episode)
                self._over.append(found)
                continue
            stage = self._now or self._open()
            if config is self.config or stage.epoch < stage.epochs:
                return stage
            self._finish(stage)

    def _open(self) -> Trainer:
        """Begin the next stage."""
        config = self.config.stages[len(self._over)]
        self._now = Trainer(config, self._task, self.episode, self._pool)
        if self._early is None and not config.fixed:
            self._early = self._now.forecast(), self._now.warnings()
        return self._now

    def _finish(self, stage: Trainer) -> None:
        """Keep a finished stage's artifact and the backbone that it has changed."""
        self._over.append(stage.artifact())
        self._task, self._now = stage.merged_backbone(), None


def _epochs(stages: Iterable[TrialConfig]) -> int:
    """Number of epochs of all stages that are trained."""
    return sum(stage.epochs for stage in stages if not stage.fixed)
