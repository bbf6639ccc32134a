"""How far Adam can carry a mask score, known before training.

Notation: lr_t learning rates, m and v Adam's corrected moments, a_i and b_i their weights on past
gradients, gap = init - threshold.
"""

from __future__ import annotations

import math

from trainables.methods.base import Schedule


def flip_budget(schedule: Schedule, gap: float) -> float:
    """sum_t lr_t / gap: the distance a constant gradient carries a score, in gaps."""
    return math.fsum(schedule.learning_rates) / gap


def flip_bound(schedule: Schedule, gap: float) -> float:
    """The same for the worst gradient sequence there is: below 1, no bit can flip.

    Adam's step is lr_t |m| / sqrt(v) <= lr_t sqrt(sum_i a_i^2 / b_i) by Cauchy-Schwarz, with
    a_i = (1 - beta1) beta1^(t-i) / (1 - beta1^t) and b_i alike: a geometric sum in beta1^2/beta2.
    """
    beta1, beta2 = schedule.betas
    total, geometric, ratio = 0.0, 0.0, beta1 * beta1 / beta2
    for t, rate in enumerate(schedule.learning_rates, start=1):
        geometric = 1 + ratio * geometric
        first = (1 - beta1) / (1 - beta1**t)
        second = (1 - beta2) / (1 - beta2**t)
        total += rate * math.sqrt(first * first / second * geometric)
    return total / gap
