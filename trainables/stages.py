"""Methods one after another: each is trained before the backbone that the last one has changed.

A pipeline looks like a single training from outside: it has epochs, a state, an artifact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from trainables.data.halves import Half
from trainables.methods.base import Method, MethodError
from trainables.trainer import Trainer
from trainables.trial import Cell, TrialConfig
from trainables.view import View
from trainables.workbench import Workbench

_FORMAT = {"format": "pipeline", "format_version": "1"}


class Training(Protocol):
    """One trial on one cell, from its first epoch to its artifact; see `Trainer`."""

    config: TrialConfig
    cell: Cell
    val: View

    @property
    def method(self) -> Method:
        """The method, of the present stage."""

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

    def transfer(self, dataset: str, half: Half) -> None:
        """See `Trainer`."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Trainer`."""

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """See `Trainer`."""


def open_training(config: TrialConfig, bench: Workbench, cell: Cell) -> Training:
    """A trial's training on one cell; raises `MethodError`, `DataError`, `BackboneError`."""
    return Pipeline(config, bench, cell) if config.before else Trainer(config, bench, cell)


class Pipeline:
    """Several stages; implements `Training`."""

    def __init__(self, config: TrialConfig, bench: Workbench, cell: Cell) -> None:
        """Raises `MethodError`, `DataError`, `BackboneError`."""
        self.config, self.cell = config, cell
        self.val = bench.views(cell)[1]
        self._bench = bench
        self._stages = [Trainer(config.stages[0], bench, cell)]

    @property
    def _last(self) -> Trainer:
        return self._stages[-1]

    @property
    def method(self) -> Method:
        """See `Training`."""
        return self._last.method

    @property
    def epoch(self) -> int:
        """See `Training`."""
        return sum(stage.epoch for stage in self._stages)

    @property
    def epochs(self) -> int:
        """See `Training`."""
        return sum(config.epochs for config in self.config.stages)

    def run_epoch(self) -> dict[str, float]:
        """See `Trainer.run_epoch`; what a stage's last epoch has changed is what the next begins
        with."""
        metrics = self._last.run_epoch()
        while self._last.epoch >= self._last.epochs and self._next():
            if self._last.epochs == 0:  # nothing to train: this is its only word
                metrics |= self.validate()
        return metrics

    def validate(self) -> dict[str, float]:
        """See `Trainer.validate`, of the present stage."""
        return self._last.validate()

    def logits(self, view: View) -> Tensor:
        """See `Trainer.logits`, of the present stage."""
        return self._last.logits(self._last.bench.see(view))

    def forecast(self) -> dict[str, float]:
        """See `Method.forecast`, of the present stage."""
        return self._last.forecast()

    def warnings(self) -> list[str]:
        """See `Method.warnings`, of the present stage."""
        return self._last.warnings()

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The stages' artifacts, their tensors under the stage's number."""
        tensors: dict[str, Tensor] = {}
        records = []
        for number, stage in enumerate(self._stages):
            own, metadata = stage.artifact()
            tensors |= {f"{number}/{name}": tensor for name, tensor in own.items()}
            records.append(metadata)
        return tensors, _FORMAT | {"stages": json.dumps(records)}

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """The inverse; raises `MethodError`."""
        if {key: metadata.get(key) for key in _FORMAT} != _FORMAT:
            raise MethodError(
                f"a pipeline's artifact has the metadata {_FORMAT}, got {dict(metadata)}: "
                "load it with the configuration that it was trained with"
            )
        records = json.loads(metadata.get("stages", "[]"))
        if len(records) != len(self.config.stages):
            raise MethodError(
                f"the pipeline has {len(self.config.stages)} stages and the artifact "
                f"{len(records)}: load it with the configuration that it was trained with"
            )
        self._load(tensors, records)

    def transfer(self, dataset: str, half: Half) -> None:
        """See `Trainer.transfer`, of the last stage."""
        self._last.transfer(dataset, half)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the stages before have learned, and the present one's state."""
        tensors, plain = self._last.state()
        tensors = {f"now/{name}": tensor for name, tensor in tensors.items()}
        records = []
        for number, stage in enumerate(self._stages[:-1]):
            own, metadata = stage.artifact()
            tensors |= {f"{number}/{name}": tensor for name, tensor in own.items()}
            records.append(metadata)
        return tensors, {"epoch": self.epoch, "before": records, "now": plain}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from `state`, bit for bit."""
        self._stages = self._stages[:1]
        self._load(tensors, plain["before"])
        if plain["before"]:
            self._next()
        self._last.load_state(_under(tensors, "now/"), plain["now"])

    def _load(self, tensors: Mapping[str, Tensor], records: list[dict[str, str]]) -> None:
        for number, metadata in enumerate(records):
            if number:
                self._next()
            stage = self._stages[number]
            stage.load_artifact(_under(tensors, f"{number}/"), metadata)
            stage.epoch = stage.epochs

    def _next(self) -> bool:
        """Open the stage after the present one, if there is one."""
        if len(self._stages) == len(self.config.stages):
            return False
        config = self.config.stages[len(self._stages)]
        self._stages.append(Trainer(config, self._last.tuned(), self.cell))
        return True


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
