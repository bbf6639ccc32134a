"""Ensembles: several trained methods whose weighted logits are added.

An ensemble has the interface of a single training. Members that are linear in the same features
fold into one linear classifier, at the price of one model.

Notation: b images, n of them, c classes, w_k the members' weights, z_k their logits [b, c].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones.base import Backbone
from trainables.core.tensor_file import numbered, split_numbered
from trainables.data.class_subsets import Half
from trainables.encoded_task import EncodedTask
from trainables.methods.base import Head, Method, MethodError, Predictor
from trainables.trainer import Trainer
from trainables.training import TrainedModel, Training
from trainables.trial import Episode, TrialConfig
from trainables.validation import validation_metrics
from trainables.view import View

_FORMAT = {"format": "ensemble", "format_version": "1"}
_FEATURES = 8192  # rows per forward pass


class LogitSum(Predictor):
    """logits = sum_k w_k z_k of trained methods on the same features.

    The softmax of the sum is that of the members' weighted log-probabilities.
    """

    input_kind = "features"

    def __init__(self, methods: Sequence[Method], weights: Sequence[float]) -> None:
        super().__init__()
        self.methods, self.weights = nn.ModuleList(methods), tuple(weights)

    @torch.no_grad()
    def linear_head(self) -> Head | None:
        """The weighted sum of the members' heads; None if a member has none or moves the
        features."""
        heads = [method.linear_head() for method in self._members]
        plain = [head for head in heads if head is not None and head.offset is None]
        if len(plain) < len(heads):
            return None
        weight, bias = torch.zeros_like(plain[0].weight), torch.zeros_like(plain[0].weight[:, 0])
        for share, head in zip(self.weights, plain, strict=True):
            weight += share * head.weight
            bias += 0 if head.bias is None else share * head.bias
        return Head(weight, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        parts = [w * method(inputs) for w, method in zip(self.weights, self._members, strict=True)]
        return torch.stack(parts).sum(0)

    @property
    def _members(self) -> list[Method]:
        return list(self.methods)  # type: ignore[arg-type]


class Ensemble(Training, TrainedModel):
    """The members' trainings on one episode, one after the other."""

    def __init__(
        self,
        config: TrialConfig,
        encoded_task: EncodedTask,
        episode: Episode,
        pool: Sequence[Episode] = (),
    ) -> None:
        """Raises `MethodError`, `DataError`, `BackboneError`."""
        self.config, self.episode = config, episode
        self._parts = [Trainer(m.config, encoded_task, episode, pool) for m in config.members]
        self.val = self._parts[0].val

    @property
    def method(self) -> LogitSum:
        """The members as one method."""
        for part in self._parts:
            part.prepare()
        weights = [member.weight for member in self.config.members]
        return LogitSum([part.method for part in self._parts], weights)

    @property
    def backbone(self) -> Backbone:
        return self._parts[0].backbone

    @property
    def epoch(self) -> int:
        return sum(part.epoch for part in self._parts)

    @property
    def epochs(self) -> int:
        return sum(part.epochs for part in self._parts)

    def advancing(self) -> Sequence[Trainer]:
        return [next(part for part in self._parts if part.epoch < part.epochs)]

    def run_epoch(self, validate: bool = True) -> dict[str, float]:
        """Train an epoch of the first member that is not trained to its end."""
        (part,) = self.advancing()
        metrics = part.run_epoch(validate=False)
        return metrics | (self.validate() if validate else {})

    def validate(self) -> dict[str, float]:
        return validation_metrics(self.logits(self.val), self.val.labels)

    @torch.no_grad()
    def logits(self, view: View) -> Tensor:
        method = self.method
        head = method.linear_head()
        rows = view.features().split(_FEATURES)
        if head is None:
            return torch.cat([method(part) for part in rows])
        units = (functional.normalize(part, dim=-1) for part in rows)
        return torch.cat([functional.linear(unit, head.weight, head.bias) for unit in units])

    def validation_logits(self) -> Tensor:
        return self.logits(self.val)

    @property
    def is_idle(self) -> bool:
        return all(part.is_idle for part in self._parts)

    def forecast(self) -> dict[str, float]:
        """Return nothing: each member has its own."""
        return {}

    def warnings(self) -> list[str]:
        return list(dict.fromkeys(text for part in self._parts for text in part.warnings()))

    def artifact(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the members' artifacts, tensors prefixed by the member's number."""
        tensors, records = numbered(part.artifact() for part in self._parts)
        return tensors, _FORMAT | {"members": json.dumps(records)}

    def load_artifact(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        try:
            records = json.loads(metadata["members"])
        except (KeyError, ValueError):
            records = []
        if metadata.get("format") != _FORMAT["format"] or len(records) != len(self._parts):
            raise MethodError(
                f"an ensemble's artifact must have {len(self._parts)} members, got "
                f"{len(records)}: load it with the configuration that it was trained with"
            )
        stored = split_numbered(tensors, records)
        for part, artifact in zip(self._parts, stored, strict=True):
            part.load_artifact(*artifact)
            part.epoch = part.epochs

    def set_classes(self, dataset: str, half: Half) -> None:
        for part in self._parts:
            part.set_classes(dataset, half)

    @property
    def parameter_count(self) -> int:
        return sum(part.parameter_count for part in self._parts)

    def progress(self) -> dict[str, float]:
        """Return nothing: each member has its own."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the states of all members, tensors prefixed by the member's number."""
        tensors, records = numbered(part.state() for part in self._parts)
        return tensors, {"members": records}

    def load_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        stored = split_numbered(tensors, plain["members"])
        for part, state in zip(self._parts, stored, strict=True):
            part.load_state(*state)
