"""Optimisers and learning-rate schedules of the field; the defaults are Dassl's rules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

Optimiser = Literal["adam", "adamw", "sgd"]
Decay = Literal["epoch", "step", "none"]


@dataclass(frozen=True)
class OptimConfig:
    """How long and how fast a method trains."""

    lr: float
    """Base learning rate, the cosine's peak."""
    epochs: int
    """Passes over the few-shot training set, the cosine's length T."""
    batch_size: int
    """Images a step; the last incomplete batch is dropped where one complete batch exists."""
    weight_decay: float = 0.0
    """Coupled L2 penalty of Adam and SGD; decoupled in AdamW."""
    warmup_epochs: int = 0
    """First epochs run at the constant `warmup_lr`."""
    warmup_lr: float = 1e-5
    """The constant learning rate of the warm-up."""
    optimiser: Optimiser = "adam"
    """`adam` and `adamw` with betas 0.9 and 0.999, `sgd` with momentum."""
    momentum: float = 0.9
    """Of SGD; Adam has none."""
    eps: float = 1e-8
    """Added to Adam's denominator; SGD has none."""
    decay: Decay = "epoch"
    """When the cosine moves: once an epoch (Dassl), at every step, or never."""
    min_lr: float = 0.0
    """Where the cosine ends."""

    def problems(self) -> list[str]:
        """Every broken rule, with value and remedy; empty when all is well."""
        found = []
        if not (math.isfinite(self.lr) and self.lr > 0):
            found.append(f"lr must be positive and finite, got {self.lr}: use e.g. 2e-3")
        if self.epochs < 1:
            found.append(f"epochs must be at least 1, got {self.epochs}: use e.g. 30")
        if self.batch_size < 1:
            found.append(f"batch_size must be at least 1, got {self.batch_size}: use e.g. 32")
        if self.weight_decay < 0:
            found.append(f"weight_decay must not be negative, got {self.weight_decay}: use 0")
        if not 0 <= self.warmup_epochs <= self.epochs:
            found.append(
                f"warmup_epochs must lie in 0..epochs ({self.epochs}), got {self.warmup_epochs}"
            )
        for name, kind in (("optimiser", Optimiser), ("decay", Decay)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                found.append(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not 0 <= self.momentum < 1:
            found.append(f"momentum must lie in 0..1, below 1, got {self.momentum}: use 0.9")
        if not (math.isfinite(self.eps) and self.eps > 0):
            found.append(f"eps must be positive and finite, got {self.eps}: use 1e-8")
        if not self.min_lr >= 0 or 0 < self.lr < self.min_lr:
            found.append(f"min_lr must lie in 0..lr ({self.lr}), got {self.min_lr}: use 0")
        return found

    def lr_at(self, epoch: float) -> float:
        """Learning rate of `epoch` (from 0; a fraction is a place within it).

        Constant during warm-up, then min + (lr - min) (1 + cos(pi (e - w) / T)) / 2: the reference
        scheduler counts the cosine anew after the w warm-up epochs and keeps T = `epochs`, so that
        it starts at the full base rate and never reaches its end.
        """
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        if self.decay == "none":
            return self.lr
        phase = math.pi * (epoch - self.warmup_epochs) / self.epochs
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(phase)) / 2

    def steps_per_epoch(self, images: int) -> int:
        """floor(n / B), or 1 where the whole set is smaller than a batch."""
        return max(1, images // self.batch_size)

    def learning_rates(self, images: int) -> tuple[float, ...]:
        """One learning rate per optimiser step of the whole training on `images` images."""
        steps = self.steps_per_epoch(images)
        places = [step / steps if self.decay == "step" else 0.0 for step in range(steps)]
        return tuple(self.lr_at(e + place) for e in range(self.epochs) for place in places)


def make_optimiser(
    parameters: Iterable[nn.Parameter], config: OptimConfig
) -> torch.optim.Optimizer:
    """All tensors of a step in one pass over them; its rate is set before each step."""
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
