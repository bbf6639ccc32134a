"""Optimisers and learning-rate schedules; the defaults follow the framework Dassl."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

Optimiser = Literal["adam", "adamw", "sgd"]
Decay = Literal["epoch", "step", "none"]
MAX_EPOCHS = 100_000
"""Most epochs: the learning rate of every step is computed before the first."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and batch size of a training."""

    lr: float
    """Base learning rate, the peak of the cosine."""
    epochs: int
    """Passes over the few-shot training set; T, the length of the cosine."""
    batch_size: int
    """Images per step; the last incomplete batch is dropped if there is a complete one."""
    weight_decay: float = 0.0
    """Coupled L2 penalty of Adam and SGD; decoupled in AdamW."""
    warmup_epochs: int = 0
    """w, the number of first epochs that run at `warmup_lr`."""
    warmup_lr: float = 1e-5
    """The constant learning rate of the warm-up."""
    optimiser: Optimiser = "adam"
    """`adam` or `adamw` with betas 0.9 and 0.999, or `sgd` with momentum."""
    momentum: float = 0.9
    """Momentum of SGD; not used by Adam."""
    eps: float = 1e-8
    """Added to Adam's denominator; not used by SGD."""
    decay: Decay = "epoch"
    """When the cosine advances: every epoch (Dassl), every step, or never."""
    min_lr: float = 0.0
    """Final value of the cosine."""

    def problems(self) -> list[str]:
        """One message per broken rule, with value and fix; empty if there is none."""
        found = []
        if not (math.isfinite(self.lr) and self.lr > 0):
            found.append(f"lr must be positive and finite, got {self.lr}: use e.g. 2e-3")
        if not 1 <= self.epochs <= MAX_EPOCHS:
            bound = "at least 1" if self.epochs < 1 else f"at most {MAX_EPOCHS}"
            found.append(f"epochs must be {bound}, got {self.epochs}: use e.g. 30")
        if self.batch_size < 1:
            found.append(f"batch_size must be at least 1, got {self.batch_size}: use e.g. 32")
        if self.weight_decay < 0:
            found.append(f"weight_decay must not be negative, got {self.weight_decay}: use 0")
        if not 0 <= self.warmup_epochs <= self.epochs:
            found.append(
                f"warmup_epochs must be in [0, epochs] ({self.epochs}), got {self.warmup_epochs}"
            )
        for name, kind in (("optimiser", Optimiser), ("decay", Decay)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                found.append(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not 0 <= self.momentum < 1:
            found.append(f"momentum must be in [0, 1), got {self.momentum}: use 0.9")
        if not (math.isfinite(self.eps) and self.eps > 0):
            found.append(f"eps must be positive and finite, got {self.eps}: use 1e-8")
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
        places = [step / steps if self.decay == "step" else 0.0 for step in range(steps)]
        return tuple(self.lr_at(e + place) for e in range(self.epochs) for place in places)


def make_optimiser(
    parameters: Iterable[nn.Parameter], config: OptimConfig
) -> torch.optim.Optimizer:
    """A fused optimiser; the trainer sets its learning rate before every step."""
    tensors = list(parameters)
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            tensors,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    return kind(
        tensors,
        lr=config.lr,
        betas=(0.9, 0.999),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
