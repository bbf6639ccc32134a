"""Optimiser and learning-rate schedule, as the reference code runs them (Dassl's rules)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """How long and how fast a method trains."""

    lr: float
    """Base learning rate of Adam, the cosine's peak."""
    epochs: int
    """Passes over the few-shot training set, the cosine's length T."""
    batch_size: int
    """Images a step; the last incomplete batch is dropped where one complete batch exists."""
    weight_decay: float = 0.0
    """Adam's coupled L2 penalty (not AdamW's)."""
    warmup_epochs: int = 0
    """First epochs run at the constant `warmup_lr`."""
    warmup_lr: float = 1e-5
    """The constant learning rate of the warm-up."""

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
        return found

    def lr_at(self, epoch: int) -> float:
        """Learning rate of `epoch` (from 0).

        Constant during warm-up, then lr (1 + cos(pi (e - w) / T)) / 2: the reference scheduler
        counts the cosine anew after the w warm-up epochs and keeps T = `epochs`, so that it starts
        at the full base rate and never reaches zero.
        """
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        phase = math.pi * (epoch - self.warmup_epochs) / self.epochs
        return self.lr * (1 + math.cos(phase)) / 2

    def steps_per_epoch(self, images: int) -> int:
        """floor(n / B), or 1 where the whole set is smaller than a batch."""
        return max(1, images // self.batch_size)

    def learning_rates(self, images: int) -> tuple[float, ...]:
        """One learning rate per optimiser step of the whole training on `images` images."""
        steps = self.steps_per_epoch(images)
        return tuple(self.lr_at(e) for e in range(self.epochs) for _ in range(steps))


def adam(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Adam:
    """Adam (betas 0.9, 0.999; eps 1e-8) as both papers use it, all of a step in one pass over the
    tensors; its rate is set each epoch."""
    return torch.optim.Adam(
        list(parameters),
        lr=config.lr,
        betas=(0.9, 0.999),
        weight_decay=config.weight_decay,
        fused=True,
    )
