"""Stacks trainings with tensors of equal shapes, to take their steps together.

A step of a method on features is small, and most of its time is overhead between operations. The
draws, folds and data sets of a trial whose tensors have equal shapes therefore take their steps as
one training with stacked tensors. Each training keeps its own order of images, and every operation
is that of a single training, applied to each part of the stack: results differ at most by rounding.

Notation: k trainings, n training images of each, b batch size, d feature dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor, nn

from trainables.core.optim import make_optimiser
from trainables.methods.base import Batch
from trainables.methods.tensor_method import TensorMethod
from trainables.trainer import Trainer
from trainables.training import Training
from trainables.validation import stacked_validation_metrics

_LARGEST = 2**22
"""Trainings with more numbers in their features are not stacked: arithmetic dominates their time,
and a stack would only need more memory."""


class Lockstep:
    """Advances several trainings together, stacked if their shapes allow it.

    The stacks depend only on the trainings' configurations, data and epochs, so that a continued
    trial forms the same ones.
    """

    def __init__(self) -> None:
        self._trainers: tuple[Trainer, ...] = ()
        self._stacks: tuple[Stack, ...] = ()

    def run_epoch(self, trainings: Sequence[Training], validate: bool) -> list[dict[str, float]]:
        """Train an epoch of each; return the metrics of each, see `Training.run_epoch`."""
        trainers = tuple(trainer for training in trainings for trainer in training.advancing())
        if trainers != self._trainers:
            self._trainers, self._stacks = trainers, tuple(_stacks(trainers))
        alone = {id(training) for training in trainings}
        for stack in self._stacks:
            stack.run_epoch(validate and all(id(trainer) in alone for trainer in stack.trainers))
        return [training.run_epoch(validate) for training in trainings]


class Stack:
    """Trainers whose tensors are parts of stacked ones."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        """`trainers`: at least two with the same `_shape`."""
        self.trainers = tuple(trainers)
        self._method = _stacked([_tensor_method(trainer) for trainer in trainers])
        self._labels = torch.stack([trainer.train.labels for trainer in trainers])
        firsts = torch.arange(len(trainers), device=self._labels.device)[:, None]
        self._first_rows = firsts * self._labels.shape[1]
        self._features: Tensor | None = None
        self._optimiser = make_optimiser(
            self._method.trainable().values(), trainers[0].config.optim
        )
        self._stack_moments()
        self._rng = torch.Generator()  # a stackable method draws nothing

    def run_epoch(self, validate: bool) -> None:
        """Train an epoch of every trainer, and validate it if `validate` is set and the shapes
        allow it. The trainers' `run_epoch` then only returns the metrics."""
        first = self.trainers[0]
        steps = first.config.optim.steps_per_epoch(len(first.train))
        sums: dict[str, Tensor] = {}
        for batch, rate in zip(self._batches(steps), first.epoch_rates(), strict=True):
            for name, losses in self._method.follow(batch, self._rng).items():
                sums[name] = sums.get(name, 0.0) + losses.double()
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            self._optimiser.step()
        self._share_moments()
        columns = {name: total.div(steps).tolist() for name, total in sums.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        validated = self._validate() if validate else [None] * len(rows)
        for trainer, row, metrics in zip(self.trainers, rows, validated, strict=True):
            trainer.take_epoch(row, metrics)

    def _batches(self, steps: int) -> Iterator[Batch]:
        size = self.trainers[0].config.optim.batch_size
        features, labels = self._epoch_features(), self._labels.flatten()
        order = torch.stack([trainer.epoch_order() for trainer in self.trainers])
        order = order.to(labels.device) + self._first_rows
        for rows in order.split(size, dim=1)[:steps]:
            inputs = features.index_select(0, rows.flatten())
            yield Batch(inputs.unflatten(0, rows.shape), labels[rows])

    def _epoch_features(self) -> Tensor:
        """Features of all trainings, [k n, d]; kept if every epoch has the same."""
        if self._features is not None:
            return self._features
        features = torch.cat([trainer.epoch_features() for trainer in self.trainers])
        if self.trainers[0].config.crop_scale == 1:
            self._features = features
        return features

    @torch.no_grad()
    def _validate(self) -> Sequence[dict[str, float] | None]:
        views = [trainer.val for trainer in self.trainers]
        if len({len(view) for view in views}) > 1:
            return [None] * len(views)
        logits = self._method(torch.stack([view.features() for view in views]))
        labels = torch.stack([view.labels for view in views])
        return stacked_validation_metrics(logits, labels)

    def _stack_moments(self) -> None:
        """Copy the state of the trainers' optimisers, if they have taken steps."""
        for number, tensor in enumerate(self._method.trainable().values()):
            known = [trainer.moments(number) for trainer in self.trainers]
            for name in known[0]:
                own = [moments[name] for moments in known]
                stacked = own[0].clone() if name == "step" else torch.stack(own)
                self._optimiser.state[tensor][name] = stacked
        self._are_shared = False

    def _share_moments(self) -> None:
        """Make the moments of every trainer views of the stacked ones, which exist after the first
        step."""
        if self._are_shared:
            return
        self._are_shared = True
        for number, tensor in enumerate(self._method.trainable().values()):
            state = {k: v for k, v in self._optimiser.state[tensor].items() if v is not None}
            for place, trainer in enumerate(self.trainers):
                parts = {k: v if k == "step" else v[place] for k, v in state.items()}
                trainer.set_moments(number, parts)


def _stacks(trainers: Sequence[Trainer]) -> Iterator[Stack]:
    groups: dict[Hashable, list[Trainer]] = {}
    for trainer in trainers:
        if _is_stackable(trainer):
            groups.setdefault(_shape(trainer), []).append(trainer)
    return (Stack(group) for group in groups.values() if len(group) > 1)


def _is_stackable(trainer: Trainer) -> bool:
    method = trainer.method
    return (
        isinstance(method, TensorMethod)
        and method.stackable
        and not method.training_free
        and not trainer.is_idle
        and len(trainer.train) * trainer.backbone.feature_dim <= _LARGEST
    )


def _shape(trainer: Trainer) -> Hashable:
    """Return everything that the trainers of a stack must have in common."""
    method = trainer.method
    trainer.prepare()
    tensors = [*method.named_parameters(), *method.named_buffers()]
    shapes = tuple((name, *tensor.shape) for name, tensor in tensors)
    scalars = tuple(tensor.item() for _, tensor in method.named_buffers() if tensor.dim() == 0)
    config = trainer.config
    own = config.method, config.method_config, config.optim, config.crop_scale
    return own, trainer.epoch, len(trainer.train), shapes, scalars


def _tensor_method(trainer: Trainer) -> TensorMethod:
    assert isinstance(trainer.method, TensorMethod)
    return trainer.method


def _stacked(methods: Sequence[TensorMethod]) -> TensorMethod:
    """Return a method with the stacked tensors of several, whose tensors become views of them."""
    stacked = copy.copy(methods[0])
    parameters: dict[str, nn.Parameter] = {}
    for name, _ in methods[0].named_parameters():
        own = [method.get_parameter(name) for method in methods]
        parameters[name] = nn.Parameter(torch.stack([tensor.data for tensor in own]))
        for tensor, part in zip(own, parameters[name].data, strict=True):
            tensor.data = part
    buffers: dict[str, Tensor] = {}
    for name, buffer in methods[0].named_buffers():
        own_buffers = [method.get_buffer(name) for method in methods]
        same = all(torch.equal(buffer, other) for other in own_buffers)
        buffers[name] = buffer if same else torch.stack(own_buffers)
    vars(stacked).update(_parameters=parameters, _buffers=buffers)
    return stacked
