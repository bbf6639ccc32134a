"""Optimisers and learning-rate schedules; the defaults follow the framework Dassl."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Annotated, Literal, TypeVar

import torch
from torch import nn

from trainables.core.limits import (
    Limit,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ShareBelowOne,
    broken_limits,
)

Optimiser = Literal["adam", "adamw", "sgd"]
Decay = Literal["epoch", "step", "none"]
MAX_EPOCHS = 100_000
"""Most epochs: the learning rate of every step is computed before the first."""
Epochs = Annotated[int, Limit(f"in [1, {MAX_EPOCHS}]", lambda n: 1 <= n <= MAX_EPOCHS)]

_Kind = TypeVar("_Kind", bound=torch.optim.Optimizer)


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and batch size of a training."""

    lr: PositiveFloat
    """Base learning rate, the peak of the cosine."""
    epochs: Epochs
    """Passes over the few-shot training set; T, the length of the cosine."""
    batch_size: PositiveInt
    """Images per step; the last incomplete batch is dropped if there is a complete one."""
    weight_decay: NonNegativeFloat = 0.0
    """Coupled L2 penalty of Adam and SGD; decoupled in AdamW."""
    warmup_epochs: int = 0
    """w, the number of first epochs that run at `warmup_lr`."""
    warmup_lr: float = 1e-5
    """The constant learning rate of the warm-up."""
    optimiser: Optimiser = "adam"
    """`adam` or `adamw` with betas 0.9 and 0.999, or `sgd` with momentum."""
    momentum: ShareBelowOne = 0.9
    """Momentum of SGD; not used by Adam."""
    eps: PositiveFloat = 1e-8
    """Added to Adam's denominator; not used by SGD."""
    decay: Decay = "epoch"
    """When the cosine advances: every epoch (Dassl), every step, or never."""
    min_lr: float = 0.0
    """Final value of the cosine."""

    def problems(self) -> list[str]:
        """One message per broken rule, with value and fix; empty if there is none."""
        found = broken_limits(self, lr="2e-3", epochs=30, batch_size=32)
        if not 0 <= self.warmup_epochs <= self.epochs:
            found.append(
                f"warmup_epochs must be in [0, epochs] ({self.epochs}), got {self.warmup_epochs}"
            )
        if not self.min_lr >= 0 or 0 < self.lr < self.min_lr:
            found.append(f"min_lr must be in [0, lr] ({self.lr}), got {self.min_lr}: use 0")
        return found

    def lr_at(self, epoch: float) -> float:
        """Learning rate at `epoch`, from 0; a fraction is a position within an epoch.

        Constant during warm-up, then min_lr + (lr - min_lr) (1 + cos(pi (epoch - w) / T)) / 2. As
        in Dassl, the cosine starts after the warm-up with the full base rate and keeps T =
        `epochs`, so that it does not reach its end.
        """
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        if self.decay == "none":
            return self.lr
        phase = math.pi * (epoch - self.warmup_epochs) / self.epochs
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(phase)) / 2

    def steps_per_epoch(self, images: int) -> int:
        """floor(images / batch_size), or 1 if the whole set is smaller than a batch."""
        return max(1, images // self.batch_size)

    def learning_rates(self, images: int) -> tuple[float, ...]:
        """One learning rate per optimiser step of a training on `images` images."""
        steps = self.steps_per_epoch(images)
        if self.decay == "step":
            places = [step / steps for step in range(steps)]
            return tuple(self.lr_at(e + place) for e in range(self.epochs) for place in places)
        return tuple(chain.from_iterable(repeat(self.lr_at(e), steps) for e in range(self.epochs)))


def _uncompiled(kind: type[_Kind]) -> type[_Kind]:
    """The same optimiser without the decorators that keep `torch.compile` away from it: they import
    the compiler, which takes a second of every process, although nothing is compiled."""
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad", "step")
    plain = {name: torch.no_grad()(inspect.unwrap(getattr(kind, name))) for name in names}
    return type(kind.__name__, (kind,), plain)


SGD = _uncompiled(torch.optim.SGD)
Adam = _uncompiled(torch.optim.Adam)
AdamW = _uncompiled(torch.optim.AdamW)
LBFGS = _uncompiled(torch.optim.LBFGS)


def make_optimiser(
    parameters: Iterable[nn.Parameter], config: OptimConfig
) -> torch.optim.Optimizer:
    """A fused optimiser; the trainer sets its learning rate before every step."""
    tensors = list(parameters)
    if config.optimiser == "sgd":
        return SGD(
            tensors,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
    kind = Adam if config.optimiser == "adam" else AdamW
    return kind(
        tensors,
        lr=config.lr,
        betas=(0.9, 0.999),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
