"""Methods one after another: each is trained before the backbone that the last one has changed.

A pipeline looks like a single training from outside: it has epochs, a state, an artifact.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.data.class_subsets import Half
from trainables.encoded_task import EncodedTask, Learned
from trainables.fixed import learned
from trainables.methods.base import Method, MethodError
from trainables.trainer import Trainer
from trainables.trial import Episode, TrialConfig
from trainables.view import View

_FORMAT = {"format": "pipeline", "format_version": "1"}


class Training(Protocol):
    """One trial on one cell, from its first epoch to its artifact; see `Trainer`."""

    config: TrialConfig
    episode: Episode
    val: View

    @property
    def method(self) -> Method:
        """The method, of the present stage."""

    @property
    def backbone(self) -> Backbone:
        """The one that it is trained on."""

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""

    @property
    def epochs(self) -> int:
        """Epochs until the end, of all stages."""

    def run_epoch(self) -> dict[str, float]:
        """See `Trainer`."""

    def validate(self) -> dict[str, float]:
        """See `Trainer`."""

    def logits(self, view: View) -> Tensor:
        """See `Trainer`."""

    def forecast(self) -> dict[str, float]:
        """See `Method`."""

    def warnings(self) -> list[str]:
        """See `Method`."""

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """See `Method`."""

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """See `Method`."""

    def set_classes(self, dataset: str, half: Half) -> None:
        """See `Trainer`."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Trainer`."""

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """See `Trainer`."""


def open_training(config: TrialConfig, bench: EncodedTask, episode: Episode) -> Training:
    """Training of a trial on one episode, with the episode's own settings if it has any.

    Raises `MethodError`, `DataError`, `BackboneError`.
    """
    config = config.for_episode(episode)
    return Pipeline(config, bench, episode) if config.before else Trainer(config, bench, episode)


def first_stages(artifact: Learned, count: int) -> Learned:
    """The first `count` stages of a pipeline's artifact, as an artifact of these stages."""
    tensors, metadata = artifact
    records = json.loads(metadata["stages"])[:count]
    if count == 1:
        return _under(tensors, "0/"), records[0]
    parts = [(_under(tensors, f"{i}/"), record) for i, record in enumerate(records)]
    return _numbered(parts)[0], _FORMAT | {"stages": json.dumps(records)}


class Pipeline:
    """Several stages, one of which is there at a time; implements `Training`.

    Of those that are over there is what they have learned, and the backbone that it has changed.
    """

    def __init__(self, config: TrialConfig, bench: EncodedTask, episode: Episode) -> None:
        """Raises `MethodError`, `DataError`, `BackboneError`."""
        self.config, self.episode = config, episode
        self.val = bench.views(episode)[1]
        self._origin = self._bench = bench
        self._over: list[Learned] = []
        self._now: Trainer | None = None
        self._said: tuple[dict[str, float], list[str]] | None = None
        if not config.stages[0].fixed:  # else it may have to be trained first: when it is needed
            self._open()

    @property
    def method(self) -> Method:
        """See `Training`."""
        return self._present().method

    @property
    def backbone(self) -> Backbone:
        """See `Training`."""
        return self._present().backbone

    @property
    def epoch(self) -> int:
        """See `Training`."""
        over = self.config.stages[: len(self._over)]
        return _epochs(over) + (self._now.epoch if self._now else 0)

    @property
    def epochs(self) -> int:
        """See `Training`."""
        return _epochs(self.config.stages)

    def run_epoch(self) -> dict[str, float]:
        """See `Trainer.run_epoch`; what a stage's last epoch has changed is what the next begins
        with."""
        metrics = self._present().run_epoch()
        last = self._present()
        if last.epochs == 0:  # nothing to train: this is its only word
            metrics |= last.validate()
        return metrics

    def validate(self) -> dict[str, float]:
        """See `Trainer.validate`, of the present stage."""
        return self._present().validate()

    def logits(self, view: View) -> Tensor:
        """See `Trainer.logits`, of the present stage."""
        return self._present().logits(self._bench.reencode(view))

    def forecast(self) -> dict[str, float]:
        """See `Method.forecast`, of the first stage that is trained."""
        self._present()
        return dict(self._said[0]) if self._said else {}

    def warnings(self) -> list[str]:
        """See `Method.warnings`, of the first stage that is trained."""
        self._present()
        return list(self._said[1]) if self._said else []

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The stages' artifacts, their tensors under the stage's number; at the end of all."""
        last = self._present().artifact()
        tensors, records = _numbered([*self._over, last])
        return tensors, _FORMAT | {"stages": json.dumps(records)}

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """The inverse; raises `MethodError`."""
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
        self._take_up(tensors, records[:-1])
        last = self._open()
        last.load_artifact(_under(tensors, f"{len(records) - 1}/"), records[-1])
        last.epoch = last.epochs

    def set_classes(self, dataset: str, half: Half) -> None:
        """See `Trainer.set_classes`, of the last stage."""
        self._present().set_classes(dataset, half)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the stages that are over have learned, and the present one's state."""
        tensors, records = _numbered(self._over)
        if self._now is None:
            return tensors, {"before": records, "now": None}
        now, plain = self._now.state()
        tensors |= {f"now/{name}": tensor for name, tensor in now.items()}
        return tensors, {"before": records, "now": plain}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from `state`, bit for bit."""
        self._take_up(tensors, plain["before"])
        if plain["now"] is not None:
            self._open().load_state(_under(tensors, "now/"), plain["now"])

    def _take_up(self, tensors: Mapping[str, Tensor], records: list[dict[str, str]]) -> None:
        """Be where the stages of these artifacts are over."""
        self._over, self._bench, self._now = [], self._origin, None
        for number, metadata in enumerate(records):
            stage = self._open()
            stage.load_artifact(_under(tensors, f"{number}/"), metadata)
            self._hand_over(stage)

    def _present(self) -> Trainer:
        """The first stage with something left to train, or the last one."""
        while True:
            config = self.config.stages[len(self._over)]
            if config.fixed and self._now is None:
                found, self._bench = learned(config, self._bench, self.episode)
                self._over.append(found)
                continue
            stage = self._now or self._open()
            if config is self.config or stage.epoch < stage.epochs:
                return stage
            self._hand_over(stage)

    def _open(self) -> Trainer:
        """Begin the stage that comes next."""
        config = self.config.stages[len(self._over)]
        self._now = Trainer(config, self._bench, self.episode)
        if self._said is None and not config.fixed:
            self._said = self._now.forecast(), self._now.warnings()
        return self._now

    def _hand_over(self, stage: Trainer) -> None:
        """The end of a stage."""
        self._over.append(stage.artifact())
        self._bench, self._now = stage.merged_backbone(), None


def _epochs(stages: Iterable[TrialConfig]) -> int:
    """Of those that are trained."""
    return sum(stage.epochs for stage in stages if not stage.fixed)


def _numbered(artifacts: Iterable[Learned]) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
    tensors: dict[str, Tensor] = {}
    records = []
    for number, (own, metadata) in enumerate(artifacts):
        tensors |= {f"{number}/{name}": tensor for name, tensor in own.items()}
        records.append(metadata)
    return tensors, records


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
